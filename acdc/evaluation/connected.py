"""Random circuits to compare a circuit with: of its size, every edge on a path from the input to the logits.

Growing circuits at random from the logits prefers some to others, and cutting off what dangles changes the size. So a
circuit that was grown walks: a few edges go, as many others come, where that leaves everything connected. A swap and
the swap back are proposed alike, so that the walk ends at every circuit it can reach with the same probability
(Metropolis). Many walk at once.
"""

from __future__ import annotations

import contextlib

import numpy as np

from acdc.circuit import Circuit, selection
from acdc.errors import EmptyCircuitError
from acdc.evaluation.judging import random_circuits_like
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


def connected_like(circuit: Circuit, n: int, *, seed: int) -> BoolArray:
    """`[n, n_destinations, n_sources]`: random circuits of as many edges, or nodes if it is of nodes."""
    if circuit.unit == "edge":
        return connected_circuits(circuit.graph, circuit.n_edges, n, seed=seed)
    return np.stack(random_circuits_like(circuit, n, seed=seed))


def _grown(graph: Graph, n_edges: int, rng: np.random.Generator) -> BoolArray:
    """A circuit grown by the best random score, connected if one is found in a few tries."""
    for _ in range(TRIES):
        with contextlib.suppress(EmptyCircuitError):  # these edges only connect in larger circuits
            found = selection.greedy(graph, rng.random(graph.valid.shape), n_edges)
            if found.sum() == n_edges:
                return found
    return selection.greedy(graph, rng.random(graph.valid.shape), n_edges, prune=False)


def walk(graph: Graph, circuits: BoolArray, swaps: int, rng: np.random.Generator) -> BoolArray:
    """Connected circuits `[C, …]`, all of one size, after so many proposed swaps each."""
    valid, paths = np.flatnonzero(graph.valid), _Paths(graph)
    inside = circuits.reshape(len(circuits), -1)[:, valid]
    n_edges, every = int(inside[0].sum()), np.arange(len(inside))[:, None]
    if n_edges == len(valid):
        return circuits
    order = np.argsort(~inside, axis=1, kind="stable").astype(np.int32)
    kept, absent = order[:, :n_edges], order[:, n_edges:]
    destination, source = (x.astype(np.int32) for x in np.divmod(valid, graph.n_sources))
    out, into = circuits.sum(1, dtype=np.int32), circuits.sum(2, dtype=np.int32)  # edges of a source, a destination
    for _ in range(swaps):
        at_once = int(rng.integers(1, min(MOST_AT_ONCE, n_edges, absent.shape[1]) + 1))
        goes, comes = (_distinct(rng, x.shape, at_once) for x in (kept, absent))
        gone, came = kept[every, goes], absent[every, comes]
        new_out, new_into = out.copy(), into.copy()
        for edges, change in ((gone, -1), (came, 1)):
            np.add.at(new_out, (every, source[edges]), change)
            np.add.at(new_into, (every, destination[edges]), change)
        good = paths.hold(new_out > 0, new_into > 0)
        out[good], into[good] = new_out[good], new_into[good]
        kept[every[good], goes[good]], absent[every[good], comes[good]] = came[good], gone[good]
    found = np.zeros_like(circuits).reshape(len(circuits), -1)
    found[every, valid[kept]] = True
    return found.reshape(circuits.shape)


def _distinct(rng: np.random.Generator, shape: tuple[int, ...], k: int) -> IntArray:
    """`[C, k]`: of each of the rows of an array `[C, n]`, `k` places, none twice."""
    found = rng.integers(shape[1], size=(shape[0], k))
    while (again := np.flatnonzero((np.diff(np.sort(found, axis=1), axis=1) == 0).any(1))).size:
        found[again] = rng.integers(shape[1], size=(len(again), k))
    return found


def connected(graph: Graph, circuits: BoolArray) -> BoolArray:
    """`[C]`: whether every edge of each circuit `[C, n_destinations, n_sources]` lies on a path."""
    return _Paths(graph).hold(np.asarray(circuits.any(1)), np.asarray(circuits.any(2)))


class _Paths:
    """Whether every edge is on a path from the input to the logits, by what components have edges alone.

    The graph has no circle. So it is enough that whatever is read reads something itself, down to the input, and that
    of the components that an edge leads into one is read, up to the logits.
    """

    def __init__(self, graph: Graph) -> None:
        self._n_sources, self._n_inputs = graph.n_sources, graph.n_inputs
        by_component, by_destination = (
            np.argsort(x, kind="stable") for x in (graph.port_source, graph.port_destination)
        )
        self._destinations = graph.port_destination[by_component]  # of each component in turn, and of the logits
        self._components, self._own_starts = np.unique(graph.port_source[by_component], return_index=True)
        self._readers = graph.port_source[by_destination]  # components of each destination in turn
        _, self._reader_starts = np.unique(graph.port_destination[by_destination], return_index=True)

    def hold(self, out: BoolArray, into: BoolArray) -> BoolArray:
        """`[C]`, from whether an edge leaves each source `[C, n_sources]` and enters each destination."""
        fed = np.zeros((len(out), self._n_sources + 1), dtype=bool)  # the last: the logits
        fed[:, self._components] = np.logical_or.reduceat(into[:, self._destinations], self._own_starts, axis=1)
        fed[:, : self._n_inputs] = True
        read = np.concatenate([out, np.ones((len(out), 1), dtype=bool)], axis=1)
        leads = np.logical_or.reduceat(read[:, self._readers], self._reader_starts, axis=1)
        return np.asarray((~out | fed[:, :-1]).all(1) & (~into | leads).all(1))
