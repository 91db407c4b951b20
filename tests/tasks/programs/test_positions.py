"""The true circuits of compiled programs with positions: what replacing one unit after another shows, and recovered."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

import acdc
from acdc.benchmarks.measuring.positions import recovery
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.model.programs.tracr import TracrLayer, TracrModel
from acdc.tasks.programs.derive import circuit_outputs
from acdc.tasks.programs.inputs import random_pairs
from acdc.tasks.programs.positions import true_positions, unit_effects
from command_line import Command


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("tracr-hist", "fixed"),
        ("tracr-hist", "permuted"),
        ("tracr-next", "permuted"),
        ("tracr-proportion", "fixed"),
    ],
)
def test_rankings_and_both_searches_recover_the_truth(name: str, distribution: str) -> None:
    found = recovery(name, distribution)
    assert found.defined
    assert found.true > 0
    assert found.auc_exact == 1
    assert found.acdc == found.guided == (found.true, 0)


def _plain(
    model: TracrModel,
    tokens: Tensor,
    positions: Tensor,
    unit: tuple[str, str, int] | None,
    other: dict[str, Tensor],
) -> tuple[dict[str, Tensor], Tensor]:
    """Sources by name and outputs `[B, T, O]` of a program without PAD, one unit reading from other sources."""
    layers = [layer for layer in model.layers if isinstance(layer, TracrLayer)]
    sources = {"input.token": model.token_embedding(tokens), "input.position": model.position_embedding(positions)}

    def read(destination: str) -> Tensor:
        x = sum(sources.values()).clone()  # type: ignore[union-attr]
        if unit is not None and unit[1] == destination:
            name, _, position = unit
            x[:, position] += other[name][:, position] - sources[name][:, position]
        return x

    for i, layer in enumerate(layers):
        written = {}
        for h in range(model.program.n_heads):
            q, k, v = (
                read(f"a{i}.h{h}<{port}>") @ weight[h].T
                for port, weight in zip("qkv", (layer.w_q, layer.w_k, layer.w_v), strict=True)
            )
            scores = q @ k.transpose(1, 2) * model.scale
            if model.causal:
                scores = scores.masked_fill(~torch.ones(scores.shape[-2:]).tril().bool(), -1e30)
            written[f"a{i}.h{h}"] = scores.softmax(-1) @ v @ layer.w_o[h]
        sources |= written
        sources[f"m{i}"] = layer.mlp(read(f"m{i}"))
    return sources, model.unembedding(read("logits"))


@pytest.mark.parametrize(
    ("name", "distribution"),
    [("tracr-hist", "fixed"), ("tracr-next", "permuted"), ("tracr-proportion", "permuted")],
)
@torch.no_grad()
def test_the_truth_is_what_replacing_each_unit_alone_shows(name: str, distribution: str) -> None:
    model = acdc.load(name).program
    assert model is not None
    truth = true_positions(model, distribution=distribution)
    model = TracrModel.load(name).double()
    pairs = random_pairs(model, 300, distribution=distribution, rng=np.random.default_rng(7))
    other, _ = _plain(model, pairs.corrupted, pairs.corrupted_positions, None, {})
    _, whole = _plain(model, pairs.clean, pairs.clean_positions, None, {})
    graph = Graph(model.program.n_layers, model.program.n_heads, inputs="split")
    expected = np.zeros_like(truth.kept)
    for p, d, s in np.argwhere(np.broadcast_to(graph.valid, truth.kept.shape)):
        unit = graph.sources[s], graph.destinations[d], int(p)
        _, moved = _plain(model, pairs.clean, pairs.clean_positions, unit, other)
        expected[p, d, s] = (moved - whole)[:, 1:].abs().max() > 1e-2  # BOS has no output
    np.testing.assert_array_equal(truth.kept, expected)


def test_units_that_make_up_for_each_other_are_no_one_truth() -> None:
    model = acdc.load("tracr-sort").program
    assert model is not None
    truth = true_positions(model, distribution="permuted")
    assert truth.idle == 1
    assert not truth.defined
    edge = acdc.load("tracr-sort").graph(inputs="split").edge("input.position->m0")
    assert truth.kept[(slice(1, None), *edge)].all()  # each position matters
    fewer = truth.kept.copy()
    fewer[(slice(None), *edge)] = False  # and all together do not
    pairs = random_pairs(model, 100, distribution="permuted", rng=np.random.default_rng(9))
    full, circuit = circuit_outputs(model, pairs, fewer, ablation="resample")
    assert float((full - circuit)[:, 1:].abs().max()) < 1e-2


def test_every_position_at_once_is_the_edge() -> None:
    model = acdc.load("tracr-hist").program
    assert model is not None
    pairs = random_pairs(model, 20, distribution="fixed", rng=np.random.default_rng(0))
    at_one = unit_effects(model, pairs, ablation="zero")
    assert at_one.shape == (pairs.clean.shape[1], 5, 4, 20)
    edges = np.random.default_rng(1).random((5, 4)) < 0.7
    everywhere = np.repeat(edges[None], pairs.clean.shape[1], 0)
    for own, same in zip(
        *(circuit_outputs(model, pairs, x, ablation="zero") for x in (edges, everywhere)), strict=True
    ):
        torch.testing.assert_close(own, same, rtol=0, atol=0)


def test_inputs_of_several_lengths_have_no_positions_in_common() -> None:
    model = acdc.load("tracr-hist").program
    assert model is not None
    with pytest.raises(AcdcError, match="positions correspond 'varied'"):
        true_positions(model, distribution="varied")


def test_a_circuit_is_told_beside_the_truth(command: Command) -> None:
    own = ("positions", "tracr-hist", "--by", "position", "--method", "exact")
    found = json.loads(command(*own, "--task-option", "distribution=fixed", "--json").out)
    assert (found["true_units"], found["true_units_found"], found["false_units"]) == (20, 20, 0)
    assert "20 of 20 true units found, 0 false" in command(*own, "--task-option", "distribution=fixed").out
    refused = command(*own)
    assert refused.status == 2
    assert "distribution=fixed" in refused.err
