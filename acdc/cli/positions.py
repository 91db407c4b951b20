"""`acdc positions`: edges that are kept at some positions only; also of `acdc discover --units position`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from acdc.cli import terminal
from acdc.cli.groups import ModelOptions, PromptOptions
from acdc.cli.options import (
    OUTPUT,
    PROMPTS,
    AblationName,
    BatchSize,
    Force,
    Json,
    Memory,
    MetricName,
    ModelName,
    TaskName,
    listed,
    prepared,
)

if TYPE_CHECKING:
    from acdc.circuit import Circuit
    from acdc.engine.problem import Progress
    from acdc.model.model import Model
    from acdc.tasks.task import Dataset
    from acdc.tracing import PositionalCircuit
    from acdc.tracing.places import By
    from acdc.tracing.positional_circuit import PositionalEvaluation

NAME = "positions.json"
"""Of the file beside a circuit whose edges were looked at place by place."""


def positions(
    model: ModelName,
    task: TaskName = None,
    by: Annotated[
        Literal["position", "span"], typer.Option(help="Single positions, or named spans of the prompts.")
    ] = "span",
    spans: Annotated[
        str | None, typer.Option(metavar="NAMES", help="By span: these alone, comma-separated: IO,S2,rest.")
    ] = None,
    units: Annotated[int | None, typer.Option(min=1, help="Keep so many of the best edges at places.")] = None,
    faithfulness: Annotated[
        float | None, typer.Option(help="Or the fewest that are so faithful; otherwise the task's.")
    ] = None,
    method: Annotated[
        Literal["eap", "eap-ig", "exact"], typer.Option(help="What scores edges at places.")
    ] = "eap-ig",
    runs: Annotated[
        int, typer.Option(min=0, help="Most runs of whole circuits to find what can go; 0: cut the ranking.")
    ] = 400,
    one_by_one: Annotated[
        bool, typer.Option("--one-by-one", help="Test each alone, the weakest first, and no groups.")
    ] = False,
    inside: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="A finished run: its edges alone, no farther from the model than they are."
        ),
    ] = None,
    *,
    prompts: PromptOptions,
    metric: MetricName = None,
    ablation: AblationName = None,
    seed: Annotated[int, typer.Option(help="Of the prompts.", rich_help_panel=PROMPTS)] = 0,
    batch_size: BatchSize = None,
    memory: Memory = None,
    weights: ModelOptions,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="JSON file to write.", rich_help_panel=OUTPUT),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Find a circuit of edges at positions: what is read where, each at a named span or a position.

    Example: acdc positions tiny-tasks --task ioi --faithfulness 0.9 -o ioi.json
    """
    with terminal.quiet_libraries():
        from acdc.circuit import Circuit
        from acdc.tracing import discover_positions, evaluate_positions

        if out is not None:
            terminal.check_new_file(out, force=force)
        named = None if spans is None else listed(spans, "spans")
        subject, data = prepared(
            model, task, prompts.settings, metric=metric, ablation=ablation, seed=seed, memory=memory,
            loading=weights.loading,
        )  # fmt: skip
        circuit_inside = None if inside is None else Circuit.load(inside)
        with terminal.progress_bar() as progress:
            circuit = discover_positions(
                subject, data, by=by, spans=named, units=units, faithfulness=faithfulness, method=method, runs=runs,
                one_by_one=one_by_one,
                inside=circuit_inside, batch_size=batch_size, memory=memory, progress=progress,
            )  # fmt: skip
            found = evaluate_positions(
                subject, data, circuit, batch_size=batch_size, memory=memory, progress=progress
            )
        if out is not None:
            circuit.save(out, replace=force)
        true = truth_beside(subject, data, circuit)
    if json:
        terminal.print_json(record(circuit) | {"file": out} | dataclasses.asdict(found) | true)
        return
    show(circuit, found, true)
    if out is not None:
        terminal.print_facts([("file", str(out))])


def places_of(model: Model, data: Dataset) -> By:
    """Where the edges of a circuit are looked at: at named spans if the task has some, otherwise at positions.

    Raises:
        AcdcError: the prompts have neither in common.
    """
    from acdc.tracing.positional import placing

    by: By = "span" if data.discovery.spans else "position"
    placing(model, data.discovery, by)
    return by


def inside(
    model: Model, data: Dataset, circuit: Circuit, batch_size: int | None, memory: str | None, progress: Progress
) -> tuple[PositionalCircuit, PositionalEvaluation]:
    """Where the edges of a circuit that was just found are needed, no farther from the model than they are."""
    from acdc.tracing import discover_positions, evaluate_positions

    how: dict[str, Any] = {"batch_size": batch_size, "memory": memory, "progress": progress}
    found = discover_positions(model, data, by=places_of(model, data), inside=circuit, **how)
    return found, evaluate_positions(model, data, found, **how)


def record(circuit: PositionalCircuit) -> dict[str, Any]:
    """What is printed as JSON."""
    return {"units": circuit.names(), "n_units": circuit.n_units, "places": circuit.places}


def show(circuit: PositionalCircuit, found: PositionalEvaluation, true: dict[str, Any]) -> None:
    """Which edges stay where, what they are worth, and how many are of the true circuit."""
    terminal.print_table(*circuit.table())
    print()
    facts = circuit.facts() | found.facts()
    if true:
        facts["true circuit"] = (
            f"{true['true_units_found']} of {true['true_units']} true units found, {true['false_units']} false"
            + ("" if true["defined"] else "; not the one true circuit: others do as well")
        )
    terminal.print_facts(facts.items())


def truth_beside(model: Model, data: Dataset, circuit: PositionalCircuit) -> dict[str, Any]:
    """How many of a compiled program's true units a circuit has, to print as JSON; empty where no truth is derived."""
    from acdc.tasks.programs.positions import ALIGNED, true_positions
    from acdc.tasks.programs.truth import TrueCircuit

    known = data.truth
    if model.program is None or circuit.by != "position" or not isinstance(known, TrueCircuit):
        return {}
    if known.distribution not in ALIGNED:
        return {}
    truth = true_positions(model.program, ablation=data.ablation, distribution=known.distribution)
    true = truth.mask(circuit.graph)
    found = circuit.kept & true
    return {
        "true_units": int(true.sum()),
        "true_units_found": int(found.sum()),
        "false_units": int((circuit.kept & ~true).sum()),
        "defined": truth.defined,
    }
