"""Minimality: is every edge needed, alone, in pairs, and in groups? What remains when those that are not have gone?

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
from acdc.graph import BoolArray, FloatArray, IntArray
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
    edges, graph = subject.edges, subject.graph
    if not edges.any():
        raise NotApplicable("the circuit has no edge")
    places = np.argwhere(edges)
    dangling = edges & ~graph.prune(edges) if subject.dataset.ablation == "resample" else np.zeros_like(edges)
    scales = [subject.on_fresh, *([subject.on_discovery] if subject.has_others else [])]
    searches = [(scale, scale.search(edges)) for scale in scales]
    effects = _effects(searches, [place[None] for place in places])  # [edge, prompt]
    means = effects.mean(axis=1)
    average = float((means**2).sum() / max(means.sum(), 1e-12))  # of the edges that matter
    least = float(np.clip(OF_AVERAGE * average, 1e-6, MOST_NEEDLESS))
    p_edges = np.array([_needless(row, least, subject.exact) for row in effects])
    names = graph.edge_names(edges)
    p_edges[[bool(dangling[d, s]) for d, s in places]] = 0.0
    corrected = np.minimum(1.0, p_edges * len(p_edges))
    needless = [names[i] for i in np.argsort(p_edges, kind="stable") if corrected[i] < 0.05]
    groups = _groups(subject, places, effects, p_edges) if subject.level != "quick" else []
    p_groups = np.array([1.0])
    named: list[str] = []
    if groups:
        rows = _effects(searches, groups)
        p_groups = np.minimum(1.0, np.array([_needless(row, least, subject.exact) for row in rows]) * len(groups))
        named = [" and ".join(graph.edge_names(_only(edges, groups[i]))) for i in np.flatnonzero(p_groups < 0.05)]
    half, cost, p_half = _half(subject, searches[0], places, effects) if subject.has_others else (0, 0.0, 1.0)
    p = any_of([float(corrected.min()), p_half, *([float(p_groups.min())] if groups else [])])
    left = _after(subject, needless)
    found = f"{len(needless)} of {len(names)} edges are shown to do nothing alone"
    n_prompts = effects.shape[1]
    if not needless and not _can_tell(n_prompts, len(names), least, subject.exact):
        enough = _prompts_needed(len(names), least, subject.exact)
        found = f"{n_prompts} prompts show of no single edge that it does nothing, which takes {enough:,}"
    if p_half < 0.05:
        found += f"; {half} of {len(names)} edges may go together at {cost:.1%} of the way to no circuit"
    if groups:
        found += f"; {len(named)} of {len(groups)} pairs and groups tried do nothing together"
    if needless:
        found += f" ({', '.join(needless[:3])}{', …' if len(needless) > 3 else ''})"
    return Result(
        statistic="edges that do nothing",
        value=float(max(len(needless) + len(named), half if p_half < 0.05 else 0)),
        threshold=0.0,
        p=p,
        found=found,
        advice="leave these edges out, and judge what remains; or search with guided, which tests every edge it keeps",
        details={
            "an edge does nothing below a share of": least,
            "effect of an edge that matters": average,
            "half of the edges": {"edges": half, "share of the way to the empty circuit": cost, "p": p_half}
            if half
            else None,
            "needless": needless[:SHOWN],
            "needless together": named[:SHOWN],
            "dangling": graph.edge_names(dangling)[:SHOWN],
            "effect of each edge": {
                name: round(float(row.mean()), 5) for name, row in zip(names, effects, strict=True)
            },
            "without the needless": left,
        },
    )


def _half(
    subject: Subject, on_fresh: tuple[Scale, Groups], places: IntArray, effects: FloatArray
) -> tuple[int, float, float]:
    """The weaker half of the edges: how many, what they cost together on fresh prompts, and the p-value that the
    circuit does not do without them.

    Args:
        effects: `[edge, prompt]`; the last prompts are those of discovery, by which the half is chosen.
    """
    n = len(places) // 2
    if not n:
        return 0, 0.0, 1.0
    on_discovery = effects[:, len(subject.fresh) :].mean(axis=1)
    weaker = places[np.argsort(on_discovery, kind="stable")[:n]]
    row = _effects([on_fresh], [weaker])[0]
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


def _only(edges: BoolArray, group: IntArray) -> BoolArray:
    mask = np.zeros_like(edges)
    mask[group[:, 0], group[:, 1]] = True
    return mask


def _effects(searches: list[tuple[Scale, Groups]], groups: list[IntArray]) -> FloatArray:
    """`[group, prompt]` share between the circuit with and without each group of places `[edge, 2]`."""
    rows = []
    for scale, search in searches:
        flat = [np.ravel_multi_index(tuple(group.T), search.kept.shape) for group in groups]
        values = search.values_without([np.zeros(0, dtype=np.int64), *flat])
        rows.append(scale.apart(values[1:], values[0]))
    return np.concatenate(rows, axis=1)


def _needless(effect: FloatArray, least: float, exact: bool) -> float:
    """p-value of the hypothesis that it does something."""
    if (effect > ACTS).any():
        return 1.0
    return share_falls_short(0, len(effect), least) if exact else mean_falls_short(effect, least)


def _most_pairs(subject: Subject) -> int:
    return MOST_PAIRS if subject.small else 64


def _groups(subject: Subject, places: IntArray, effects: FloatArray, p_edges: FloatArray) -> list[IntArray]:
    """Pairs, all or those of the least effects, and all edges out of a component, of edges needed alone."""
    needed = np.flatnonzero(p_edges > 0.05)
    order = needed[np.argsort(effects[needed].mean(axis=1), kind="stable")]
    most = _most_pairs(subject)
    if len(order) ** 2 < 2 * most:
        chosen = sorted(itertools.combinations(order.tolist(), 2), key=max)
    else:
        width = int((2 * most) ** 0.5)
        chosen = list(itertools.combinations(order[:width].tolist(), 2))
        known = set(chosen)
        chosen += [pair for pair in _parallel(places, order) if pair not in known][:most]
    found = [places[list(pair)] for pair in chosen]
    for source in np.unique(places[needed, 1]):
        own = places[needed][places[needed, 1] == source]
        if len(own) > 2:
            found.append(own)
    return found


def _parallel(places: IntArray, order: IntArray) -> list[tuple[int, int]]:
    """Pairs of edges into one destination, which can cancel."""
    pairs = []
    for d in np.unique(places[order, 0]):
        own = order[places[order, 0] == d].tolist()
        pairs += list(itertools.combinations(own, 2))
    return pairs


def _after(subject: Subject, needless: list[str]) -> dict[str, float]:
    """The circuit without the needless edges: its size, and its share from the model."""
    left = subject.edges.copy()
    for name in needless:
        left[subject.graph.edge(name)] = False
    share = float(subject.on_fresh.shares([left])[0].mean())
    return {"edges": int(left.sum()), "share of the way to the empty circuit": share}


MINIMAL = Check(
    name="minimality",
    question="Is every edge needed, alone and in pairs?",
    run=_minimal,
    level="quick",
    seconds=lambda subject: (
        0.5
        * (subject.circuit.n_edges + (0 if subject.level == "quick" else _most_pairs(subject)))
        * (1 + subject.share_of_fresh(len(subject.dataset.discovery)))
        * subject.seconds_of_circuit
    ),
)
