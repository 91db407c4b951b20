"""`acdc view`: the interactive page of a run, opened in the browser; `acdc draw --format html` writes the same page."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acdc.cli import neurons as cli_neurons
from acdc.cli import terminal
from acdc.cli.again import load_again, nearby, placed, task_again
from acdc.cli.exchange import has_positions
from acdc.cli.options import (
    MODEL,
    OUTPUT,
    BatchSize,
    Device,
    Dtype,
    Force,
    Json,
    Memory,
    RolesFile,
    Run,
    Trust,
    load_model,
    load_task,
    roles_of,
)
from acdc.errors import AcdcError

if TYPE_CHECKING:
    from collections.abc import Callable

    from acdc.circuit import Circuit
    from acdc.graph import BoolArray
    from acdc.viz.page import Findings, Page

SHOWN = "What is shown"


def view(
    run: Run,
    compare: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="Another run to compare with; may be repeated.", rich_help_panel=SHOWN),
    ] = None,
    prompts: Annotated[
        int, typer.Option(min=0, help="Example prompts, for attention and logit lens.", rich_help_panel=SHOWN)
    ] = 4,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="Circuit sizes to measure faithfulness at, like 10,100,1000, or none; otherwise 1, 2, 5, 10, … up "
            "to all edges. A run each.",
            rich_help_panel=SHOWN,
        ),
    ] = None,
    effects: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Remove at most so many edges one by one, a run each; otherwise 200, or fewer for a large model on a "
            "CPU.",
            rich_help_panel=SHOWN,
        ),
    ] = None,
    roles: RolesFile = None,
    no_model: Annotated[
        bool,
        typer.Option("--no-model", help="Show what is in the run, and measure nothing.", rich_help_panel=MODEL),
    ] = False,
    batch_size: BatchSize = None,
    memory: Memory = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    trust_remote_code: Trust = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FILE", help="File to write; otherwise RUN/circuit.html.", rich_help_panel=OUTPUT
        ),
    ] = None,
    force: Force = False,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Write the page, and open no browser.", rich_help_panel=OUTPUT)
    ] = False,
    json: Json = False,
) -> None:
    """Explore a circuit in the browser: one page that needs no network.

    Example: acdc view runs/ioi --compare runs/ioi-acdc
    """
    if has_positions(run):
        if compare:
            raise AcdcError("a circuit with positions has a page of its own: leave out --compare")
        path = out or run.with_suffix(".html")
    else:
        if not run.exists():
            from acdc.circuit import Circuit

            Circuit.load(run)  # says what is missing, before anything does of the page
        path = out or _place(run)
    own = None if out else b'<meta name="generator" content="acdc">'
    replace = terminal.check_new_file(path, force=force, own=own)
    if has_positions(run):
        page = _positional(
            run, path, roles, no_model=no_model, replace=replace, device=device, dtype=dtype,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
    else:
        page = write(
        run, path, replace=replace, compare=compare or [], prompts=prompts, sizes=_sizes(sizes), effects=effects,
        roles=roles, no_model=no_model, batch_size=batch_size, memory=memory, device=device, dtype=dtype,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    assert page.path is not None
    if json:
        terminal.print_json({"page": str(page.path), "notes": list(page.notes)})
    else:
        terminal.print_line(page.path)
    if not (no_open or json) and not webbrowser.open(page.path.absolute().as_uri()):
        terminal.say("note", "no browser was found: open the file in one", "bold")


def _positional(
    run: Path, path: Path, roles: Path | None, *, no_model: bool, replace: bool, **loading: Any
) -> Page:
    """The page of a circuit with positions, with the tokens of its first prompt if the model can be had."""
    with terminal.quiet_libraries():
        from acdc.tracing import PositionalCircuit, example_tokens
        from acdc.viz.page import write_positional_page

        circuit = PositionalCircuit.load(run)
        tokens = None
        if not no_model:
            try:
                model = load_model(nearby(run, circuit.model), **loading)
                task = load_task(nearby(run, circuit.task), {}, seed=circuit.seed)
                tokens = example_tokens(model, task, circuit)
            except (AcdcError, OSError) as error:
                terminal.warn(f"the page goes without tokens, which need the model: {' '.join(str(error).split())}")
        given = None if roles is None else roles_of(roles, circuit.graph)
        return write_positional_page(circuit, path, tokens=tokens, roles=given, replace=replace)


def write(
    run: Path,
    path: Path,
    *,
    replace: bool = True,
    compare: list[Path] | tuple[Path, ...] = (),
    prompts: int = 4,
    sizes: list[int] | None = None,
    effects: int | None = None,
    roles: Path | None = None,
    no_model: bool = False,
    batch_size: int | None = None,
    memory: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> Page:
    """The page of a run, written to a file; without what needs the model if that cannot be had."""
    with terminal.quiet_libraries():
        from acdc.viz.page import Findings, check_graphs, write_page

        circuits = _circuits([run, *compare])
        check_graphs(circuits)
        first = next(iter(circuits.values()))
        given = None if roles is None else roles_of(roles, first.graph)
        if no_model:
            found, truth = Findings(notes=("Made without the model, so nothing was measured for it.",)), None
        else:
            cli_neurons.say_unused(run)
            try:
                found, truth = _investigate(
                    run, circuits, prompts=prompts, sizes=sizes, effects=effects, batch_size=batch_size, memory=memory,
                    device=device, dtype=dtype, trust_remote_code=trust_remote_code,
                )  # fmt: skip
            except (AcdcError, OSError) as error:
                if isinstance(error, _BadRequest):
                    raise
                reason = " ".join(str(error).split())
                terminal.warn(f"the page goes without what needs the model: {reason}")
                note = f"Without curves, effects, attention and logit lens, which need the model: {reason}"
                found, truth = Findings(notes=(note,)), None
        inside = cli_neurons.beside(run, first)
        if inside and not no_model:
            line = (
                "Neurons that stay are marked; what was measured is of the circuit with all neurons of its nodes."
            )
            found = dataclasses.replace(found, notes=(*found.notes, line))
        return write_page(circuits, path, findings=found, truth=truth, roles=given, replace=replace, neurons=inside)


class _BadRequest(AcdcError):
    """What the user asked for cannot be; not the model's fault."""


def _circuits(runs: list[Path]) -> dict[str, Circuit]:
    """The circuits by a short name: method, or method and folder where that is not enough to tell them apart."""
    from acdc.circuit import Circuit

    loaded = [Circuit.load(run) for run in runs]
    methods = [circuit.provenance.method or "circuit" for circuit in loaded]
    names = [m if methods.count(m) == 1 else f"{m} ({run.name})" for m, run in zip(methods, runs, strict=True)]
    for i, name in enumerate(names):
        if name in names[:i]:
            names[i] = f"{name} {i + 1}"
    return dict(zip(names, loaded, strict=True))


def _investigate(
    run: Path,
    circuits: dict[str, Circuit],
    *,
    prompts: int,
    sizes: list[int] | None,
    effects: int | None,
    batch_size: int | None,
    memory: str | None,
    device: str,
    dtype: str,
    trust_remote_code: bool,
) -> tuple[Findings, BoolArray | None]:
    """Measurements on the first circuit's task, and the true circuit if it is known."""
    from acdc.engine.belonging import changes
    from acdc.viz.page import investigate

    first = next(iter(circuits.values()))
    made = first.provenance
    if sizes is not None and any(size > first.graph.n_edges for size in sizes):
        raise _BadRequest(f"expected sizes of at most {first.graph.n_edges}, the edges there are, got {max(sizes)}")
    at_hand = placed(run, made)
    recipe = task_again(at_hand, memory=memory)
    model = load_again(at_hand, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    data = recipe.prepare(model)
    same = {name: c for name, c in circuits.items() if (c.provenance.model, c.graph) == (made.model, first.graph)}
    others = [name for name in circuits if name not in same]
    said = _differences(same, lambda circuit: changes(circuit.provenance, model, data))
    for line in said:
        terminal.warn(line)
    with terminal.progress_bar() as progress:
        found = investigate(
            model,
            data,
            same,
            sizes=sizes,
            effects=effects,
            examples=prompts,
            batch_size=batch_size,
            memory=memory,
            progress=progress,
        )
    notes = [f"{line[0].upper()}{line[1:]}." for line in said]
    notes += [f"Nothing was measured for {name}, which is of another model." for name in others]
    truth = None if data.truth is None else data.truth.mask(first.graph)
    return dataclasses.replace(found, notes=(*notes, *found.notes)), truth


def _differences(circuits: dict[str, Circuit], changes: Callable[[Circuit], dict[str, str]]) -> list[str]:
    """How the page's model, prompts and question differ from those that its circuits were found with."""
    (first_name, first), *others = circuits.items()
    lines = list(changes(first).values())
    for name, circuit in others:
        made = circuit.provenance
        if made.question() == first.provenance.question():
            lines += [f"of {name}: {line}" for line in changes(circuit).values()]
        else:
            lines.append(
                f"{name} was found for {made.task} by {made.metric} under {made.ablation} ablation: its numbers "
                f"here are measured as those of {first_name}"
            )
    return lines


def _sizes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    if text.strip() == "none":
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise AcdcError(f"expected comma-separated numbers of edges, like 10,100,1000, or none, got {text!r}")
    return [int(part) for part in parts]


def _place(run: Path) -> Path:
    """A file in the run's folder, or in a temporary one if nothing can be written there."""
    folder = run.parent if run.is_file() else run
    if os.access(folder, os.W_OK) or not folder.exists():
        return folder / "circuit.html"
    return Path(tempfile.mkdtemp(prefix="acdc-")) / "circuit.html"
