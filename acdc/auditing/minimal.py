"""Minimality: is every edge needed, alone, in pairs, and in groups? What remains when those that are not have gone?

Of a circuit of nodes, the same is asked of its nodes.

That an edge does nothing is the claim to be proved here. It is tested against the hypothesis that the edge does
something, more than a tenth of what its edges do that matter, and at most 2.5%; an edge that clearly acts
on some prompt is needed, however rarely that is.

The more edges, the more prompts it takes to say so of one of them: hundreds at least. So one
thing is asked of the circuit as a whole, too, where there are other prompts than those of discovery: may half of its
edges, those of the least effect on the discovery prompts, go together at less than the claim allows on the others?
"""

from __future__ import annotations

import bisect
import itertools

import numpy as np

from acdc.auditing.record import Check, NotApplicable, Result
from acdc.auditing.subject import Scale, Subject
from acdc.graph import FloatArray, IntArray
from acdc.methods.groups import Groups
from acdc.metrics.hypotheses import any_of, mean_falls_short, share_falls_short

MOST_NEEDLESS = 0.025
OF_AVERAGE = 0.1
ACTS = 0.5
"""Share on one prompt that shows an edge to be needed."""
MOST_PAIRS = 400
SHOWN = 20
MOST_COUNTED = 100_000
"""Prompts up to which it is worked out how many it takes to tell an edge."""


def _minimal(subject: Subject) -> Result:
    edges, units = subject.edges, subject.units
    if not edges.any():
        raise NotApplicable("the circuit has no edge")
    switches = units.of_edges(edges)
    kept, names = np.flatnonzero(switches), units.names_of(switches)
    unit, plural = units.unit, units.plural
    dangles = switches & ~units.of_edges(subject.graph.prune(edges))
    dangling = dangles if subject.on_fresh.problem.dangling_is_free else np.zeros_like(switches)
    scales = [subject.on_fresh, *([subject.on_discovery] if subject.has_others else [])]
    searches = [(scale, scale.search(edges)) for scale in scales]
    effects = _effects(searches, [units.going(edges, one) for one in kept[:, None]])  # [unit, prompt]
    means = effects.mean(axis=1)
    average = float((means**2).sum() / max(means.sum(), 1e-12))  # of those that matter
    least = float(np.clip(OF_AVERAGE * average, 1e-6, MOST_NEEDLESS))
    p_alone = np.array([_needless(row, least, subject.exact) for row in effects])
    p_alone[dangling.flat[kept]] = 0.0
    corrected = np.minimum(1.0, p_alone * len(p_alone))
    needless = [int(i) for i in np.argsort(p_alone, kind="stable") if corrected[i] < 0.05]
    groups = _groups(subject, effects, p_alone) if subject.level != "quick" else []
    p_groups = np.array([1.0])
    named: list[str] = []
    if groups:
        rows = _effects(searches, [units.going(edges, kept[group]) for group in groups])
        p_groups = np.minimum(1.0, np.array([_needless(row, least, subject.exact) for row in rows]) * len(groups))
        named = [" and ".join(names[i] for i in sorted(groups[g])) for g in np.flatnonzero(p_groups < 0.05)]
    half, cost, p_half = _half(subject, searches[0], kept, effects) if subject.has_others else (0, 0.0, 1.0)
    p = any_of([float(corrected.min()), p_half, *([float(p_groups.min())] if groups else [])])
    found = f"{len(needless)} of {len(names)} {plural} are shown to do nothing alone"
    n_prompts = effects.shape[1]
    if not needless and not _can_tell(n_prompts, len(names), least, subject.exact):
        enough = _prompts_needed(len(names), least, subject.exact)
        found = f"{n_prompts} prompts show of no single {unit} that it does nothing, which takes {enough:,}"
    if p_half < 0.05:
        found += f"; {half} of {len(names)} {plural} may go together at {cost:.1%} of the way to no circuit"
    if groups:
        found += f"; {len(named)} of {len(groups)} pairs and groups tried do nothing together"
    if needless:
        found += f" ({', '.join(names[i] for i in needless[:3])}{', …' if len(needless) > 3 else ''})"
    return Result(
        statistic=f"{plural} that do nothing",
        value=float(max(len(needless) + len(named), half if p_half < 0.05 else 0)),
        threshold=0.0,
        p=p,
        found=found,
        advice=(
            f"leave these {plural} out, and judge what remains; or search with guided, which tests each {unit} it keeps"
        ),
        details={
            f"{_a(unit)} does nothing below a share of": least,
            f"effect of {_a(unit)} that matters": average,
            f"half of the {plural}": {plural: half, "share of the way to the empty circuit": cost, "p": p_half}
            if half
            else None,
            "needless": [names[i] for i in needless[:SHOWN]],
            "needless together": named[:SHOWN],
            "dangling": units.names_of(dangling)[:SHOWN],
            f"effect of each {unit}": {
                name: round(float(row.mean()), 5) for name, row in zip(names, effects, strict=True)
            },
            "without the needless": _after(subject, units.going(edges, kept[needless])),
        },
    )


def _a(unit: str) -> str:
    return f"an {unit}" if unit == "edge" else f"a {unit}"


def _half(
    subject: Subject, on_fresh: tuple[Scale, Groups], kept: IntArray, effects: FloatArray
) -> tuple[int, float, float]:
    """The weaker half of the edges (or nodes): how many, what they cost together on fresh prompts, and the p-value that
    the circuit does not do without them.

    Args:
        kept: flat indices of them.
        effects: `[unit, prompt]`; the last prompts are those of discovery, by which the half is chosen.
    """
    n = len(effects) // 2
    if not n:
        return 0, 0.0, 1.0
    on_discovery = effects[:, len(subject.fresh) :].mean(axis=1)
    weaker = kept[np.argsort(on_discovery, kind="stable")[:n]]
    row = _effects([on_fresh], [subject.units.going(subject.edges, weaker)])[0]
    most = max(subject.tolerance, MOST_NEEDLESS)
    if subject.exact:
        return n, float(row.mean()), share_falls_short(int((row > 0).sum()), len(row), most)
    return n, float(row.mean()), mean_falls_short(row, most)


def _can_tell(n_prompts: int, n_edges: int, least: float, exact: bool) -> bool:
    """Whether an edge without any effect is found among so many."""
    return _needless(np.zeros(n_prompts), least, exact) * n_edges < 0.05


def _prompts_needed(n_edges: int, least: float, exact: bool) -> int:
    """Prompts from which on it is, as far as anybody would count."""
    counted = range(MOST_COUNTED)
    return bisect.bisect_left(counted, True, key=lambda n: _can_tell(n, n_edges, least, exact))


def _effects(searches: list[tuple[Scale, Groups]], groups: list[IntArray]) -> FloatArray:
    """`[group, prompt]` share between the circuit with and without each group of edges, flat."""
    rows = []
    for scale, search in searches:
        values = search.values_without([np.zeros(0, dtype=np.int64), *groups])
        rows.append(scale.apart(values[1:], values[0]))
    return np.concatenate(rows, axis=1)


def _needless(effect: FloatArray, least: float, exact: bool) -> float:
    """p-value of the hypothesis that it does something."""
    if (effect > ACTS).any():
        return 1.0
    return share_falls_short(0, len(effect), least) if exact else mean_falls_short(effect, least)


def _most_pairs(subject: Subject) -> int:
    return MOST_PAIRS if subject.small else 64


def _groups(subject: Subject, effects: FloatArray, p_alone: FloatArray) -> list[list[int]]:
    """Pairs, all or those of the least effects, and all edges out of a component, of what is needed alone: places."""
    needed = np.flatnonzero(p_alone > 0.05)
    order = needed[np.argsort(effects[needed].mean(axis=1), kind="stable")]
    most = _most_pairs(subject)
    of_edges = subject.circuit.unit == "edge"
    places = np.argwhere(subject.edges)
    if len(order) ** 2 < 2 * most:
        chosen = sorted(itertools.combinations(order.tolist(), 2), key=max)
    else:
        width = int((2 * most) ** 0.5)
        chosen = list(itertools.combinations(order[:width].tolist(), 2))
        known = set(chosen)
        parallel = _parallel(places, order) if of_edges else []
        chosen += [pair for pair in parallel if pair not in known][:most]
    found = [list(pair) for pair in chosen]
    if of_edges:
        for source in np.unique(places[needed, 1]):
            own = needed[places[needed, 1] == source]
            if len(own) > 2:
                found.append(own.tolist())
    return found


def _parallel(places: IntArray, order: IntArray) -> list[tuple[int, int]]:
    """Pairs of edges into one destination, which can cancel."""
    pairs = []
    for d in np.unique(places[order, 0]):
        own = order[places[order, 0] == d].tolist()
        pairs += list(itertools.combinations(own, 2))
    return pairs


def _after(subject: Subject, needless: IntArray) -> dict[str, float]:
    """The circuit without the needless edges, flat: its size, and its share from the model."""
    left = subject.edges.copy()
    left.flat[needless] = False
    share = float(subject.on_fresh.shares([left])[0].mean())
    return {"edges": int(left.sum()), "share of the way to the empty circuit": share}


MINIMAL = Check(
    name="minimality",
    question="Is every edge needed, alone and in pairs?",
    run=_minimal,
    level="quick",
    seconds=lambda subject: (
        0.5
        * (subject.circuit.n_units + (0 if subject.level == "quick" else _most_pairs(subject)))
        * (1 + subject.share_of_fresh(len(subject.dataset.discovery)))
        * subject.seconds_of_circuit
    ),
)
