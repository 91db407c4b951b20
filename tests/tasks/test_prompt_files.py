# ruff: noqa: E501
"""The same pairs in every format are the same task, and what is wrong with a file is said in its own terms."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import acdc.tasks
from acdc.errors import TaskError
from tiny_tokenizers import StandIn

ROWS = [
    ("When Mary and John went to the store, John gave a drink to", "When Mary and John went to the store, Mary gave a drink to", " Mary", " John"),
    ('When Mary and Paul went to the store, "Paul" gave a drink to', 'When Mary and Paul went to the store, "Mary" gave a drink to', " Mary", " Paul"),
    ("When Mary and Paul went to\nthe store, Paul gave a drink to", "When Mary and Paul went to\nthe store, Mary gave a drink to", " Mary", " Paul"),
]  # fmt: skip
OURS = ("clean", "corrupted", "answers", "wrong_answers")
RECORDS = [dict(zip(OURS, row, strict=True)) for row in ROWS]


def _csv(path: Path, header: tuple[str, ...], rows: list[tuple[Any, ...]], **options: Any) -> Path:
    with open(path, "w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        writer = csv.writer(file, **options)
        writer.writerows([header, *rows])
    return path


def _text(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)
_IGNORED = (("", 7), ("corrupted_hard", "x"))

FORMATS: dict[str, Callable[[Path, Callable[[str], int]], Path]] = {
    "lines": lambda p, _: _text(p, LINES),
    "lines with a mark, CRLF and empty lines": lambda p, _: _text(p, "\n" + LINES.replace("\n", "\r\n\r\n"), "utf-8-sig"),
    "lines as on old Macs": lambda p, _: _text(p, LINES.replace("\n", "\r")),
    "array": lambda p, _: _text(p, json.dumps(RECORDS)),
    "array over lines": lambda p, _: _text(p, json.dumps(RECORDS, indent=2), "utf-8-sig"),
    "auto-circuit": lambda p, _: _text(
        p,
        json.dumps(
            {
                "word_idxs": {"end": 14},
                "prompts": [
                    {"clean": a, "corrupt": b, "answers": [x], "wrong_answers": [y]} for a, b, x, y in ROWS
                ],
            },
            indent=2,
        ),
    ),
    "feature-circuits": lambda p, _: _text(
        p,
        "\n".join(
            json.dumps({"clean_prefix": a, "patch_prefix": b, "clean_answer": x, "patch_answer": y, "case": "s"})
            for a, b, x, y in ROWS
        ),
    ),
    "CSV": lambda p, _: _csv(p, OURS, ROWS),
    "CSV with a mark and Unix lines": lambda p, _: _csv(p, OURS, ROWS, encoding="utf-8-sig", lineterminator="\n"),
    "CSV with every cell in quotes": lambda p, _: _csv(p, OURS, ROWS, quoting=csv.QUOTE_ALL),
    "CSV with lists": lambda p, _: _csv(p, OURS, [(a, b, json.dumps([x]), json.dumps([y])) for a, b, x, y in ROWS]),
    "CSV of EAP": lambda p, token: _csv(
        p,
        ("", "clean", "corrupted", "corrupted_hard", "correct_idx", "incorrect_idx"),
        [(7, a, b, "x", token(x), token(y)) for a, b, x, y in ROWS],
    ),
    "CSV of EAP with lists": lambda p, token: _csv(
        p,
        ("clean", "corrupted", "correct_idx", "incorrect_idx"),
        [(a, b, token(x), [token(y)]) for a, b, x, y in ROWS],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_prompts_whatever_the_file_is_called(
    name: str, tmp_path: Path, gpt2_like: StandIn
) -> None:
    def token(text: str) -> int:
        (found,) = gpt2_like.tokenizer(text)["input_ids"]
        return int(found)

    expected = acdc.tasks.load(_text(tmp_path / "lines", LINES)).prepare(gpt2_like).discovery
    for called in ("mine.jsonl", "mine.json", "mine.csv", "mine.txt", "mine"):
        prompts = acdc.tasks.load(FORMATS[name](tmp_path / called, token)).prepare(gpt2_like).discovery
        for part in ("clean", "corrupted", "mask", "answers", "wrong"):
            assert getattr(prompts, part).equal(getattr(expected, part))


def test_held_out_prompts_and_splits_work_across_formats(tmp_path: Path, gpt2_like: StandIn) -> None:
    table = _csv(tmp_path / "a.csv", OURS, ROWS)
    other = RECORDS[0] | {"corrupted": RECORDS[0]["corrupted"].replace("Mary gave", "Paul gave")}
    array = _text(tmp_path / "b.json", json.dumps([other]))
    assert (held := acdc.tasks.load(table, held_out=array).prepare(gpt2_like).held_out) is not None
    assert len(held) == 1
    split = acdc.tasks.load(table, split=0.4).prepare(gpt2_like)
    assert split.held_out is not None
    assert (len(split.discovery), len(split.held_out)) == (2, 1)
    bad = _text(tmp_path / "bad.json", '[{"clean": "a"}]')
    with pytest.raises(TaskError) as error:
        acdc.tasks.load(_csv(tmp_path / "a.csv", OURS, [*ROWS, ("x", "y", "", " b")]), held_out=bad)
    assert str(error.value).splitlines() == [
        f"{tmp_path}/a.csv: line 7 has no answers, which metric 'logit-difference' needs",
        f"{bad}: record 1: 'corrupted' is missing",
    ]


def test_token_ids_beside_texts_are_shown_as_the_tokenizer_reads_them(tmp_path: Path, gpt2_like: StandIn) -> None:
    right, wrong = (gpt2_like.tokenizer(x)["input_ids"][0] for x in (" Mary", " John"))
    path = _csv(
        tmp_path / "a.csv", ("clean", "corrupted", "correct_idx", "incorrect_idx"), [(*ROWS[0][:2], right, wrong)]
    )
    (warning,) = acdc.tasks.load(path).prepare(gpt2_like).warnings
    assert (
        warning == "a.csv: answers are token ids; to the tokenizer of gpt2-like, line 2's read ' Mary' and ' John'"
    )
    _csv(path, ("clean", "corrupted", "correct_idx", "incorrect_idx"), [(*ROWS[0][:2], 10**6, wrong)])
    with pytest.raises(TaskError, match="line 2: token id 1000000 is outside of the model's vocabulary"):
        acdc.tasks.load(path).prepare(gpt2_like)


def test_four_kinds_of_bad_lines_are_all_reported(tmp_path: Path) -> None:
    rows = [json.dumps(RECORDS[0])] * 2
    bad = [
        '{"clean": "a"',
        r'{"clean": "\ud83d", "corrupted": "b"}',
        '{"clean": "a", "corupted": "b"}',
        '{"clean": 1}',
    ]
    path = _text(tmp_path / "a.jsonl", "\n".join([*rows, *bad, json.dumps(RECORDS[0] | {"wrong_answers": []})]))
    with pytest.raises(TaskError) as error:
        acdc.tasks.load(path)
    said = str(error.value)
    for part in (
        "a.jsonl: 5 problems",
        "line 3: not JSON: Expecting ',' delimiter (column 14)",
        r"line 4: the text '\ud83d' holds half of a surrogate pair, which is no character",
        "line 5: 'corrupted' is missing; unknown key 'corupted', did you mean 'corrupted'?",
        "line 6: 'corrupted' is missing; 'clean': expected a string or a list of messages, got a number",
        "line 7 has no wrong answers",
    ):
        assert part in said
    many = "\n".join([*["{"] * 100, '{"clean": "a", "corupted": "b"}'])
    with pytest.raises(
        TaskError, match=r"101 problems[\s\S]*line 19: [\s\S]*line 101: .*corupted[\s\S]*… and 81 more$"
    ):
        acdc.tasks.load(_text(path, many))


def test_a_chat_in_a_cell_is_the_chat_of_json_lines(tmp_path: Path) -> None:
    clean, corrupted = ([{"role": "user", "content": f"Is the {thing}?"}] for thing in ("sky blue", "sky red"))
    record = {"clean": clean, "corrupted": corrupted, "answers": "to"}
    lines = acdc.tasks.load(_text(tmp_path / "lines.jsonl", json.dumps(record)))
    row = (json.dumps(clean), json.dumps(corrupted), "to")
    cells = acdc.tasks.load(_csv(tmp_path / "cells.csv", tuple(record), [row]))
    assert cells.lines[0].pair == lines.lines[0].pair
    text = acdc.tasks.load(_csv(tmp_path / "text.csv", tuple(record), [("[1, 2]", "[a]", "to")]))
    assert text.lines[0].pair.clean == "[1, 2]"


HEADER = "clean,corrupted,correct_idx,incorrect_idx\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clean\tcorrupted\na\tb\n", "cannot tell the format of {}: expected JSON lines (an object a line), a JSON array"),
        ("Once upon a time", "or CSV with a header, got 'Once upon a time'"),
        ("clean;corrupted;answers\na;b;c\n", "cannot tell the format"),
        ("clean,corrupted,lable\na,b,c\n", "{}: line 1: unknown key 'lable', known: clean"),
        ("clean,corupted\na,b\n", "line 1: unknown key 'corupted', did you mean 'corrupted'?; no column 'corrupted'"),
        ("clean,clean,corrupted\na,b,c\n", "line 1: two columns are called 'clean'"),
        ("clean,corrupt,corrupted\na,b,c\n", "line 1: 'corrupt' and 'corrupted' are the same field"),
        ("clean,corrupted,answers,correct_idx,incorrect_idx\na,b,c,1,2\n", "give 'answers' or 'correct_idx', not both"),
        ("clean,corrupted,correct_idx\na,b,41\n", "'correct_idx' without 'incorrect_idx' is a year in the files of"),
        (HEADER + "a,b,1\n", "{}: line 2: expected 4 cells like the header, got 3"),
        (HEADER + "a,b,1.0,2\n", "line 2: 'correct_idx': expected a token id (a whole number from 0) or a list of them, got '1.0'"),
        (HEADER + "a,b,1,[2 3]\n", "line 2: 'incorrect_idx': expected a cell in brackets to be a list in JSON, got '[2 3]'"),
        (HEADER + "a,b,1,-2\n", "got '-2'"),
        (HEADER + ",b,1,2\n", "line 2: 'clean' is empty"),
        (HEADER + '"a,b,1,2\n', "line 2: not CSV: unexpected end of data"),
        (HEADER + '"a"x,b,1,2\nc,d,1\n', "2 problems\n  line 2: not CSV: ',' expected after '\"'\n  line 3: expected 4 cells"),
        (HEADER, "has no prompts: expected JSON lines"),
        ("", "has no prompts"),
        ("[]", "has no prompts"),
        ('{"prompts": []}', "has no prompts"),
        ('{"prompts": {}}', "expected 'prompts' as a list of objects"),
        ('{"prompts": [], "seed": 3}', "unknown key 'seed' beside 'prompts'"),
        ('[{"clean": "a", "corrupted": "b"},]', "the file: not an array of objects in JSON"),
        ('{"clean": "a", "corrupted": "b"},\n{"clean": "c", "corrupted": "d"}', "line 1: not JSON: Extra data (column 33); leave out the comma at its end"),
        ('{\n "clean": "a",\n "corrupted": "b",\n}', "the file: not an object in JSON"),
        ('[{"clean": "a"}, 3]', "2 problems\n  record 1: 'corrupted' is missing\n  record 2: expected a JSON object, got a number"),
        ('{"clean": "a", "clean": "b", "corrupted": "c"}', "line 1: the key 'clean' occurs twice in one object"),
        ('{"clean_tokens": [1], "corrupted_tokens": [2], "answers": " a"}', "'answers' is text, but the prompts are token ids"),
        ('{"clean": "a", "corrupted": "b", "answers": " c", "answer_tokens": 3}', "give 'answers' or 'answer_tokens', not both"),
        ('{"clean": "a", "clean_tokens": [1], "corrupted_tokens": [2]}', "give 'clean' or 'clean_tokens', not both"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(text: str, message: str, tmp_path: Path) -> None:
    path = _text(tmp_path / "a.txt", text)
    with pytest.raises(TaskError) as error:
        acdc.tasks.load(path)
    assert message.format(path) in str(error.value)


def test_a_record_spread_over_lines_is_one_record(tmp_path: Path) -> None:
    task = acdc.tasks.load(_text(tmp_path / "a.json", json.dumps(RECORDS[0], indent=2)))
    assert task.description == "1 prompt pair of a.json"


def test_other_encodings_are_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="is not UTF-8 text: byte 0xff at position 0"):
        acdc.tasks.load(_text(tmp_path / "a.jsonl", LINES, "utf-16"))
