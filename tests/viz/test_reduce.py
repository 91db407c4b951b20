"""What is drawn of a circuit adds up to the circuit, and is cut down to what can be read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc.circuit import Circuit, Scores
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.viz.reduce import DETAILS, reduce
from strategies import circuits, edge_masks

MANY = 10**6


@given(circuits())
def test_at_the_finest_detail_every_edge_is_drawn_once(circuit: Circuit) -> None:
    reduced = reduce(circuit, None, "port", MANY)
    assert [edge.name for edge in reduced.edges] == circuit.edge_names()
    assert [edge.score for edge in reduced.edges] == list(circuit.edge_scores().values())
    if circuit.n_edges and not circuit.graph.group_kv:
        assert list(reduced.nodes) == circuit.nodes()


@given(circuits(), st.sampled_from(DETAILS))
def test_coarser_details_add_up(circuit: Circuit, detail: str) -> None:
    reduced = reduce(circuit, None, detail, MANY)
    assert sum(edge.count for edge in reduced.edges) == circuit.n_edges
    assert len({edge.name for edge in reduced.edges}) == len(reduced.edges)
    if circuit.scores is not None:
        total = sum(edge.score for edge in reduced.edges)
        np.testing.assert_allclose(
            total, circuit.scores.values[circuit.edges].sum(), rtol=1e-9, atol=1e-12 * abs(total)
        )


@given(circuits(), st.data())
def test_verdicts_partition_circuit_and_truth(circuit: Circuit, data: st.DataObject) -> None:
    truth = data.draw(edge_masks(circuit.graph))
    reduced = reduce(circuit, truth, "port", MANY)
    names = {
        verdict: {e.name for e in reduced.edges if e.verdict == verdict} for verdict in ("hit", "false", "missed")
    }
    kept, true = set(circuit.edge_names()), set(circuit.graph.edge_names(truth))
    assert names == {"hit": kept & true, "false": kept - true, "missed": true - kept}
    assert all(edge.kept == (edge.verdict != "missed") for edge in reduced.edges)


def test_node_verdicts() -> None:
    graph = Graph(2, 1)
    circuit = Circuit.from_names(graph, ["input->m0", "m0->logits", "input->m1", "m1->logits"])
    truth = Circuit.from_names(graph, ["input->m0", "m0->logits", "input->a0.h0<q>", "a0.h0->logits"])
    nodes = reduce(circuit, truth, "port", MANY).nodes
    assert nodes == {"input": "hit", "a0.h0": "missed", "m0": "hit", "m1": "false", "logits": "hit"}


@given(circuits(qkv="split", group_kv=False), st.integers(1, 12))
def test_the_cap_keeps_the_strongest_paths(circuit: Circuit, most: int) -> None:
    reduced = reduce(circuit, None, "port", most)
    assert len(reduced.edges) <= most
    assert len(reduced.edges) + reduced.left_out == len(reduce(circuit, None, reduced.detail, MANY).edges)
    if circuit.n_edges <= most:
        assert reduced.detail == "port"
        assert not reduced.left_out
    elif circuit.scores is None and reduced.left_out:
        assert reduced.detail == "layer"


def test_the_cap_merges_ports_before_it_leaves_edges_out() -> None:
    graph = Graph(1, 1)
    names = ["input->a0.h0<q>", "input->a0.h0<k>", "input->a0.h0<v>", "a0.h0->logits", "input->m0", "m0->logits"]
    values = np.zeros(graph.valid.shape)
    for name, score in zip(names, (1.0, 2.0, -5.0, 1.0, 0.5, 0.25), strict=True):
        values[graph.edge(name)] = score
    circuit = dataclasses.replace(Circuit.from_names(graph, names), scores=Scores(graph, values))
    merged = reduce(circuit, None, "port", 4)
    assert [(e.name, e.score) for e in merged.edges if "a0" in e.destination] == [("input->a0.h0", -2.0)]
    assert merged.left_out == 0
    cut = reduce(circuit, None, "port", 3)
    assert [edge.name for edge in cut.edges] == ["input->a0.h0", "a0.h0->logits"]  # half a path is no help
    assert cut.left_out == 2


@given(circuits(), st.integers(1, 4), st.sampled_from(("port", "head")))
def test_heads_of_few_edges_are_one_node_that_says_how_many_it_is(circuit: Circuit, fold: int, detail: str) -> None:
    reduced = reduce(circuit, None, detail, MANY, fold)
    assert sum(edge.count for edge in reduced.edges) == circuit.n_edges
    degree: dict[str, int] = {}
    for name in circuit.edge_names():
        source, _, destination = name.partition("->")
        for end in (source, destination.partition("<")[0]):
            degree[end] = degree.get(end, 0) + 1
    few = {name for name, n in degree.items() if n <= fold and circuit.graph.nodes[name].kind == "head"}
    few = {name for name in few if not circuit.graph.nodes[name].shared}
    layers = [circuit.graph.nodes[name].sublayer for name in few]
    assert reduced.folded == {layer: layers.count(layer) for layer in set(layers) if layers.count(layer) > 1}
    if circuit.n_edges:
        alone = {
            name for name in degree if name not in few or layers.count(circuit.graph.nodes[name].sublayer) == 1
        }
        assert set(reduced.nodes) == alone | set(reduced.folded)


def test_bad_input() -> None:
    circuit = Circuit.from_names(Graph(1, 1), ["input->m0"])
    with pytest.raises(AcdcError, match="did you mean layer"):
        reduce(circuit, None, "layers", 3)
    with pytest.raises(AcdcError, match="at least 1"):
        reduce(circuit, None, "port", 0)
    with pytest.raises(AcdcError, match="of another graph"):
        reduce(circuit, Circuit.from_names(Graph(1, 2), ["input->m0"]), "port", 3)
    with pytest.raises(AcdcError, match="of another graph"):
        reduce(circuit, np.zeros((3, 3)), "port", 3)
