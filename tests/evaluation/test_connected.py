"""Random connected circuits: of the right size, connected, and every one of them as often as any other."""

from __future__ import annotations

import itertools

import numpy as np

from acdc.evaluation.connected import connected, connected_circuits
from acdc.graph import Graph


def test_connected_is_what_pruning_leaves() -> None:
    rng = np.random.default_rng(0)
    for graph in (Graph(2, 2), Graph(2, 2, n_kv_heads=1, group_kv=True), Graph(1, 2, qkv="merged", inputs="split")):
        circuits = graph.valid & (rng.random((200, *graph.valid.shape)) < rng.random((200, 1, 1)))
        expected = [bool((graph.prune(edges) == edges).all()) for edges in circuits]
        assert connected(graph, circuits).tolist() == expected
        assert any(expected)
        assert not all(expected)


def test_every_connected_circuit_is_as_likely() -> None:
    graph, n = Graph(1, 1, qkv="merged"), 3
    places = np.argwhere(graph.valid)
    every = []
    for some in itertools.combinations(range(len(places)), n):
        edges = np.zeros_like(graph.valid)
        edges[tuple(places[list(some)].T)] = True
        if (graph.prune(edges) == edges).all():
            every.append(edges.tobytes())
    drawn = [edges.tobytes() for edges in connected_circuits(graph, n, 3000, seed=0)]
    counts = np.array([drawn.count(edges) for edges in every])
    assert counts.sum() == 3000
    assert np.abs(counts / 3000 - 1 / len(every)).max() < 0.04
