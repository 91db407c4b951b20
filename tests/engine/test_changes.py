"""Gradients through masks: right, whatever the mask, and in memory that grows with the layers and not their square."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

import acdc
import problems
from acdc.engine.edge_gradients import EdgeGradients
from acdc.engine.patching import Patching


def of_mask(patching: Patching, weights: Tensor, *, sparse: bool = False) -> Tensor:
    """A number that every logit has a part in."""
    logits = patching.logits(weights, sparse=sparse)
    return (logits * torch.linspace(-1, 1, logits.shape[-1], dtype=logits.dtype)).sum()


@pytest.mark.parametrize("family", ["gpt2", "gpt-neox-parallel", "gemma2"])
@pytest.mark.parametrize("density", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("circuits", [1, 2])
def test_gradients_are_slopes(family: str, density: float, circuits: int) -> None:
    """At kept and at removed edges; of a sparse mask, at kept ones."""
    patching, _ = problems.make(family, padding="left", shared=2)
    graph, rng = patching.graph, np.random.default_rng(0)
    kept = graph.valid & (rng.random((circuits, *graph.valid.shape)) < density)
    weights = torch.as_tensor(kept * rng.uniform(0.2, 1.0, kept.shape)).requires_grad_()
    gradient, sparse = (
        torch.autograd.grad(of_mask(patching, weights, sparse=each), [weights])[0] for each in (False, True)
    )
    torch.testing.assert_close(sparse, torch.where(torch.as_tensor(kept.any(0)), gradient, 0.0))
    removed = graph.valid & ~kept
    at_removed = np.abs(gradient.numpy())[removed]
    assert density == 1.0 or (at_removed > 1e-7).any()
    edges = [*rng.permutation(np.argwhere(kept))[:6], *np.argwhere(removed)[np.argsort(at_removed)[-6:]]]
    for index in map(tuple, edges):
        step = torch.zeros_like(weights)
        step[index] = 1e-5
        with torch.no_grad():
            slope = (of_mask(patching, weights + step) - of_mask(patching, weights - step)) / 2e-5
        assert float(gradient[index]) == pytest.approx(float(slope), rel=1e-5, abs=1e-7)


def test_a_second_backward_pass_gives_the_same() -> None:
    patching, _ = problems.make("gpt2")
    weights = torch.as_tensor(patching.graph.valid).double().requires_grad_()
    value = of_mask(patching, weights)
    first, second = (torch.autograd.grad(value, [weights], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert first.any()


@pytest.mark.parametrize("family", ["gpt2", "gpt-neox-parallel", "gemma2"])
@pytest.mark.parametrize("density", [0.3, 0.6, 1.0])
def test_gradients_of_each_prompt_are_those_of_weights_of_its_own(family: str, density: float) -> None:
    patching, _ = problems.make(family, padding="left", shared=2)
    graph, prompts = patching.graph, len(patching.prompts)
    kept = graph.valid & (np.random.default_rng(0).random(graph.valid.shape) < density)
    weights = torch.as_tensor(kept).double().repeat(prompts, 1, 1).requires_grad_()
    gradients = EdgeGradients(graph, kept, torch.zeros(prompts, int(kept.sum()), dtype=torch.float64))
    with patching.model.frozen():
        logits = patching.logits(weights, sparse=True, by_prompt=True)
        (expected,) = torch.autograd.grad(logits.square().sum(), [weights])
        logits = patching.logits(kept, gradients=gradients)
        for value in (logits.sum(), logits.square().sum()):  # another pass finds nothing of the one before
            found = gradients.of(value)
    torch.testing.assert_close(found, expected[:, torch.as_tensor(kept)])
    assert found.any()


def kept_for_backward(layers: int) -> int:
    """Bytes that a gradient through a dense mask keeps, weights of the model apart."""
    config = transformers.GPT2Config(
        n_layer=layers, n_head=2, n_embd=32, vocab_size=50, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    model = acdc.load(transformers.GPT2LMHeadModel(config).eval())
    prompts = dataclasses.replace(problems.make_prompts(size=8), answers=None, wrong=None)
    patching = Patching(model, model.graph(), prompts)
    own = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    weights = torch.as_tensor(patching.graph.valid).float().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), model.frozen():
        value = of_mask(patching, weights)
    assert value.requires_grad
    return sum(kept.values())


def test_what_a_gradient_keeps_grows_with_the_layers() -> None:
    found = [kept_for_backward(layers) for layers in (3, 6, 12)]
    assert all(more < 2.3 * fewer for fewer, more in pairwise(found))
