"""A run with swapped edges, against the plain model and against the engine's circuits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import acdc
from acdc.benchmarks.training.interchange import contexts, run, trainable
from acdc.engine.patching import Patching
from acdc.model.load import decompose
from acdc.model.programs import tracr
from acdc.model.programs.tracr import TracrModel
from acdc.tasks.programs.inputs import Pairs, random_pairs
from acdc.tasks.prompts import Prompts

PROGRAM = TracrModel.load("tracr-only-unique")


def gpt2(causal: bool) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    settings = {"vocab_size": 11, "n_positions": 6, "n_embd": 12, "n_layer": 2, "n_head": 3, "is_causal": causal}
    model = GPT2LMHeadModel(GPT2Config(**settings, bos_token_id=None, eos_token_id=None))
    for parameter in model.parameters():  # so that no bias is zero
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def pairs(n: int = 8) -> Pairs:
    return random_pairs(PROGRAM, n, distribution="varied", rng=np.random.default_rng(0))


@pytest.mark.parametrize("causal", [True, False])
def test_without_a_swap_it_is_the_plain_model(causal: bool) -> None:
    model, given = gpt2(causal), pairs()
    ours = run(trainable(model), contexts(trainable(model), given)[0])
    theirs = model(given.clean, attention_mask=given.clean_mask.long(), position_ids=given.clean_positions).logits
    torch.testing.assert_close(ours.logits[given.clean_mask], theirs[given.clean_mask])


def test_a_program_runs_as_it_is() -> None:
    given = pairs()
    ours = run(tracr.decompose(PROGRAM), contexts(tracr.decompose(PROGRAM), given)[0])
    with torch.no_grad():
        theirs = PROGRAM(given.clean, given.clean_positions, given.clean_mask)
    torch.testing.assert_close(ours.logits[given.clean_mask], theirs[given.clean_mask])


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_swapped_edges_are_the_removed_edges_of_a_circuit(causal: bool) -> None:
    module, given = gpt2(causal), pairs()
    model = acdc.load(module)
    graph = model.graph(inputs="split")
    swapped = np.random.default_rng(1).random(graph.valid.shape) < 0.4
    network, (clean, donor) = trainable(module), contexts(trainable(module), given)
    mask = torch.from_numpy(swapped).expand(len(given), -1, -1)
    ours = run(network, clean, swapped=mask, donor=run(network, donor)).logits
    prompts = Prompts(
        given.clean, given.corrupted, given.clean_mask, torch.arange(6).expand(len(given), -1),
        position_ids=given.clean_positions, corrupted_mask=given.corrupted_mask,
        corrupted_position_ids=given.corrupted_positions,
    )  # fmt: skip
    theirs = Patching(model, graph, prompts).logits(graph.valid & ~swapped)[0]
    torch.testing.assert_close(ours[given.clean_mask], theirs[given.clean_mask])


def test_each_prompt_has_swaps_of_its_own() -> None:
    module, given = gpt2(False), pairs(2)
    network, (clean, donor) = trainable(module), contexts(trainable(module), given)
    graph = acdc.load(module).graph(inputs="split")
    first = torch.zeros(2, graph.n_ports, graph.n_sources, dtype=torch.bool)
    first[0] = True
    plain, other = run(network, clean), run(network, donor)
    mixed = run(network, clean, swapped=first, donor=other)
    torch.testing.assert_close(mixed.logits[1], plain.logits[1])
    torch.testing.assert_close(mixed.logits[0, 0], other.logits[0, 0])


def test_the_trainable_decomposition_is_the_engines_and_gradients_reach_every_weight() -> None:
    module, given = gpt2(True), pairs()
    network = trainable(module)
    clean = contexts(network, given)[0]
    torch.testing.assert_close(run(network, clean).logits, run(decompose(module, "gpt2"), clean).logits)
    run(network, clean).logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
