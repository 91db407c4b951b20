"""`acdc compare`: circuits beside each other."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acdc.cli import terminal
from acdc.cli.again import load_again, placed, task_again
from acdc.cli.options import Device, Dtype, Json, Trust
from acdc.errors import AcdcError

if TYPE_CHECKING:
    from acdc.circuit import Circuit
    from acdc.model.model import Model
    from acdc.tasks import Task

MOST = 10
"""Edges of one circuit only that are shown; --json has all."""


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN …", help="Folders that `acdc discover` wrote.")],
    only_edges: Annotated[
        bool, typer.Option("--only-edges", help="Run nothing: compare edges and rankings alone.")
    ] = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Compare circuits: shared edges, rankings, and each on the other's task.

    Example: acdc compare runs/first runs/second --json
    """
    if len(runs) < 2:
        raise AcdcError(f"expected two runs or more to compare, got {len(runs)}")
    with terminal.quiet_libraries():
        from acdc import Circuit
        from acdc.evaluation.compare import compare as compared

        circuits = [Circuit.load(run) for run in runs]
        folder_of = {id(circuit): run for circuit, run in zip(circuits, runs, strict=True)}
        models: dict[tuple[str | None, ...], Model] = {}

        def opened(circuit: Circuit) -> tuple[Model, Task]:
            made = placed(folder_of[id(circuit)], circuit.provenance)
            key = (made.model, made.revision, made.tokenizer)
            if key not in models:
                models[key] = load_again(made, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
            return models[key], task_again(made)

        found = compared(circuits, [str(run) for run in runs], opened=None if only_edges else opened)
    if json:
        terminal.print_json(_plain(dataclasses.asdict(found)))
        return
    for note in found.notes:
        terminal.say("note", note, "bold")
    terminal.print_table(
        ("circuit", "other", "edges", "shared", "Jaccard", "rank correlation"),
        (
            (
                pair.first,
                pair.second,
                f"{pair.shared + len(pair.only_first)} and {pair.shared + len(pair.only_second)}",
                str(pair.shared),
                f"{pair.jaccard:.3f}",
                "" if pair.rank_correlation is None else f"{pair.rank_correlation:.3f}",
            )
            for pair in found.pairs
        ),
    )
    for pair in found.pairs:
        for name, edges in ((pair.first, pair.only_first), (pair.second, pair.only_second)):
            if edges:
                more = f" and {len(edges) - MOST} more" if len(edges) > MOST else ""
                print(f"\nonly in {name}: {', '.join(edges[:MOST])}{more}")
    if found.faithfulness is not None:
        on = ", ".join(dict.fromkeys(found.prompts))
        print(f"\nfaithfulness of each circuit (row) on the {on} prompts of each one's task (column)")
        terminal.print_table(
            ("circuit", *found.names),
            (
                (name, *("undefined" if math.isnan(value) else f"{value:.3f}" for value in row))
                for name, row in zip(found.names, found.faithfulness, strict=True)
            ),
        )


def _plain(found: dict[str, object]) -> dict[str, object]:
    """With null for what is not a number."""
    rows = found["faithfulness"]
    if isinstance(rows, tuple):
        found["faithfulness"] = [[None if math.isnan(value) else value for value in row] for row in rows]
    return found
