"""What a circuit discovery method is: a record with a name, a ranking of all edges or a search, and what these cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from acdc.engine.problem import Problem
from acdc.graph import BoolArray, FloatArray
from acdc.methods.aggregates import Estimates, estimates


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search gives.

    Attributes:
        edges: kept edges; scores: a score of every edge; both `[n_destinations, n_sources]`.
        selection: how much was kept, with defaults worked out, in the metric's units.
        removal: how much worse the metric gets without each kept edge alone, NaN elsewhere; None if not measured.
    """

    edges: BoolArray
    scores: FloatArray
    selection: Mapping[str, float]
    removal: FloatArray | None = None


ScoreFunction = Callable[..., Estimates]
SearchFunction = Callable[..., Found]


@dataclasses.dataclass(frozen=True)
class Method:
    """A circuit discovery method.

    Attributes:
        gives: "scores": a ranking of all edges; "circuit": a search that decides itself.
        score: `(problem, **options) -> Estimates`; None if it gives no ranking.
        search: `(problem, threshold, faithfulness, edges, **options) -> Found`; None for rankings.
        options: names and defaults.
        cost: passes of the model.
        paper: where it comes from.
    """

    name: str
    gives: Literal["scores", "circuit"]
    description: str
    cost: str
    paper: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    score: ScoreFunction | None = None
    search: SearchFunction | None = None


def helpfulness(problem: Problem, change: FloatArray) -> FloatArray:
    """Scores from how each edge's removal changes the metric: positive where the edge helps, whatever the metric."""
    return 0.0 - change if problem.outcome.higher_is_better else change


def estimates_of(problem: Problem, total: FloatArray) -> Estimates:
    """Scores from the sums over the prompts of what each edge's removal does to the metric (`aggregates.sums`)."""
    found = estimates(total, len(problem.prompts))
    return dataclasses.replace(found, values=helpfulness(problem, found.values))
