"""From scores to circuits: which edges to keep, on arrays only.

Every rule ranks the valid edges once, best first, with ties in array order (destination, then source), so that a
selection is deterministic and the ranks are all that the rules below need. Parts that lie on no path from the input
to the logits are pruned afterwards unless asked otherwise.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from acdc.errors import AcdcError, unknown
from acdc.graph import BoolArray, FloatArray, Graph, IntArray

By = Literal["absolute", "signed"]
RANKINGS = ("absolute", "signed")


def top(graph: Graph, values: FloatArray, n: int, *, by: By = "absolute", prune: bool = True) -> BoolArray:
    """The `n` best edges (all of them if the graph has fewer).

    Args:
        values: `[n_destinations, n_sources]` scores.
        by: "absolute" ranks by magnitude, "signed" by the score itself.
        prune: drop dangling edges afterwards, so that fewer than `n` may be left.

    Returns:
        `[n_destinations, n_sources]` kept edges.
    """
    return _first(graph, _best_first(graph, values, by), _count(n), prune)


def threshold(graph: Graph, values: FloatArray, t: float, *, by: By = "absolute", prune: bool = True) -> BoolArray:
    """The edges that score at least `t`; arguments as for `top`."""
    if np.isnan(t):
        raise AcdcError("expected a threshold, got NaN")
    edges = graph.valid & (_goodness(graph, values, by) >= t)
    return graph.prune(edges) if prune else edges


def greedy(graph: Graph, values: FloatArray, n: int, *, by: By = "absolute", prune: bool = True) -> BoolArray:
    """From the logits, `n` times the best edge into a component that is already in; arguments as for `top`.

    A component comes in with the first edge that leaves it, at most `n_sources` *events*. Between two events the
    edges taken are those already on offer and better than the edge of the next event; hence the event at which an
    edge is taken follows from its own rank and the ranks of the events' edges, without stepping through edges.
    """
    order = _best_first(graph, values, by)
    rank = np.full(graph.valid.shape, graph.n_edges)  # of what is no edge
    rank.ravel()[order] = np.arange(graph.n_edges)
    offered, event_rank = _events(graph, rank)

    taken_at = np.full(graph.valid.shape, len(event_rank), dtype=np.int64)
    for d in np.flatnonzero(offered >= 0):
        highest = np.maximum.accumulate(event_rank[offered[d] :])
        taken_at[d] = offered[d] + np.searchsorted(highest, rank[d])
    reached = np.flatnonzero(graph.valid & (offered >= 0)[:, None])
    step = (taken_at * (graph.n_edges + 1) + rank).ravel()[reached]
    return _first(graph, reached[np.argsort(step)], _count(n), prune)


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


def _best_first(graph: Graph, values: FloatArray, by: str) -> IntArray:
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


def _first(graph: Graph, order: IntArray, n: int, prune: bool) -> BoolArray:
    """The first `n` edges of an order of flat indices as a mask."""
    edges = np.zeros(graph.valid.shape, dtype=bool)
    edges.ravel()[order[:n]] = True
    return graph.prune(edges) if prune else edges


def _count(n: int) -> int:
    if n < 0:
        raise AcdcError(f"expected a number of edges of at least 0, got {n}")
    return int(n)
