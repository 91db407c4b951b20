"""`acdc certify` and `acdc verify`: what can be proved of a circuit, and whether a certificate holds."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from acdc.cli import terminal
from acdc.cli.again import as_found
from acdc.cli.neurons import say_unused
from acdc.cli.options import Device, Dtype, Force, Json, Memory, Run, Trust
from acdc.errors import AcdcError


def certify(
    run: Run,
    strength: Annotated[
        str, typer.Option(help="Minimality to try for: local, pairs, subset or cardinal.")
    ] = "local",
    enumerate: Annotated[
        bool,
        typer.Option("--enumerate", help="Prove it on all pairs of inputs of a program, in up to a million runs."),
    ] = False,
    stable: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="PROMPTS", help="Which edges stay, by vote of subsamples, if any so many prompts change."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="Ranking for --stable: eap or eap-ig.")] = "eap-ig",
    budget: Annotated[
        float | None, typer.Option(help="Largest distance from the full model; otherwise that of the search.")
    ] = None,
    memory: Memory = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    trust_remote_code: Trust = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure what can be claimed of a circuit, and write it to certificate.json beside it.

    Example: acdc certify runs/reverse --strength pairs --enumerate
    """
    with terminal.quiet_libraries():
        from acdc.certificates import record
        from acdc.certificates.certify import certify as measure

        folder = record.folder_of(run)
        if (folder / record.NAME).exists() and not force:
            raise AcdcError(f"{folder / record.NAME} exists: replace it with --force")
        circuit, subject, recipe = as_found(
            run, memory=memory, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
        say_unused(run)
        with terminal.progress_bar() as progress:
            certificate = measure(
                subject, recipe, circuit, strength=strength, enumerate=enumerate,  # type: ignore[arg-type]
                stable=stable, method=method, budget=budget, memory=memory, progress=progress,
            )  # fmt: skip
        path = record.write(certificate, folder)
    if json:
        terminal.print_json(certificate.model_dump(mode="json"))
        return
    terminal.print_facts([*(("claim", claim) for claim in certificate.claims()), ("certificate", str(path))])


def verify(
    run: Run,
    memory: Memory = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Check a circuit's certificate, without searching: files, weights, prompts, and the claims measured again.

    Example: acdc verify runs/reverse
    """
    started = time.perf_counter()
    with terminal.quiet_libraries():
        from acdc.certificates import record
        from acdc.certificates.verify import verify as measure_again

        certificate = record.load(record.folder_of(run))
        circuit, subject, recipe = as_found(
            run, memory=memory, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
        with terminal.progress_bar() as progress:
            found = measure_again(subject, recipe, circuit, certificate, memory=memory, progress=progress)
        seconds = time.perf_counter() - started
    if json:
        terminal.print_json({"holds": True, "checked": found.checked, "told": found.told, "seconds": seconds})
        return
    terminal.print_facts(
        [
            ("verdict", "the certificate holds"),
            *(("checked", text) for text in found.checked),
            *(("not run again", text) for text in found.told),
            ("seconds", f"{seconds:.3g}"),
        ]
    )
