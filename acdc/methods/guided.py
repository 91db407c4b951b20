"""Guided pruning: attribution guesses what may go, exact runs decide.

The result is a circuit whose measured distance from the full model stays within a budget, and in which every single
edge is needed: removing any one of them breaks the budget.

1. Score all edges by EAP-IG, and find by doubling and bisection how few of the best keep a quarter of the budget.
2. Search those as ACDC does, weakest edges first, with a threshold that is halved until the circuit is within the
   budget. A search that exceeds it stops there.
3. Test what is left under a rising threshold, and at last let go all that the budget allows, until no edge can.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from acdc.circuit import selection
from acdc.engine.measure import Measure, Measures
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.graph import BoolArray, FloatArray, Graph, IntArray
from acdc.methods.attribution import STEPS, attribution, gradient_of, path, refuse_bad_gradient
from acdc.methods.method import Found, Method, Target, helpfulness
from acdc.methods.search import Search
from acdc.methods.unit_search import UnitSearch
from acdc.model import passes
from acdc.store.resume import Arrays, number
from acdc.tasks.task import FAITHFULNESS

Distance = Callable[[BoolArray], float]

GUESSING = 0.25
"""Share of the budget for what attribution proposes: many edges go at once there, and some of them dearly."""
FIRST_SHARES = 32
"""The first search lets an edge go that costs at most so many shares of the budget, were it shared among all edges."""
LARGEST_SHARE = 1 / 8
"""But no more than this part of it."""


class _OverBudgetError(Exception):
    """A search has let so much go that it is over the budget."""


def guided(
    problem: Problem,
    *,
    budget: float | None = None,
    faithfulness: float = FAITHFULNESS,
    edges: int | None = None,
    steps: int = STEPS,
    certified: Callable[[FloatArray], None] | None = None,
) -> tuple[BoolArray, FloatArray, float]:
    """Prune to a certified circuit, or to a number of edges.

    Args:
        budget: largest distance from the full model, in the metric's units (mean over the prompts).
        faithfulness: the budget as a share of what separates the full model from the empty circuit, if no budget is
            given: budget = (1 − faithfulness) · separation.
        edges: prune to this many edges instead, whatever the distance; nothing is certified then. Never more; fewer
            if no connected part of the circuit has exactly so many.
        steps: gradients per attribution (EAP-IG).
        certified: called once with how much worse the metric gets when each kept edge alone is removed
            `[n_destinations, n_sources]`, NaN elsewhere; not called if a number of edges is asked for.

    Returns:
        Kept edges and a score of every edge (mean over the prompts of the metric's first-order change when it goes,
        from the full model, and where the edge is kept from the circuit), `[n_destinations, n_sources]` both; and
        the budget.
    """
    if budget is not None and budget < 0:
        raise AcdcError(f"expected a budget of at least 0, got {budget}")
    if not 0 <= faithfulness <= 1:
        raise AcdcError(f"expected a faithfulness between 0 and 1, got {faithfulness}")
    alphas = path(steps)
    graph, say = problem.graph, problem.progress
    measures = Measures(problem.outcome, problem.searched())
    distance = measures.distance
    start = problem.resume.load(
        {name: (graph.valid.shape, np.bool_) for name in ("best", "kept", "needed")}
        | {name: (graph.valid.shape, np.float64) for name in ("scores", "without")}
        | {"fits": ((1,), np.bool_), "stage": ((1,), np.int64)}
        | {name: ((1,), np.float64) for name in ("budget", "threshold", "dearest")},
        endless=("threshold",),
    )
    if "best" not in start:
        say(0, None, "scoring every edge")
        scores = attribution(problem.outcome, measures.batches, alphas=alphas)
        if edges is not None:
            return *_prune_to(measures, graph, scores, edges, alphas), math.inf
        if budget is None:
            budget = (1 - faithfulness) * measures.separation()
        say(0, None, "finding how few edges keep the budget")
        if distance(np.zeros_like(graph.valid)) <= budget:
            return np.zeros_like(graph.valid), scores, budget
        best = _fewest_best(graph, scores, distance, GUESSING * budget)
        start = {"best": best, "scores": scores, "budget": np.array(budget)}
    kept, removal = _certified(measures, start, distance, problem)
    if certified is not None:
        certified(removal)
    scores = np.where(kept, circuit_scores(measures, kept, alphas), start["scores"])
    return kept, scores, number(start, "budget")


def separation(patching: Patching, measure: Measure) -> float:
    """What separates the full model from the empty circuit, in the metric's units."""
    return Measures.of(patching, measure).separation()


def _fewest_best(graph: Graph, scores: FloatArray, distance: Distance, budget: float) -> BoolArray:
    """About the smallest set of best-scored edges within the budget: doubling, then bisection to a tenth."""

    def best(n: int) -> BoolArray:
        return selection.top_pruned(graph, scores, n)

    high = 8
    while high < graph.n_edges and distance(best(high)) > budget:
        high *= 2
    if high >= graph.n_edges:
        high = graph.n_edges
    low = high // 2
    while high - low > max(1, high // 10):
        middle = (low + high) // 2
        if distance(best(middle)) <= budget:
            high = middle
        else:
            low = middle
    return best(high)


def _weakest_first(kept: BoolArray, scores: FloatArray) -> IntArray:
    """Flat indices of the kept edges by size of their score."""
    edges = np.flatnonzero(kept)
    return edges[np.argsort(np.abs(scores.ravel()[edges]), kind="stable")]


def _without(graph: Graph, kept: BoolArray, edges: IntArray) -> BoolArray:
    """The circuit less some edges, given by flat index, and what dangles then."""
    smaller = kept.copy()
    smaller.flat[edges] = False
    return graph.prune(smaller)


def circuit_scores(measures: Measures, kept: BoolArray, alphas: Sequence[float]) -> FloatArray:
    """EAP-IG of the kept edges inside the circuit: first-order change of the metric when each is removed.

    The gradient of the metric with respect to an edge's weight (1 kept, 0 removed) is minus that change.

    Returns:
        `[n_destinations, n_sources]`, 0 at edges that are not kept.
    """
    total = torch.zeros(kept.shape, dtype=torch.float64)
    for patching, measure in measures:
        share = len(patching.prompts) / len(measures.batches.prompts)
        for alpha in alphas:
            with torch.enable_grad(), patching.model.frozen():
                weights = torch.as_tensor(kept, device=patching.model.device).to(patching.model.dtype)
                logits = patching.logits(weights.requires_grad_(), rows=measure.rows, input_scale=alpha)
                if not logits.requires_grad:
                    continue
                (gradient,) = gradient_of(measure.value(logits).mean(), [weights], measures.outcome)
                passes.count(backward=len(patching.prompts))
            total -= share * gradient.double().cpu()
    refuse_bad_gradient(total, measures.outcome)
    return np.where(kept, total.numpy() / len(alphas), 0.0)


def _certified(
    measures: Measures, start: Arrays, distance: Distance, problem: Problem
) -> tuple[BoolArray, FloatArray]:
    """A circuit of the best edges from which no edge can go, and how much worse the metric gets without each.

    Args:
        start: the best edges, scores and budget, and how far the tests are if some are done.
    """
    while True:
        kept, removal = _test(measures, start, problem)
        # A component that nothing feeds may still be needed: its biases are not what a mean reference holds.
        connected = problem.graph.prune(kept)
        if (connected == kept).all() or distance(connected) > number(start, "budget"):
            return kept, removal
        start = {name: start[name] for name in ("best", "scores", "budget")}
        start |= {"kept": connected, "threshold": np.array(math.inf), "fits": np.array(True)}


def _test(measures: Measures, start: Arrays, problem: Problem) -> tuple[BoolArray, FloatArray]:
    """Exact tests under one threshold after another, until no edge can go on its own.

    The threshold falls until a search of the best edges stays within the budget, and then rises, in what is left.
    """
    best, scores, budget = start["best"], start["scores"], number(start, "budget")
    first = budget * min(FIRST_SHARES / best.sum(), LARGEST_SHARE)
    threshold = number(start, "threshold") if "threshold" in start else first
    fits = bool(number(start, "fits"))  # whether a threshold has been found
    after = int(number(start, "stage")) if "stage" in start else None
    dearest = number(start, "dearest")  # cost of what an interrupted search has let go
    needed: BoolArray = start.get("needed", np.zeros_like(best)).copy()
    search = Search(measures, kept=start.get("kept", best))
    search.without = start.get("without", search.without).copy()

    def may_exceed(threshold: float) -> bool:
        """Whether edges that cost no more, all of them together, can exceed the budget."""
        return not fits and threshold * best.sum() > (1 - GUESSING) * budget

    def accept(new: float, old: float) -> bool:
        return new - old <= threshold and (new <= budget or may_exceed(threshold))

    def save(stage: int) -> None:
        problem.resume.save(
            best=best, scores=scores, budget=budget, kept=search.kept, needed=needed, threshold=threshold, fits=fits,
            dearest=max(dearest, search.dearest), stage=stage, without=search.without,
        )  # fmt: skip

    def progress(done: int, total: int) -> None:
        certifying = threshold == math.inf
        text = "certifying edge by edge" if certifying else f"edges that cost at most {threshold:.3g}"
        problem.progress(done, total, text)
        if search.distance > budget and may_exceed(threshold):
            raise _OverBudgetError

    while not fits or (search.kept & ~needed).any():
        certifying = threshold == math.inf
        try:
            search.sweep(
                accept, rank=np.abs(scores), expected=not certifying, needed=needed if certifying else None,
                after=after, save=save, progress=progress,
            )  # fmt: skip
            fits = True
            threshold = 2 * threshold if 2 * threshold < budget - search.distance else math.inf
        except _OverBudgetError:
            dearest = max(dearest, search.dearest)
            threshold /= 2
            while threshold >= dearest and may_exceed(threshold):  # the search would be the same
                threshold /= 2
            search = Search(measures, kept=best)
        after, dearest = None, 0.0
    return search.kept, search.removal()


def _prune_to(
    measures: Measures, graph: Graph, scores: FloatArray, edges: int, alphas: Sequence[float]
) -> tuple[BoolArray, FloatArray]:
    """Remove the weakest edges in shrinking bites, scored anew in the circuit after each, down to `edges`."""
    if edges < 1:
        raise AcdcError(f"expected at least one edge, got {edges}")
    kept = selection.top_pruned(graph, scores, 4 * edges)
    if kept.sum() < edges:
        kept = selection.top(graph, scores, 4 * edges)
    while int(kept.sum()) > edges:
        scores = np.where(kept, circuit_scores(measures, kept, alphas), scores)
        excess = int(kept.sum()) - edges
        weakest = _weakest_first(kept, scores)
        smaller = _without(graph, kept, weakest[: -(-excess // 2)])
        kept = smaller if smaller.sum() >= edges else selection.trim(graph, kept, weakest, edges)
    return kept, scores


def _guided_units(problem: Problem, target: Target, steps: int) -> Found:
    """The same over coarse units: the weakest go first, until none can."""
    units, measures = problem.units, Measures(problem.outcome, problem.searched())
    change = attribution(problem.outcome, measures.batches, alphas=path(steps))
    change = units.collect(torch.as_tensor(change)).numpy()
    if target.edges is not None:
        search = UnitSearch(problem, measures, selection.top_units(units, np.abs(change), target.edges))
        return search.found(helpfulness(problem, change), {"edges": target.edges})
    search = UnitSearch(problem, measures)
    budget = target.threshold
    if budget is None:
        assert target.faithfulness is not None
        budget = (1 - target.faithfulness) * measures.separation()
    search.prune(np.argsort(np.abs(change), kind="stable"), lambda new, _: new <= budget)
    return search.found(helpfulness(problem, change), {"budget": budget, **target.given})


def _guided(problem: Problem, target: Target, *, steps: int = STEPS) -> Found:
    if problem.unit != "edge":
        return _guided_units(problem, target, steps)
    share = {} if target.faithfulness is None else {"faithfulness": target.faithfulness}
    removal: list[FloatArray] = []
    kept, change, budget = guided(
        problem, budget=target.threshold, edges=target.edges, steps=steps, certified=removal.append, **share
    )
    how = {"budget": budget, **share} if target.edges is None else {"edges": target.edges}
    return Found(kept, helpfulness(problem, change), how, removal[0] if removal else None)


GUIDED = Method(
    name="guided",
    description="attribution guesses, exact runs decide; every kept edge is needed",
    cost="some dozens of runs, then a few partial runs per surviving edge",
    paper="this project",
    search=_guided,
    targets={
        "edges": "this many, whatever the distance from the full model; no edge is certified then",
        "threshold": "the budget: the largest distance from the full model",
        "faithfulness": "the budget as a share: 1 − faithfulness of what separates full model and empty circuit",
    },
    gradient="path",
    signs="estimated",
)
