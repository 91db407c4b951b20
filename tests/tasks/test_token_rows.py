"""Token ids of every kind that people have at hand become the same prompts, or an error that names the prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from acdc.errors import AcdcError, TaskError
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts
from tiny_tokenizers import StandIn

CLEAN = [[5, 6, 7], [8, 9, 10]]
CORRUPTED = [[5, 20, 7], [8, 20, 10]]
RIGHT = Prompts.from_tokens(CLEAN, CORRUPTED, [1, 2], [[3, 4], [5]])


def _same(prompts: Prompts, right: Prompts = RIGHT) -> None:
    for name in ("clean", "corrupted", "mask", "positions", "answers", "wrong"):
        value, expected = getattr(prompts, name), getattr(right, name)
        assert (value is None) == (expected is None)
        if expected is not None:
            assert value.dtype == expected.dtype
            assert torch.equal(value, expected)


KINDS: dict[str, Callable[[list[list[int]]], Any]] = {
    "lists": list,
    "tuples": lambda rows: tuple(map(tuple, rows)),
    "generator": lambda rows: (row for row in rows),
    "tensor": torch.tensor,
    "int32": lambda rows: torch.tensor(rows, dtype=torch.int32),
    "uint8": lambda rows: torch.tensor(rows, dtype=torch.uint8),
    "array": np.array,
    "int16 array": lambda rows: np.array(rows, dtype=np.int16),
    "array of objects": lambda rows: np.array(rows, dtype=object),
    "list of tensors": lambda rows: [torch.tensor(row) for row in rows],
    "list of arrays": lambda rows: [np.array(row) for row in rows],
    "list of batches of one": lambda rows: [torch.tensor([row]) for row in rows],
    "scalars": lambda rows: [[torch.tensor(rows[0][0]), *rows[0][1:]], list(np.array(rows[1]))],
    "tokenizer's output": lambda rows: BatchEncoding({"input_ids": rows}),
    "with a mask": lambda rows: BatchEncoding(
        {"input_ids": torch.tensor(rows), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    ),
    "mask of floats": lambda rows: {"input_ids": torch.tensor(rows), "attention_mask": torch.ones(2, 3)},
    "list of outputs": lambda rows: [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_rows_gives_the_same_prompts(kind: str) -> None:
    make = KINDS[kind]
    _same(Prompts.from_tokens(make(CLEAN), make(CORRUPTED), [1, 2], [[3, 4], [5]]))


@pytest.mark.parametrize(
    ("answers", "wrong"),
    [
        (np.array([1, 2]), np.array([[3, 4], [5, -1]])),
        (torch.tensor([1, 2], dtype=torch.int32), torch.tensor([[3, 4], [5, -1]])),
        ([torch.tensor(1), np.int64(2)], [np.array([3, 4]), torch.tensor([5])]),
        ((1, [2]), ((3, 4), 5)),
        (RIGHT.answers, RIGHT.wrong),
    ],
)
def test_every_kind_of_answers_gives_the_same_prompts(answers: Any, wrong: Any) -> None:
    _same(Prompts.from_tokens(CLEAN, CORRUPTED, answers, wrong))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("fill", [0, -100])
def test_a_tokenizers_padding_is_used_as_its_mask_says(side: str, fill: int) -> None:
    def padded(*row: int) -> list[int]:
        return [fill, *row] if side == "left" else [*row, fill]

    mask = torch.tensor([[1, 1, 1], [0, 1, 1] if side == "left" else [1, 1, 0]])
    given = [
        BatchEncoding({"input_ids": torch.tensor([first, padded(*second)]), "attention_mask": mask})
        for first, second in (([5, 6, 7], [8, 9]), ([5, 1, 7], [8, 1]))
    ]
    expected = Prompts.from_tokens([[5, 6, 7], [8, 9]], [[5, 1, 7], [8, 1]], padding=side)  # type: ignore[arg-type]
    _same(Prompts.from_tokens(*given), expected)
    ids = [x["input_ids"] for x in given]
    _same(Prompts.from_tokens(*ids, mask=mask), expected)


def test_prompts_made_in_inference_mode_can_be_differentiated_through() -> None:
    with torch.inference_mode():
        prompts = Prompts.from_tokens(torch.tensor(CLEAN), torch.tensor(CORRUPTED), torch.tensor([1, 2]))
        some = [prompts, prompts.to("cpu"), prompts[:1], prompts.swapped()]
    for x in some:
        assert not any(value.is_inference() for value in vars(x).values() if isinstance(value, torch.Tensor))
    weight = torch.randn(30, 2, requires_grad=True)
    torch.nn.functional.embedding(prompts.clean, weight).sum().backward()
    assert weight.grad is not None


def test_tensors_given_directly_are_made_usable_or_refused() -> None:
    parts: dict[str, Any] = {
        "clean": torch.tensor(CLEAN, dtype=torch.int32),
        "corrupted": torch.tensor(CORRUPTED, dtype=torch.uint8),
        "mask": torch.ones(2, 3, dtype=torch.bool),
        "positions": torch.tensor([[2], [2]], dtype=torch.int16),
    }
    _same(Prompts(**parts), Prompts.from_tokens(CLEAN, CORRUPTED))
    for name, value, message in (
        ("clean", CLEAN, r"expected clean as a tensor, got list; Prompts\.from_tokens takes"),
        ("clean", torch.zeros(2, 3), "clean as a tensor of whole numbers, got torch.float32"),
        ("corrupted", torch.zeros(2, 3, dtype=torch.long, device="meta"), "torch.int64 on meta"),
        ("mask", torch.ones(2, 3), "mask as a tensor of true or false, got torch.float32"),
        ("positions", torch.ones(2, 1, dtype=torch.bool), "positions as a tensor of whole numbers, got torch.bool"),
    ):
        with pytest.raises(TaskError, match=message):
            Prompts(**(parts | {name: value}))


REFUSED: dict[str, tuple[Any, str]] = {
    "text": ("the text", "clean: expected token ids, got text 'the text': texts go into a file"),
    "texts": (["one", "two"], "prompt 1: clean: expected token ids, got text 'one'"),
    "one row": (
        [5, 6],
        "prompt 1: clean: expected a row, got the number 5; put one prompt's row into",
    ),
    "one tensor row": (torch.tensor([5, 6]), "prompt 2: clean: expected a row, got the number 6"),
    "number": (torch.tensor(5), "expected clean as a row a prompt, got the single value 5"),
    "nothing": (None, "expected clean as a row a prompt, got the single value None"),
    "floats": (torch.tensor([[5.0, 6.0]]), r"prompt 1: clean: expected token ids, got the decimal fraction 5.0"),
    "bools": (np.array([[True, False]]), "expected token ids, got (True|False): is this a mask?"),
    "complex": (torch.tensor([[1j]]), "expected token ids, got 1j"),
    "None inside": ([[5, None]], "expected token ids, got None"),
    "too large": ([[5, 2**70]], "prompt 1: clean: token id 1180591620717411303424 is too large"),
    "deep": ([[[[[[5]]]]]], "nested more deeply"),
    "a batch too many": (
        torch.ones(1, 2, 3, dtype=torch.long),
        r"prompt 1: clean: expected token ids, got \[1, 1, 1\]",
    ),
    "no rows": ([], "as many corrupted as clean prompts, got 1 and 0"),
    "empty row": ([[]], "prompt 1: clean has 0 tokens, corrupted 2"),
    "negative": ([[5, -1]], r"prompt 1: token id -1 in clean, position 2; they count from 0"),
    "meta": (torch.ones(1, 2, dtype=torch.long, device="meta"), "got a tensor torch.int64 on meta"),
    "keys": (
        {"ids": [[5, 6]]},
        "expected clean as token ids or a tokenizer's output with 'input_ids', got keys 'ids'",
    ),
    "sets": ([{5, 6}], "prompt 1: clean: expected token ids, got a set"),
    "an object": (object(), "clean: expected token ids, got a object"),
    "mask of twos": ({"input_ids": [[5, 6]], "attention_mask": [[1, 2]]}, "expected 1 at real tokens and 0 at pad"),
    "short mask": ({"input_ids": [[5, 6]], "attention_mask": [[1]]}, "a mask of 2 positions like clean, got 1"),
    "few masks": (
        {"input_ids": [[5, 6], [7]], "attention_mask": [[1, 1]]},
        "as many corrupted as clean|a mask for",
    ),
    "mask of nothing": ({"input_ids": [[5, 6]], "attention_mask": [[0, 0]]}, "clean has 0 tokens, corrupted 2"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_row_of_token_ids_is_refused_by_name(kind: str) -> None:
    given, message = REFUSED[kind]
    with pytest.raises(TaskError, match=message):
        Prompts.from_tokens(given, [[5, 7]])


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([5], "expected answers for 2 prompts, a token id or a list each, got 1"),
        (5, "expected answers as a row a prompt, got the single value 5"),
        ([" Mary", " John"], "prompt 1: answers: expected token ids, got text ' Mary'"),
        ([5, -2], "prompt 2: answers: token id -2; they count from 0, and -1 stands for no answer"),
        ([5, None], "prompt 2: answers: expected token ids, got None"),
        ([5, 6.0], "prompt 2: answers: expected token ids, got the decimal fraction 6.0"),
        ([5, True], "prompt 2: answers: expected token ids, got True"),
        (BatchEncoding({"input_ids": [[1, 5], [1, 6]]}), "may begin with BOS, so pick the answer's own token"),
        (torch.ones(2, 2, 2, dtype=torch.long), r"prompt 1: answers: expected token ids, got \[1, 1\]"),
    ],
)
def test_answers_that_are_no_token_ids_are_refused_by_name(answers: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Prompts.from_tokens(CLEAN, CORRUPTED, answers)


def test_padding_that_contradicts_is_refused() -> None:
    left, right = ({"input_ids": [[0, 5, 6]], "attention_mask": [mask]} for mask in ([0, 1, 1], [1, 1, 0]))
    with pytest.raises(TaskError, match="prompt 1: clean and corrupted are padded at different positions"):
        Prompts.from_tokens(left, right)
    with pytest.raises(TaskError, match="mask differs from the attention_mask"):
        Prompts.from_tokens(left, left, mask=[[1, 1, 0]])
    with pytest.raises(AcdcError, match="unknown padding 'up'"):
        Prompts.from_tokens(CLEAN, CORRUPTED, padding="up")  # type: ignore[arg-type]
    for bad in (-1, "0", 1.0, True, 2**70):
        with pytest.raises(TaskError, match="expected pad_id as a token id"):
            Prompts.from_tokens(CLEAN, CORRUPTED, pad_id=bad)  # type: ignore[arg-type]


def test_every_prompt_at_fault_is_named_at_once() -> None:
    with pytest.raises(TaskError) as error:
        Prompts.from_tokens([[5, 6], [5], [-3], [7.5]], [[5, 7], [5, 6], [4], ["x"]])
    assert str(error.value).splitlines() == [
        "prompts: 2 problems",
        "  prompt 4: clean: expected token ids, got the decimal fraction 7.5: convert them with .long()",
        "  prompt 4: corrupted: expected token ids, got text 'x': texts go into a file, or through a tokenizer",
    ]
    with pytest.raises(
        TaskError, match=r"2 problems\n  prompt 2: clean has 1 tokens[^\n]*\n  prompt 3: token id -3"
    ):
        Prompts.from_tokens([[5, 6], [5], [-3]], [[5, 7], [5, 6], [4]])


def test_token_ids_outside_of_the_model_name_the_prompt() -> None:
    model = StandIn(vocabulary_size=10)
    with pytest.raises(TaskError) as error:
        as_dataset(Prompts.from_tokens([[1], [12]], [[11], [2]], [3, 10], [4, 5]), model)
    assert str(error.value).splitlines() == [
        "prompts: 3 problems",
        "  prompt 2: token id 12 in clean is outside of the model's vocabulary of 10",
        "  prompt 1: token id 11 in corrupted is outside of the model's vocabulary of 10",
        "  prompt 2: token id 10 in answers is outside of the model's vocabulary of 10",
    ]
    parts = {"mask": torch.ones(1, 2, dtype=torch.bool), "positions": torch.tensor([[1]])}
    direct = Prompts(torch.tensor([[5, -1]]), torch.tensor([[5, 6]]), **parts)
    with pytest.raises(TaskError, match="prompt 1: token id -1 in clean is outside"):
        as_dataset(direct, model)
