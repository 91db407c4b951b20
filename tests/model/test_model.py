"""The self-check refuses every wrong decomposition and says where it goes wrong; `frozen` leaves no trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

import families
from acdc.errors import UnsupportedModelError
from acdc.model.architecture import Attention, Layer
from acdc.model.check import check_loaded
from acdc.model.model import Model


def corrupted(model: Model, index: int, change: Callable[[Layer], Layer]) -> Model:
    """The model with one layer of its decomposition changed."""
    layers = list(model.decomposition.layers)
    layers[index] = change(layers[index])
    return dataclasses.replace(model, decomposition=dataclasses.replace(model.decomposition, layers=tuple(layers)))


def _attention(**changes: Callable[[Attention], Any]) -> Callable[[Layer], Layer]:
    def change(layer: Layer) -> Layer:
        values = {name: make(layer.attention) for name, make in changes.items()}
        return dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, **values))

    return change


WRONG = {
    "scale": _attention(scale=lambda attention: attention.scale * 1.5),
    "head order": _attention(w_o=lambda attention: attention.w_o.flip(0)),
    "q and k exchanged": _attention(q=lambda attention: attention.k, k=lambda attention: attention.q),
    "value bias dropped": _attention(v=lambda attention: dataclasses.replace(attention.v, bias=None)),
    "output bias dropped": _attention(b_o=lambda attention: None),
    "window": _attention(window=lambda attention: 2),
    "mlp norm": lambda layer: dataclasses.replace(layer, mlp_norm=layer.attention.norm),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("part", WRONG)
def test_a_wrong_decomposition_is_refused(part: str, dtype: torch.dtype) -> None:
    model = families.tiny("gpt2", dtype)
    check_loaded(model)
    with pytest.raises(UnsupportedModelError, match=r"differs from the plain one by .* first in layer 1"):
        check_loaded(corrupted(model, 1, WRONG[part]))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_first_wrong_layer_is_named(family: str) -> None:
    model = families.tiny(family)
    for layer in range(model.n_layers):
        with pytest.raises(UnsupportedModelError, match=rf"first in layer {layer} \(attention\)"):
            check_loaded(corrupted(model, layer, WRONG["scale"]))


def test_a_wrong_embedding_is_named() -> None:
    model = families.tiny("gpt2")
    wrong = dataclasses.replace(model.decomposition, position_embedding=None)
    with pytest.raises(UnsupportedModelError, match="first in the embedding"):
        check_loaded(dataclasses.replace(model, decomposition=wrong))


def test_weights_that_are_not_finite_are_refused() -> None:
    module: Any = families.module("gpt2")
    module.transformer.h[1].mlp.c_fc.weight.data[0, 0] = torch.nan
    with pytest.raises(UnsupportedModelError, match="non-finite weights"):
        families.load(module)


def test_frozen_weights_get_no_gradient_and_are_restored() -> None:
    model = families.tiny("gpt2")
    parameters = list(model.module.parameters())
    parameters[0].requires_grad_(False)
    wanted = [parameter.requires_grad for parameter in parameters]
    with model.frozen():
        assert not any(parameter.requires_grad for parameter in parameters)
    assert [parameter.requires_grad for parameter in parameters] == wanted

    def interrupted() -> None:
        with model.frozen():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [parameter.requires_grad for parameter in parameters] == wanted


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_graph_has_the_models_shape(family: str) -> None:
    model = families.tiny(family)
    graph = model.graph()
    assert graph.n_sources == 1 + model.n_layers * (model.n_heads + 1)
    assert graph.parallel == (family == "gpt-neox-parallel")
    if model.n_kv_heads < model.n_heads:
        grouped = model.graph(group_kv=True)
        assert graph.n_destinations - grouped.n_destinations == 2 * model.n_layers * (
            model.n_heads - model.n_kv_heads
        )


def test_config_hash_tells_architectures_apart() -> None:
    hashes = [families.tiny(family).config_hash() for family in families.FAMILIES]
    assert len(set(hashes)) == len(hashes)
    assert families.tiny("llama", seed=1).config_hash() == families.tiny("llama", seed=2).config_hash()
