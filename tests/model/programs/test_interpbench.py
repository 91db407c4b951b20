"""InterpBench cases from a local folder: the model is the one of the files, and what is wrong with them is said."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import acdc
from acdc.errors import AcdcError
from acdc.model.programs.interpbench import read_config, read_edges
from hooked_folder import CONFIG, TRUE, weights, write_case


def reference(config: dict[str, Any], state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """The logits of a HookedTransformer on one prompt `[T]`, one head at a time."""

    def norm(x: Tensor, name: str) -> Tensor:
        if config["normalization_type"] is None:
            return x
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + config["eps"]).sqrt()
        return x * state[f"{name}.w"] + state[f"{name}.b"] if config["normalization_type"] == "LN" else x

    def act(x: Tensor) -> Tensor:
        if config["act_fn"] == "relu":
            return x.clamp(min=0)
        if config["act_fn"] == "gelu":
            return x / 2 * (1 + torch.erf(x / math.sqrt(2)))
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    T = len(tokens)
    x = state["embed.W_E"][tokens] + state["pos_embed.W_pos"][:T]
    for layer in range(config["n_layers"]):
        attn, mlp = f"blocks.{layer}.attn", f"blocks.{layer}.mlp"
        normed, total = norm(x, f"blocks.{layer}.ln1"), x + state[f"{attn}.b_O"]
        for h in range(config["n_heads"]):
            q, k, v = (normed @ state[f"{attn}.W_{p}"][h] + state[f"{attn}.b_{p}"][h] for p in "QKV")
            scores = q @ k.T / math.sqrt(config["d_head"])
            if config["attention_dir"] == "causal":
                scores = scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -math.inf)
            total = total + scores.softmax(-1) @ v @ state[f"{attn}.W_O"][h]
        hidden = act(norm(total, f"blocks.{layer}.ln2") @ state[f"{mlp}.W_in"] + state[f"{mlp}.b_in"])
        x = total + hidden @ state[f"{mlp}.W_out"] + state[f"{mlp}.b_out"]
    return norm(x, "ln_final") @ state["unembed.W_U"] + state["unembed.b_U"]


def doubled(config: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in weights(config).items()}


@pytest.mark.parametrize("norm", [None, "LN", "LNPre"])
@pytest.mark.parametrize("direction", ["causal", "bidirectional"])
@pytest.mark.parametrize(("act", "outputs"), [("gelu", 3), ("gelu_new", 9), ("relu", 1)])
def test_it_computes_what_a_hooked_transformer_does(
    tmp_path: Path, norm: str | None, direction: str, act: str, outputs: int
) -> None:
    config = write_case(tmp_path, normalization_type=norm, attention_dir=direction, act_fn=act, d_vocab_out=outputs)
    model, state = acdc.load(tmp_path, dtype="float64"), doubled(config)
    tokens = torch.randint(5, (4, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    expected = torch.stack([reference(config, state, row) for row in tokens])
    torch.testing.assert_close(model.plain_logits(tokens, mask), expected)
    torch.testing.assert_close(model.decomposed_logits(tokens, mask), expected)
    assert (model.n_layers, model.n_heads, model.d_model, model.context_length) == (2, 2, 8, 6)
    assert (model.input_vocabulary_size, model.vocabulary_size) == (5, config["d_vocab_out"])


def test_heads_wider_or_narrower_than_the_stream(tmp_path: Path) -> None:
    config = write_case(tmp_path, n_heads=3, d_head=7, attn_scale=-1.0)
    tokens = torch.tensor([[1, 2, 3]])
    logits = acdc.load(tmp_path, dtype="float64").plain_logits(tokens, torch.ones_like(tokens, dtype=torch.bool))
    torch.testing.assert_close(logits[0], reference(config, doubled(config), tokens[0]))


class HookedTransformerConfig:
    """A stand-in for TransformerLens's class: some cases hold one instead of a dictionary."""


def test_a_configuration_as_an_object(tmp_path: Path) -> None:
    write_case(tmp_path)
    config = HookedTransformerConfig()
    config.__dict__ = dict(CONFIG)
    expected = read_config(tmp_path)
    (tmp_path / "ll_model_cfg.pkl").write_bytes(pickle.dumps(config))
    assert read_config(tmp_path) == expected
    assert expected.scale == pytest.approx(1 / math.sqrt(3))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_numbers_of_numpy(tmp_path: Path, protocol: int, kind: type) -> None:
    write_case(tmp_path)
    (tmp_path / "ll_model_cfg.pkl").write_bytes(pickle.dumps(CONFIG | {"attn_scale": kind(2.5)}, protocol=protocol))
    assert read_config(tmp_path).attn_scale == 2.5


def test_json_and_safetensors_come_first(tmp_path: Path) -> None:
    write_case(tmp_path)
    plain = {name: value for name, value in CONFIG.items() if isinstance(value, int | float | str | None)}
    (tmp_path / "ll_model_cfg.json").write_text(json.dumps(plain | {"act_fn": "relu", "attn_scale": -1.0}))
    (tmp_path / "edges.json").write_text(json.dumps([["hook_embed", "blocks.1.hook_mlp_in"]]))
    assert read_config(tmp_path).act_fn == "relu"
    assert read_edges(tmp_path) == ("input.token->m1",)


def test_edges_get_our_names_and_those_inside_a_part_are_none(tmp_path: Path) -> None:
    write_case(tmp_path)
    assert read_edges(tmp_path) == TRUE
    write_case(tmp_path, edges=[("blocks.0.attn.hook_k[0]", "blocks.1.hook_v_input[1]")])
    assert read_edges(tmp_path) == ("a0.h0->a1.h1<v>",)


class CircuitNode:
    """A stand-in for the class that the first release has in its edges."""


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        ([("hook_embed", "blocks.0.hook_attn_out")], "'blocks.0.hook_attn_out' of edge .* is no part of the graph"),
        ([("hook_embed", "blocks.1.attn.hook_result[0]")], "ends in a head, but at none of q, k and v"),
        ([(CircuitNode(), CircuitNode())], "objects of .*CircuitNode: take the file of a later release"),
        ("hook_embed", "expected a list of pairs of names, .* got a str"),
        ([("hook_embed",)], "expected a list of pairs of names"),
    ],
)
def test_edges_that_cannot_be_used(tmp_path: Path, edges: Any, words: str) -> None:
    write_case(tmp_path, edges=edges)
    with pytest.raises(AcdcError, match=words):
        read_edges(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalization_type": "RMS"}, "normalization_type: input should be 'ln' or 'lnpre', got 'RMS'"),
        ({"attn_only": True}, "attn_only: input should be false"),
        ({"positional_embedding_type": "rotary"}, "positional_embedding_type"),
        ({"n_layers": "two"}, "n_layers: input should be a valid integer"),
    ],
)
def test_a_model_of_another_kind_is_refused_with_the_setting(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    write_case(tmp_path)
    (tmp_path / "ll_model_cfg.pkl").write_bytes(pickle.dumps(CONFIG | changes))
    with pytest.raises(AcdcError, match=f"a model that is not supported: {words}"):
        acdc.load(tmp_path)


def test_files_that_do_not_fit_or_are_broken_are_named(tmp_path: Path) -> None:
    write_case(tmp_path)
    (tmp_path / "ll_model_cfg.pkl").write_bytes(pickle.dumps(CONFIG | {"d_mlp": 17}))
    with pytest.raises(AcdcError, match=r"blocks.0.mlp.W_in should be \[8, 17\], and is \[8, 16\] \(and 5 more\)"):
        acdc.load(tmp_path)
    (tmp_path / "ll_model_cfg.pkl").write_bytes(b"\x80")
    with pytest.raises(AcdcError, match=r"ll_model_cfg.pkl is not a pickle that can be read"):
        acdc.load(tmp_path)
    (tmp_path / "ll_model_cfg.pkl").unlink()
    with pytest.raises(AcdcError, match=r"expected a file ll_model_cfg.json or ll_model_cfg.pkl"):
        acdc.load(tmp_path)
    write_case(tmp_path)
    (tmp_path / "ll_model.pth").write_bytes(pickle.dumps({"w": HookedTransformerConfig()}))
    with pytest.raises(AcdcError, match=r"ll_model.pth cannot be read as tensors"):
        acdc.load(tmp_path)
    (tmp_path / "ll_model.pth").rename(tmp_path / "ll_model_510.pth")
    (tmp_path / "ll_model_10110.pth").touch()
    with pytest.raises(AcdcError, match=r"several models \(ll_model_10110.pth, ll_model_510.pth\)"):
        acdc.load(tmp_path)
