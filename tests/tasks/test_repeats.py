"""Repeated prompts count once, in files and in bare prompts, and which prompts are among others."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import acdc
import acdc.tasks
from acdc.metrics import OUTCOMES
from acdc.tasks import Dataset, Prompts, as_dataset
from acdc.tasks.repeats import among, tokens_run, without
from tiny_tokenizers import StandIn

MODEL = StandIn(vocabulary_size=100)


def _line(i: int, **more: Any) -> str:
    pair = {"clean_tokens": [i, 2, 3], "corrupted_tokens": [i, 4, 3], "answer_tokens": 5, "wrong_tokens": [6, 7]}
    return json.dumps(pair | more)


def test_repeats_in_a_file_are_left_out_before_it_is_split_with_one_warning(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(_line(i) for _ in range(4) for i in range(10)))
    data = acdc.tasks.load(path, split=0.3).prepare(MODEL)
    assert data.held_out is not None
    assert (len(data.discovery), len(data.held_out)) == (7, 3)
    assert [line for line in data.warnings if "left out" in line] == [
        "mine.jsonl: 30 of 40 prompts are left out, having occurred before with the same answers"
    ]
    path.write_text("\n".join([_line(1), _line(1, answer_tokens=8), _line(2)]))
    other = acdc.tasks.load(path).prepare(MODEL)
    assert len(other.discovery) == 3  # another answer is asked for
    assert not other.warnings


def test_repeats_among_bare_prompts_stay_with_a_warning() -> None:
    rows, other = [[1, 2], [3, 2], [1, 2]], [[4, 2], [4, 2], [4, 2]]
    with pytest.warns(UserWarning, match="1 of 3 prompts repeats others, and intervals take"):
        data = as_dataset(Prompts.from_tokens(rows, other, [5, 6, 5], [7, 7, 7]), MODEL)
    assert data.discovery.clean.tolist() == rows
    assert not as_dataset(Prompts.from_tokens(rows, other, [5, 6, 8], [7, 7, 7]), MODEL).warnings


def test_prompts_are_told_apart_by_their_real_tokens() -> None:
    some = Prompts.from_tokens([[1, 2], [3, 2, 1]], [[4, 2], [4, 2, 1]], padding="left")
    others = Prompts.from_tokens([[1, 2], [5, 2]], [[4, 2], [4, 2]])
    assert among(some, others, "resample") == [True, False]
    assert without(some, others, "resample").clean.tolist() == [[3, 2, 1]]


def test_answers_do_not_tell_prompts_apart() -> None:
    one, other = (Prompts.from_continuations([[1, 2]], [[4, 2]], [[answer]]) for answer in ([5, 6], [7, 8, 9]))
    assert among(one, other, "resample") == [True]


def test_corrupted_tokens_tell_prompts_apart_where_they_are_read() -> None:
    some = Prompts.from_tokens([[1, 2], [3, 2]], [[4, 2], [4, 2]])
    others = Prompts.from_tokens([[1, 2], [5, 2]], [[6, 2], [6, 2]])
    assert among(some, others, "resample") == [False, False]
    for ablation in ("zero", "mean", "mean-position", "optimal"):
        assert among(some, others, ablation) == [True, False]


def test_a_size_above_what_a_file_has_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(_line(i) for i in range(3)))
    data = acdc.tasks.load(path, size=5).prepare(MODEL)
    assert data.warnings == ("mine.jsonl: 3 prompts are used instead of 5: the file has no more",)
    assert not acdc.tasks.load(path, size=3).prepare(MODEL).warnings


def _pairs(clean: list[list[int]], corrupted: list[list[int]], **more: Any) -> Prompts:
    return dataclasses.replace(Prompts.from_tokens(clean, corrupted), **more)


def test_position_ids_tell_prompts_apart() -> None:
    clean, corrupted = [[1, 2], [3, 2]], [[4, 2], [4, 2]]
    plain, counted = _pairs(clean, corrupted), torch.tensor([[0, 1], [0, 1]])
    said = _pairs(clean, corrupted, position_ids=counted)
    moved = _pairs(clean, corrupted, position_ids=counted, corrupted_position_ids=torch.tensor([[0, 1], [1, 0]]))
    assert among(plain, said, "resample") == [True, True]
    assert among(plain, moved, "resample") == [True, False]
    assert among(plain, moved, "zero") == [True, True]


def test_held_out_prompts_of_a_dataset_are_none_of_discovery() -> None:
    discovery, held_out = _pairs([[1, 2], [3, 2]], [[4, 2], [4, 2]]), _pairs([[1, 2], [3, 2]], [[5, 2], [4, 2]])
    mine = Dataset("mine", discovery, held_out, OUTCOMES["kl"])
    with pytest.warns(UserWarning, match="mine: 1 of 2 held-out prompts is left out, being a discovery prompt too"):
        data = as_dataset(mine, MODEL)
    assert data.held_out is not None
    assert data.held_out.corrupted.tolist() == [[5, 2]]
    with warnings.catch_warnings(action="error"):
        assert as_dataset(data, MODEL).held_out is not None
    with pytest.warns(UserWarning, match="mine: 2 of 2 held-out prompts are left out, .* under zero ablation"):
        assert as_dataset(mine, MODEL, ablation="zero").held_out is None


@pytest.mark.parametrize("name", ["tracr-majority", "interp-reverse"])
def test_held_out_inputs_of_a_program_are_none_of_discovery_where_nothing_reads_the_corrupted(name: str) -> None:
    model = acdc.load(name)
    for ablation in ("resample", "zero"):
        data = acdc.tasks.load(name, ablation=ablation).prepare(model)
        assert data.held_out is not None
        assert len(data.held_out) == 32
        assert not any(among(data.held_out, data.discovery, ablation))
    with pytest.warns(UserWarning, match="of 32 held-out prompts are left out"):
        as_dataset(acdc.tasks.load(name).prepare(model), model, ablation="zero")
    assert len(set(tokens_run(data.held_out, "zero"))) == len(data.held_out)
