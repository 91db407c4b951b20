"""What is drawn of a circuit adds up to the circuit, and is cut down to what can be read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc.circuit import Circuit, Scores
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.viz.folding import LEAST_BOXES, MOST_IN_ROW, Folding, fold_weak
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
    folded = {name: len(heads) for name, heads in reduced.folded.items()}
    assert folded == {layer: layers.count(layer) for layer in set(layers) if layers.count(layer) > 1}
    if circuit.n_edges:
        alone = {
            name for name in degree if name not in few or layers.count(circuit.graph.nodes[name].sublayer) == 1
        }
        assert set(reduced.nodes) == alone | set(reduced.folded)


@settings(max_examples=40)
@given(circuits(), st.integers(2, 9), st.sampled_from(("port", "layer")), st.booleans())
def test_the_weakest_are_one_box_with_their_neighbours_until_the_rows_fit(
    circuit: Circuit, most: int, detail: str, heads: bool
) -> None:
    graph = circuit.graph
    own = Folding.none(graph, by_sublayer=detail == "layer")
    folding = fold_weak(circuit, None, own, heads=heads, most_rows=most)
    strength: dict[str, float] = {}
    for (d, s), score in np.ndenumerate(
        np.ones(graph.valid.shape) if circuit.scores is None else circuit.scores.values
    ):
        if circuit.edges[d, s]:
            for name in {graph.sources[s], graph.destination_nodes[d]}:
                strength[own.shown_as[name]] = strength.get(own.shown_as[name], 0.0) + abs(score)
    shown = {name: folding.shown_as[name] for name in graph.nodes if own.shown_as[name] in strength}
    rows = {folding.boxes[box].row for box in shown.values()}
    ends = {name for name in strength if graph.nodes[name].kind in ("input", "logits")}
    assert ends <= set(shown.values())
    inner = strength.keys() - ends
    if len({graph.nodes[name].row for name in strength}) <= most:
        assert not folding.members
    folded = {name for members in folding.members.values() for name in members}
    if folded and heads:
        strongest = max(strength[name] for name in folded)
        lone = {name for name in inner - folded if strength[name] < strongest}
        assert all(  # a weak one is alone only where its neighbours are not weak
            sum(graph.nodes[other].row == graph.nodes[name].row for other in lone) == 1 for name in lone
        )
    assert len(rows) <= max(most, 1 + len({graph.nodes[name].row for name in ends}) + 2)
    order = {name: graph.nodes[name].order for name in strength}
    for members in folding.members.values():  # neighbours alone, so that lines go up
        low, high = (graph.nodes[members[i]].row for i in (0, -1))
        between = [name for name in order if low < graph.nodes[name].row < high]
        assert set(between) <= set(members)
    reduced = reduce(circuit, None, detail, MANY, None)
    assert sum(edge.count for edge in reduced.edges) + reduced.inside == circuit.n_edges


def test_a_row_of_many_heads_is_folded_too() -> None:
    graph = Graph(1, 40)
    values = np.where(graph.valid, np.arange(graph.n_sources)[None, :] + 1.0, 0.0)
    circuit = Circuit(graph, graph.valid, Scores(graph, values))
    reduced = reduce(circuit, None, "head", MANY, None)
    heads = [name for name in reduced.nodes if reduced.folding.boxes[name].kind == "head"]
    assert len(heads) == MOST_IN_ROW
    assert reduced.folded == {"a0": tuple(f"a0.h{h}" for h in range(29))}
    assert len(reduce(circuit, None, "head", MANY, 0).nodes) == 43


@pytest.mark.parametrize(("n", "most"), [(200, 100), (300, 120)])
def test_many_lines_are_folded_and_none_is_left_out(n: int, most: int) -> None:
    """Of a model of twelve layers, as GPT-2 small: the picture holds every edge, in a line or in a box."""
    graph = Graph(12, 12)
    rng = np.random.default_rng(0)
    sizes = (rng.lognormal(sigma=1.3, size=axis) for axis in graph.valid.shape)
    circuit = Scores(graph, np.where(graph.valid, np.outer(*sizes), 0.0)).top(n)
    apart = reduce(circuit, None, "head", most, 0)
    assert apart.left_out > 0
    reduced = reduce(circuit, None, "head", most, None)
    assert reduced.left_out == 0
    assert len(reduced.edges) <= most
    assert sum(edge.count for edge in reduced.edges) + reduced.inside == n
    folded = {name for members in reduced.folded.values() for name in members}
    strength: dict[str, float] = {}
    for edge in reduce(circuit, None, "head", MANY, 0).edges:
        for name in (edge.source, edge.destination):
            strength[name] = strength.get(name, 0.0) + abs(edge.score or 0.0)
    order = sorted(
        (name for name in strength if graph.nodes[name].kind in ("head", "mlp")), key=strength.__getitem__
    )
    assert folded
    assert not folded & set(order[-LEAST_BOXES:])
    assert len(order) > len(folded) + LEAST_BOXES


def test_lines_are_left_out_before_the_strongest_nodes_are_folded() -> None:
    graph = Graph(6, 4)
    values = np.random.default_rng(0).normal(size=graph.valid.shape)
    reduced = reduce(Circuit(graph, graph.valid, Scores(graph, values)), None, "head", 10, None)
    assert reduced.left_out > 0
    assert len(reduced.edges) <= 10
    alone = [name for name in reduced.nodes if name not in reduced.folded]
    assert len(alone) <= LEAST_BOXES + 2


def test_verdicts_are_left_out_and_not_folded() -> None:
    """A line of several edges would be true if one of them is."""
    graph = Graph(6, 4)
    values = np.random.default_rng(0).normal(size=graph.valid.shape)
    reduced = reduce(Circuit(graph, graph.valid, Scores(graph, values)), graph.valid, "head", 40, None)
    assert reduced.left_out > 0
    assert not reduced.folded


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
