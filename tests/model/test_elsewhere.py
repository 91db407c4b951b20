"""Weights that stay elsewhere: the same results to the bit, and never more of them here than one operation takes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import acdc
import families
import problems
from acdc.errors import AcdcError
from acdc.model.elsewhere import Elsewhere, leave_elsewhere, numbers
from pretend_gpu import pretended_gpu

CPU = torch.device("cpu")


def visiting(module: nn.Module) -> nn.Module:
    """The module with all weights elsewhere, though that is the CPU too."""
    new: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                away = Elsewhere(weight.detach(), CPU)
                part._parameters[name] = new.setdefault(id(weight), nn.Parameter(away, requires_grad=False))
    return module


@pytest.mark.parametrize("family", families.FAMILIES)
def test_attribution_is_the_same_to_the_bit(family: str) -> None:
    module, prompts = families.module(family), problems.make_prompts()
    here = acdc.score(acdc.load(copy.deepcopy(module)), prompts, "eap-ig")
    there = acdc.score(acdc.load(visiting(module)), prompts, "eap-ig")
    np.testing.assert_array_equal(there.values, here.values)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_search_is_the_same_to_the_bit(family: str) -> None:
    module, prompts = families.module(family), problems.make_prompts()
    here = acdc.discover(acdc.load(copy.deepcopy(module)), prompts, faithfulness=0.8, metric="kl")
    there = acdc.discover(acdc.load(visiting(module)), prompts, faithfulness=0.8, metric="kl")
    assert (there.edges == here.edges).all()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what is taken from elsewhere."""
    shapes: list[tuple[int, ...]] = []
    take = Elsewhere.here

    def here(self: Elsewhere) -> torch.Tensor:
        shapes.append(tuple(self.shape))
        return take(self)

    monkeypatch.setattr(Elsewhere, "here", here)
    return shapes


def test_no_more_is_taken_than_is_needed(taken: list[tuple[int, ...]]) -> None:
    weight = torch.randn(12, 8)
    away = Elsewhere(weight, CPU)
    some = away.view(3, 4, 8)[1].T
    assert isinstance(some, Elsewhere)
    assert not taken
    x = torch.randn(5, 8)
    assert torch.equal(x @ some, x @ weight[4:8].T)
    assert taken == [(8, 4)]
    assert torch.equal(nn.functional.embedding(torch.tensor([3, 1]), away), weight[[3, 1]])
    assert taken == [(8, 4)]
    assert "(12, 8)" in repr(away)


def test_gradients_keep_no_copy_of_it() -> None:
    weight, kept = torch.randn(12, 8), list[torch.Tensor]()

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x)
        return x

    x = torch.randn(5, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = nn.functional.linear(x, Elsewhere(weight, CPU))
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, torch.ones(5, 12) @ weight)
    assert kept
    assert all(isinstance(each, Elsewhere) for each in kept if each.shape in ((12, 8), (8, 12)))


def test_a_copy_of_the_module_has_weights_of_its_own() -> None:
    module = visiting(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    other: Any = copy.deepcopy(module)
    assert isinstance(other[0].weight, nn.Parameter)
    with torch.no_grad():
        numbers(other[0].weight).zero_()
    assert bool(numbers(module[0].weight).any())  # type: ignore[index]


def test_what_accelerate_spreads_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate = pytest.importorskip("accelerate")
    module, prompts = families.module("llama"), problems.make_prompts()
    here = acdc.score(acdc.load(copy.deepcopy(module)), prompts, "eap-ig")
    places = {"model.embed_tokens": "cuda", "model.rotary_emb": "cuda", "model.layers.0": "cuda"}
    places |= dict.fromkeys(("model.layers.1", "model.norm", "lm_head"), "cpu")
    with pretended_gpu(monkeypatch):
        spread = accelerate.dispatch_model(module, places, main_device="cuda", force_hooks=True)
        model = acdc.load(spread)
        assert model.device.type == "cuda"
        away = {
            name.split(".")[2]
            for name, x in spread.named_parameters()
            if isinstance(x, Elsewhere) and "layers" in name
        }
        assert away == {"1"}
        there = acdc.score(model, prompts.to(model.device), "eap-ig")
    np.testing.assert_array_equal(there.values, here.values)


def test_weights_of_a_device_of_its_own_are_as_they_are() -> None:
    module = nn.Linear(3, 3)
    leave_elsewhere(module, CPU)
    assert not isinstance(module.weight, Elsewhere)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cpu+cpu", "weights stay beside a GPU; where the CPU computes, use cpu or disk"),
        ("cpu+disk", "weights stay beside a GPU"),
        ("cuda+gpu", r"unknown device 'cuda\+gpu'"),
        ("cuda+cpu", "no CUDA GPU"),
    ],
)
def test_bad_devices(device: str, message: str) -> None:
    if device == "cuda+cpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(AcdcError, match=message):
        acdc.load("tracr-hist", device=device)
