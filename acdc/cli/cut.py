"""`acdc cut`: another size of circuit from a run."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from acdc.cli import neurons as cli_neurons
from acdc.cli import processes, report, terminal
from acdc.cli.again import as_found
from acdc.cli.folder import write_run
from acdc.cli.options import (
    OUTPUT,
    AggregateName,
    BatchSize,
    Device,
    Dtype,
    Force,
    Json,
    Memory,
    RandomCircuits,
    Run,
    SelectRule,
    Trust,
    command_digest,
)
from acdc.errors import AcdcError


def cut(
    context: typer.Context,
    run: Run,
    edges: Annotated[
        int | None, typer.Option(min=1, help="Keep this many edges; of a ranking of nodes, so many nodes.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Of a ranking, edges that score more; of a search, a larger budget.")
    ] = None,
    faithfulness: Annotated[
        float | None, typer.Option(help="The fewest edges that are so faithful; of a search, less than before.")
    ] = None,
    select: SelectRule = "top",
    aggregate: AggregateName = None,
    *,
    random_circuits: RandomCircuits = 10,
    batch_size: BatchSize = None,
    memory: Memory = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    trust_remote_code: Trust = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="Folder to write; otherwise RUN-AMOUNT, beside the run.", rich_help_panel=OUTPUT
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Another size of circuit from a run, without scoring or searching from the beginning.

    Example: acdc cut runs/ioi --faithfulness 0.8 -o runs/ioi-80
    """
    started = time.perf_counter()
    with terminal.quiet_libraries(), contextlib.ExitStack() as held:
        import acdc
        from acdc.methods import Target
        from acdc.store.resume import ResumeFile, spent_before

        amounts = Target(edges=edges, threshold=threshold, faithfulness=faithfulness).given
        if not amounts:
            raise AcdcError("say how much to keep: --edges, --threshold or --faithfulness")
        (amount,) = amounts.values()
        default = run.with_name(f"{run.resolve().name}-{amount:g}")
        team, device = processes.join(device)
        claim = held.enter_context(
            processes.claimed(team, out, default=default, command=command_digest(context), force=force)
        )
        held.enter_context(terminal.going_on(claim.progress))
        since = started - spent_before(claim.progress).seconds
        circuit, subject, recipe = as_found(
            run, memory=memory, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
        cli_neurons.say_unused(run)
        data = recipe.prepare(subject)
        for warning in data.warnings:
            terminal.warn(warning)
        with terminal.progress_bar() as progress:
            circuit = acdc.cut(
                subject, data, circuit, edges=edges, threshold=threshold, faithfulness=faithfulness, select=select,
                aggregate=aggregate,  # type: ignore[arg-type]
                batch_size=batch_size, memory=memory, progress=progress,
                resume=ResumeFile(claim.progress, stays=True),
            )  # fmt: skip
            evaluation = acdc.evaluate(
                subject, data, circuit, batch_size=batch_size, memory=memory, random_circuits=random_circuits,
                seed=data.seed, progress=progress,
            )  # fmt: skip
            if team.rank:
                return
            held.enter_context(acdc.alone())
        made = circuit.provenance.having(command=("acdc", *sys.argv[1:]))
        circuit = dataclasses.replace(circuit, provenance=made)
        with claim.whole() as place:
            circuit, picture, measured = write_run(place, circuit, evaluation, data, since=since)
        folder = claim.folder
    report.show_note(picture)
    files = {"folder": str(folder), "picture": str(folder / "circuit.svg")}
    if json:
        terminal.print_json(report.record(circuit) | measured | files)
        return
    report.show_edges(circuit)
    report.show_evaluation(evaluation, {"seconds": f"{measured['seconds']:.3g}"} | files)
