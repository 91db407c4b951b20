"""Circuits behave like sets of edges, and refuse arrays that are no circuit."""

from __future__ import annotations

import dataclasses
import operator

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc.circuit import Circuit, Provenance, Scores
from acdc.errors import AcdcError
from acdc.graph import Graph
from strategies import circuits, edge_masks

GRAPH = Graph(2, 2)


def make_scores(seed: int = 0) -> Scores:
    random = np.random.default_rng(seed)
    return Scores(GRAPH, random.normal(size=GRAPH.valid.shape), "eap", Provenance(method="eap", task="ioi"))


@given(circuits(), st.data())
def test_set_operations(a: Circuit, data: st.DataObject) -> None:
    b = Circuit(a.graph, data.draw(edge_masks(a.graph)), provenance=Provenance(method="other"))
    for operation in (operator.and_, operator.or_, operator.sub, operator.xor):
        both = operation(a, b)
        assert set(both.edge_names()) == operation(set(a.edge_names()), set(b.edge_names()))
        assert both.scores is a.scores
        assert "other" in both.provenance.method
    assert a & a == a
    assert hash(a & a) == hash(a)
    assert (a == b) == (a.edge_names() == b.edge_names())


def test_circuits_of_other_graphs_do_not_mix() -> None:
    a = Circuit.from_names(GRAPH, ["input->m0"])
    b = Circuit.from_names(Graph(2, 2, qkv="merged"), ["input->m0"])
    assert a != b
    with pytest.raises(AcdcError, match=r"right of '&' is of another graph: qkv='merged' instead of 'split'"):
        a & b
    with pytest.raises(TypeError):
        a | "input->m0"


def test_reading_a_circuit() -> None:
    circuit = Circuit.from_names(GRAPH, ["input->a0.h1<k>", "a0.h1->m1", "m1->logits"])
    assert circuit.n_edges == 3
    assert circuit.edge_names() == ["input->a0.h1<k>", "a0.h1->m1", "m1->logits"]
    assert circuit.nodes() == ["input", "a0.h1", "m1", "logits"]
    assert "a0.h1->m1" in circuit
    assert "a0.h0->m1" not in circuit
    assert repr(circuit) == "Circuit(3 of 46 edges)"
    with pytest.raises(AcdcError, match="unknown source"):
        "a9.h1->m1" in circuit  # noqa: B015


@given(circuits(group_kv=False))
def test_nodes_are_the_ends_of_edges(circuit: Circuit) -> None:
    ends = {end.partition("<")[0] for name in circuit.edge_names() for end in name.split("->")}
    nodes = circuit.nodes()
    assert set(nodes) == ends
    assert nodes == [name for name in [*circuit.graph.sources, "logits"] if name in ends]


def test_shared_keys_do_not_bring_in_every_head_of_the_group() -> None:
    graph = Graph(1, 2, n_kv_heads=1, group_kv=True)
    circuit = Circuit.from_names(graph, ["input->a0.g0<k>", "a0.h1->logits"])
    assert circuit.nodes() == ["input", "a0.h1", "logits"]


@given(circuits())
def test_prune_leaves_paths_only(circuit: Circuit) -> None:
    pruned = circuit.prune()
    network = pruned.to_networkx()
    assert (pruned.edges <= circuit.edges).all()
    for u, v, internal in network.edges(data="internal"):
        if not internal:
            assert nx.has_path(network, v, "logits")
            assert any(nx.has_path(network, name, u) for name in network if name.startswith("input"))


def test_networkx_carries_scores() -> None:
    scores = dataclasses.replace(make_scores(), nodes=np.arange(GRAPH.n_sources, dtype=float))
    circuit = scores.top(20)
    network = circuit.to_networkx()
    for name, score in circuit.edge_scores().items():
        source, destination = name.split("->")
        assert network.edges[source, destination]["score"] == score
    assert network.nodes["input"]["score"] == 0.0


def test_selecting_from_scores() -> None:
    scores = make_scores()
    circuit = scores.top(10, prune=False)
    assert circuit.n_edges == 10
    assert min(map(abs, circuit.edge_scores().values())) == np.sort(np.abs(scores.values[GRAPH.valid]))[-10]
    assert circuit.provenance.selection == {
        "select": "top",
        "edges": 10,
        "by": "absolute",
        "aggregate": "signed",
        "prune": False,
    }
    assert circuit.provenance.task == "ioi"
    assert all(score >= 0.5 for score in scores.threshold(0.5, by="signed").edge_scores().values())
    assert scores.top(10, by="signed", select="greedy").scores is scores
    with pytest.raises(AcdcError, match="did you mean greedy"):
        scores.top(3, select="gredy")


def test_measurements_do_not_outlive_the_edges_they_were_made_on() -> None:
    circuit = Circuit.from_names(GRAPH, ["m0->m1"], provenance=Provenance(measured={"faithfulness": 0.9}))
    assert circuit.prune().provenance.measured == {}
    assert (circuit & circuit).provenance.measured == {}


def test_records_are_frozen() -> None:
    circuit = make_scores().top(5)
    with pytest.raises(ValueError, match="read-only"):
        circuit.edges[0, 0] = True
    with pytest.raises(ValueError, match="read-only"):
        circuit.scores.values[0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        circuit.edges = None


def test_arrays_are_checked_and_copied() -> None:
    valid = GRAPH.valid.copy()
    circuit = Circuit(GRAPH, valid)
    valid[:] = False
    assert circuit.n_edges == GRAPH.n_edges
    with pytest.raises(
        AcdcError, match=r"expected edges of shape \[15, 7\] \(destinations, sources\), got \[7, 15\]"
    ):
        Circuit(GRAPH, GRAPH.valid.T)
    with pytest.raises(AcdcError, match="boolean, got int64"):
        Circuit(GRAPH, GRAPH.valid.astype(int))
    with pytest.raises(AcdcError, match=r"not edges of the graph, the first 'a0\.h0->a0\.h0<q>'"):
        Circuit(GRAPH, np.ones_like(GRAPH.valid))
    with pytest.raises(AcdcError, match="expected scores of shape"):
        Scores(GRAPH, np.zeros(3))
    with pytest.raises(AcdcError, match="the circuit's scores is of another graph"):
        Circuit(Graph(2, 2, inputs="token"), GRAPH.valid, make_scores())
    values = np.where(GRAPH.valid, 1.0, np.nan)
    assert (Scores(GRAPH, values).values[~GRAPH.valid] == 0).all()
    values[GRAPH.edge("m0->m1")] = np.inf
    with pytest.raises(AcdcError, match="NaN or infinite, the first that of 'm0->m1'"):
        Scores(GRAPH, values)


def test_provenance_takes_what_methods_have_at_hand() -> None:
    provenance = Provenance(options={"steps": np.int64(5), "sizes": (1, 2), "x": np.float32(0.5)})
    assert provenance.options == {"steps": 5, "sizes": [1, 2], "x": 0.5}
    assert "torch" in provenance.versions
    assert provenance.having(task="ioi").task == "ioi"


def test_notebooks_show_a_picture() -> None:
    assert "</svg>" in make_scores().top(5)._repr_svg_()
