"""The methods by name: one record each, saying what it gives, what it costs, and where it comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from acdc.engine.measure import bind, measure_prompts
from acdc.engine.problem import Problem
from acdc.errors import AcdcError, unknown
from acdc.graph import BoolArray, FloatArray
from acdc.methods.aggregates import Estimates, estimates, sums
from acdc.methods.attribution import attribute, path
from acdc.methods.exact import exact_scores
from acdc.methods.guided import guided, separation
from acdc.methods.search import Accept, Search
from acdc.store.resume import number


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


# ---- rankings ---------------------------------------------------------------------------------------------------


def _helpfulness(problem: Problem, change: FloatArray) -> FloatArray:
    """Scores from how each edge's removal changes the metric: positive where the edge helps, whatever the metric."""
    return 0.0 - change if problem.outcome.higher_is_better else change


def _estimates(problem: Problem, total: FloatArray) -> Estimates:
    """Scores from the sums over the prompts of what each edge's removal does to the metric (`aggregates.sums`)."""
    found = estimates(total, len(problem.prompts))
    return dataclasses.replace(found, values=_helpfulness(problem, found.values))


def _attribution(problem: Problem, alphas: list[float]) -> Estimates:
    if not problem.outcome.differentiable:
        raise AcdcError(
            f"metric {problem.outcome.name!r} has no gradient; use logit-difference, or method exact or acdc"
        )
    if problem.outcome.is_distance and alphas == [1.0]:
        raise AcdcError(
            f"the gradient of {problem.outcome.name!r} is zero at the clean prompt, where eap takes it; "
            "use eap-ig, or a performance metric such as logit-difference or projection"
        )
    graph = problem.graph
    total = np.zeros((3, *graph.valid.shape))
    destination = torch.as_tensor(graph.port_destination)
    first = 0
    for i, patching in enumerate(problem.batches("gradients")):
        problem.progress(i, problem.n_batches, "attribution")
        scores = attribute(patching, problem.outcome, alphas=alphas, first=first)  # [prompt, port, source]
        merged = scores.new_zeros(len(scores), *graph.valid.shape)
        merged.index_add_(1, destination.to(scores.device), scores)
        total += sums(merged.movedim(0, -1))
        first += len(patching.prompts)
    problem.progress(problem.n_batches, problem.n_batches, "attribution")
    return _estimates(problem, total)


def _eap(problem: Problem) -> Estimates:
    return _attribution(problem, [1.0])


def _eap_ig(problem: Problem, *, steps: int = 5) -> Estimates:
    return _attribution(problem, path(steps))


def _clean_corrupted(problem: Problem) -> Estimates:
    return _attribution(problem, [0.0, 1.0])


def _exact(problem: Problem) -> Estimates:
    graph, checkpoint = problem.graph, problem.checkpoint
    saved = checkpoint.load(
        {"total": ((3, *graph.valid.shape), np.float64), "batch": ((1,), np.int64), "destination": ((1,), np.int64)}
    )
    total = saved.get("total", np.zeros((3, *graph.valid.shape)))
    first, following = int(number(saved, "batch")), int(number(saved, "destination"))
    batches, edges = problem.n_batches, graph.n_edges
    for i, patching in enumerate(problem.batches("exact")):
        if i < first:
            continue
        before = total.copy()
        total = before + exact_scores(
            patching,
            bind(problem.outcome, patching),
            first=i * problem.prompts_per_batch,
            destinations=range(following if i == first else 0, graph.n_destinations),
            note=lambda d, scores, i=i, before=before: checkpoint.save(  # type: ignore[misc]
                total=before + scores, batch=i, destination=d + 1
            ),
            progress=lambda done, _, first=i * edges: problem.progress(  # type: ignore[misc]
                first + done, batches * edges, "each edge alone"
            ),
        )
    return _estimates(problem, total)


def _random(problem: Problem) -> Estimates:
    measure_prompts(problem, [])  # as with every method, a metric that is no number on some prompt is refused
    drawn = np.random.default_rng(problem.seed).random(problem.graph.valid.shape)
    return Estimates(np.where(problem.graph.valid, drawn, 0.0))


# ---- searches ---------------------------------------------------------------------------------------------------

DEFAULT_SHARE = 0.001
"""ACDC's default τ, as a share of what separates the full model from the empty circuit."""
LEAST_TAU = 1e-6
"""Where nothing separates the two: larger than rounding, so that the circuit is empty rather than everything."""
SHARES = tuple(float(share) for share in np.logspace(-4, 0, 17))
"""The sweep of τ for a ranking, as shares of the same separation: from almost every edge to almost none."""


def _acdc(
    problem: Problem,
    threshold: float | None,
    faithfulness: float | None,
    edges: int | None,
    *,
    taus: object = None,
) -> Found:
    assert faithfulness is None
    assert edges is None
    if taus is not None:
        raise AcdcError(
            "taus is for the ranking by a sweep: give edges or faithfulness too, or one threshold instead"
        )
    patching = problem.patching()
    measure = bind(problem.outcome, patching)
    tau = max(DEFAULT_SHARE * separation(patching, measure), LEAST_TAU) if threshold is None else threshold
    checkpoint = problem.checkpoint
    saved = checkpoint.load({"kept": (problem.graph.valid.shape, np.bool_), "stage": ((1,), np.int64)})
    search = Search(patching, measure, saved.get("kept"))
    search.sweep(
        _cheaper_than(tau),
        after=int(number(saved, "stage")) if saved else None,
        note=lambda stage: checkpoint.save(kept=search.kept, stage=stage),
        progress=lambda done, total: problem.progress(done, total, f"ACDC, τ = {tau:.3g}"),
    )
    kept = _connected(search, tau)
    alone = Search(patching, measure, kept)
    alone.sweep(
        lambda _new, _old: False,
        expected=False,
        progress=lambda done, total: problem.progress(done, total, "removing each kept edge"),
    )
    return Found(kept, kept.astype(np.float64), {"threshold": tau}, alone.removal())


def _cheaper_than(tau: float) -> Accept:
    """ACDC's rule: an edge may go if the distance rises by less than τ."""
    return lambda new, old: new - old < tau


def _connected(search: Search, tau: float) -> BoolArray:
    """The circuit without its dangling parts, if they may go by ACDC's own rule.

    A component that nothing feeds may matter: what its biases write is not what a zero or mean reference holds.
    """
    patching, measure = search.patching, search.measure
    pruned = search.graph.prune(search.kept)
    with torch.no_grad():
        distance = float(measure.distance(patching.logits(pruned, rows=measure.rows)).mean())
    return pruned if distance - search.distance < tau else search.kept


def _acdc_ranking(problem: Problem, *, taus: Sequence[float] | None = None) -> Estimates:
    """Each edge's score is the largest τ at which ACDC keeps it; `taus` in the metric's units, else `SHARES`."""
    if taus is not None and not _numbers(taus):
        raise AcdcError(f"expected taus to be a list of numbers, like [0.01, 0.1], got {taus!r}")
    patching = problem.patching()
    measure = bind(problem.outcome, patching)
    if taus is None:
        apart = separation(patching, measure)
        taus = [share * apart for share in SHARES]
    scores = np.zeros(problem.graph.valid.shape)
    for i, tau in enumerate(sorted(taus)):
        problem.progress(i, len(taus), f"ACDC, τ = {tau:.3g}")
        search = Search(patching, measure)
        search.sweep(_cheaper_than(tau))
        scores[_connected(search, tau)] = tau
    return Estimates(scores)


def _numbers(given: object) -> bool:
    return isinstance(given, Sequence | np.ndarray) and all(isinstance(x, float | int | np.number) for x in given)


def _guided(
    problem: Problem, threshold: float | None, faithfulness: float | None, edges: int | None, *, steps: int = 5
) -> Found:
    if not problem.outcome.differentiable:
        raise AcdcError(
            f"metric {problem.outcome.name!r} has no gradient; guide by kl or logit-difference, or use acdc"
        )
    target = {} if faithfulness is None else {"faithfulness": faithfulness}
    removal: list[FloatArray] = []
    kept, change, budget = guided(
        problem, budget=threshold, edges=edges, steps=steps, certified=removal.append, **target
    )
    how = {"edges": edges} if edges is not None else {"budget": budget, **target}
    return Found(kept, _helpfulness(problem, change), how, removal[0] if removal else None)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "guided", "circuit", "attribution guesses, exact runs decide; every kept edge is needed",
            "some dozens of runs, then a few partial runs per surviving edge", "this project", {"steps": 5},
            search=_guided,
        ),
        Method(
            "acdc", "circuit", "removes every edge whose removal costs less than τ, from the logits backwards",
            "a partial run per edge", "Conmy et al. 2023, arXiv 2304.14997", {"taus": None},
            score=_acdc_ranking, search=_acdc,
        ),
        Method(
            "eap", "scores", "edge attribution patching: first-order effect at the clean prompt",
            "2 forward, 1 backward", "Syed et al. 2023, arXiv 2310.10348", score=_eap,
        ),
        Method(
            "eap-ig", "scores", "EAP with gradients averaged from the corrupted to the clean embedding",
            "(2 + steps) forward, steps backward", "Hanna et al. 2024, arXiv 2403.17806", {"steps": 5},
            score=_eap_ig,
        ),
        Method(
            "clean-corrupted", "scores", "EAP with gradients averaged over the clean and the corrupted prompt",
            "3 forward, 2 backward", "Hanna et al. 2024, arXiv 2403.17806", score=_clean_corrupted,
        ),
        Method(
            "exact", "scores", "exact edge activation patching: the metric without each edge alone",
            "a partial run per edge", "Syed et al. 2023, arXiv 2310.10348", score=_exact,
        ),
        Method("random", "scores", "random scores: what every method must beat", "2 forward", "", score=_random),
    )
}  # fmt: skip
"""Every method by name."""


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a method does not have, or values of another kind than its defaults.

    Raises:
        AcdcError: says which, and what is expected.
    """
    known = METHODS[name].options
    for option, value in options.items():
        if option not in known:
            if not known:
                raise AcdcError(f"method {name!r} has no options, got {option!r}")
            raise unknown(f"option of {name}", option, known)
        default = known[option]
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        truth = isinstance(value, bool) and not isinstance(default, bool)
        if default is not None and (truth or not isinstance(value, kinds)):
            what = {int: "a whole number", float: "a number", bool: "true or false"}.get(type(default), "a value")
            raise AcdcError(f"method {name!r}: expected {option} to be {what} like {default!r}, got {value!r:.60}")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise AcdcError(f"method {name!r}: {option}={str(value)[:20]}… is too large")
