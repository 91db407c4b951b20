"""What guided pruning is measured against on real models beside the rankings, each given the processor time it took.

Every rival gives an order of all edges, larger where an edge is kept longer, from which circuits of each size are cut;
what a rival leaves equal is told apart by EAP-IG's mean absolute score. All go by KL.

- components: whole components one by one, the weakest first, each gone if the distance rises by no more than a share of
  the separation; then again with a larger share, until nothing is left or the time is over.
- acdc: ACDC's sweep within EAP-IG's best tenth of the edges (over all of a large model it would take days), with larger
  and larger τ, each sweep in what the last one left, until the time is over.
- subnetwork-probing, edge-pruning, ugs: learned masks, with the steps there is time for (the papers' are more).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import acdc
from acdc.circuit import selection
from acdc.engine.measure import Measures
from acdc.engine.problem import Problem
from acdc.errors import EmptyCircuitError
from acdc.graph import FloatArray
from acdc.methods.aggregates import estimates
from acdc.methods.attribution import STEPS, attribution, path
from acdc.methods.components import Components
from acdc.methods.search import Search
from acdc.metrics import OUTCOMES
from acdc.model.model import Model
from acdc.tasks.task import Dataset

LEVELS = tuple(float(share) for share in 10 ** np.arange(-4.0, 0.26, 0.5))
"""What one removal may cost, as shares of what separates the full model from the empty circuit."""
TENTH = 0.1
MASKS: Mapping[str, Mapping[str, Any]] = {
    "subnetwork-probing": {},
    "edge-pruning": {"sparsity": 0.98},
    "ugs": {},
}
"""Learned masks, with the options that are not the paper's."""
FEW_STEPS = (2, 6)
"""Between which a step is timed."""
WARM_UP = 5 / 6
"""Share of Edge Pruning's steps in which the target sparsity is come to, as published."""


class Clock:
    """Processor time that is left."""

    def __init__(self, seconds: float) -> None:
        self.end = time.process_time() + seconds

    @property
    def left(self) -> float:
        return self.end - time.process_time()


class _OutOfTime(Exception):
    pass


def components(model: Model, data: Dataset, clock: Clock) -> FloatArray:
    measures, weakness, sizes = _scored(model, data)
    graph = model.graph()
    whole = Components(measures, graph)
    inner = np.arange(graph.n_inputs, graph.n_sources)
    order = graph.valid.astype(np.float64)
    for level in (*_levels(measures), np.inf):
        for source in inner[np.argsort(weakness[inner], kind="stable")]:
            if not whole.kept[source] or clock.left < 0:
                continue
            fewer = whole.kept.copy()
            fewer[source] = False
            if whole.without(fewer) - whole.distance <= level:
                whole.keep(fewer)
                order += graph.prune(graph.edges_from_sources(fewer))
    return _told_apart(order, sizes)


def acdc_in_the_best_tenth(model: Model, data: Dataset, clock: Clock) -> FloatArray:
    measures, _, sizes = _scored(model, data)
    graph = model.graph()
    kept = selection.top(graph, sizes, int(TENTH * graph.n_edges))
    order = graph.valid.astype(np.float64) + kept

    def watch(_done: int, _total: int) -> None:
        if clock.left < 0:
            raise _OutOfTime

    for level in _levels(measures):
        search = Search(measures, kept=kept)
        over = False
        try:
            search.sweep(lambda new, old, most=level: new - old < most, progress=watch)  # type: ignore[misc]
        except _OutOfTime:
            over = True
        kept = graph.prune(search.kept)
        order += kept
        if over or not kept.any():
            break
    return _told_apart(order, sizes)


def learned(method: str) -> Callable[[Model, Dataset, Clock], FloatArray]:
    """A mask by a method, with as many steps as there is time for."""

    def run(model: Model, data: Dataset, clock: Clock) -> FloatArray:
        _, _, sizes = _scored(model, data)

        def train(steps: int) -> FloatArray:
            options: dict[str, Any] = {"steps": steps, **MASKS[method]}
            if method == "edge-pruning":
                options["warm_up"] = round(WARM_UP * steps)
            return acdc.score(model, data, method, metric="kl", **options).values

        taken = []
        for steps in FEW_STEPS:
            start = time.process_time()
            with contextlib.suppress(EmptyCircuitError):  # so few steps decide nothing
                train(steps)
            taken.append(time.process_time() - start)
        a_step = max((taken[1] - taken[0]) / (FEW_STEPS[1] - FEW_STEPS[0]), 1e-9)
        before = max(taken[0] - FEW_STEPS[0] * a_step, 0.0)
        steps = max(FEW_STEPS[1], int((clock.left - before) / a_step))
        print(f"{method}: {steps} steps", flush=True)
        return _told_apart(np.round(train(steps), 6), sizes)

    return run


RIVALS: Mapping[str, Callable[[Model, Dataset, Clock], FloatArray]] = {
    "components": components,
    "acdc": acdc_in_the_best_tenth,
    **{method: learned(method) for method in MASKS},
}


def _scored(model: Model, data: Dataset) -> tuple[Measures, FloatArray, FloatArray]:
    """The search's prompts, the weakness of each source, and EAP-IG's mean absolute scores, by KL."""
    problem = Problem(model, model.graph(), data.discovery, OUTCOMES["kl"], data.ablation)
    measures = Measures(problem.outcome, problem.searched())
    total, weakness = attribution(
        problem.outcome, measures.batches, problem.units, alphas=path(STEPS, data.ablation)
    )
    sizes = estimates(total, len(data.discovery)).absolute
    assert sizes is not None
    return measures, weakness, sizes


def _levels(measures: Measures) -> list[float]:
    """What one removal may cost, in nats."""
    apart = measures.separation()
    return [share * apart for share in LEVELS]


def _told_apart(order: FloatArray, sizes: FloatArray) -> FloatArray:
    """The order, with ties broken by the sizes `[n_destinations, n_sources]`; places in it, the last best."""
    places = np.empty(order.size)
    places[np.lexsort((sizes.ravel(), order.ravel()))] = np.arange(1, order.size + 1)
    return places.reshape(order.shape)
