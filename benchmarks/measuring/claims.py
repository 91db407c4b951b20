"""What critics found of other models' circuits, asked of ours: how far they move with the sample of prompts and with
the order of tests, and how much of a task three edges do."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

import acdc
from acdc.circuit.selection import Aggregate
from acdc.engine.circuits import measure_prompts
from acdc.engine.measure import Measures
from acdc.engine.problem import Problem
from acdc.errors import EmptyCircuitError
from acdc.evaluation.judging import judging_problem
from acdc.graph import BoolArray, Graph
from acdc.methods.attribution import STEPS, path
from acdc.methods.by_prompt import best, resampled_sizes, scores_by_prompt
from acdc.methods.groups import Groups
from acdc.metrics import OUTCOMES, jaccard
from acdc.tasks.task import Dataset

RESAMPLES, ORDERS = 200, 5


class Measured(NamedTuple):
    """One number: of circuits of so many edges, from the smallest to the largest."""

    name: str
    value: float
    least: int
    most: int


def resampled(model: acdc.Model, data: Dataset) -> Iterator[Measured]:
    """The mean overlap (Jaccard) of EAP-IG's best edges on two bootstraps of the prompts: by the mean of the scores'
    sizes, and by the size of their mean, as in the papers."""
    n = acdc.discover(model, data, "eap-ig").n_edges
    problem = Problem(model, model.graph(), data.discovery, data.metric, data.ablation)
    scores = scores_by_prompt(problem, alphas=path(STEPS, data.ablation))
    aggregates: dict[str, Aggregate] = {"mean absolute": "mean-absolute", "mean": "signed"}
    for name, aggregate in aggregates.items():
        chosen = best(resampled_sizes(scores, 2 * RESAMPLES, aggregate=aggregate), n)
        overlap = np.mean([jaccard(a, b) for a, b in zip(*np.split(chosen, 2), strict=True)])
        yield Measured(f"resamples, {name}", float(overlap), n, n)


def reordered(model: acdc.Model, data: Dataset) -> Iterator[Measured]:
    """The mean overlap of ACDC's circuits at its threshold, under two orders of tests: destinations from the logits
    backwards, those of a stage and the sources of each shuffled."""
    threshold = acdc.discover(model, data, "acdc").provenance.selection["threshold"]
    assert isinstance(threshold, float)
    problem = Problem(model, model.graph(), data.discovery, data.metric, data.ablation)
    measures = Measures(problem.outcome, problem.searched())
    rng = np.random.default_rng(0)
    found = [_swept(measures, _order(problem.graph, rng), threshold) for _ in range(ORDERS)]
    overlap = np.mean([jaccard(a, b) for a, b in itertools.combinations(found, 2)])
    sizes = [int(edges.sum()) for edges in found]
    yield Measured("orders of tests", float(overlap), min(sizes), max(sizes))


def _order(graph: Graph, rng: np.random.Generator) -> list[int]:
    """Flat indices of all edges."""
    stage = dict(zip(graph.port_destination.tolist(), graph.port_stage.tolist(), strict=True))
    destinations = sorted(rng.permutation(graph.n_destinations).tolist(), key=lambda d: -stage[d])
    return [
        d * graph.n_sources + int(s) for d in destinations for s in rng.permutation(np.flatnonzero(graph.valid[d]))
    ]


def _swept(measures: Measures, order: list[int], threshold: float) -> BoolArray:
    search = Groups(measures)
    for edge in order:
        group = np.array([edge])
        if search.distance_without(group) - search.distance < threshold:
            search.remove(group)
    return search.graph.prune(search.kept)


def three_edges(model: acdc.Model, data: Dataset) -> Iterator[Measured]:
    """The share of held-out prompts on which the best three edges of `guided` and four rankings prefer the answer to
    the wrong one, beside the whole model and no edge."""
    circuits = []
    for method in ("guided", "exact", "eap-ig", "eap", "clean-corrupted"):
        with contextlib.suppress(EmptyCircuitError):  # its best three connect nothing
            circuits.append(acdc.discover(model, data, method, edges=3))
    problem = judging_problem(model, data, circuits[0].graph)
    stack = [np.zeros_like(problem.graph.valid), *(circuit.edges for circuit in circuits)]
    (measured,) = measure_prompts(problem, stack, [OUTCOMES["logit-difference"]])
    nothing, *right = (measured.circuits > 0).mean(axis=1).tolist()
    sizes = [circuit.n_edges for circuit in circuits]
    yield Measured("all edges", float((measured.full > 0).mean()), problem.graph.n_edges, problem.graph.n_edges)
    yield Measured("no edge", nothing, 0, 0)
    yield Measured("three edges", max(right), min(sizes), max(sizes))


CLAIMS: dict[str, tuple[Callable[[acdc.Model, Dataset], Iterator[Measured]], str | None]] = {
    "resamples, mean": (resampled, None),
    "three edges": (three_edges, "ioi"),
    "orders of tests": (reordered, None),
}
"""What measures each, by the last name that it yields, and the only task that it is asked of."""
