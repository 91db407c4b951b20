"""Every connected circuit up to a size, each once: what has to be run to prove that nothing smaller will do.

Under resample ablation, edges that lie on no path from the input to the logits change nothing, so that connected
circuits are all circuits. They are grown from the logits: an edge is taken or ruled out for good, so that no circuit
comes twice. A branch is cut where the parts that nothing feeds yet need more edges than are left.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from acdc.graph import BoolArray, Graph


class TooMany(Exception):
    """There are more circuits than may be run."""


def connected_circuits_up_to(graph: Graph, allowed: BoolArray, most: int, *, limit: int) -> Iterator[BoolArray]:
    """Connected circuits of at most `most` edges, out of the allowed ones; the empty circuit first.

    Raises:
        TooMany: branches looked at exceed `limit`.
    """
    into: list[list[int]] = [[] for _ in range(graph.n_sources + 1)]  # component or logits -> flat edges into it
    S = graph.n_sources
    component = {int(d): [] for d in range(graph.n_destinations)}  # type: dict[int, list[int]]
    for port, source in enumerate(graph.port_source.tolist()):
        component[int(graph.port_destination[port])].append(source)
    for d, s in np.argwhere(allowed & graph.valid).tolist():
        for owner in set(component[d]):
            into[owner].append(d * S + s)
    together = max(len(set(owners)) for owners in component.values())  # parts that one edge may feed
    looked = 0
    empty = np.zeros(graph.valid.shape, dtype=bool)
    yield empty
    # a branch: edges taken, on offer, ever offered; components in, and those of them that nothing feeds
    start = tuple(into[S])
    stack: list[tuple[tuple[int, ...], tuple[int, ...], frozenset[int], frozenset[int], frozenset[int]]] = [
        ((), start, frozenset(start), frozenset([S]), frozenset())
    ]
    while stack:
        taken, offer, offered, inside, unfed = stack.pop()
        for i, edge in enumerate(offer):
            looked += 1
            if looked > limit:
                raise TooMany
            d, s = divmod(edge, S)
            now_unfed = unfed - set(component[d])
            more: tuple[int, ...] = ()
            now_inside = inside
            if s not in inside:
                now_inside = inside | {s}
                more = tuple(e for e in into[s] if e not in offered)
                if s >= graph.n_inputs and not any(s in component[e // S] for e in taken):
                    now_unfed = now_unfed | {s}
            now = (*taken, edge)
            if len(now) + -(-len(now_unfed) // together) > most:
                continue
            if not now_unfed:
                circuit = empty.copy()
                circuit.flat[list(now)] = True
                if (graph.prune(circuit) == circuit).all():
                    yield circuit
            if len(now) < most:
                stack.append((now, (*offer[i + 1 :], *more), offered | set(more), now_inside, now_unfed))
