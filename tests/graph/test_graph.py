"""The graph has the edges that the literature counts, and prunes as reachability says."""

from __future__ import annotations

import copy
import pickle

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import acdc.graph
from acdc.errors import AcdcError
from acdc.graph import Graph
from strategies import edge_masks, graphs


@pytest.mark.parametrize(
    ("name", "graph", "edges"),
    [
        ("GPT-2 small", Graph(12, 12), 32_491),
        ("GPT-2 small, merged", Graph(12, 12, qkv="merged"), 11_611),
        ("GPT-2 medium", Graph(24, 16), 231_877),
        ("GPT-2 XL", Graph(48, 25), 2_235_025),
        ("Qwen2.5-0.5B", Graph(24, 14), 179_749),
        ("Gemma-2-2B", Graph(26, 8), 74_218),
        ("Llama-3.1-8B", Graph(32, 32), 1_592_881),
        ("InterpBench", Graph(6, 4), 1_108),
        ("Pythia-160m", Graph(12, 12, parallel=True), 32_347),
    ],
)
def test_published_edge_counts(name: str, graph: Graph, edges: int) -> None:
    assert graph.n_edges == edges


def test_sizes_of_gpt2_small() -> None:
    graph = Graph(12, 12)
    assert (graph.n_sources, graph.n_destinations, graph.n_ports) == (157, 445, 445)
    assert Graph(12, 12, inputs="split").n_sources == 158


def test_order_of_one_layer() -> None:
    graph = Graph(1, 2)
    assert graph.sources == ("input", "a0.h0", "a0.h1", "m0")
    assert graph.destinations == (
        *("a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>", "a0.h0<v>", "a0.h1<v>"),
        *("m0", "logits"),
    )
    kept = graph.edge_names(graph.valid)
    assert "a0.h1->m0" in kept
    assert "a0.h0->a0.h1<q>" not in kept
    assert "m0->m0" not in kept
    assert kept[-4:] == ["input->logits", "a0.h0->logits", "a0.h1->logits", "m0->logits"]


def test_the_mlp_of_a_parallel_block_does_not_read_its_heads() -> None:
    parallel, sequential = Graph(2, 2, parallel=True), Graph(2, 2)
    missing = set(sequential.edge_names(sequential.valid)) - set(parallel.edge_names(parallel.valid))
    assert missing == {f"a{layer}.h{head}->m{layer}" for layer in (0, 1) for head in (0, 1)}


def test_grouped_keys_and_values() -> None:
    graph = Graph(1, 4, n_kv_heads=2, group_kv=True)
    assert [name for name in graph.destinations if "<q>" not in name] == [
        *("a0.g0<k>", "a0.g1<k>", "a0.g0<v>", "a0.g1<v>", "m0", "logits")
    ]
    ports = graph.to_ports(graph.edges_from_names(["input->a0.g1<k>"]))
    assert [graph.ports[p] for p, _ in np.argwhere(ports)] == ["a0.h2<k>", "a0.h3<k>"]


def test_graphs_with_the_same_edges_are_equal() -> None:
    assert Graph(2, 4, n_kv_heads=2) == Graph(2, 4)
    assert Graph(2, 4, mlp=False, parallel=True) == Graph(2, 4, mlp=False)
    assert Graph(2, 4, inputs="token") != Graph(2, 4)


@given(graphs())
def test_names_and_indices_round_trip(graph: Graph) -> None:
    names = graph.edge_names(graph.valid)
    assert len(set(names)) == len(names) == graph.n_edges
    assert [graph.edge(name) for name in names] == [tuple(index) for index in np.argwhere(graph.valid)]
    assert (graph.edges_from_names(names) == graph.valid).all()


@given(graphs())
def test_every_edge_goes_forward(graph: Graph) -> None:
    assert nx.is_directed_acyclic_graph(graph.to_networkx())
    assert graph.valid[-1].all(), "the logits read everything"
    assert graph.valid[:, : graph.n_inputs].all(), "everything reads the input"


@given(graphs(), st.data())
def test_coarse_graphs_are_sums_of_ports(graph: Graph, data: st.DataObject) -> None:
    edges = data.draw(edge_masks(graph))
    ports = graph.to_ports(edges)
    assert (ports <= graph.valid_ports).all()
    counts = np.bincount(graph.port_destination, minlength=graph.n_destinations)
    assert (graph.from_ports(ports.astype(float)) == edges * counts[:, None]).all()


@given(graphs(), st.data())
def test_prune_keeps_what_lies_on_a_path(graph: Graph, data: st.DataObject) -> None:
    edges = data.draw(edge_masks(graph))
    network = graph.to_networkx(edges)
    # A node is split in two for merged destinations: reading a head and being one are the same node there, as they
    # should be; ports feed their head through internal edges.
    inputs = [name for name in graph.sources if name.startswith("input") and name in network]
    below = set(inputs).union(*(nx.descendants(network, name) for name in inputs))
    above = nx.ancestors(network, "logits") | {"logits"} if "logits" in network else set()
    expected = {
        f"{u}->{v}"
        for u, v, internal in network.edges(data="internal")
        if not internal and u in below and v in above
    }
    pruned = graph.prune(edges)
    assert set(graph.edge_names(pruned)) == expected
    assert (graph.prune(pruned) == pruned).all()


def test_prune_keeps_a_shared_key_if_any_head_of_its_group_lives() -> None:
    graph = Graph(1, 2, n_kv_heads=1, group_kv=True)
    for head in (0, 1):
        edges = graph.edges_from_names(["input->a0.g0<k>", f"a0.h{head}->logits"])
        assert (graph.prune(edges) == edges).all()


def test_node_level() -> None:
    graph = Graph(1, 2)
    kept = np.array([name in ("input", "m0") for name in graph.sources])
    names = graph.edge_names(graph.edges_from_sources(kept))
    assert {name.split("->")[0] for name in names} == {"input", "m0"}
    assert len(names) == 8 + 1


def test_networkx_attributes() -> None:
    graph = Graph(2, 1)
    network = graph.to_networkx(graph.edges_from_names(["m0->a1.h0<v>", "a1.h0->logits"]))
    assert network.nodes["a1.h0<v>"] == {"kind": "port", "layer": 1}
    assert network.nodes["a1.h0"] == {"kind": "head", "layer": 1}
    assert network.nodes["m0"] == {"kind": "mlp", "layer": 0}
    assert network.edges["a1.h0<v>", "a1.h0"]["internal"]
    assert not network.edges["m0", "a1.h0<v>"]["internal"]
    assert nx.has_path(network, "m0", "logits")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("input", "expected an edge like"),
        ("inputt->m0", "did you mean input"),
        ("input->a0.h7<q>", "unknown destination"),
        ("m1->m0", "m1 is not executed before m0"),
    ],
)
def test_bad_edge_names(name: str, words: str) -> None:
    with pytest.raises(AcdcError, match=words):
        Graph(2, 2).edge(name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_layers": 0}, "at least one layer"),
        ({"qkv": "splitt"}, "did you mean split"),
        ({"inputs": "tokens"}, "did you mean token"),
        ({"group_kv": True}, "n_kv_heads"),
        ({"group_kv": True, "n_kv_heads": 0}, "n_kv_heads"),
        ({"group_kv": True, "n_kv_heads": 3}, "divides"),
        ({"group_kv": True, "n_kv_heads": 2, "qkv": "merged"}, "exclude each other"),
    ],
)
def test_bad_options(options: dict, words: str) -> None:
    with pytest.raises(AcdcError, match=words):
        Graph(**{"n_layers": 2, "n_heads": 4} | options)


def test_names_of_the_last_version_say_what_they_are_now() -> None:
    graph = Graph(2, 2)
    with pytest.raises(AttributeError, match=r"graph.first_port is now in graph.sublayers"):
        graph.first_port(1)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"node_kind\(name\) is now graph.component\(name\).kind"):
        acdc.graph.node_kind("a0.h1")  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no attribute 'first_prot'"):
        graph.first_prot  # type: ignore[attr-defined] # noqa: B018
    assert graph.component("m0").kind == "mlp"
    assert copy.deepcopy(graph) == pickle.loads(pickle.dumps(graph)) == graph
