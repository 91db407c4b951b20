"""ACDC: removes every edge whose removal costs less than τ, destinations from the logits backwards (`search`).

As a ranking: an edge's score is the largest τ of a sweep at which it is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from acdc.circuit import Circuit
from acdc.engine.measure import Measures
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.graph import BoolArray
from acdc.methods.aggregates import Estimates
from acdc.methods.method import Found, Method, Target
from acdc.methods.search import Accept, Search
from acdc.methods.unit_search import UnitSearch
from acdc.store.resume import ResumeFile, number

DEFAULT_SHARE = 0.001
"""ACDC's default τ, as a share of what separates the full model from the empty circuit."""
LEAST_TAU = 1e-6
"""Where nothing separates the two: larger than rounding, so that the circuit is empty rather than everything."""
SHARES = tuple(float(share) for share in np.logspace(-4, 0, 17))
"""The sweep of τ for a ranking, as shares of the same separation: from almost every edge to almost none."""


def _acdc(problem: Problem, target: Target, circuit: Circuit | None = None) -> Found:
    """A sweep over all edges, or in what an earlier one with a smaller τ left."""
    start = None if circuit is None else circuit.edges
    measures = Measures(problem.outcome, problem.searched())
    tau = target.threshold
    if tau is None:
        tau = max(DEFAULT_SHARE * measures.separation(), LEAST_TAU)
    before = None if circuit is None else circuit.provenance.selection.get("threshold")
    if isinstance(before, int | float) and tau < before:
        raise AcdcError(
            f"the circuit was found with a threshold of {before:.4g}, and edges that {tau:.4g} would keep are gone: "
            "search again"
        )
    if problem.unit != "edge":
        units = UnitSearch.resumed(problem, measures) or _all_units(problem, measures, problem.resume, start)
        units.prune(_cheaper_than(tau), f"ACDC, τ = {tau:.3g}", once=True)
        return units.found(units.kept.astype(np.float64), {"threshold": tau})
    resume = problem.resume
    saved = resume.load({"kept": (problem.graph.valid.shape, np.bool_), "stage": ((1,), np.int64)})
    search = Search(measures, kept=saved.get("kept", start))
    search.sweep(
        _cheaper_than(tau),
        after=int(number(saved, "stage")) if saved else None,
        save=lambda stage: resume.save(kept=search.kept, stage=stage),
        progress=lambda done, total: problem.progress(done, total, f"ACDC, τ = {tau:.3g}"),
    )
    kept = _connected(search, tau)
    alone = Search(measures, kept=kept)
    alone.sweep(
        lambda _new, _old: False,
        expected=False,
        progress=lambda done, total: problem.progress(done, total, "removing each kept edge"),
    )
    return Found(kept, kept.astype(np.float64), {"threshold": tau}, alone.removal())


def _all_units(
    problem: Problem, measures: Measures, resume: ResumeFile, start: BoolArray | None = None
) -> UnitSearch:
    """A search over coarse units, from the logits backwards."""
    from_the_logits = np.arange(float(problem.units.n))[::-1]
    kept = None if start is None else problem.units.of_edges(start)
    return UnitSearch(problem, measures, from_the_logits, kept=kept, resume=resume)


def _cheaper_than(tau: float) -> Accept:
    """ACDC's rule: an edge may go if the distance rises by less than τ."""
    return lambda new, old: new - old < tau


def _connected(search: Search, tau: float) -> BoolArray:
    """The circuit without its dangling parts, if they may go by ACDC's own rule.

    A component that nothing feeds may matter: what its biases write is not what a zero or mean reference holds.
    """
    pruned = search.graph.prune(search.kept)
    return pruned if search.measures.distance(pruned) - search.distance < tau else search.kept


def check_taus(taus: Sequence[float]) -> None:
    """Refuse thresholds that rank nothing: none at all, or one of 0 or less, which ranks what stays below what goes.

    Raises:
        AcdcError: says what was expected and given.
    """
    if not len(taus) or not all(np.isfinite(tau) and tau > 0 for tau in taus):
        raise AcdcError(f"expected taus as thresholds above 0, at least one, got {list(taus)!r:.60}")


def _acdc_ranking(
    problem: Problem,
    *,
    taus: Annotated[
        Sequence[float] | None,
        "thresholds of a ranking, in the metric's units; otherwise shares of full model against empty circuit",
    ] = None,
) -> Estimates:
    """Each edge's score is the largest τ at which ACDC keeps it; `taus` in the metric's units, else `SHARES`."""
    measures = Measures(problem.outcome, problem.searched())
    if taus is None:
        apart = measures.separation()
        taus = [share * apart for share in SHARES]
    else:
        check_taus(taus)
    scores = np.zeros(problem.units.shape)
    for i, tau in enumerate(sorted(taus)):
        problem.progress(i, len(taus), f"ACDC, τ = {tau:.3g}")
        if problem.unit != "edge":
            units = _all_units(problem, measures, ResumeFile())
            units.prune(_cheaper_than(tau), f"ACDC, τ = {tau:.3g}", once=True)
            scores[units.kept] = tau
            continue
        search = Search(measures)
        search.sweep(_cheaper_than(tau))
        scores[_connected(search, tau)] = tau
    return Estimates(scores)


ACDC = Method(
    name="acdc",
    description="removes every edge whose removal costs less than τ, from the logits backwards",
    cost="a partial run per edge",
    paper="Conmy et al. 2023, arXiv 2304.14997",
    score=_acdc_ranking,
    search=_acdc,
    narrow=_acdc,
    targets={
        "threshold": "τ: edges whose removal costs less go; by default a thousandth of full model − empty circuit"
    },
    shares_prompts=True,
)
