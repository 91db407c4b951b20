"""The built-in induction model and the data it was trained on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from acdc.benchmarks.training.train_induction import attention_to, repeat_accuracy, repeated_blocks, train
from acdc.model.load import BUILTIN


def sample(n_prompts: int = 200, seed: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return repeated_blocks(n_prompts, vocabulary_size=96, context_length=64, generator=generator)


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(BUILTIN / "induction-2l").eval()


def test_predictable_tokens_follow_from_the_one_earlier_copy() -> None:
    tokens, predictable = sample()
    for row, where in zip(tokens.tolist(), predictable.tolist(), strict=True):
        for t in (t for t, here in enumerate(where) if here):
            earlier = [i for i in range(t) if row[i] == row[t]]
            assert len(earlier) == 1
            assert row[earlier[0] + 1] == row[t + 1]


def test_place_and_distance_of_the_copy_do_not_tell_the_answer() -> None:
    tokens, predictable = sample()
    distances = [
        {t - row.index(row[t]) for t, here in enumerate(where) if here}
        for row, where in zip(tokens.tolist(), predictable.tolist(), strict=True)
    ]
    assert all(len(distance) == 1 for distance in distances)
    assert len(set.union(*distances)) > 30
    assert (predictable.sum(0) > 0).sum() > 50


def test_built_in_model_does_induction(model: GPT2LMHeadModel) -> None:
    assert repeat_accuracy(model, *sample()) > 0.99


def test_built_in_model_has_the_textbook_heads(model: GPT2LMHeadModel) -> None:
    attention = attention_to(model, *sample())
    assert max(attention["previous token"][0]) > 0.9
    assert max(attention["after the earlier copy"][1]) > 0.9
    assert max(attention["after the earlier copy"][0]) < 0.1  # one layer cannot do it


def test_a_seed_gives_the_same_model() -> None:
    first, second, other = (
        train(seed=seed, steps=2, batch_size=4, d_model=16, report_every=2)[0].state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
