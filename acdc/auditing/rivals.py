"""Rivals: is there another circuit that is as faithful, and has little in common with this one?

The circuit's edges are charged: starting from the whole model, they are removed first, the cheapest first, each by an
exact run, as long as the output stays as near to the model as the claim allows. What no rival found this way can do
without is the core. Then the other edges go, so that the rival is a circuit and not most of the model. It counts if it
is as near on prompts that it was not found on, and has less than half of its edges, or of the circuit's if these are
fewer, in common with it: what lies within the circuit is no rival, however much more the circuit keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from acdc.auditing.record import Check, NotApplicable, Result
from acdc.auditing.subject import Subject
from acdc.engine.measure import Measures
from acdc.evaluation.reproduction import reproduction
from acdc.graph import IntArray
from acdc.methods.groups import Groups
from acdc.metrics import OUTCOMES, jaccard
from acdc.metrics.hypotheses import mean_exceeds
from acdc.shown import counted

SHARED = 0.5
"""Share of the edges of the smaller of the two that a rival may have in common with the circuit."""
MOST_EDGES = 20_000
"""Edges of a graph above which rivals are searched in full audits only."""
MOST_PROMPTS = 128


def _rivals(subject: Subject) -> Result:
    graph = subject.graph
    if _is_too_large(subject):
        raise NotApplicable("a search for rivals of so large a graph is part of a full audit: --full")
    if not subject.edges.any():
        raise NotApplicable("the circuit has no edge")
    problem = subject.problem(subject.dataset.discovery[:MOST_PROMPTS])
    if subject.exact:
        problem = subject.problem(subject.dataset.discovery[:MOST_PROMPTS], outcome=OUTCOMES["l2"])
    measures = Measures(problem.outcome, problem.searched())
    budget = _budget(subject, measures)
    search = Groups(measures)
    charged = np.flatnonzero(subject.edges)
    _remove(search, charged, budget, subject)
    least = int((search.kept & subject.edges).sum())
    rest = np.flatnonzero(search.kept & ~subject.edges)
    _remove(search, rest, budget, subject)
    rival = graph.prune(search.kept) if problem.dangling_is_free else search.kept
    rival_share = subject.on_fresh.shares([rival])[0]
    faithful = mean_exceeds(rival_share, subject.tolerance) > 0.05
    shared = int((rival & subject.edges).sum())
    n_rival = int(rival.sum())
    part = shared / max(1, min(n_rival, subject.circuit.n_edges))
    is_rival = bool(faithful and part < SHARED)
    second = False
    if is_rival and subject.exact and subject.dataset.ablation != "resample":
        right = reproduction([problem, subject.problem()], rival)
        second = right.is_right
    names = graph.edge_names(rival & subject.edges)
    if is_rival:
        kind = "a second circuit, right by itself," if second else "a rival"
        found = f"{kind} of {counted(n_rival, 'edge')} shares {shared} of its {subject.circuit.n_edges}"
    else:
        found = (
            f"no rival: {least} of its {subject.circuit.n_edges} edges cannot go from the whole model, "
            f"and the furthest circuit found, of {counted(n_rival, 'edge')}, shares {shared}"
            + ("" if faithful else ", and is not faithful on fresh prompts")
        )
    return Result(
        statistic="share of the smaller's edges that the circuit and the furthest faithful one have in common",
        value=part if faithful else 1.0,
        threshold=SHARED,
        p=0.0 if is_rival and not second else 1.0,
        found=found,
        advice="do not call it the circuit: report the core that both share, and that there is another",
        details={
            "rival edges": n_rival,
            "shared": shared,
            "overlap (Jaccard)": jaccard(rival, subject.edges),
            "cannot go from the whole model": least,
            "core": names[:100],
            "rival": graph.edge_names(rival)[:300],
            "rival is faithful on fresh prompts": bool(faithful),
            "rival's share of the way to the empty circuit": float(rival_share.mean()),
            "a second circuit": second,
        },
    )


def _budget(subject: Subject, measures: Measures) -> float:
    """Distance that the claim allows, in the metric's units."""
    return max((1 - subject.claim) * measures.separation(), 1e-6)


def _remove(search: Groups, edges: IntArray, budget: float, subject: Subject) -> None:
    """Remove as many of these edges as fit in the budget: shares of the cheapest at once, then one by one."""
    left = edges
    while len(left):
        subject.progress(0, None, f"rivals: {int(search.kept.sum()):,} edges")
        distances, _ = search.measure_without([np.array([e]) for e in left])
        rises = distances - search.distance
        order = np.argsort(rises, kind="stable")
        left, rises = left[order], rises[order]
        fitting = int((search.distance + rises <= budget).sum())
        if not fitting:
            return
        taken = _largest(search, left[:fitting], budget)
        search.remove(taken)
        left = np.setdiff1d(left[:fitting], taken)


def _largest(search: Groups, cheapest: Sequence[int] | IntArray, budget: float) -> IntArray:
    """The longest halving of the cheapest edges that can go together."""
    group = np.asarray(cheapest, dtype=np.int64)
    while len(group) > 1:
        some = np.sort(group)
        if search.distance_without(some) <= budget:
            return some
        group = group[: len(group) // 2]
    return group


def _is_too_large(subject: Subject) -> bool:
    return subject.graph.n_edges > MOST_EDGES and subject.level != "full"


def _seconds(subject: Subject) -> float:
    if _is_too_large(subject):
        return 0.0
    prompts = min(MOST_PROMPTS, len(subject.dataset.discovery))
    sweeps = 2 if subject.small else 6
    return 0.3 * sweeps * subject.graph.n_edges * subject.seconds_of_model * subject.share_of_fresh(prompts)


RIVALS = Check(
    name="rivals",
    question="Is there another circuit as faithful, with little in common?",
    run=_rivals,
    level="usual",
    seconds=_seconds,
)
