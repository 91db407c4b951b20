"""Random circuits to compare a circuit with: of its size, every edge on a path from the input to the logits.

Growing circuits at random from the logits prefers some to others, and cutting off what dangles changes the size. So a
circuit that was grown walks: a few edges go, as many others come, where that leaves everything connected. A swap and
the swap back are proposed alike, so that the walk ends at every circuit it can reach with the same probability
(Metropolis). Many walk at once.
"""

from __future__ import annotations

import contextlib

import numpy as np

from acdc.circuit import selection
from acdc.errors import EmptyCircuitError
from acdc.graph import BoolArray, Graph, IntArray

SWAPS, MOST_AT_ONCE = 6, 3
"""Swaps that are tried, in sizes of the circuit, and edges that a swap may exchange."""
TRIES = 10
LARGEST = 2e8
"""Bytes of all masks of edges together, above which circuits are grown without walking."""


def connected_circuits(graph: Graph, n_edges: int, n: int, *, seed: int) -> BoolArray:
    """`[n, n_destinations, n_sources]`: random connected circuits of as many edges.

    Where the graph has too few connected edges for it, or is too large to walk, they are as they were grown: connected
    to the logits, of this size.
    """
    rng = np.random.default_rng(seed)
    circuits = np.stack([_grown(graph, n_edges, rng) for _ in range(n)])
    if n * graph.valid.size > LARGEST or not n_edges:
        return circuits
    walks = np.flatnonzero(connected(graph, circuits) & (circuits.sum((1, 2)) == n_edges))
    if len(walks):
        circuits[walks] = walk(graph, circuits[walks], SWAPS * n_edges + 20, rng)
    return circuits


def _grown(graph: Graph, n_edges: int, rng: np.random.Generator) -> BoolArray:
    """A circuit grown by the best random score, connected if one is found in a few tries."""
    for _ in range(TRIES):
        with contextlib.suppress(EmptyCircuitError):  # these edges only connect in larger circuits
            found = selection.greedy(graph, rng.random(graph.valid.shape), n_edges)
            if found.sum() == n_edges:
                return found
    return selection.greedy(graph, rng.random(graph.valid.shape), n_edges, prune=False)


def walk(graph: Graph, circuits: BoolArray, swaps: int, rng: np.random.Generator) -> BoolArray:
    """Circuits `[C, …]` after so many proposed swaps each."""
    valid = np.flatnonzero(graph.valid)
    flat = circuits.reshape(len(circuits), -1)[:, valid].copy()  # [C, edge]
    every, n_edges = np.arange(len(flat))[:, None], int(flat[0].sum())
    if n_edges == len(valid):
        return circuits
    for _ in range(swaps):
        most = min(MOST_AT_ONCE, n_edges, len(valid) - n_edges)
        at_once = int(rng.integers(1, most + 1))
        noise = rng.random(flat.shape)
        gone = np.argpartition(np.where(flat, -noise, 1.0), at_once - 1, axis=1)[:, :at_once]
        came = np.argpartition(np.where(flat, 1.0, -noise), at_once - 1, axis=1)[:, :at_once]
        proposed = flat.copy()
        proposed[every, gone], proposed[every, came] = False, True
        good = connected(graph, _spread(graph, valid, proposed))
        flat[good] = proposed[good]
    return _spread(graph, valid, flat)


def _spread(graph: Graph, valid: IntArray, flat: BoolArray) -> BoolArray:
    full = np.zeros((len(flat), graph.valid.size), dtype=bool)
    full[:, valid] = flat
    return full.reshape(len(flat), *graph.valid.shape)


def connected(graph: Graph, circuits: BoolArray) -> BoolArray:
    """`[C]`: whether every edge of each circuit `[C, n_destinations, n_sources]` lies on a path."""
    C, S = len(circuits), graph.n_sources
    fed = np.zeros((C, S + 1), dtype=bool)  # component reads something that comes from the input; the last: logits
    fed[:, : graph.n_inputs] = True
    ports = circuits[:, graph.port_destination]  # [C, port, source]
    for source in range(graph.n_inputs, S + 1):
        own = np.flatnonzero(graph.port_source == source)
        fed[:, source] = (ports[:, own] & fed[:, None, :S]).any((1, 2))
    read = np.zeros((C, S + 1), dtype=bool)
    read[:, S] = True
    for source in reversed(range(S)):
        readers = np.flatnonzero(ports[:, :, source].any(0))
        read[:, source] = (ports[:, readers, source] & read[:, graph.port_source[readers]]).any(1)
    alive = fed & read
    sources = ~(circuits.any(1) & ~alive[:, :S]).any(1)  # every edge leaves a component that is alive
    enters = circuits.any(2)  # [C, destination]
    ends = np.zeros_like(enters)
    for port, source in enumerate(graph.port_source):
        ends[:, graph.port_destination[port]] |= alive[:, source]
    return np.asarray(sources & ~(enters & ~ends).any(1))
