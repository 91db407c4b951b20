"""What sources add to attention scores: each part is that of the plain module's own matrices, and they sum up."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import acdc
import oracle
from acdc.errors import AcdcError
from acdc.inspection import score_attribution
from command_line import Command
from families import FAMILIES
from problems import make_prompts, tiny

SEES_ALL = [
    name for name in FAMILIES if "sliding" not in name and name not in ("mistral", "gemma2", "gemma3", "phi3")
]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_each_source_adds_what_the_plain_matrices_say(family: str) -> None:
    model, prompts, head, layer = tiny(family), make_prompts(padding="left"), 1, 1
    module = model.module
    graph = model.graph(inputs="split" if family == "gpt2" else "single")
    found = score_attribution(model, prompts, f"a{layer}.h{head}", query="-1", key="1", batch_size=2)
    outputs = oracle.source_outputs(module, graph, prompts.clean, prompts.mask)
    position_ids = (prompts.mask.long().cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        hidden = module(
            input_ids=prompts.clean, attention_mask=prompts.mask.long(), position_ids=position_ids,
            output_hidden_states=True,
        ).hidden_states[layer]  # fmt: skip
        if family == "gpt2":
            block = module.transformer.h[layer]
            norm, d = block.ln_1, 8
            weight, bias = block.attn.c_attn.weight.T, block.attn.c_attn.bias
            rows = [slice(i * 24 + head * d, i * 24 + (head + 1) * d) for i in range(2)]
            centre = hidden - hidden.mean(-1, keepdim=True)
            inverse = (centre.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
            matrices = [(weight[own], bias[own], norm.bias) for own in rows]
        else:
            block = module.model.layers[layer]
            norm, d = block.input_layernorm, 6
            inverse = (hidden.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
            q, k = block.self_attn.q_proj, block.self_attn.k_proj
            group = slice(head // 2 * d, (head // 2 + 1) * d)
            own = slice(head * d, (head + 1) * d)
            none = torch.zeros_like(hidden[0, 0])
            matrices = [
                (m.weight[rows], none.new_zeros(d) if m.bias is None else m.bias[rows], none)
                for m, rows in ((q, own), (k, group))
            ]

        def turned(x: torch.Tensor) -> torch.Tensor:
            if family == "gpt2":
                return x
            cos, sin = module.model.rotary_emb(hidden, position_ids)
            return apply_rotary_pos_emb(x[:, None], x[:, None], cos, sin)[0][:, 0]

        def part(x: torch.Tensor, which: int) -> torch.Tensor:
            x = x - x.mean(-1, keepdim=True) if family == "gpt2" else x
            return turned(x * inverse * norm.weight @ matrices[which][0].T)

        def constant(which: int) -> torch.Tensor:
            weight, bias, of_norm = matrices[which]
            return turned((of_norm @ weight.T + bias).expand(*hidden.shape[:2], -1))

        at = torch.arange(len(prompts))
        first = prompts.mask.int().argmax(-1)
        last, second = prompts.positions[:, 0], first + 1
        whole = [part(hidden, which) + constant(which) for which in range(2)]
        q, k = whole[0][at, last], whole[1][at, second]
        score = (q * k).sum(-1) * d**-0.5
        np.testing.assert_allclose(found.score, score.numpy(), atol=1e-9)
        for name, (by_query, by_key) in zip(
            found.sources, zip(found.through_query, found.through_key, strict=True), strict=True
        ):
            own_query = (part(outputs[name], 0)[at, last] * k).sum(-1) * d**-0.5
            own_key = (part(outputs[name], 1)[at, second] * q).sum(-1) * d**-0.5
            np.testing.assert_allclose(by_query, own_query.numpy(), atol=1e-9)
            np.testing.assert_allclose(by_key, own_key.numpy(), atol=1e-9)
    np.testing.assert_allclose(found.through_query.sum(0) + found.constant_query, found.score, atol=1e-9)
    np.testing.assert_allclose(found.through_key.sum(0) + found.constant_key, found.score, atol=1e-9)


@pytest.mark.parametrize("family", SEES_ALL)
@pytest.mark.parametrize("relative", [False, True])
def test_parts_sum_to_the_score_in_every_family(family: str, relative: bool) -> None:
    model, prompts = tiny(family), make_prompts(padding="both", reads=2, size=4)
    found = score_attribution(model, prompts, f"a{model.n_layers - 1}.h1", relative=relative, batch_size=3)
    np.testing.assert_allclose(found.through_query.sum(0) + found.constant_query, found.score, atol=1e-9)
    np.testing.assert_allclose(found.through_key.sum(0) + found.constant_key, found.score, atol=1e-9)
    assert np.abs(found.through_key).max() > 0.01


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "phi3", "mistral"])
def test_parts_sum_to_the_score_inside_a_window(family: str) -> None:
    found = score_attribution(tiny(family), make_prompts(), "a1.h2", query="2", key="2")
    np.testing.assert_allclose(found.through_query.sum(0) + found.constant_query, found.score, atol=1e-9)
    np.testing.assert_allclose(found.through_key.sum(0) + found.constant_key, found.score, atol=1e-9)


def test_relative_scores_tell_what_makes_the_key_differ_from_others() -> None:
    """A constant in every key changes no attention, so what all keys have alike is worth nothing."""
    model, prompts = tiny("gpt2"), make_prompts(size=4)
    plain, relative = (
        score_attribution(model, prompts, "a1.h1", query="-1", key="2", relative=x) for x in (False, True)
    )
    every = [score_attribution(model, prompts, "a1.h1", query="-1", key=str(key)).through_key for key in range(6)]
    np.testing.assert_allclose(relative.through_key, plain.through_key - np.mean(every, axis=0), atol=1e-9)
    np.testing.assert_allclose(plain.attention, relative.attention)


def test_the_key_of_an_induction_head_is_what_the_previous_token_head_wrote() -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=16)
    found = score_attribution(model, task, "a1.h1", key="answer", relative=True)
    means = {name: by_key for name, (_, by_key) in found.mean().items()}
    assert max(means, key=lambda name: means[name]) == "a0.h1"
    assert means["a0.h1"] > 0.5 * found.score.mean()
    assert found.table()[1]


def test_bad_heads_and_places_are_refused(command: Command) -> None:
    model, prompts = tiny("gpt2"), make_prompts()
    with pytest.raises(AcdcError, match=r"unknown head 'a9\.h9'"):
        score_attribution(model, prompts, "a9.h9")
    with pytest.raises(AcdcError, match="does not see the key on prompt 1"):
        score_attribution(model, prompts, "a1.h1", query="1", key="3")
    with pytest.raises(AcdcError, match="name no spans"):
        score_attribution(model, prompts, "a1.h1", query="S2")
    said = command("roles", "induction-2l", "--head", "a1.h1", "--key", "answer", "--size", 8)
    assert said.status == 0, said.err
    assert "through the key" in said.out
    whole = json.loads(command("roles", "induction-2l", "--head", "a1.h1", "--size", 8, "--json").out)
    assert len(whole["score"]) == len(whole["through_query"][0])
    assert command("roles", "induction-2l", "--query", "-1").status == 2
