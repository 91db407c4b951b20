"""What is shown of a model's inside equals what `transformers` says of it, and adds up to its logits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import acdc
import families
from acdc.circuit import Circuit, Scores
from acdc.errors import AcdcError
from acdc.evaluation.minimality import minimality
from acdc.inspection import attention_patterns, direct_effects, logit_lens, removal_effects
from acdc.tasks.prompts import Prompts
from problems import make_prompts, tiny


@pytest.mark.parametrize("family", ["gpt2", "gpt-neox-parallel", "llama", "gemma2", "qwen3", "olmo2"])
@pytest.mark.parametrize("padding", ["none", "left"])
def test_patterns_are_those_of_transformers(family: str, padding: str) -> None:
    module = families.module(family)
    module.set_attn_implementation("eager")
    model, prompts = acdc.load(module), make_prompts(padding=padding)
    found = attention_patterns(model, prompts, examples=2, batch_size=2)
    with torch.no_grad():
        theirs = module(
            input_ids=prompts.clean, attention_mask=prompts.mask.long(), use_cache=False, output_attentions=True,
            position_ids=(prompts.mask.long().cumsum(-1) - 1).clamp(min=0),
        ).attentions  # fmt: skip
    real = prompts.mask[:, :, None] & prompts.mask[:, None, :]
    expected = torch.stack([layer.transpose(0, 1) for layer in theirs]).flatten(0, 1)  # [head, prompt, T, T]
    expected = torch.where(real, expected, torch.nan).double().numpy()
    np.testing.assert_allclose(found.examples, expected[:, :2], atol=1e-6)
    np.testing.assert_allclose(found.mean, np.nanmean(expected, axis=1), atol=1e-6)
    assert len(found.heads) == len(found.mean) == model.n_layers * model.n_heads


def test_patterns_of_chosen_heads() -> None:
    model, prompts = tiny("gpt2"), make_prompts()
    everything, some = (
        attention_patterns(model, prompts),
        attention_patterns(model, prompts, heads=["a1.h2", "a0.h0"]),
    )
    assert some.heads == ("a1.h2", "a0.h0")
    np.testing.assert_array_equal(some.mean, [everything.head("a1.h2"), everything.head("a0.h0")])
    with pytest.raises(AcdcError, match="unknown head"):
        attention_patterns(model, prompts, heads=["a0.h11"])
    with pytest.raises(AcdcError, match="unknown head"):
        some.head("a0.h1")


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("inputs", ["single", "token"])
def test_direct_effects_sum_to_the_logits(family: str, inputs: str) -> None:
    model, prompts = tiny(family), make_prompts(padding="both", reads=2)
    found = direct_effects(model, prompts, graph=model.graph(inputs=inputs), batch_size=2)
    with torch.no_grad():
        logits = model.plain_logits(prompts.clean, prompts.mask)
    cap = model.decomposition.final_softcap
    if cap is not None:
        logits = torch.atanh(logits / cap) * cap
    logits = logits - logits.mean(-1, keepdim=True)
    for effects, constant, ids in (
        (found.answer, found.constant_answer, prompts.answers),
        (found.wrong, found.constant_wrong, prompts.wrong),
    ):
        expected = [
            np.mean([logits[b, t, ids[b, i]].mean().item() for i, t in enumerate(row) if t >= 0])
            for b, row in enumerate(prompts.positions.tolist())
        ]
        np.testing.assert_allclose(effects.sum(0) + constant, expected, rtol=1e-6)
    assert found.mean()["a0.h1"] == pytest.approx(np.mean(found.answer[2] - found.wrong[2]))


def test_direct_effect_of_a_head_is_its_output_unembedded() -> None:
    module = families.module("gpt2", dtype=torch.float64)
    model, prompts = acdc.load(module), make_prompts(size=2)
    seen = {}
    projection = module.transformer.h[2].attn.c_proj
    projection.register_forward_pre_hook(lambda _, given: seen.update(z=given[0]))
    module.transformer.ln_f.register_forward_pre_hook(lambda _, given: seen.update(x=given[0]))
    found = direct_effects(model, prompts)
    with torch.no_grad():
        model.plain_logits(prompts.clean, prompts.mask)
        written = seen["z"][:, -1, 8:16] @ projection.weight[8:16]  # head 1 of size 8
        norm, x = module.transformer.ln_f, seen["x"][:, -1]
        sigma = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        logits = ((written - written.mean(-1, keepdim=True)) / sigma * norm.weight) @ module.lm_head.weight.T
    answer, wrong = (logits.gather(-1, ids[:, 0]).mean(-1) for ids in (prompts.answers, prompts.wrong))
    np.testing.assert_allclose(found.difference[found.nodes.index("a2.h1")], (answer - wrong).numpy(), rtol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_lens_reads_hidden_states(family: str) -> None:
    module = families.module(family)
    model, prompts = acdc.load(module), make_prompts(padding="right", reads=2)
    found = logit_lens(model, prompts, examples=2, top=3)
    with torch.no_grad():
        out = module(
            input_ids=prompts.clean, attention_mask=prompts.mask.long(), use_cache=False, output_hidden_states=True
        )
        norm = module.transformer.ln_f if family == "gpt2" else module.model.norm
        cap = model.decomposition.final_softcap
        stream = [module.lm_head(norm(x)) for x in out.hidden_states[:-1]]
        layers = [*(torch.tanh(x / cap) * cap if cap else x for x in stream), out.logits]
    assert found.layers == ("embedding", *map(str, range(model.n_layers)))
    for layer, logits in enumerate(layers):
        for b in range(2):
            probabilities = logits[b].softmax(-1)
            real = prompts.mask[b].numpy()
            best = probabilities.topk(3)
            np.testing.assert_array_equal(found.top[b, layer][real], best.indices[real])
            np.testing.assert_allclose(found.probabilities[b, layer][real], best.values[real], rtol=1e-4)
            shares, ranks = [], []
            for i, t in enumerate(prompts.positions[b].tolist()):
                if t >= 0:
                    ids = prompts.answers[b, i]
                    shares.append(probabilities[t, ids].sum().item())
                    ranks.append(1 + int((probabilities[t] > probabilities[t, ids].max()).sum()))
            assert found.answer_probability[b, layer] == pytest.approx(np.mean(shares), rel=1e-4)
            assert found.answer_rank[b, layer] == np.mean(ranks)


def test_tokens_have_the_texts_of_a_program() -> None:
    model, task = acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse")
    patterns, lens = attention_patterns(model, task, examples=2), logit_lens(model, task, examples=2)
    assert all(row[0] == "BOS" for row in patterns.tokens)
    assert patterns.tokens == lens.tokens
    outputs = set(map(str, model.program.program.output_vocabulary))
    assert set(lens.texts.values()) <= outputs
    assert all(set(answers) <= outputs for answers in lens.answers)
    assert lens.answer_rank[:, -1].tolist() == [1.0, 1.0]


def test_without_answers_the_target_is_what_the_model_says() -> None:
    model, prompts = tiny("gpt2"), make_prompts(reads=2)
    bare = dataclasses.replace(prompts, answers=None, wrong=None)
    last = model.plain_logits(prompts.clean, prompts.mask).argmax(-1).gather(1, prompts.positions.clamp(min=0))
    given = dataclasses.replace(bare, answers=last[..., None])
    found, expected = direct_effects(model, bare), direct_effects(model, given)
    assert (found.target, expected.target) == ("output", "answer")
    np.testing.assert_array_equal(found.difference, expected.answer)
    assert logit_lens(model, bare).answers == logit_lens(model, given).answers


def test_numbers_have_no_lens_but_direct_effects() -> None:
    model, task = acdc.load("tracr-proportion"), acdc.tasks.load("tracr-proportion")
    with pytest.raises(AcdcError, match="no logit lens"):
        logit_lens(model, task)
    found = direct_effects(model, task)
    prompts = task.prepare(model).held_out
    logits = model.plain_logits(prompts.clean, prompts.mask, prompts.position_ids)[..., 0]
    read = prompts.positions >= 0
    expected = (logits.gather(1, prompts.positions.clamp(min=0)) * read).sum(1) / read.sum(1)
    np.testing.assert_allclose(found.answer.sum(0) + found.constant_answer, expected.detach(), atol=1e-5)


def test_removal_effects_are_those_of_minimality() -> None:
    model, prompts = tiny("gpt2"), make_prompts()
    graph = model.graph()
    random = np.random.default_rng(0)
    scores = Scores(graph, random.normal(size=graph.valid.shape))
    circuit = Circuit(graph, scores.top(30).edges, scores)
    whole = removal_effects(model, prompts, circuit, most=None)
    other = minimality(model, prompts, circuit, confidence=None)
    assert list(whole.changes) == circuit.edge_names()
    for edge in other.edges:
        assert whole.changes[edge.edge] == pytest.approx(-edge.change, abs=1e-9)
    some = removal_effects(model, prompts, circuit, most=5)
    strongest = sorted(circuit.edge_names(), key=lambda name: -abs(circuit.edge_scores()[name]))[:5]
    assert some.changes.keys() == set(strongest)
    assert all(value == pytest.approx(whole.changes[name]) for name, value in some.changes.items())


def test_an_empty_circuit_has_no_effects() -> None:
    model = tiny("gpt2")
    prompts: Prompts = make_prompts()
    empty = Circuit(model.graph(), np.zeros_like(model.graph().valid))
    found = removal_effects(model, prompts, empty)
    assert found.changes == {}
    assert found.circuit == found.empty
