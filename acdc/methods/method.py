"""What a circuit discovery method is: one record, which says all that anybody else has to know of it.

A method ranks all edges (`score`), or searches for a circuit itself (`search`), or both. Nobody asks for a method by
its name: what it takes, needs and gives are fields, and its options are those of its functions' signatures.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Literal

from jaxtyping import Bool, Float64

from acdc.circuit.provenance import plain
from acdc.engine.problem import Problem
from acdc.errors import AcdcError, check_whole, unknown
from acdc.graph import BoolArray, FloatArray
from acdc.methods.aggregates import Estimates, estimates
from acdc.metrics import Outcome
from acdc.signatures import options_of

Amount = Literal["edges", "threshold", "faithfulness"]
"""What can say how much a circuit is to keep."""


@dataclasses.dataclass(frozen=True)
class Target:
    """How much a circuit is to keep, said in at most one way; in none: what the method does by itself.

    Attributes:
        edges: this many edges.
        threshold: in the metric's units; what it is the threshold of is up to the method.
        faithfulness: this share of what separates the full model from the empty circuit, above 0 and at most 1.

    Raises:
        AcdcError: more than one is given, or a value that cannot be.
    """

    edges: int | None = None
    threshold: float | None = None
    faithfulness: float | None = None

    def __post_init__(self) -> None:
        if len(given := self.given) > 1:
            raise AcdcError(f"expected one of edges, threshold and faithfulness, got {' and '.join(given)}")
        if self.faithfulness is not None and not 0 < self.faithfulness <= 1:
            raise AcdcError(f"expected a faithfulness above 0 and at most 1, got {self.faithfulness}")
        if self.edges is not None:
            check_whole("a number of edges", self.edges, least=1)
        if self.threshold is not None and not self.threshold >= 0:  # NaN too
            raise AcdcError(f"expected a threshold of at least 0, got {self.threshold}")

    @property
    def given(self) -> dict[str, float]:
        """What is said, by name: nothing, or one."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search gives.

    Attributes:
        edges: kept edges; scores: a score of every edge; both `[n_destinations, n_sources]`.
        selection: how much was kept, with defaults worked out, in the metric's units: a search that stays within a
            distance from the full model says which, as `budget` or `threshold`.
        removal: how much worse the metric gets without each kept edge alone, NaN elsewhere; None if not measured.
        order: `[n_destinations, n_sources]`: larger where the search let an edge go later, largest where it is kept, so
            that the best n edges are its circuit of n edges; None if it has none for other sizes.
        front: `[point, 2]`: edges and distance from the full model of the circuits on the way, from many edges to few.
    """

    edges: Bool[BoolArray, "destination source"]
    scores: Float64[FloatArray, "destination source"]
    selection: Mapping[str, float]
    removal: Float64[FloatArray, "destination source"] | None = None
    order: Float64[FloatArray, "destination source"] | None = None
    front: Float64[FloatArray, "point 2"] | None = None


ScoreFunction = Callable[..., Estimates]
"""`(problem, *, options) -> Estimates`."""
SearchFunction = Callable[..., Found]
"""`(problem, target, *, options) -> Found`."""
NarrowFunction = Callable[..., Found]
"""`(problem, target, circuit, *, options) -> Found`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A circuit discovery method.

    Attributes:
        name: as given to `score` and `discover`, and on the command line.
        description: one line.
        cost: passes of the model, in words.
        paper: where it comes from.
        score: a ranking of all edges; None if it gives none. Its keyword-only arguments are options, with defaults.
        search: a search that decides itself what to keep; None for rankings. Options as for `score`.
        narrow: the same search, going on from a circuit that it found (`acdc.cut`); None: it cannot. Its options are
            among the search's.
        targets: which amounts the search takes, and what each means to it, in words. Any other is reached by cutting
            the ranking, if there is one. A search that takes `faithfulness` gets the task's if nothing is said.
        gradient: where it takes gradients of the metric: nowhere, at the clean prompt alone (where that of a distance
            from the full model is zero), or elsewhere too.
        counterfactual: whether it needs corrupted prompts that differ from the clean ones.
        signs: what the signs of its scores are: measured by removing each edge from the full model, a first-order
            estimate of that, or nothing.
        grain: what it ranks; where edges are asked of one that ranks nodes, each has its source's score.
        baseline: whether it only is what the others have to beat.
        trains: whether it trains a mask, which takes thousands of passes: `acdc benchmark` runs it if named.
        shares_prompts: whether processes that work together may each run some of the prompts: what it sums over
            `Problem.batches`, or decides by, is of all prompts then (`Batches.ranks`). Otherwise each runs all of them.
    """

    name: str
    description: str
    cost: str
    paper: str = ""
    score: ScoreFunction | None = None
    search: SearchFunction | None = None
    narrow: NarrowFunction | None = None
    targets: Mapping[Amount, str] = dataclasses.field(default_factory=dict)
    gradient: Literal["nowhere", "clean", "path"] = "nowhere"
    counterfactual: bool = False
    signs: Literal["measured", "estimated", "none"] = "none"
    grain: Literal["edge", "node"] = "edge"
    baseline: bool = False
    trains: bool = False
    shares_prompts: bool = False

    def __post_init__(self) -> None:
        if self.score is None and self.search is None:
            raise AcdcError(f"method {self.name!r}: expected a ranking (score), a search, or both")
        for amount in self.targets:
            if amount not in typing.get_args(Amount):
                raise unknown(f"target of method {self.name!r}", amount, typing.get_args(Amount))
        if self.search is not None and self.score is None and not self.targets:
            raise AcdcError(f"method {self.name!r}: its search takes no target, and there is no ranking to cut")

    @property
    def gives(self) -> Literal["scores", "circuit"]:
        """ "scores": a ranking of all edges; "circuit": a search that decides itself."""
        return "scores" if self.search is None else "circuit"

    @property
    def needs(self) -> str:
        """What it needs of a task, in words."""
        gradient = {"nowhere": [], "clean": ["a metric with a gradient, no distance"], "path": ["a gradient"]}
        return " and ".join(
            gradient[self.gradient] + (["corrupted prompts that differ"] if self.counterfactual else [])
        )

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """Names and defaults of its options."""
        return {
            name: option.default for name, option in {**options_of(self.search), **options_of(self.score)}.items()
        }

    @cached_property
    def option_types(self) -> Mapping[str, str]:
        """What each option expects, in words."""
        return {
            name: option.expects for name, option in {**options_of(self.search), **options_of(self.score)}.items()
        }

    @cached_property
    def option_meanings(self) -> Mapping[str, str]:
        """What each option means, as its `Annotated` says; "" where nothing does."""
        return {
            name: option.meaning for name, option in {**options_of(self.search), **options_of(self.score)}.items()
        }

    def searches(self, target: Target) -> bool:
        """Whether its search takes this target (or its ranking is cut)."""
        return self.search is not None and set(target.given) <= set(self.targets)

    def options_from(
        self, given: Mapping[str, Any], use: Literal["score", "search"] | None = None
    ) -> dict[str, Any]:
        """Options that were given, checked against the signature's annotations, as plain Python values.

        Args:
            use: what they are for; None: either.

        Raises:
            AcdcError: an option that it does not have, or not for this, or a value of another type.
        """
        known = {"score": options_of(self.score), "search": options_of(self.search)}
        every = known["search"] | known["score"]
        found = {}
        for name, value in given.items():
            if name not in every:
                if not every:
                    raise AcdcError(f"method {self.name!r} has no options, got {name!r}")
                raise unknown(f"option of {self.name}", name, every)
            if use is not None and name not in known[use]:
                raise AcdcError(f"option {name!r} of method {self.name!r} {self._elsewhere(use)}")
            found[name] = every[name].checked(plain(value), f"method {self.name!r}")
        return found

    def _elsewhere(self, use: Literal["score", "search"]) -> str:
        """What to do about an option that is for the other use."""
        if use == "score":
            return "is of its search: use discover"
        others = [amount for amount in typing.get_args(Amount) if amount not in self.targets]
        return f"is of its ranking, and not of its search: give {' or '.join(others)} too, or leave it out"


def refuse_metric(method: Method, outcome: Outcome, others: Iterable[Method]) -> None:
    """Refuse a metric without the gradient that a method takes, and say which of the others would do.

    Raises:
        AcdcError: with what to do instead.
    """
    if method.gradient != "nowhere" and not outcome.differentiable:
        instead = [other.name for other in others if other.gradient == "nowhere" and not other.baseline]
        raise AcdcError(
            f"metric {outcome.name!r} has no gradient; use one that has, like logit-difference, or use "
            f"{' or '.join(instead)}"
        )
    if method.gradient == "clean" and outcome.is_distance:
        instead = [other.name for other in others if other.gradient == "path" or other.signs == "measured"]
        raise AcdcError(
            f"the gradient of {outcome.name!r} is zero at the clean prompt, where {method.name} takes it; use "
            f"{' or '.join(instead)}, or a performance metric such as logit-difference or projection"
        )


def helpfulness(problem: Problem, change: FloatArray) -> FloatArray:
    """Scores from how each edge's removal changes the metric: positive where the edge helps, whatever the metric."""
    return 0.0 - change if problem.outcome.higher_is_better else change


def estimates_of(problem: Problem, total: FloatArray) -> Estimates:
    """Scores from the sums over the prompts of what each edge's removal does to the metric (`aggregates.sums`)."""
    found = estimates(total, len(problem.prompts))
    return dataclasses.replace(found, values=helpfulness(problem, found.values))
