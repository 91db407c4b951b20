"""True circuits: verified by keeping and by replacing, and carried over to coarser graphs."""

import numpy as np
import pytest
import torch

from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.model.programs.tracr import BUILTIN, TracrModel, builtin_names
from acdc.tasks.programs.derive import causal_edges, circuit_outputs, edge_effects, finest_graph, read_positions
from acdc.tasks.programs.inputs import random_pairs
from acdc.tasks.programs.truth import CASES, TrueCircuits, witness_pairs

SIZES = {  # structural, semantic, then causal in the order of CASES
    "tracr-reverse": (15, 10, 2, 8, 6, 10, 9, 11),
    "tracr-proportion": (7, 5, 3, 3, 5, 5, 5, 5),
    "tracr-hist": (6, 4, 4, 4, 4, 4, 6, 6),
}


def load(name: str) -> tuple[TracrModel, TrueCircuits]:
    return TracrModel.load(name), TrueCircuits.load(BUILTIN / name)


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str) -> None:
    _, truth = load(name)
    assert tuple(len(circuit.edges) for circuit in truth.circuits) == SIZES[name]


def test_reverse_by_hand() -> None:
    _, truth = load("tracr-reverse")
    assert truth.get("resample", "fixed").edges == ("input.token->a3.h0<v>", "a3.h0->logits")


@pytest.mark.parametrize("name", builtin_names())
def test_keeping_a_causal_circuit_alone_reproduces_the_output(name: str) -> None:
    model, truth = load(name)
    graph = finest_graph(model)
    for ablation, distribution in CASES:
        pairs = random_pairs(model, 60, distribution=distribution, rng=np.random.default_rng(11))
        edges = truth.get(ablation, distribution).mask(graph)
        full, circuit = circuit_outputs(model, pairs, edges, ablation=ablation)
        read = read_positions(model, pairs.clean_mask)
        torch.testing.assert_close(circuit[read], full[read], atol=1e-2, rtol=0)
        torch.testing.assert_close(
            full.float(), model(pairs.clean, pairs.clean_positions, pairs.clean_mask), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("name", builtin_names())
def test_witnesses_show_every_edge_and_no_other(name: str) -> None:
    model, truth = load(name)
    for ablation, distribution in CASES:
        circuit = truth.get(ablation, distribution)
        pairs = witness_pairs(model, circuit)
        if pairs is None:
            assert not circuit.edges
            continue
        shown = causal_edges(model, pairs, ablation=ablation).edges
        np.testing.assert_array_equal(shown, circuit.mask(finest_graph(model)))


def test_causal_edges_are_structural() -> None:
    for name in builtin_names():
        _, truth = load(name)
        structural, semantic, *causal = truth.circuits
        assert set(semantic.edges) <= set(structural.edges)
        for circuit in causal:
            assert set(circuit.edges) <= set(structural.edges), (name, circuit.name)


def test_edges_outside_the_structure_have_no_effect_at_all() -> None:
    model, truth = load("tracr-sort")
    pairs = random_pairs(model, 50, distribution="varied", rng=np.random.default_rng(0))
    effects = edge_effects(model, pairs, ablation="resample").amax(-1).numpy()
    assert not effects[~truth.circuits[0].mask(finest_graph(model))].any()


def test_edges_to_and_from_padding_are_never_true() -> None:
    for name in builtin_names():
        model, truth = load(name)
        for edge in {edge for circuit in truth.circuits for edge in circuit.edges}:
            source, destination = edge.split("->")
            assert source not in model.program.padding
            assert destination.split("<")[0] not in model.program.padding


@pytest.mark.parametrize("inputs", ["single", "split", "token"])
@pytest.mark.parametrize("qkv", ["split", "merged"])
def test_masks_on_coarser_graphs(inputs: str, qkv: str) -> None:
    _, truth = load("tracr-reverse")
    circuit = truth.get("resample", "varied")
    graph = Graph(4, 1, inputs=inputs, qkv=qkv)  # type: ignore[arg-type]
    expected = set()
    for edge in circuit.edges:
        source, destination = edge.split("->")
        if inputs == "token" and source == "input.position":
            continue
        if inputs != "split":
            source = source.split(".t")[0].split(".p")[0]
        if qkv == "merged":
            destination = destination.split("<")[0]
        expected.add(f"{source}->{destination}")
    assert set(graph.edge_names(circuit.mask(graph))) == expected


def test_zero_ablation_knows_no_corrupted_input() -> None:
    _, truth = load("tracr-reverse")
    assert truth.get("zero", "permuted") == truth.get("zero", "fixed")
    assert truth.get("zero", "varied") == truth.get("zero", "mixed")


def test_errors(tmp_path) -> None:
    _, truth = load("tracr-reverse")
    with pytest.raises(AcdcError, match="unknown causal circuit of tracr-reverse 'mean/fixed'"):
        truth.get("mean", "fixed")
    with pytest.raises(AcdcError, match="cannot be read"):
        TrueCircuits.load(tmp_path)


def test_round_trip(tmp_path) -> None:
    _, truth = load("tracr-sort")
    truth.save(tmp_path)
    assert TrueCircuits.load(tmp_path) == truth
