"""A model's graph and hash are its own; `frozen` leaves no trace."""

from __future__ import annotations

import pytest

import families


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
