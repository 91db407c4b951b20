"""Circuits cut from a ranking: by a number of edges, a threshold or a faithfulness."""

from __future__ import annotations

import dataclasses

import numpy as np

from acdc.circuit import Circuit, Scores, selection
from acdc.circuit.rules import Rule
from acdc.engine.circuits import measure_circuits
from acdc.engine.problem import Problem
from acdc.errors import AcdcError, EmptyCircuitError
from acdc.graph import BoolArray, FloatArray
from acdc.methods import Target
from acdc.metrics import faithfulness as faithfulness_of
from acdc.tasks.task import Dataset


def check_rule(select: str, target: Target) -> None:
    """Refuse a rule that cuts a ranking to a number of edges where none is given.

    Raises:
        AcdcError: with what to do instead.
    """
    if Rule.of(select).name not in ("top", "greedy") and target.edges is None:
        raise AcdcError(f"select={select!r} cuts a ranking to a number of edges: give edges too")


def from_ranking(
    problem: Problem,
    dataset: Dataset,
    scores: Scores,
    target: Target,
    select: str,
    aggregate: selection.Aggregate | None,
    separation: tuple[float, float],
) -> Circuit:
    """The circuit of the best edges, as many as a target says.

    Args:
        select: how the ranking is cut (`Scores.top`); aggregate: what ranks (`Scores.sizes`).
        separation: the metric of the full model and of the empty circuit, which an error names.

    Raises:
        EmptyCircuitError: nothing is left.
        AcdcError: a rule that cuts to a size, and a threshold.
    """
    if target.threshold is not None:
        if Rule.of(select).name != "top":
            raise AcdcError(
                f"select={select!r} cuts a ranking to a size, and a threshold needs none: leave one out"
            )
        return not_empty(scores.threshold(target.threshold, aggregate=aggregate), dataset, *separation)
    if target.edges is not None:
        return scores.top(target.edges, select=select, aggregate=aggregate, prompts=len(problem.prompts))
    assert target.faithfulness is not None
    held_out = problem if dataset.held_out is None else dataclasses.replace(problem, prompts=dataset.held_out)
    n = _fewest_faithful(held_out, dataset, scores.sizes(aggregate), target.faithfulness, select)
    circuit = scores.top(n, select=select, aggregate=aggregate)
    how = {**circuit.provenance.selection, "faithfulness": target.faithfulness}
    return dataclasses.replace(circuit, provenance=circuit.provenance.having(selection=how))


def _fewest_faithful(problem: Problem, dataset: Dataset, sizes: FloatArray, target: float, select: str) -> int:
    """Edges of the smallest circuit of best edges that is at least as faithful as the target, by bisection.

    Args:
        sizes: `[n_destinations, n_sources]`, by which edges are ranked.

    Raises:
        EmptyCircuitError: faithfulness is undefined, because the full model and the empty circuit do not differ.
    """
    graph = problem.graph
    rule = selection.top if select == "top" else selection.greedy
    units = problem.units
    if problem.unit != "edge" and select != "top":
        raise AcdcError(f"a ranking of {units.plural} is cut by select='top'")
    order = np.argsort(-units.values_of(sizes), axis=None, kind="stable")
    batches = problem.batches()

    def circuit(n: int) -> BoolArray:
        if problem.unit != "edge":
            return graph.prune(units.mask(np.isin(np.arange(units.n), order[:n])))
        return graph.prune(rule(graph, sizes, n, prune=False))

    def reaches(n: int) -> bool:
        edges = circuit(n)
        full, (empty, value) = measure_circuits(problem, [np.zeros_like(edges), edges], batches=batches)
        if full == empty:
            raise EmptyCircuitError(
                f"no circuit can be chosen by faithfulness: {nothing_matters(dataset, full, empty)}"
            )
        return faithfulness_of(value, full=full, empty=empty) >= target

    low, high = 0, 8
    while high < units.n and not reaches(high):
        low, high = high, 2 * high
    high = min(high, units.n)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return int(units.of_edges(circuit(high)).sum())


def not_empty(circuit: Circuit, dataset: Dataset, full: float, empty: float) -> Circuit:
    """The circuit, or an error with the way out if nothing is left of it."""
    if circuit.n_edges:
        return circuit
    how = circuit.provenance.selection
    kept = f"the circuit is empty: {circuit.provenance.method} keeps no edge"
    if full == empty:
        raise EmptyCircuitError(f"{kept}: {nothing_matters(dataset, full, empty)}")
    amounts = ("faithfulness", "budget", "threshold")
    given = next((f" at {name} {how[name]:.4g}" for name in amounts if name in how), "")
    raise EmptyCircuitError(
        f"{kept}{given}; {dataset.metric.name} is {full:.4g} for the full model and {empty:.4g} without any edge. "
        "Ask for more: a lower threshold, a higher faithfulness, or a number of edges"
    )


def nothing_matters(dataset: Dataset, full: float, empty: float) -> str:
    """Why nothing can be found."""
    return (
        f"{dataset.name}: {dataset.metric.name} is {full:.4g} for the full model and {empty:.4g} without any edge, so "
        f"faithfulness is undefined and no edge matters on these prompts under {dataset.ablation} ablation; take "
        "corrupted prompts or an ablation that change the output, or another metric"
    )
