from __future__ import annotations

import pytest
import torch

from acdc.errors import TaskError
from acdc.tasks.prompts import Prompts


def test_from_tokens_reads_the_last_real_token_and_takes_one_or_several_answers() -> None:
    prompts = Prompts.from_tokens([[1, 2, 3], [4, 5, 6]], [[1, 9, 3], [4, 9, 6]], [7, 8], [[1, 2], [3, -1]])
    assert prompts.positions.tolist() == [[2], [2]]
    assert prompts.answers is not None
    assert prompts.answers.tolist() == [[[7]], [[8]]]
    assert prompts.wrong is not None
    assert prompts.wrong.tolist() == [[[1, 2]], [[3, -1]]]


@pytest.mark.parametrize("padding", ["right", "left"])
def test_unequal_lengths_are_padded_and_masked(padding: str) -> None:
    prompts = Prompts.from_tokens([[1, 2, 3], [4]], [[1, 9, 3], [5]], padding=padding, pad_id=99)  # type: ignore[arg-type]
    right = padding == "right"
    assert prompts.clean.tolist() == [[1, 2, 3], [4, 99, 99] if right else [99, 99, 4]]
    assert prompts.mask.tolist() == [[True] * 3, [True, False, False] if right else [False, False, True]]
    assert prompts.positions.tolist() == [[2], [0 if right else 2]]


def test_a_mask_says_where_padded_tensors_end() -> None:
    tokens = torch.tensor([[1, 2, 0], [3, 4, 5]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    prompts = Prompts.from_tokens(tokens, tokens + 1, mask=mask)
    assert prompts.positions.tolist() == [[1], [2]]


def test_answers_of_unequal_number_are_padded_with_minus_one() -> None:
    prompts = Prompts.from_tokens([[1], [2]], [[3], [4]], answers=[[5, 6, 7], [8]])
    assert prompts.answers is not None
    assert prompts.answers.tolist() == [[[5, 6, 7]], [[8, -1, -1]]]


def test_bad_shapes_are_named() -> None:
    with pytest.raises(TaskError, match="prompt 2: clean has 1 tokens, corrupted 2"):
        Prompts.from_tokens([[1, 2], [3]], [[1, 2], [3, 4]])
    with pytest.raises(TaskError, match="as many corrupted as clean prompts, got 1 and 2"):
        Prompts.from_tokens([[1], [2]], [[1]])
    with pytest.raises(TaskError, match="there are none"):
        Prompts.from_tokens([], [])
    with pytest.raises(TaskError, match="prompt 1: it has no tokens"):
        Prompts.from_tokens([[]], [[]])
    with pytest.raises(TaskError, match="expected answers for 2 prompts, a token id or a list each, got 1"):
        Prompts.from_tokens([[1], [2]], [[3], [4]], answers=[5])
    with pytest.raises(TaskError, match="prompt 1: its mask has no real token"):
        Prompts.from_tokens([[1, 2]], [[3, 4]], mask=[[False, False]])


def test_swapping_twice_changes_nothing() -> None:
    prompts = Prompts.from_tokens([[1, 2, 3], [4, 5]], [[6, 7, 8], [9, 1]])
    twice = prompts.swapped().swapped()
    assert torch.equal(prompts.swapped().clean, prompts.corrupted)
    assert torch.equal(twice.clean, prompts.clean)
    assert torch.equal(twice.mask, prompts.mask)
