from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import acdc.tasks
from acdc.errors import TaskError
from tiny_tokenizers import StandIn

MODEL = StandIn(vocabulary_size=100)
TEXT = {
    "clean": "When Mary and John went to the store, John gave a drink to",
    "corrupted": "When Anna and Paul went to the store, Paul gave a drink to",
    "answers": " Mary",
    "wrong_answers": [" John", " Paul"],
}


def _file(folder: Path, *lines: Any, name: str = "mine.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def _token_line(i: int, **more: Any) -> dict[str, Any]:
    return {
        "clean_tokens": [i, 2, 3],
        "corrupted_tokens": [i, 4, 3],
        "answer_tokens": 5,
        "wrong_tokens": [6, 7],
    } | more


def test_text_lines_become_prompts(tmp_path: Path, gpt2_like: StandIn) -> None:
    task = acdc.tasks.load(_file(tmp_path, TEXT, "", TEXT | {"answers": [" Mary", " Anna"]}))
    assert task.metric == "logit-difference"
    dataset = task.prepare(gpt2_like)
    assert dataset.held_out is None
    assert dataset.name == "mine.jsonl"
    prompts = dataset.discovery
    token = gpt2_like.tokenizer.convert_tokens_to_ids
    assert prompts.answers is not None
    assert prompts.wrong is not None
    assert prompts.answers.tolist() == [[[token("ĠMary"), -1]], [[token("ĠMary"), token("ĠAnna")]]]
    assert prompts.wrong.tolist()[0] == [[token("ĠJohn"), token("ĠPaul")]]


def test_token_lines_need_no_tokenizer(tmp_path: Path) -> None:
    shorter = {"clean_tokens": [1, 2], "corrupted_tokens": [1, 3], "answer_tokens": [8, 9], "wrong_tokens": 4}
    prompts = acdc.tasks.load(_file(tmp_path, _token_line(1), shorter)).prepare(MODEL).discovery
    assert prompts.clean.tolist() == [[1, 2, 3], [1, 2, 0]]
    assert prompts.mask.tolist() == [[True] * 3, [True, True, False]]
    assert prompts.positions.tolist() == [[2], [1]]
    assert prompts.answers is not None
    assert prompts.answers.tolist() == [[[5, -1]], [[8, 9]]]


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 49), min_size=1, max_size=6), st.lists(st.integers(50, 60), min_size=1)),
        min_size=1,
        max_size=5,
        unique_by=lambda row: (tuple(row[0]), tuple(dict.fromkeys(row[1]))),
    )
)
def test_token_files_survive_the_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> None:
    lines = [
        {"clean_tokens": clean, "corrupted_tokens": [i + 50 for i in clean], "answer_tokens": answers}
        for clean, answers in rows
    ]
    task = acdc.tasks.load(_file(tmp_path_factory.mktemp("task"), *lines))
    assert task.metric == "probability"
    prompts = task.prepare(StandIn(vocabulary_size=200)).discovery
    for i, (clean, answers) in enumerate(rows):
        assert prompts.clean[i][prompts.mask[i]].tolist() == clean
        assert prompts.answers is not None
        assert [x for x in prompts.answers[i, 0].tolist() if x >= 0] == list(dict.fromkeys(answers))


def test_without_answers_the_metric_is_kl(tmp_path: Path) -> None:
    path = _file(tmp_path, {"clean_tokens": [1], "corrupted_tokens": [2]})
    assert acdc.tasks.load(path).metric == "kl"
    with pytest.raises(TaskError, match=r"mine.jsonl: line 1 has no answers, which metric 'probability' needs"):
        acdc.tasks.load(path, metric="probability")


def test_every_bad_line_is_reported_with_its_number(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        TEXT,
        "{not json",
        "",
        "[1, 2]",
        {"clean": "a", "answer": " b"},
        TEXT | {"clean": 3, "answers": {}},
        TEXT | {"answers": ""},
        {"clean_tokens": [1, -2], "corrupted_tokens": "1 2"},
        {"clean_tokens": [], "corrupted_tokens": [True], "answer_tokens": 1.5},
    )
    with pytest.raises(TaskError) as error:
        acdc.tasks.load(path)
    said = str(error.value).splitlines()
    assert said[0] == f"{path}: 7 problems"
    assert [line.split(":")[0].strip() for line in said[1:]] == [f"line {n}" for n in (2, 4, 5, 6, 7, 8, 9)]
    text = str(error.value)
    assert "line 2: not JSON" in text
    assert "line 4: expected a JSON object, got a list" in text
    assert "line 5: 'corrupted' is missing; unknown key 'answer', did you mean 'answers'?" in text
    assert (
        "line 6: 'clean': expected a string or a list of messages, got a number; 'answers': expected a string or a list"
        in text
    )
    assert "line 7: 'answers' is empty" in text
    assert "line 8: 'clean_tokens': expected token ids (whole numbers from 0), got -2; 'corrupted_tokens': " in text
    assert "line 9: 'clean_tokens' is empty; 'corrupted_tokens': expected token ids" in text


def test_a_long_list_of_bad_lines_is_cut_with_a_count(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"500 problems[\s\S]*line 20: [\s\S]*… and 480 more$"):
        acdc.tasks.load(_file(tmp_path, *["{"] * 500))


def test_every_prompt_the_tokenizer_spoils_is_reported(tmp_path: Path, gpt2_like: StandIn) -> None:
    path = _file(
        tmp_path,
        TEXT,
        TEXT | {"answers": " Marymarket"},
        TEXT | {"corrupted": TEXT["corrupted"] + " the"},
        TEXT | {"corrupted": TEXT["clean"]},
        TEXT | {"wrong_answers": " Mary"},
    )
    with pytest.raises(TaskError) as error:
        acdc.tasks.load(path, metric="logit-difference").prepare(gpt2_like)
    text = str(error.value)
    assert "mine.jsonl: 4 problems" in text
    assert "line 2: answer ' Marymarket' is" in text
    assert "line 3: clean is 14 tokens and corrupted 15" in text
    assert "line 4: the corrupted prompt equals the clean one" in text
    assert "line 5: token" in text
    with pytest.raises(TaskError, match="has no tokenizer"):
        acdc.tasks.load(_file(tmp_path, TEXT)).prepare(MODEL)


def test_files_that_hold_nothing_or_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="has no prompts"):
        acdc.tasks.load(_file(tmp_path, "", ""))
    (tmp_path / "latin.jsonl").write_bytes(b'{"clean": "\xe9"}')
    with pytest.raises(TaskError, match="not UTF-8 text: byte 0xe9"):
        acdc.tasks.load(tmp_path / "latin.jsonl")
    with pytest.raises(TaskError, match="no such file"):
        acdc.tasks.load(tmp_path / "none.jsonl")
    with pytest.raises(TaskError, match="is a folder"):
        acdc.tasks.load(tmp_path)


def test_a_split_is_disjoint_complete_and_reproducible(tmp_path: Path) -> None:
    asked = [_token_line(i) for i in range(20)] + [_token_line(i, answer_tokens=8) for i in range(5)]
    path = _file(tmp_path, *asked)
    first, again, other = (acdc.tasks.load(path, split=0.2, seed=s).prepare(MODEL) for s in (0, 0, 1))
    assert first.held_out is not None
    assert again.held_out is not None
    discovery, held_out = (x.clean[:, 0].tolist() for x in (first.discovery, first.held_out))
    assert len(discovery) + len(held_out) == 25
    assert 5 <= len(held_out) <= 6
    assert not set(discovery) & set(held_out)
    assert held_out == again.held_out.clean[:, 0].tolist()
    assert discovery != other.discovery.clean[:, 0].tolist()
    for bad in (0.0, 1.0, -1.0):
        with pytest.raises(TaskError, match="expected split between 0 and 1"):
            acdc.tasks.load(path, split=bad)
    with pytest.raises(TaskError, match="leaves one side empty"):
        acdc.tasks.load(_file(tmp_path, _token_line(1), _token_line(1, answer_tokens=8)), split=0.5)


def test_a_split_keeps_both_ways_round_of_a_pair_on_one_side(tmp_path: Path) -> None:
    ends = [([i, 2, 3], [i, 4, 3]) for i in range(10, 30)]
    lines = [_token_line(0, clean_tokens=a, corrupted_tokens=b) for one in ends for a, b in (one, one[::-1])]
    data = acdc.tasks.load(_file(tmp_path, *lines), split=0.4).prepare(MODEL)
    assert data.held_out is not None
    assert (len(data.discovery), len(data.held_out)) == (24, 16)
    assert not set(data.discovery.clean[:, 0].tolist()) & set(data.held_out.clean[:, 0].tolist())
    assert not any("both ways" in line for line in data.warnings)
    chain = [([i, 2], [i + 1, 2]) for i in range(10, 30)]  # all of them hang together
    lines = [_token_line(0, clean_tokens=a, corrupted_tokens=b) for one in chain for a, b in (one, one[::-1])]
    data = acdc.tasks.load(_file(tmp_path, *lines, _token_line(1)), split=0.2).prepare(MODEL)
    assert data.held_out is not None
    assert (len(data.discovery), len(data.held_out)) in ((33, 8), (32, 9))
    assert not {tuple(x) for x in data.discovery.clean.tolist()} & {tuple(x) for x in data.held_out.clean.tolist()}
    assert any("both ways round may be discovery and held-out prompts" in line for line in data.warnings)


def test_a_file_of_held_out_prompts(tmp_path: Path) -> None:
    path = _file(tmp_path, _token_line(1), _token_line(2))
    other = _file(tmp_path, _token_line(2), _token_line(3), name="other.jsonl")
    dataset = acdc.tasks.load(path, held_out=other).prepare(MODEL)
    assert dataset.held_out is not None
    assert dataset.held_out.clean[:, 0].tolist() == [3]
    assert dataset.warnings == (
        "mine.jsonl: 1 of 2 held-out prompts is left out, being discovery prompts to this tokenizer (line 1)",
    )
    with pytest.raises(TaskError, match="every held-out prompt is a discovery prompt too"):
        acdc.tasks.load(path, held_out=path).prepare(MODEL)
    counterpart = _file(tmp_path, _token_line(2, corrupted_tokens=[2, 7, 3]), name="counterpart.jsonl")
    assert (
        not acdc.tasks.load(path, held_out=counterpart).prepare(MODEL).warnings
    )  # another run, where it is resampled
    with pytest.raises(TaskError, match="every held-out prompt is a discovery prompt too"):
        acdc.tasks.load(path, held_out=counterpart, ablation="zero").prepare(MODEL)
    with pytest.raises(TaskError, match="choose one"):
        acdc.tasks.load(path, held_out=other, split=0.5)
    (tmp_path / "other").mkdir()
    lacking = _file(tmp_path, _token_line(4, wrong_tokens=[]), _token_line(5), name="lacking.jsonl")
    alike = _file(tmp_path / "other", _token_line(6), _token_line(7, wrong_tokens=[]), name="lacking.jsonl")
    with pytest.raises(TaskError) as error:  # two files of one name
        acdc.tasks.load(lacking, held_out=alike, metric="logit-difference")
    assert "lacking.jsonl: line 1 has no wrong answers" in str(error.value)
    assert f"{alike}: line 2 has no wrong answers" in str(error.value)
    bad = _file(tmp_path, _token_line(2), _token_line(1000), name="bad.jsonl")
    with pytest.raises(TaskError, match=r"bad.jsonl: line 2: token id 1000 is outside"):
        acdc.tasks.load(path, held_out=bad).prepare(MODEL)


def test_size_takes_a_sample_of_the_file(tmp_path: Path) -> None:
    path = _file(tmp_path, *(_token_line(i) for i in range(20)))
    chosen = acdc.tasks.load(path, size=5).prepare(MODEL).discovery.clean[:, 0].tolist()
    assert len(set(chosen)) == 5
    assert chosen == sorted(chosen)
    assert len(acdc.tasks.load(path, size=50).prepare(MODEL).discovery) == 20


def test_a_word_the_tokenizer_does_not_know_is_a_warning(tmp_path: Path, model: StandIn) -> None:
    strange = TEXT | {"clean": "日 Mary and", "corrupted": "日 John and", "answers": [], "wrong_answers": []}
    dataset = acdc.tasks.load(_file(tmp_path, strange)).prepare(model)
    unknown = model.tokenizer.unk_token_id in dataset.discovery.clean
    assert bool(dataset.warnings) == unknown
    assert all("line 1" in warning for warning in dataset.warnings)


def test_misaligned_token_lines_are_reported_with_the_malformed_ones(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"clean_tokens": [1, 2], "corrupted_tokens": [1]}\n{"clean_tokens": 3}\n')
    with pytest.raises(TaskError) as error:
        acdc.tasks.load(file)
    assert "line 1: clean is 2 tokens and corrupted 1" in str(error.value)
    assert "line 2" in str(error.value)


def test_prompts_of_the_same_tokens_count_once_and_stay_on_one_side(tmp_path: Path, model: StandIn) -> None:
    bos = model.tokenizer("", add_special_tokens=True)["input_ids"]
    if not bos:
        pytest.skip("nothing is put before prompts")
    pairs = [("store", "drink"), ("drink", "store"), ("table", "store"), ("store", "table"), ("drink", "table")]
    lines = [{"clean": f"the {a}", "corrupted": f"the {b}", "answers": " was"} for a, b in pairs]
    again = [line | {side: "<s>" + line[side] for side in ("clean", "corrupted")} for line in lines]
    path = _file(tmp_path, *lines, *again)
    data = acdc.tasks.load(path, split=0.4, seed=1).prepare(model)
    assert data.held_out is not None
    sides = [{tuple(row) for row in part.clean.tolist()} for part in (data.discovery, data.held_out)]
    assert not sides[0] & sides[1]
    assert "being discovery prompts to this tokenizer" in " ".join(data.warnings)
    whole = acdc.tasks.load(path).prepare(model)
    assert len(whole.discovery) == len(lines)
    assert "5 of 10 prompts are left out" in " ".join(whole.warnings)


def test_the_order_of_answers_makes_no_new_pair(tmp_path: Path) -> None:
    path = _file(tmp_path, _token_line(1), _token_line(1, wrong_tokens=[7, 6]))
    assert len(acdc.tasks.load(path).prepare(MODEL).discovery) == 1


def test_a_long_answer_counts_into_the_context(tmp_path: Path) -> None:
    path = _file(tmp_path, _token_line(1, answer_tokens=[[5, 5, 5]]))
    with pytest.raises(
        TaskError, match="line 1: 5 tokens with the longest answer, more than the model's context of 4"
    ):
        acdc.tasks.load(path).prepare(StandIn(vocabulary_size=100, context_length=4))


def test_a_space_on_one_side_alone_is_a_warning(tmp_path: Path, gpt2_like: StandIn) -> None:
    path = _file(tmp_path, "clean, corrupted", "the store, the drink", name="spaced.csv")
    data = acdc.tasks.load(path).prepare(gpt2_like)
    assert "one prompt of a pair starts with a space" in " ".join(data.warnings)
