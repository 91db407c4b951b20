"""InterpBench cases from a local folder, in discovery, evaluation and benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import acdc
from acdc.benchmarks.runner import run
from acdc.benchmarks.suites import get_suite
from acdc.errors import AcdcError, TaskError
from acdc.tasks.programs.interpbench import Inputs
from hooked_folder import TRUE, write_case

INPUTS = {"tokens": [2, 3, 4], "first": 1, "pad": 0, "min_length": 2, "max_length": 5}


def test_a_folder_is_a_model_with_its_task_and_its_true_edges(tmp_path: Path) -> None:
    write_case(tmp_path / "3")
    name = str(tmp_path / "3")
    assert acdc.tasks.default_task(name) == name
    model, task = acdc.load(name), acdc.tasks.load(name, size=8)
    data = task.prepare(model)
    assert data.truth is not None
    graph = model.graph(inputs="split")
    assert set(graph.edge_names(data.truth.mask(graph))) == set(TRUE)
    merged = model.graph(qkv="merged", inputs="split")
    assert set(merged.edge_names(data.truth.mask(merged))) == {edge.split("<")[0] for edge in TRUE}
    circuit = acdc.discover(model, task, "eap-ig", graph=merged)
    compared = acdc.evaluate(model, task, circuit, random_circuits=0).truth
    assert compared is not None
    assert compared.true_positives + compared.missed == 4  # q and k of one head are one


def test_without_inputs_every_id_is_drawn_and_the_user_is_told(tmp_path: Path) -> None:
    write_case(tmp_path)
    data = acdc.tasks.load(tmp_path).prepare(acdc.load(tmp_path))
    assert "nothing says which of the 5 token ids inputs are made of" in data.warnings[0]
    assert set(data.discovery.clean.flatten().tolist()) == set(range(5))
    assert (data.metric.name, len(data.discovery)) == ("kl", 32)


def test_inputs_look_as_the_file_says(tmp_path: Path) -> None:
    write_case(tmp_path)
    (tmp_path / "inputs.json").write_text(json.dumps(INPUTS))
    data = acdc.tasks.load(tmp_path).prepare(acdc.load(tmp_path))
    assert data.warnings == ()
    prompts = data.discovery
    for row, positions in zip(prompts.clean.tolist(), prompts.positions.tolist(), strict=True):
        read = [p for p in positions if p >= 0]
        assert row[0] == 1
        assert all(row[p] in (2, 3, 4) for p in read)
        assert all(token == 0 for token in row[1 + len(read) :])
        assert 2 <= len(read) <= 5
    assert prompts.mask.all()


def test_held_out_pairs_are_others(tmp_path: Path) -> None:
    write_case(tmp_path)
    (tmp_path / "inputs.json").write_text(json.dumps(INPUTS))
    data = acdc.tasks.load(tmp_path, size=64).prepare(acdc.load(tmp_path))
    assert data.held_out is not None
    sides = [
        {tuple(row) for row in torch.cat((p.clean, p.corrupted), 1).tolist()}
        for p in (data.discovery, data.held_out)
    ]
    assert [len(side) for side in sides] == [64, 64]
    assert sides[0].isdisjoint(sides[1])
    zero = acdc.tasks.load(tmp_path, size=16, ablation="zero").prepare(acdc.load(tmp_path))
    assert zero.held_out is not None
    assert len(zero.held_out) == 16
    rows = [set(map(tuple, prompts.clean.tolist())) for prompts in (zero.discovery, zero.held_out)]
    assert rows[0].isdisjoint(rows[1])  # the corrupted inputs, which nothing reads, do not make another prompt
    assert len(rows[1]) == 16


def test_a_model_whose_output_is_a_number_is_judged_by_its_distance(tmp_path: Path) -> None:
    write_case(tmp_path, d_vocab_out=1)
    model, task = acdc.load(tmp_path), acdc.tasks.load(tmp_path)
    assert task.metric == "l2"
    found = acdc.discover(model, task, "acdc")
    assert acdc.evaluate(model, task, found, random_circuits=0).kl is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": [2, 9]}, "expected ids below the model's vocabulary of 5, got 9"),
        ({"min_length": 6}, "min_length 6 is more than max_length 5"),
        ({"pad": None}, "inputs of different lengths need a pad"),
        ({"max_length": 6}, "inputs of 7 ids, the model's context is 6"),
        ({"length": 3}, "length: extra inputs are not permitted"),
        ({"tokens": []}, "tokens: tuple should have at least 2 items"),
    ],
)
def test_inputs_that_do_not_fit(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    write_case(tmp_path)
    (tmp_path / "inputs.json").write_text(json.dumps(INPUTS | changes))
    with pytest.raises(AcdcError, match=words):
        Inputs.of(str(tmp_path))


def test_too_few_inputs(tmp_path: Path) -> None:
    write_case(tmp_path)
    few = {"tokens": [2, 3], "min_length": 1, "max_length": 1}
    (tmp_path / "inputs.json").write_text(json.dumps(few))
    with pytest.raises(TaskError, match="only 4 different pairs of inputs: ask for 2"):
        acdc.tasks.load(tmp_path).prepare(acdc.load(tmp_path))


def test_other_ablations_have_no_truth_and_options_are_refused(tmp_path: Path) -> None:
    write_case(tmp_path)
    data = acdc.tasks.load(tmp_path, ablation="zero").prepare(acdc.load(tmp_path))
    assert data.truth is None
    assert "that of resample ablation, not of zero" in data.warnings[-1]
    with pytest.raises(TaskError, match="has no option 'distribution'"):
        acdc.tasks.load(tmp_path, distribution="fixed")


def test_a_folder_of_cases_is_a_suite(tmp_path: Path) -> None:
    for name in ("3", "11"):
        write_case(tmp_path / "cases" / name)
    suite = get_suite(str(tmp_path / "cases"))
    assert (suite.name, [case.name.split("-")[0] for case in suite.cases]) == ("cases", ["11", "3"])
    rows = run(get_suite(str(tmp_path / "cases"), cases=["3"]), tmp_path / "out", methods=["eap-ig"])
    assert [row.error for row in rows] == [None, None]
    assert {row.n_true for row in rows} == {4}
    assert get_suite(str(tmp_path / "cases" / "3")).cases[0].name.startswith("3-")
    with pytest.raises(AcdcError, match=r"no InterpBench case in .*: expected ll_model\.pth"):
        get_suite(str(tmp_path / "out"))


def test_prompts_of_ones_own_may_use_ids_that_are_no_outputs(tmp_path: Path) -> None:
    write_case(tmp_path / "3")
    line = {"clean_tokens": [1, 4, 3], "corrupted_tokens": [1, 3, 4], "answer_tokens": 2}
    (tmp_path / "mine.jsonl").write_text(json.dumps(line) + "\n")
    model, task = acdc.load(tmp_path / "3"), acdc.tasks.load(tmp_path / "mine.jsonl")
    assert len(task.prepare(model).discovery) == 1
    (tmp_path / "mine.jsonl").write_text(json.dumps(line | {"answer_tokens": 3}) + "\n")
    with pytest.raises(TaskError, match="token id 3 is outside of the model's vocabulary of 3"):
        acdc.tasks.load(tmp_path / "mine.jsonl").prepare(model)
