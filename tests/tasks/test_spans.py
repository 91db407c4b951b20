"""Spans are the tokens they name, in built-in tasks and in files of any format, and what is wrong is said by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import acdc
from acdc.errors import TaskError
from acdc.tasks.prompts import Prompts

MODEL = "tiny-tasks"
NAMES = {
    "ioi": {"IO", "S1", "S1+1", "S2", "end"},
    "greater-than": {"noun", "year", "end"},
    "sva": {"subject", "attractor"},
    "fact-recall": {"country", "end"},
    "gendered-pronoun": {"name", "quality", "role", "end"},
    "docstring": {"A_def", "B_def", "C_def", "D_def", "A_doc", "B_doc", "end"},
    "induction": {"previous", "answer", "end"},
}


@pytest.fixture(scope="module")
def model() -> acdc.Model:
    return acdc.load(MODEL)


def texts(model: acdc.Model, prompts: Prompts, name: str) -> list[str]:
    """The tokens of a span, prompt by prompt."""
    return [
        model.tokenizer.decode(row[where].tolist()).strip()
        for row, where in zip(prompts.clean, prompts.spans[name], strict=True)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_prompt_of_a_built_in_task_has_its_spans(name: str, model: acdc.Model) -> None:
    for padding in ("left", "right"):
        data = acdc.tasks.load(name, size=8, padding=padding).prepare(model)
        for prompts in (data.discovery, data.held_out):
            assert prompts is not None
            assert set(prompts.spans) == NAMES[name]
            for where in prompts.spans.values():
                assert (where.sum(1) == 1).all()
            last = prompts.spans.get("end", prompts.spans.get("attractor"))
            assert torch.equal(last.int().argmax(1), prompts.positions[:, 0])


def test_spans_of_ioi_are_the_names(model: acdc.Model) -> None:
    prompts = acdc.tasks.load("ioi", size=16).prepare(model).discovery
    answers, wrong = (ids[:, 0, 0].tolist() for ids in (prompts.answers, prompts.wrong))
    for name, expected in (("IO", answers), ("S1", wrong), ("S2", wrong)):
        assert prompts.clean[prompts.spans[name]].tolist() == expected
    after = prompts.spans["S1"].int().argmax(1) + 1
    assert prompts.spans["S1+1"].int().argmax(1).tolist() == after.tolist()


def test_spans_stay_with_their_prompts() -> None:
    prompts = Prompts.from_tokens(
        [[5, 6, 7], [5, 6, 7, 8]],
        [[5, 6, 8], [5, 9, 7, 8]],
        [1, 2],
        [3, 4],
        padding="left",
        spans=[{"x": [1]}, {"x": [2, 3]}],
    )
    assert prompts.spans["x"].tolist() == [[False, False, True, False], [False, False, True, True]]
    assert prompts[1:].spans["x"].tolist() == [[False, False, True, True]]
    assert prompts.swapped().spans["x"].tolist() == prompts.spans["x"].tolist()
    texts = Prompts.from_continuations(
        [[5, 6], [5, 6]], [[5, 7], [7, 6]], [[[1, 2, 3]], [[4]]], spans=[{"x": [1]}] * 2
    )
    assert texts.spans["x"].int().argmax(1).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([{"x": [1]}], "spans for 2 prompts"),
        ([{"x": [1]}, {"x": [3]}], "prompt 2: 'x' lies outside of the prompt: token 3 of 3"),
        ([{"x": []}, {"x": [1]}], "prompt 1: expected 'x' as positions"),
        ([{"x": [1], "y": [1, 2]}, {}], "prompt 1: 'y' overlaps another span"),
    ],
)
def test_bad_positions_are_named_by_prompt(spans: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Prompts.from_tokens([[5, 6, 7]] * 2, [[5, 6, 8]] * 2, [1, 2], [3, 4], spans=spans)


# ---- files ------------------------------------------------------------------------------------------------------

ROW: dict[str, Any] = {
    "clean": "When Mary and John went to the store, John gave a drink to",
    "corrupted": "When Tom and James went to the store, Paul gave a drink to",
    "answers": " Mary",
    "wrong_answers": " John",
}


def prepared(path: Path, content: Any, model: acdc.Model) -> acdc.tasks.Dataset:
    path.write_text(content if isinstance(content, str) else "\n".join(map(json.dumps, content)))
    return acdc.tasks.load(path).prepare(model)


def test_a_file_names_tokens_or_texts(tmp_path: Path, model: acdc.Model) -> None:
    rows = [ROW | {"spans": {"IO": [1], "S": [3], "place": "the store"}}]
    prompts = prepared(tmp_path / "a.jsonl", rows, model).discovery
    assert [texts(model, prompts, name)[0] for name in ("IO", "S", "place")] == ["Mary", "John", "the store"]
    tokens = {"clean_tokens": [5, 9, 5], "corrupted_tokens": [9, 5, 5], "answer_tokens": 9, "spans": {"x": [1, 2]}}
    prompts = prepared(tmp_path / "b.jsonl", [tokens], model).discovery
    assert prompts.spans["x"].tolist() == [[False, True, True]]
    table = 'clean,corrupted,answers,spans\n"{clean}","{corrupted}"," Mary","{{""IO"": [1]}}"\n'.format(**ROW)
    prompts = prepared(tmp_path / "c.csv", table, model).discovery
    assert texts(model, prompts, "IO") == ["Mary"]


def test_positions_of_auto_circuit_are_read(tmp_path: Path, model: acdc.Model) -> None:
    pair = {"clean": ROW["clean"], "corrupt": ROW["corrupted"], "answers": [" Mary"], "wrong_answers": [" John"]}
    whole = {"seq_labels": ["w"], "word_idxs": {"IO": 1, "S1": 3, "again": 1, "far": 99}, "prompts": [pair]}
    data = prepared(tmp_path / "a.json", json.dumps(whole), model)
    assert set(data.discovery.spans) == {"IO", "S1"}
    assert texts(model, data.discovery, "S1") == ["John"]
    assert any("named positions are left out" in warning for warning in data.warnings)


def test_regions_of_causalgym_are_spans(tmp_path: Path, model: acdc.Model) -> None:
    row = {
        "base": ["When", " Mary", " and", " John", " went to the store, John gave a drink to"],
        "src": ["When", " Tom", " and", " Paul", " went to the store, Paul gave a drink to"],
        "base_label": " Mary",
        "src_label": " Tom",
        "base_type": "x",
        "src_type": "y",
        "task": "z",
    }
    prompts = prepared(tmp_path / "a.json", json.dumps([row]), model).discovery
    assert texts(model, prompts, "region 1") == ["Mary"]
    assert len(prompts.spans) == 5
    uneven = row | {"src": ["When Tom and", " Paul went to the store, Paul gave a drink to"]}
    assert not prepared(tmp_path / "b.json", json.dumps([uneven]), model).discovery.spans


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"spans": [3]}, "line 2: 'spans': expected an object"),
        ({"spans": {"IO": -1}}, "line 2: 'spans': expected 'IO' as token numbers from 0"),
        ({"spans": {"IO": 1.5}}, "line 2: 'spans': expected 'IO' as token numbers"),
        ({"spans": {"rest": [1]}}, "'rest' is no name"),
        ({"spans": {"IO": [1, 99]}}, "line 2: span 'IO' lies outside of the prompt: token 99, and there are 1"),
        ({"spans": {"IO": [1], "S": [1, 2]}}, "line 2: span 'S' overlaps another span at token 1"),
        ({"spans": {"S": "John"}}, "line 2: span 'S' occurs 2 times in the prompt"),
        ({"spans": {"S": "Peter"}}, "line 2: span 'S' does not occur"),
        ({"spans": {"S": "Ma"}}, "line 2: span 'S' is not whole tokens: ' Ma'"),
        ({"spans": {"IO": [1]}, "corrupted_spans": {"S": [3]}}, "line 2: span 'IO' has no counterpart"),
        (
            {"spans": {"IO": [1]}, "corrupted_spans": {"IO": [1, 2]}},
            "is at tokens 1 of clean and 1, 2 of corrupted",
        ),
    ],
)
def test_bad_spans_are_named_by_line(
    fields: dict[str, Any], message: str, tmp_path: Path, model: acdc.Model
) -> None:
    with pytest.raises(TaskError, match=message):
        prepared(tmp_path / "a.jsonl", [ROW, ROW | fields], model)


def test_a_span_that_some_lines_lack_is_missed_when_it_is_asked_for(tmp_path: Path, model: acdc.Model) -> None:
    data = prepared(tmp_path / "a.jsonl", [ROW | {"spans": {"IO": [1]}}, ROW], model)
    assert acdc.trace(model, data, sites=["mlp"], by="all").maps
    with pytest.raises(TaskError, match="prompt 2 has no 'IO'"):
        acdc.trace(model, data, sites=["mlp"], by="span")
