"""`acdc draw`: a circuit as a picture, its edges marked as true, false and missed where the truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from acdc.cli import neurons as cli_neurons
from acdc.cli import report, terminal
from acdc.cli import view as cli_view
from acdc.cli.again import load_again, placed, task_again
from acdc.cli.exchange import has_positions
from acdc.cli.options import Force, RolesFile, Run, flags_given, roles_of
from acdc.errors import AcdcError

if TYPE_CHECKING:
    from acdc.circuit import Circuit
    from acdc.graph import BoolArray
    from acdc.model.model import Model
    from acdc.tasks.task import Dataset


def draw(
    context: typer.Context,
    run: Run,
    format: Annotated[
        str | None, typer.Option(help="svg, pdf, png, dot, tikz or html; otherwise as FILE ends.")
    ] = None,
    truth: Annotated[
        bool, typer.Option("--truth", help="Mark what is true, false and missed, where known.")
    ] = False,
    style: Annotated[str, typer.Option(help="paper, slides or dark.")] = "paper",
    detail: Annotated[
        Literal["port", "head", "layer"],
        typer.Option(help="port: q, k and v apart; head: together; layer: heads too."),
    ] = "port",
    fold: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="One box for the heads of a layer with at most N edges each; 0: none. Otherwise what is weakest, "
            "until a deep model's rows fit a page and its lines are not too many.",
        ),
    ] = None,
    max_edges: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Most lines: beyond, q, k and v are merged, then weak nodes folded."),
    ] = 120,
    prompt: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Tokens of the N-th prompt below the input, its answer beside the logits."
        ),
    ] = None,
    roles: RolesFile = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="File to write; otherwise RUN/circuit.svg.")
    ] = None,
    force: Force = False,
) -> None:
    """Draw a circuit.

    Example: acdc draw runs/ioi --fold 3 --style slides -o ioi.pdf
    """
    if (format or (out.suffix[1:] if out else "")) == "html":  # `acdc view` has more options
        if flags := flags_given(context, "truth", "style", "detail", "fold", "max_edges", "prompt"):
            raise AcdcError(
                f"{', '.join(flags)}: for pictures, and html is a page, on which one chooses; acdc view has its options"
            )
        cli_view.view(run, roles=roles, out=out, force=force, no_open=True)
        return
    if has_positions(run):
        raise AcdcError(
            f"{run} is a circuit with positions: acdc view shows it, acdc export --to circuit-tracer too"
        )
    with terminal.quiet_libraries():
        from acdc import Circuit, viz

        circuit = Circuit.load(run)
        path = out or (run.parent if run.is_file() else run) / f"circuit.{format or 'svg'}"
        replace = terminal.check_new_file(path, force=force, own=None if out else b'id="node:')
        edges = shown = None
        if truth or prompt is not None:
            model, data = _again(run, circuit)
            edges = _true_edges(circuit, data) if truth else None
            shown = None if prompt is None else viz.ShownPrompt.of(data, model, prompt)
        picture = viz.draw(
            circuit, path, format=format, truth=edges, style=style, detail=detail, fold=fold, max_edges=max_edges,
            replace=replace, neurons=cli_neurons.beside(run, circuit),
            roles=None if roles is None else roles_of(roles, circuit.graph), prompt=shown,
        )  # fmt: skip
    report.show_note(picture)
    terminal.print_line(path)


def _again(run: Path, circuit: Circuit) -> tuple[Model, Dataset]:
    """The circuit's own model and task."""
    from acdc.engine.belonging import changes

    made = placed(run, circuit.provenance)
    recipe, model = task_again(made), load_again(made)
    data = recipe.prepare(model)
    for line in changes(made, model, data).values():
        terminal.warn(line)
    return model, data


def _true_edges(circuit: Circuit, data: Dataset) -> BoolArray:
    """The edges of the true circuit for the circuit's own task."""
    if data.truth is None:
        made = circuit.provenance
        raise AcdcError(f"the true circuit of {made.model} on {made.task} is not known: draw without --truth")
    return data.truth.mask(circuit.graph)
