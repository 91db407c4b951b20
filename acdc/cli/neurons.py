"""`acdc neurons`: the neurons that stay inside the nodes of a circuit; also of `acdc discover --units neuron`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from acdc.cli import terminal
from acdc.cli.again import as_found
from acdc.cli.options import BatchSize, Device, Dtype, Force, Json, Memory, Run, Trust
from acdc.errors import AcdcError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from acdc.circuit import Circuit
    from acdc.engine.neurons import Inside
    from acdc.engine.problem import Progress
    from acdc.graph import BoolArray
    from acdc.model.model import Model
    from acdc.neurons import NeuronCircuit, NeuronEvaluation
    from acdc.tasks.task import Dataset


InsideName = Annotated[
    Literal["mlps", "heads", "both"],
    typer.Option("--inside", help="Hidden units of MLPs, dimensions of heads, or both."),
]


def neurons(
    run: Run,
    inside: InsideName = "mlps",
    method: Annotated[
        Literal["nap", "nap-ig", "exact"], typer.Option(help="What ranks neurons: which are tried first.")
    ] = "nap-ig",
    faithfulness: Annotated[
        float | None, typer.Option(help="Budget as a share; otherwise the search's own, or the task's.")
    ] = None,
    runs: Annotated[
        int, typer.Option(min=0, help="Most runs of the circuit to find what can go; 0: cut the ranking.")
    ] = 400,
    one_by_one: Annotated[
        bool, typer.Option("--one-by-one", help="Test each neuron alone, the weakest first, and no groups.")
    ] = False,
    batch_size: BatchSize = None,
    memory: Memory = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    trust_remote_code: Trust = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Prune neurons inside the MLPs (and heads) that a circuit keeps, judge it, and write neurons.json beside it.

    Example: acdc neurons runs/ioi --faithfulness 0.9
    """
    with terminal.quiet_libraries():
        from acdc.engine.belonging import changes
        from acdc.neurons import discover_neurons, evaluate_neurons
        from acdc.neurons.circuit import NAME

        if not run.exists():
            raise AcdcError(
                f"there is no run at {str(run)!r}; of a model, acdc discover MODEL --units neuron finds a circuit and "
                "its neurons"
            )
        path = (run.parent if run.is_file() else run) / NAME
        terminal.check_new_file(path, force=force, option=None)
        circuit, subject, recipe = as_found(
            run, memory=memory, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
        data = recipe.prepare(subject)
        for warning in (*data.warnings, *changes(circuit.provenance, subject, data).values()):
            terminal.warn(warning)
        with terminal.progress_bar() as progress:
            how: dict[str, Any] = {"batch_size": batch_size, "memory": memory, "progress": progress}
            found = discover_neurons(
                subject,
                data,
                circuit,
                method=method,
                inside=inside,
                faithfulness=faithfulness,
                runs=runs,
                one_by_one=one_by_one,
                **how,
            )
            evaluation = evaluate_neurons(subject, data, found, seed=data.seed, **how)
        found.save(path, evaluation=evaluation, replace=force)
    if json:
        terminal.print_json(record(found, evaluation) | {"file": str(path)})
        return
    show(found, evaluation)
    terminal.print_facts([("file", str(path))])


def inside(
    model: Model, data: Dataset, circuit: Circuit, nodes: Inside, faithfulness: float | None,
    batch_size: int | None, memory: str | None, progress: Progress,
) -> tuple[NeuronCircuit, NeuronEvaluation] | None:  # fmt: skip
    """The neurons of a circuit that was just found, and what it is worth with them; None, said, if it has no nodes."""
    from acdc.neurons import discover_neurons, evaluate_neurons
    from acdc.neurons.search import NOTHING_INSIDE, kept_nodes

    if not kept_nodes(circuit, nodes):
        terminal.say("note", f"{NOTHING_INSIDE[nodes]}, so no neurons are in it", "bold")
        return None
    how: dict[str, Any] = {"batch_size": batch_size, "memory": memory, "progress": progress}
    found = discover_neurons(model, data, circuit, inside=nodes, faithfulness=faithfulness, **how)
    return found, evaluate_neurons(model, data, found, seed=data.seed, **how)


def beside(run: Path, circuit: Circuit) -> Mapping[str, BoolArray] | None:
    """Which neurons stay in each MLP of a run, if any were found; None, said, if they are of another circuit."""
    from acdc.neurons import NeuronCircuit
    from acdc.neurons.circuit import NAME

    folder = run.parent if run.is_file() else run
    if not (folder / NAME).is_file():
        return None
    try:
        return NeuronCircuit.load(folder, circuit).kept
    except AcdcError as error:
        terminal.warn(str(error))
        return None


def say_unused(run: Path) -> None:
    """A note where a run has neurons and what follows is of its circuit of edges alone."""
    from acdc.neurons.circuit import NAME

    if ((run.parent if run.is_file() else run) / NAME).is_file():
        what = "all neurons of the nodes that the circuit keeps are used"
        terminal.say("note", f"{NAME} is not taken into account: {what}", "bold")


def record(found: NeuronCircuit, evaluation: NeuronEvaluation) -> dict[str, Any]:
    """What is printed as JSON."""
    kept = {node: {"hidden": len(units), "kept": units.nonzero()[0].tolist()} for node, units in found.kept.items()}
    sizes = {"n_neurons": found.n_neurons, "n_neurons_of_kept_nodes": found.n_whole, "budget": found.budget}
    return {"neurons": kept} | sizes | {"neuron_evaluation": dataclasses.asdict(evaluation)}


def show(found: NeuronCircuit, evaluation: NeuronEvaluation) -> None:
    """Which neurons stay, and what the circuit is worth with them."""
    terminal.print_table(*found.table())
    print()
    terminal.print_facts((found.facts() | evaluation.facts()).items())
