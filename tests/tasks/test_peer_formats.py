"""Files of prompts that other tools wrote: the pairs in them are those that the tool means."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import acdc.tasks
from acdc.errors import TaskError
from acdc.tasks.file_task import load_file
from acdc.tasks.peer_formats import FORMATS
from acdc.tasks.spans import Characters, Span
from acdc.tasks.tokenise import TextPair
from tiny_tokenizers import StandIn

A, B = (
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
)
MCQA = {
    "choices": {"label": ["A", "B"], "text": ["red", "blue"]},
    "answerKey": 1,
    "prompt": "The sky is blue. Answer:",
}

REGIONS = tuple(
    Span(f"region {i}", Characters(*where), Characters(*where)) for i, where in enumerate([(0, 3), (3, 7)])
)
CASES: dict[str, tuple[Any, TextPair]] = {
    "mib-ioi": (
        {
            "prompt": A, "template": "t", "metadata": {"subject": "John", "indirect_object": "Mary", "random_c": "Tom"},
            "s2_io_flip_counterfactual": {"prompt": B}, "abc_counterfactual": {"prompt": "x"},
        },
        TextPair(A, B, (" Mary",), (" John",)),
    ),
    "mib-choice": (
        MCQA | {"symbol_counterfactual": MCQA | {"answerKey": 0, "prompt": "The sky is red. Answer:"}},
        TextPair("The sky is blue. Answer:", "The sky is red. Answer:", ("B",), ("A",)),
    ),
    "mib-arithmetic": (
        {"prompt": "1+2=", "label": 3, "operator": "+", "random_counterfactual": {"prompt": "4+4=", "label": "8"}},
        TextPair("1+2=", "4+4=", ("3",), ("8",)),
    ),
    "mib-greater-than": (
        {"clean": "from 1797 to 1797", "corrupted": "from 1701 to 1797", "year": 1797},
        TextPair("from 1797 to 17", "from 1701 to 17", ("98", "99"), tuple(f"{y:02}" for y in range(98))),
    ),
    "causalgym": (
        {"base": ["The ", "man"], "src": ["The ", "men"], "base_label": " walks", "src_label": " walk", "task": "agr"},
        TextPair("The man", "The men", (" walks",), (" walk",), REGIONS),
    ),
    "edge-pruning": (
        {"clean": "1 + 2 = <predict>3</predict>", "corrupted": "1 + 4 = <predict>5</predict>"},
        TextPair("1 + 2 =", "1 + 4 =", (" 3",), (" 5",)),
    ),
    "blimp": (
        {
            "sentence_good": "Who should Derek hug?", "sentence_bad": "Who should Derek hug Richard?",
            "one_prefix_method": False, "UID": "wh", "pairID": "3",
        },
        TextPair("Who should Derek", None, (" hug?",), (" hug Richard?",)),
    ),
    "acdc": ({"clean": "a b", "corrupted": "a c", "answers": "d"}, TextPair("a b", "a c", ("d",), ())),
}  # fmt: skip


def write(folder: Path, *rows: Any, name: str = "theirs.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("array", [False, True])
def test_a_row_becomes_the_pair_that_its_tool_means(name: str, array: bool, tmp_path: Path) -> None:
    row, pair = CASES[name]
    path = write(tmp_path, [row]) if array else write(tmp_path, row)
    for task in (load_file(path), load_file(path, format=name)):
        assert [line.pair for line in task.lines] == [pair]
    if FORMATS[name].metric:
        assert load_file(path).metric == FORMATS[name].metric


def test_years_of_eap_have_to_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "gt.csv"
    path.write_text(",clean,corrupted,correct_idx\n0,from 1797 to 17,from 1701 to 17,97\n", "utf-8")
    with pytest.raises(TaskError, match="--task-format eap-greater-than"):
        load_file(path)
    assert load_file(path, format="eap-greater-than").lines[0].pair == CASES["mib-greater-than"][1]
    mib = tmp_path / "mib.csv"
    mib.write_text("clean,corrupted,year\nfrom 1797 to 1797,from 1701 to 1797,1797\n", "utf-8")
    assert load_file(mib).lines[0].pair == CASES["mib-greater-than"][1]
    mib.write_text("clean,corrupted,year\nfrom 1797 to 17,from 1701 to 17,1797\n", "utf-8")  # already cut
    assert load_file(mib).lines[0].pair == CASES["mib-greater-than"][1]


PEAP_CLEAN = f""",prompt,prompt_id,prefix,IO,and,S1,S1+1,S2,action2,to,length,wrong_token,correct_token,label,split
0,"{A}",3,1,2,3,4,5,10,11,14,15, John, Mary, Mary,circuit
1,"{A}",3,1,2,3,4,5,10,11,14,15, Paul, Mary, Mary,ablation
2,"{A}",3,1,2,3,4,5,10,11,14,16, Anna, Mary, Mary,eval
3,"{A}",3,1,2,3,4,5,10,11,13,14, gave, Mary, Mary,eval
4,"{A}",3,1,2,3,4,5,10,11,14,15, John, Mary, Mary,eval
"""
PEAP_COUNTER = f""",prompt,prompt_id,length
0,"{B}",3,15
1,"{B}",3,15
2,"{B}",3,15
3,"{B}",3,15
"""


def test_peap_pairs_two_files_and_names_positions(tmp_path: Path, gpt2_like: StandIn) -> None:
    path = tmp_path / "IOI_ABBA_data_clean.csv"
    path.write_text(PEAP_CLEAN, "utf-8")
    with pytest.raises(TaskError, match="one file of counterfactual prompts beside it"):
        load_file(path)
    (tmp_path / "IOI_ABBA_data_counter_abc.csv").write_text(PEAP_COUNTER, "utf-8")
    task = load_file(path)
    first = task.lines[0].pair
    assert (first.clean, first.corrupted, first.answers, first.wrong) == (A, B, (" Mary",), (" John",))
    data = task.prepare(gpt2_like)
    assert len(data.discovery) == 2
    (warning,) = (text for text in data.warnings if "left out" in text)
    assert "line 4: span 'to' lies outside of the prompt" in warning  # the file was made for other tokens
    assert "line 5: span 'to' is at tokens 12 of clean and 13 of corrupted" in warning
    assert "line 6: the file of counterfactual prompts has no such row" in warning
    words = gpt2_like.tokenizer.convert_ids_to_tokens(data.discovery.clean[0])
    shown = {name: [words[i] for i in mask[0].nonzero().flatten()] for name, mask in data.discovery.spans.items()}
    assert shown == {
        "prefix": ["When"], "IO": ["ĠMary"], "and": ["Ġand"], "S1": ["ĠJohn"],
        "S1+1": ["Ġwent", "Ġto", "Ġthe", "Ġstore", ","], "S2": ["ĠJohn"], "action2": ["Ġgave", "Ġa", "Ġdrink"],
        "to": ["Ġto"],
    }  # fmt: skip
    (tmp_path / "IOI_ABBA_data_counter_other.csv").write_text(PEAP_COUNTER, "utf-8")
    with pytest.raises(TaskError, match=r"got IOI_ABBA_data_counter_abc\.csv, IOI_ABBA_data_counter_other\.csv"):
        load_file(path)


PEAP_HEADER = "prompt,prompt_id,When,IO,and,S1,length,wrong_token,correct_token,split\n"


@pytest.mark.parametrize(
    ("header", "row", "spans"),
    [
        (PEAP_HEADER, "Mary and John said,3,1,2.0,3,4,5, John, Mary,eval", {"When": 0, "IO": 1, "and": 2, "S1": 3}),
        (PEAP_HEADER, "Mary and John said,3,1,2,2,4,4, John, Mary,eval", {"When": 0, "and": 1}),  # two are empty
        (PEAP_HEADER, "Mary and John said,3,1,,3,4,5, John, Mary,eval", "expected 'IO' as the number of the token"),
        (
            PEAP_HEADER,
            "Mary and John said,3,1,2.5,3,4,5, John, Mary,eval",
            "expected 'IO' as the number of the token",
        ),
        (PEAP_HEADER, "Mary and John said,4,1,2,3,4,5, John, Mary,eval", "'prompt_id' is '4', and '3' in the file"),
        (
            "index," + PEAP_HEADER,
            "7,Mary and John said,3,1,2,3,4,5, John, Mary,eval",
            "expected 'index' to start at",
        ),
        (
            "right," + PEAP_HEADER,
            "0,Mary and John said,3,1,2,3,4,5, John, Mary,eval",
            "expected 'right' to start at",
        ),
    ],
)
def test_columns_of_peap(header: str, row: str, spans: dict[str, int] | str, tmp_path: Path) -> None:
    """Spans start in the order of their columns; what cannot be the start of one is not passed over."""
    good = ("" if header == PEAP_HEADER else "1,") + "Mary and John gave,3,1,2,3,4,5, John, Mary,eval"
    (tmp_path / "a_clean.csv").write_text(f"{header}{good}\n{row}\n", "utf-8")
    (tmp_path / "a_counter_abc.csv").write_text(
        "prompt,prompt_id\nMary and Mary said,3\nMary and Mary did,3\n", "utf-8"
    )
    task = load_file(tmp_path / "a_clean.csv")
    if isinstance(spans, str):
        (left_out,) = task.left_out
        assert spans in left_out
    else:
        assert {span.name: span.where[0] for span in task.lines[1].pair.spans} == spans  # type: ignore[union-attr]


def test_peap_pairs_rows_and_not_lines(tmp_path: Path) -> None:
    header, *rows = PEAP_CLEAN.splitlines()
    broken = rows[0].replace("the store,", "the\nstore,")
    (tmp_path / "a_clean.csv").write_text("\n".join([header, "", broken, *rows[2:]]), "utf-8")
    counter = [f'{n},"{B} {n}",3,15' for n in range(4)]
    (tmp_path / "a_counter.csv").write_text("\n".join([",prompt,prompt_id,length", *counter]), "utf-8")
    task = load_file(tmp_path / "a_clean.csv")
    assert [line.pair.corrupted for line in task.lines] == [f"{B} {n}" for n in range(4)]


def test_years_of_peap(tmp_path: Path) -> None:
    path = tmp_path / "greater_than_data_clean.csv"
    path.write_text("prompt,The,NOUN,length,label,split\nThe war,1,2,3,97,eval\nThe old,0,2,3,97,eval\n", "utf-8")
    (tmp_path / "greater_than_data_counter_vanila.csv").write_text("prompt\nThe day\nThe big\n", "utf-8")
    task = load_file(path)
    (line,) = task.lines
    assert (line.pair.clean, line.pair.corrupted, line.pair.answers) == ("The war", "The day", ("98", "99"))
    assert task.metric == "probability-difference"
    assert task.left_out[0].startswith(
        "line 3: expected 'The' to start at a token from 1 to 2, where 'NOUN' is, got 0; "
    )


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("mib-ioi", {"s2_io_flip_counterfactual": {}}, "'s2_io_flip_counterfactual.prompt' is missing"),
        ("mib-choice", {"answerKey": 7}, "'answerKey' as an index"),
        ("mib-choice", {"symbol_counterfactual": MCQA}, "the answer of the counterfactual is 'B' too"),
        ("mib-greater-than", {"year": "1799"}, "before 99"),
        ("causalgym", {"base": "The man"}, "'base' as a list of texts"),
        ("edge-pruning", {"clean": "1"}, "one <predict>"),
        ("edge-pruning", {"clean": "1 <predict>2</predict> 3"}, "text follows"),
        ("blimp", {"sentence_bad": "Whom should"}, "differ in their first word"),
        ("blimp", {"sentence_bad": "Who should"}, "only goes on"),
    ],
)
def test_rows_that_cannot_be_taken_are_listed_and_the_rest_is_used(
    name: str, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    row, pair = CASES[name]
    task = load_file(write(tmp_path, row, row | change))
    assert [line.pair for line in task.lines] == [pair]
    (left_out,) = task.left_out
    assert left_out.startswith("line 2: ")
    assert reason in left_out
    with pytest.raises(TaskError, match=r"theirs\.jsonl: 2 problems"):
        load_file(write(tmp_path, row | change, row | change), format=name)


@pytest.mark.parametrize("name", ["mib-choice", "mib-arithmetic"])
def test_a_row_without_its_counterfactual_is_left_out(name: str, tmp_path: Path) -> None:
    row, pair = CASES[name]
    counterfactual = next(key for key in row if key.endswith("_counterfactual"))
    task = load_file(write(tmp_path, row, {key: row[key] for key in row if key != counterfactual}))
    assert [line.pair for line in task.lines] == [pair]
    assert task.left_out == (f"line 2: '{counterfactual}.prompt' is missing",)


def test_a_first_row_that_does_not_fit_does_not_hide_the_format(tmp_path: Path) -> None:
    row, pair = CASES["mib-ioi"]
    task = load_file(write(tmp_path, {"prompt": A}, row))
    assert [line.pair for line in task.lines] == [pair]
    assert task.left_out[0].startswith("line 1: ")


def test_rows_of_the_held_out_file_are_named_as_that_files(tmp_path: Path, gpt2_like: StandIn) -> None:
    row, _ = CASES["mib-ioi"]
    swapped = row | {"prompt": B, "s2_io_flip_counterfactual": {"prompt": A}}
    held_out = write(tmp_path, swapped, {"prompt": "x"}, name="held.jsonl")
    data = load_file(write(tmp_path, row), held_out=held_out).prepare(gpt2_like)
    (warning,) = (text for text in data.warnings if "left out" in text)
    assert warning.startswith("held.jsonl: 1 row is left out: line 2: ")


def test_an_answer_of_eap_that_is_missing_is_not_taken_for_a_year(tmp_path: Path) -> None:
    path = tmp_path / "eap.csv"
    path.write_text("clean,corrupted,correct_idx,incorrect_idx\na b,a c,5,6\na b,a c,5,\n", "utf-8")
    with pytest.raises(TaskError, match="'incorrect_idx': expected a token id"):
        load_file(path)


def test_a_record_with_answers_of_its_own_is_not_taken_for_another_tools(tmp_path: Path) -> None:
    row = {"clean": "a b", "corrupted": "a c", "answers": " d", "year": 1990}
    with pytest.raises(TaskError, match="unknown key 'year'"):
        load_file(write(tmp_path, row))


def test_a_row_without_what_the_metric_needs_is_left_out(tmp_path: Path, gpt2_like: StandIn) -> None:
    rows = [
        {"clean": "the drink<predict> was</predict>", "corrupted": "the store<predict> is</predict>"},
        {"clean": "the store<predict> is</predict>", "corrupted": "the drink<predict> is</predict>"},
    ]
    data = acdc.tasks.load(write(tmp_path, *rows)).prepare(gpt2_like)
    assert len(data.discovery) == 1
    assert "line 2 has no wrong answers" in " ".join(data.warnings)


def test_what_the_tokenizer_spoils_is_left_out_with_a_warning(tmp_path: Path, gpt2_like: StandIn) -> None:
    row, _ = CASES["mib-ioi"]
    longer = row | {"s2_io_flip_counterfactual": {"prompt": "When Mary went to the store"}}
    data = acdc.tasks.load(write(tmp_path, row, longer, {"prompt": "x"})).prepare(gpt2_like)
    assert len(data.discovery) == 1
    (warning,) = data.warnings
    assert "2 rows are left out" in warning
    assert "line 2: clean is 14 tokens" in warning
    assert "line 3: " in warning


def test_a_size_is_of_rows_that_fit(tmp_path: Path, gpt2_like: StandIn) -> None:
    row, _ = CASES["mib-ioi"]
    longer = row | {"s2_io_flip_counterfactual": {"prompt": "When Mary went to the store"}}
    other = row | {"prompt": B, "s2_io_flip_counterfactual": {"prompt": A}}
    path = write(tmp_path, *[longer] * 8, row, other)
    for seed in range(4):
        assert len(load_file(path, size=2, seed=seed).prepare(gpt2_like).discovery) == 2
        assert len(load_file(path, size=1, seed=seed).prepare(gpt2_like).discovery) == 1
    data = load_file(path, size=3).prepare(gpt2_like)
    assert "2 prompts are used instead of 3" in " ".join(data.warnings)


def test_blimp_takes_the_corrupted_prompt_from_another_row(tmp_path: Path, gpt2_like: StandIn) -> None:
    rows = [
        {"sentence_good": f"the {noun} was here", "sentence_bad": f"the {noun} were here"}
        for noun in ("store", "drink", "store the store")
    ]
    data = acdc.tasks.load(write(tmp_path, *rows)).prepare(gpt2_like)
    assert len(data.discovery) == 2  # nothing is as long as the third
    assert data.discovery.corrupted[:, :2].tolist() == data.discovery.clean[[1, 0], :2].tolist()
    assert "no other row with as many tokens" in " ".join(data.warnings)


def test_blimp_takes_a_prompt_that_asks_for_another_word_if_there_is_one(
    tmp_path: Path, gpt2_like: StandIn
) -> None:
    forms = [("the store", "was"), ("the store", "were"), ("the drink", "was"), ("the gave", "were")]
    forms += [("the store store the", "was"), ("the store drink the", "was")]
    rows = [
        {
            "sentence_good": f"{prompt} {form} here",
            "sentence_bad": f"{prompt} {'were' if form == 'was' else 'was'} here",
        }
        for prompt, form in forms
    ]
    data = acdc.tasks.load(write(tmp_path, *rows)).prepare(gpt2_like)
    clean, corrupted = data.discovery.clean, data.discovery.corrupted
    assert (corrupted[:4, :2] == clean[[3, 2, 3, 0], :2]).all()
    assert (corrupted[4:, :4] == clean[[5, 4], :4]).all()
    (remark,) = (text for text in data.warnings if "asks for the same word" in text)
    assert "(line 5, line 6)" in remark


def test_the_command_line_lists_the_formats_and_refuses_others(tmp_path: Path) -> None:
    path = write(tmp_path, CASES["acdc"][0])

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "acdc", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    shown = run("tasks", "formats")
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in FORMATS)
    wrong = run("tasks", "check", "induction-2l", str(path), "--task-format", "mib-io")
    assert wrong.returncode == 2
    assert "did you mean mib-ioi" in wrong.stderr
    of_task = run("tasks", "check", "induction-2l", "induction", "--task-format", "blimp")
    assert of_task.returncode == 2
    assert "format is for a file" in of_task.stderr
