"""Guided pruning, from coarse to fine: attribution says what to try first, exact runs decide what goes.

The result is a circuit whose measured distance from the full model stays within a budget, and in which every single
edge is needed: removing any one of them breaks the budget.

1. Score every edge on every prompt (EAP-IG), and rank by mean absolute score.
2. Whole components: the weakest half goes if its removal is cheap enough, else each of its halves is tried, and so on
   (`Components`). As many of the best edges by their scores are taken instead where these are about as near.
3. Of what is left, the edges go together that cost least by a quadratic model of the distance around the circuit as it
   is (`Quadratic`): a share of them at once, while that is cheap when it is tested (`Pruning.shares`).
4. Smaller shares go by the model until the budget is spent (`Pruning.shrink`). Where fewer of the best edges by their
   scores are within the budget, the search goes on from those; before this step, too, where they are far fewer.
5. Certify: every edge is tested in the circuit as it is, then what may go together, a component's outputs or inputs of
   one destination. Then try one edge in and two out, and certify again.

Every circuit on the way is a point of one front of size against distance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from acdc.circuit import Circuit, selection
from acdc.engine.measure import Measure, Measures
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.graph import BoolArray, FloatArray
from acdc.methods.aggregates import Estimates, estimates
from acdc.methods.attribution import STEPS, attribution, path, refuse_bad_gradient, weight_gradient
from acdc.methods.components import weak_components_removed
from acdc.methods.method import Found, Method, Target, helpfulness
from acdc.methods.options import Steps
from acdc.methods.pruning import Pruning, refuse_beyond
from acdc.methods.unit_search import UnitSearch
from acdc.tasks.task import FAITHFULNESS

COMPONENTS = 0.75
"""Share of the budget that all components may cost that go whole, each an equal part."""
FRONT_SHARE = 0.05
"""The budget of the coarse steps, as a share of the separation, where a number of edges is asked for."""
MOST_SWAPPED = 128
"""Edges of a circuit past which swaps are not tried: one edge less is not worth its tests there."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pruned:
    """What guided pruning gives; arrays are `[n_destinations, n_sources]`.

    Attributes:
        kept: edges of the circuit.
        scores: of every edge: first-order change of the metric when it goes, from the full model, and where the edge
            is kept from the circuit.
        budget: largest distance allowed, in the metric's units; infinite if a number of edges was asked for.
        removal: how much worse the metric gets when each kept edge alone is removed, NaN elsewhere; None if a number of
            edges was asked for, since nothing is certified then.
        order: larger where the search let an edge go later, largest where it is kept: the best n edges by it are the
            front's circuit of n edges.
        front: `[point, 2]`: edges and distance of the circuits on the way, from many edges to few.
    """

    kept: BoolArray
    scores: Estimates
    budget: float
    removal: FloatArray | None
    order: FloatArray
    front: FloatArray


def guided(
    problem: Problem,
    *,
    budget: float | None = None,
    faithfulness: float = FAITHFULNESS,
    edges: int | None = None,
    front: bool = False,
    steps: int = STEPS,
    inside: Circuit | None = None,
) -> Pruned:
    """Prune to a certified circuit, or to a number of edges.

    Args:
        budget: largest distance from the full model, in the metric's units (mean over the prompts).
        faithfulness: the budget as a share of what separates the full model from the empty circuit, if no budget is
            given: budget = (1 − faithfulness) · separation.
        edges: prune to this many edges instead, whatever the distance; nothing is certified then. Never more; fewer
            if no connected part of the circuit has exactly so many.
        front: go on below the circuit that was asked for until nothing is left, for the whole front.
        steps: gradients per attribution (EAP-IG).
        inside: a circuit within the budget, with scores, from which the search goes on; None: all edges.

    Raises:
        AcdcError: a budget, faithfulness, number of edges or of steps that cannot be, or a circuit beyond the budget.
        EmptyCircuitError: the edges only connect in circuits of more than `edges`.
    """
    if budget is not None and not budget >= 0:
        raise AcdcError(f"expected a budget of at least 0, got {budget}")
    if not 0 <= faithfulness <= 1:
        raise AcdcError(f"expected a faithfulness between 0 and 1, got {faithfulness}")
    if edges is not None and edges < 1:
        raise AcdcError(f"expected at least one edge, got {edges}")
    alphas = path(steps, problem.ablation)
    measures = Measures(problem.outcome, problem.searched())
    graph, apart = problem.graph, measures.separation()
    if edges is not None:
        budget = FRONT_SHARE * apart
    elif budget is None:
        budget = (1 - faithfulness) * apart
    within = None if inside is None else inside.edges
    pruning = Pruning.resumed(problem, measures, budget, within)
    if pruning is None and inside is not None:
        pruning = Pruning(problem, measures, budget, _scores_of(inside, problem), within)
        pruning.start_inside()
    if pruning is None:
        problem.progress(0, None, "scoring every edge")
        total, components = attribution(
            problem.outcome, measures.batches, problem.units, alphas=alphas, progress=problem.progress
        )
        scores = estimates(total, len(problem.prompts))
        pruning = Pruning(problem, measures, budget, scores)
        if edges is None and not front and measures.distance(np.zeros_like(graph.valid)) <= budget:
            nothing, none = np.zeros_like(graph.valid), np.zeros((0, 2))
            return Pruned(nothing, scores, budget, np.full(nothing.shape, np.nan), pruning.weakness, none)
        problem.progress(0, None, "whole components")
        pruning.start(weak_components_removed(measures, graph, components, COMPONENTS * budget))
    pruning.shares(edges or 0)
    if edges is not None:
        pruning.shrink(np.inf, floor=0 if front else edges)
        kept = selection.top(graph, pruning.order(), edges)
        return _pruned(pruning, kept, np.inf, None, alphas)
    pruning.to_budget()
    pruning.certify(swaps=MOST_SWAPPED)
    kept, removal = pruning.circuit, pruning.removal()
    if front:
        pruning.shrink(np.inf)
    return _pruned(pruning, kept, budget, removal, alphas)


def _scores_of(circuit: Circuit, problem: Problem) -> Estimates:
    """What a circuit's scores say of every edge, as `attribution` has it; single prompts are not in them."""
    assert circuit.scores is not None
    change = helpfulness(problem, circuit.scores.values)
    return Estimates(change, np.abs(change), np.abs(change))


def _pruned(
    pruning: Pruning, kept: BoolArray, budget: float, removal: FloatArray | None, alphas: Sequence[float]
) -> Pruned:
    inside = circuit_scores(pruning.measures, kept, alphas)
    scores = dataclasses.replace(pruning.scores, values=np.where(kept, inside, pruning.scores.values))
    return Pruned(kept, scores, budget, removal, pruning.order(kept), pruning.front())


def circuit_scores(measures: Measures, kept: BoolArray, alphas: Sequence[float]) -> FloatArray:
    """EAP-IG of the kept edges inside the circuit: first-order change of the metric when each is removed.

    The gradient of the metric with respect to an edge's weight (1 kept, 0 removed) is minus that change.

    Returns:
        `[n_destinations, n_sources]`, 0 at edges that are not kept.
    """
    total = weight_gradient(measures, kept, Measure.value, input_scales=alphas, sparse=True)
    refuse_bad_gradient(total, measures.outcome)
    return 0.0 - total / len(alphas)


def _guided_units(problem: Problem, target: Target, steps: int, inside: Circuit | None = None) -> Found:
    """The same over coarse units: the weakest go first, until none can."""
    units, measures = problem.units, Measures(problem.outcome, problem.searched())
    search = UnitSearch.resumed(problem, measures)
    if search is None and inside is not None:
        change = units.values_of(_scores_of(inside, problem).values)
        search = UnitSearch(problem, measures, change, kept=units.of_edges(inside.edges), resume=problem.resume)
    if search is None:
        total, _ = attribution(problem.outcome, measures.batches, units, alphas=path(steps, problem.ablation))
        change, kept = total[0] / len(problem.prompts), None
        if target.edges is not None:
            kept = selection.top_units(units, np.abs(change), target.edges)
        search = UnitSearch(problem, measures, change, kept=kept, resume=problem.resume)
    scores = helpfulness(problem, search.scores)
    if target.edges is not None:
        return search.found(scores, {"edges": target.edges})
    budget = target.threshold
    if budget is None:
        assert target.faithfulness is not None
        budget = (1 - target.faithfulness) * measures.separation()
    if inside is not None:
        refuse_beyond(budget, search.search.distance)
    search.prune(lambda new, _: new <= budget, f"{units.plural} within the budget")
    return search.found(scores, {"budget": budget, **target.given})


def _guided(
    problem: Problem,
    target: Target,
    *,
    front: Annotated[bool, "search on to no edge at all (--front)"] = False,
    steps: Steps = STEPS,
) -> Found:
    if problem.unit != "edge":
        if front:
            raise AcdcError(f"a front is of edges, and these are {problem.units.plural}")
        return _guided_units(problem, target, steps)
    share = _share(target)
    found = guided(problem, budget=target.threshold, edges=target.edges, front=front, steps=steps, **share)
    how = {"budget": found.budget, **share} if target.edges is None else {"edges": target.edges}
    scores = helpfulness(problem, found.scores.values)
    return Found(found.kept, scores, how, found.removal, order=found.order, front=found.front)


def _guided_inside(problem: Problem, target: Target, circuit: Circuit, *, steps: Steps = STEPS) -> Found:
    """The search goes on from a circuit to a larger budget; its front above the circuit stays."""
    if problem.unit != "edge":
        return _guided_units(problem, target, steps, circuit)
    share = _share(target)
    found = guided(problem, budget=target.threshold, steps=steps, inside=circuit, **share)
    order, front, before = found.order, found.front, circuit.scores
    if before is not None and before.order is not None and before.front is not None:
        order = np.where(circuit.edges, 1 + before.order.max() + order, before.order)
        front = np.concatenate([before.front[before.front[:, 0] > circuit.n_edges], front])
    scores = helpfulness(problem, found.scores.values)
    return Found(found.kept, scores, {"budget": found.budget, **share}, found.removal, order=order, front=front)


def _share(target: Target) -> dict[str, Any]:
    """The faithfulness, if it is what is given."""
    return {} if target.faithfulness is None else {"faithfulness": target.faithfulness}


GUIDED = Method(
    name="guided",
    description="from components to edges, exact runs decide; every kept edge is needed",
    cost="one or two runs a component, gradients in each smaller circuit, then some partial runs a surviving edge",
    paper="this project",
    search=_guided,
    narrow=_guided_inside,
    targets={
        "edges": "this many, whatever the distance from the full model; no edge is certified then",
        "threshold": "the budget: the largest distance from the full model",
        "faithfulness": "the budget as a share: 1 − faithfulness of what separates full model and empty circuit",
    },
    gradient="path",
    signs="estimated",
    shares_prompts=True,
)
