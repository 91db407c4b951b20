"""From scores to circuits: which edges to keep, on arrays only.

Every rule ranks the valid edges once, best first, with ties in array order (destination, then source), so that a
selection is deterministic and the ranks are all that the rules below need.

An edge on no path from the input to the logits is worth nothing. `top` and `greedy` therefore count the edges that
are left without such dangling parts: they take edges in order until `n` are *connected*. `top_pruned` is the other
rule, that of the curves of the literature (MIB's CPR and CMD): the `n` best of all edges, of which pruning leaves
fewer.
"""

from __future__ import annotations

import bisect
from typing import Literal

import numpy as np

from acdc.errors import AcdcError, EmptyCircuitError, check_number, check_whole, unknown
from acdc.graph import BoolArray, FloatArray, Graph, IntArray, Units

By = Literal["absolute", "signed"]
RANKINGS = ("absolute", "signed")
Aggregate = Literal["mean-absolute", "rms", "signed", "order"]
AGGREGATES = ("mean-absolute", "rms", "signed", "order")
"""What edges are ranked by: how the scores of single prompts become one size, or when a search let each edge go
(`Scores.sizes`)."""


def top(graph: Graph, values: FloatArray, n: int, *, by: By = "absolute", prune: bool = True) -> BoolArray:
    """The best edges of which `n` are connected (all edges if the graph has fewer); see `connected`.

    Args:
        values: `[n_destinations, n_sources]` scores.
        by: "absolute" ranks by magnitude, "signed" by the score itself.
        prune: False: the `n` best edges wherever they are, dangling ones too.

    Returns:
        `[n_destinations, n_sources]` kept edges.

    Raises:
        EmptyCircuitError: the edges only connect in circuits of more than `n`.
    """
    order = best_first(graph, values, by)
    return connected(graph, order, _count(n)) if prune else first(graph, order, _count(n))


def top_pruned(graph: Graph, values: FloatArray, n: int, *, by: By = "absolute") -> BoolArray:
    """The `n` best edges less those that dangle, so that fewer than `n` may be left: MIB's rule for its curves.

    Arguments as for `top`.
    """
    return graph.prune(first(graph, best_first(graph, values, by), _count(n)))


def top_pruned_units(units: Units, values: FloatArray, n: int) -> BoolArray:
    """As many of the best units as have no more than `n` edges between them, less those that dangle.

    Args:
        values: of each unit, the best the largest.
    """
    order = np.argsort(-values, kind="stable")

    def edges(length: int) -> BoolArray:
        return units.graph.prune(units.mask(np.isin(np.arange(units.n), order[:length])))

    lengths = range(units.n + 1)
    return edges(bisect.bisect_right(lengths, _count(n), key=lambda length: int(edges(length).sum())) - 1)


def threshold(graph: Graph, values: FloatArray, t: float, *, by: By = "absolute", prune: bool = True) -> BoolArray:
    """The edges that score at least `t`, less those that dangle unless `prune` is False; arguments as for `top`."""
    check_number("a threshold", t)
    if np.isnan(t):
        raise AcdcError("expected a threshold, got NaN")
    edges = graph.valid & (_goodness(graph, values, by) >= t)
    return graph.prune(edges) if prune else edges


def greedy(graph: Graph, values: FloatArray, n: int, *, by: By = "absolute", prune: bool = True) -> BoolArray:
    """From the logits, the best edge into a component that is in, until `n` are connected; arguments as for `top`.

    A component comes in with the first edge that leaves it, at most `n_sources` *events*. Between two events the
    edges taken are those already on offer and better than the edge of the next event; hence the event at which an
    edge is taken follows from its own rank and the ranks of the events' edges, without stepping through edges.
    """
    order = best_first(graph, values, by)
    rank = np.full(graph.valid.shape, graph.n_edges)  # of what is no edge
    rank.ravel()[order] = np.arange(graph.n_edges)
    offered, event_rank = _events(graph, rank)

    taken_at = np.full(graph.valid.shape, len(event_rank), dtype=np.int64)
    for d in np.flatnonzero(offered >= 0):
        highest = np.maximum.accumulate(event_rank[offered[d] :])
        taken_at[d] = offered[d] + np.searchsorted(highest, rank[d])
    reached = np.flatnonzero(graph.valid & (offered >= 0)[:, None])
    step = (taken_at * (graph.n_edges + 1) + rank).ravel()[reached]
    order = reached[np.argsort(step)]
    return connected(graph, order, _count(n)) if prune else first(graph, order, _count(n))


def connected(graph: Graph, order: IntArray, n: int) -> BoolArray:
    """Edges taken in order until `n` of them are on paths from the input to the logits; the others are dropped.

    The last edge may complete a path and bring in more than were missing. Then the last ones that can go without
    leaving fewer than `n` go again (`trim`).

    Args:
        order: flat indices of edges, best first.
    """
    length = _prefix(graph, order, n)
    return trim(graph, graph.prune(first(graph, order, length)), order[:length][::-1], n)


def rank_needed(graph: Graph, values: FloatArray, n: int, *, by: By = "absolute") -> int:
    """How many of the best edges it takes until `n` of them are connected; all if there are never so many."""
    return _prefix(graph, best_first(graph, values, by), _count(n))


def _prefix(graph: Graph, order: IntArray, n: int) -> int:
    """Length of the shortest prefix that leaves `n` edges connected: what it leaves grows with it, so by bisection,
    from `n` up, since it is mostly few more."""
    low, step = min(n, len(order)) - 1, 1
    while low + step < len(order) and graph.prune(first(graph, order, low + step)).sum() < n:
        low, step = low + step, 2 * step
    high = min(low + step, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if graph.prune(first(graph, order, middle)).sum() >= n else (middle, high)
    return high if n else 0


def trim(graph: Graph, edges: BoolArray, worst_first: IntArray, n: int) -> BoolArray:
    """A connected circuit cut down to `n` edges: the worst go first, each with what dangles without it.

    An edge stays if fewer than `n` would be left. If that leaves more than `n`, because parts can only go together,
    the removal that leaves the most has the last word.

    Args:
        edges: a circuit in which nothing dangles.
        worst_first: flat indices of its edges (others are ignored).

    Raises:
        EmptyCircuitError: nothing would be left.
    """
    candidates = worst_first[edges.ravel()[worst_first]]

    def without(some: IntArray) -> BoolArray:
        fewer = edges.copy()
        fewer.ravel()[some] = False
        return graph.prune(fewer)

    while edges.sum() > n and len(candidates):
        # As many at once as leave enough. What cannot go now cannot go later, when less is left.
        low, step = 0, 1
        while low + step <= len(candidates) and without(candidates[: low + step]).sum() >= n:
            low, step = low + step, 2 * step
        high = min(low + step, len(candidates) + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if without(candidates[:middle]).sum() >= n else (low, middle)
        edges = without(candidates[:low])
        left = candidates[low + 1 :]
        candidates = left[edges.ravel()[left]]
    if edges.sum() <= n:
        return edges
    smaller = max((without(np.array([e])) for e in worst_first[edges.ravel()[worst_first]]), key=np.sum)
    if not smaller.any():
        raise EmptyCircuitError(
            f"no circuit of {n} edges: the best edges connect the input with the logits only in a circuit of "
            f"{edges.sum()}; ask for at least {edges.sum()}"
        )
    return smaller


def top_units(units: Units, values: FloatArray, n: int) -> BoolArray:
    """The best units of which `n` are on paths from the input to the logits, without the others; as `top` for edges.

    Args:
        values: of each unit, the best the largest.

    Raises:
        EmptyCircuitError: no path takes so few.
    """
    order = np.argsort(-values, kind="stable")

    def connected(switches: BoolArray) -> BoolArray:
        return units.of_edges(units.graph.prune(units.mask(switches)))

    def first(length: int) -> BoolArray:
        return connected(np.isin(np.arange(units.n), order[:length]))

    low, high = min(_count(n), units.n) - 1, units.n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if first(middle).sum() >= n else (middle, high)
    kept = first(high if n else 0)
    fewest = kept  # of those that are too few, the most
    for unit in order[:high][::-1]:
        if kept.sum() <= n:
            return kept
        fewer = connected(kept & (np.arange(units.n) != unit))
        kept = fewer if fewer.sum() >= n else kept
        if fewer.sum() < n and (fewest.sum() > n or fewer.sum() > fewest.sum()):
            fewest = fewer
    if kept.sum() <= n:
        return kept
    if not fewest.any() or fewest.sum() > n:
        raise EmptyCircuitError(
            f"no circuit of {n} {units.plural}: the best connect the input with the logits only in a circuit of "
            f"{kept.sum()}; ask for at least {kept.sum()}"
        )
    return fewest


def _events(graph: Graph, rank: IntArray) -> tuple[IntArray, IntArray]:
    """When each destination comes on offer in the greedy search, and which edges made it so.

    Returns:
        offered: `[n_destinations]` number of the event that brought the destination's component in; -1 for never.
        event_rank: `[n_events]` rank of the edge that event e + 1 begins with; the last is larger than any rank.
    """
    by_source = np.argsort(graph.port_source, kind="stable")
    splits = np.searchsorted(graph.port_source[by_source], np.arange(1, graph.n_sources + 1))
    fed = [np.unique(ports) for ports in np.split(graph.port_destination[by_source], splits)]
    offered = np.full(graph.n_destinations, -1, dtype=np.int64)
    worst = graph.n_edges  # rank of what is no edge
    best = np.full(graph.n_sources, worst)  # rank of the best edge on offer out of each source
    outside = np.ones(graph.n_sources, dtype=bool)
    event_rank: list[int] = []
    new = np.array([graph.n_destinations - 1])  # the logits
    while True:
        offered[new] = len(event_rank)
        if len(new):
            best = np.minimum(best, rank[new].min(axis=0))
        candidates = np.where(outside, best, worst)
        source = int(candidates.argmin())
        if candidates[source] == worst:
            return offered, np.array([*event_rank, worst])
        event_rank.append(int(candidates[source]))
        outside[source] = False
        new = fed[source][offered[fed[source]] < 0]


def best_first(graph: Graph, values: FloatArray, by: str) -> IntArray:
    """Flat indices of the valid edges, best first, ties in array order."""
    edges = np.flatnonzero(graph.valid)
    return edges[np.argsort(-_goodness(graph, values, by).ravel()[edges], kind="stable")]


def _goodness(graph: Graph, values: FloatArray, by: str) -> FloatArray:
    """The number by which edges are ranked; NaN and wrong shapes refused."""
    if by not in RANKINGS:
        raise unknown("ranking", str(by), RANKINGS)
    values = np.asarray(values, dtype=np.float64)
    if values.shape != graph.valid.shape:
        raise AcdcError(
            f"expected scores of shape {list(graph.valid.shape)} (destinations, sources), got {list(values.shape)}"
        )
    bad = np.argwhere(np.isnan(values) & graph.valid)
    if len(bad):
        raise AcdcError(
            f"{len(bad)} scores are NaN, the first that of {graph.edge_name(*bad[0])!r}: none can be ranked"
        )
    return np.abs(values) if by == "absolute" else values


def first(graph: Graph, order: IntArray, n: int) -> BoolArray:
    """The first `n` edges of an order of flat indices as a mask."""
    edges = np.zeros(graph.valid.shape, dtype=bool)
    edges.ravel()[order[:n]] = True
    return edges


def _count(n: int) -> int:
    check_whole("a number of edges", n, least=0)
    return int(n)
