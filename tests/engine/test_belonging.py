"""A circuit knows the weights and prompts it was found with, and what has changed since is said in one line."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

import acdc
from acdc.engine import belonging
from acdc.engine.belonging import prompts_digest, weights_digest


def _module() -> torch.nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2
    )
    return AutoModelForCausalLM.from_config(config).eval()


def _prompts(last: int = 5) -> acdc.Prompts:
    clean = torch.tensor([[3, 4, 5], [6, 7, last]])
    return acdc.Prompts.from_tokens(clean, clean.flip(1), torch.tensor([8, 9]), torch.tensor([10, 11]))


def test_the_digest_is_of_names_shapes_dtypes_and_bytes() -> None:
    module = _module()
    digest = weights_digest(acdc.load(module))
    assert weights_digest(acdc.load(copy.deepcopy(module))) == digest
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.transformer.h[1].mlp.c_fc.weight[3, 3] += 1e-6
    assert weights_digest(acdc.load(other)) != digest
    assert weights_digest(acdc.load(module.to(torch.float64))) != digest


def test_tensors_that_do_not_lie_in_one_piece_of_memory() -> None:
    module, other = _module(), _module()
    weight = other.transformer.h[0].mlp.c_fc.weight
    weight.data = weight.data.T.contiguous().T
    assert not weight.is_contiguous()
    assert weights_digest(acdc.load(module)) == weights_digest(acdc.load(other))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: torch.nn.init.zeros_(p),
        lambda p: p.data.mul_(2),
        lambda p: setattr(p, "data", torch.ones_like(p)),
        lambda p: p.data[3, 5].add_(1e-6),
        lambda p: p.data.copy_(p.data[torch.arange(len(p)).roll(1)]),
        lambda p: p.data.copy_(p.data[:, torch.arange(p.shape[1]).roll(1)]),
        lambda p: p.detach().numpy().__setitem__((2, 1), 0.0),
        lambda p: None,
    ],
)
def test_weights_are_hashed_again_only_if_touched(change: object) -> None:
    model = acdc.load(_module())
    digest = weights_digest(model)
    parameter = model.module.transformer.h[0].attn.c_attn.weight
    before = parameter.detach().clone()
    change(parameter)
    same = torch.equal(before, parameter)
    with mock.patch.object(belonging, "_digest", side_effect=belonging._digest) as hashing:
        again = weights_digest(model)
    assert (again == digest) == same
    assert hashing.called != same


def test_a_replaced_tensor_is_seen() -> None:
    model = acdc.load(_module())
    digest = weights_digest(model)
    model.module.load_state_dict(_module().state_dict(), assign=True)
    assert weights_digest(model) == digest
    model.module.transformer.wpe.weight = torch.nn.Parameter(torch.ones(16, 16))
    assert weights_digest(model) != digest


def test_every_part_of_the_prompts_counts() -> None:
    prompts = _prompts()
    digests = {prompts_digest(None), prompts_digest(prompts)}
    changes = {
        "clean": prompts.corrupted,
        "corrupted": prompts.clean,
        "mask": prompts.mask & torch.tensor([False, True, True]),
        "positions": prompts.positions - 1,
        "answers": prompts.wrong,
        "wrong": prompts.answers,
        "position_ids": torch.arange(3).repeat(2, 1),
        "corrupted_mask": prompts.mask,
        "corrupted_position_ids": torch.arange(3).repeat(2, 1),
    }
    for name, value in changes.items():
        digests.add(prompts_digest(dataclasses.replace(prompts, **{name: value})))
    assert len(digests) == 2 + len(changes)
    assert prompts_digest(_prompts()) in digests


def test_evaluate_says_what_changed() -> None:
    module = _module()
    model, prompts = acdc.load(module), _prompts()
    circuit = acdc.score(model, prompts, "eap", ablation="zero").top(20)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not do the task")
        same = acdc.evaluate(model, prompts, circuit, ablation="zero", random_circuits=0)
        assert (same.prompts, same.changed) == ("discovery", ())
        with pytest.warns(UserWarning, match="the prompts of prompts differ from those the circuit was found on"):
            other = acdc.evaluate(model, _prompts(12), circuit, ablation="zero", random_circuits=0)
        assert (other.prompts, other.changed) == ("other", ("prompts",))
        with torch.no_grad():
            module.transformer.wpe.weight.mul_(1.5)
        with pytest.warns(UserWarning, match="the weights of .* differ from those the circuit was found with"):
            found = acdc.evaluate(acdc.load(module), prompts, circuit, ablation="zero", random_circuits=0)
        assert found.changed == ("weights",)
        with pytest.warns(UserWarning, match="is in float64, and the circuit was found in float32"):
            acdc.evaluate(acdc.load(module.double()), prompts, circuit, ablation="zero", random_circuits=0)


def test_what_an_older_file_does_not_say_is_not_judged() -> None:
    model, prompts = acdc.load(_module()), _prompts()
    circuit = acdc.Circuit.from_names(model.graph(), ["input->logits"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not do the task")
        assert acdc.evaluate(model, prompts, circuit, ablation="zero", random_circuits=0).changed == ()
