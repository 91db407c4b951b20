"""The built-in models `interp-*`: they do their program, and their true circuits are what they are said to be."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import acdc
from acdc.benchmarks.training.siit_check import shortcomings
from acdc.benchmarks.training.train_interp import RECIPES
from acdc.circuit import Circuit
from acdc.errors import AcdcError, TaskError
from acdc.model.programs.tracr import TracrModel
from acdc.tasks.programs.interp import InterpRecord, builtin_names, folder_of, truth_of

NAMES = builtin_names()


def test_there_are_models_of_at_least_eight_programs_in_four_megabytes() -> None:
    assert [name.removeprefix("interp-") for name in NAMES] == sorted(RECIPES)
    assert len(NAMES) >= 8
    assert sum(path.stat().st_size for name in NAMES for path in folder_of(name).iterdir()) < 4e6


@pytest.mark.parametrize("name", NAMES)
def test_it_answers_as_the_program_does(name: str) -> None:
    model, task = acdc.load(name), acdc.tasks.load(name, size=100)
    data = task.prepare(model)
    assert data.held_out is not None
    for prompts in (data.discovery, data.held_out):
        logits = model.plain_logits(prompts.clean, prompts.mask, prompts.position_ids)
        answers = prompts.answers
        assert answers is not None
        said = logits.argmax(-1).gather(1, prompts.positions.clamp(min=0))
        right = (said == answers[..., 0])[prompts.positions >= 0]
        assert right.float().mean() >= 0.99


@pytest.mark.parametrize("name", NAMES)
def test_the_true_circuit_alone_answers_as_the_model_does(name: str) -> None:
    model = acdc.load(name)
    data = acdc.tasks.load(name, size=100).prepare(model)
    assert data.truth is not None
    graph = model.graph(inputs="split")
    true = data.truth.mask(graph)
    nodes_outside = graph.valid & ~np.isin(np.arange(graph.n_sources), np.flatnonzero(true.any(0)))
    for edges in (true, graph.valid & ~nodes_outside):
        judged = acdc.evaluate(model, data, Circuit(graph, edges), random_circuits=0)
        assert judged.exact_match is not None
        assert judged.exact_match >= 0.99
        assert judged.faithfulness >= 0.98


@pytest.mark.parametrize("name", NAMES)
def test_the_record_of_its_training_says_that_it_is_good_enough(name: str) -> None:
    found = json.loads((folder_of(name) / "training.json").read_text())["held_out"]
    assert shortcomings(found) == []
    record, truth = InterpRecord.load(name), truth_of(name).get("resample", "varied")
    assert set(found["nodes"]) == set(record.alignment.values())
    assert set(found["true_edges"]) == set(truth.edges)
    assert all(edge["changed"] > 0 for edge in found["true_edges"].values())
    assert all(edge["changed"] < 0.005 for edge in found["false_edges"]["most"].values())


@pytest.mark.parametrize("name", NAMES)
def test_the_true_circuit_is_the_programs(name: str) -> None:
    record = InterpRecord.load(name)
    program = acdc.tasks.load(record.program).truth()
    ours = truth_of(name).get("resample", "varied")
    back = {low: high for high, low in record.alignment.items()}

    def high(edge: str) -> str:
        source, _, destination = edge.partition("->")
        node, bracket, port = destination.partition("<")
        return f"{back.get(source, source)}->{back.get(node, node)}{bracket}{port}"

    assert {high(edge) for edge in ours.edges} == set(program.edges)


def test_positions_see_what_comes_after_them_whether_or_not_prompts_are_padded() -> None:
    model = acdc.load("interp-reverse")
    tokens = torch.tensor([[0, 2, 3, 4, 2, 3]])
    later = tokens.clone()
    later[0, -1] = 4
    assert not torch.allclose(model.module(tokens).logits[0, 1], model.module(later).logits[0, 1])
    whole = torch.ones_like(tokens, dtype=torch.bool)
    torch.testing.assert_close(model.plain_logits(tokens, whole), model.decomposed_logits(tokens, whole))


def test_discovery_finds_the_true_circuit() -> None:
    model, task = acdc.load("interp-sort-unique"), acdc.tasks.load("interp-sort-unique")
    found = acdc.discover(model, task, "acdc", graph=model.graph(inputs="split"))
    truth = acdc.evaluate(model, task, found, random_circuits=0).truth
    assert truth is not None
    assert (truth.missed, truth.false_positives) == (0, 0)


def test_wrong_answers_are_the_programs_other_outputs() -> None:
    data = acdc.tasks.load("interp-hist").prepare(acdc.load("interp-hist"))
    record = InterpRecord.load("interp-hist")
    answers, wrong = data.discovery.answers, data.discovery.wrong
    assert answers is not None
    assert wrong is not None
    for right, others in zip(answers.flatten(0, 1).tolist(), wrong.flatten(0, 1).tolist(), strict=True):
        if right[0] >= 0:
            assert sorted(right + others) == sorted(record.outputs)
        else:
            assert set(others) == {-1}


def test_numbers_become_tokens_by_the_nearest_fraction() -> None:
    record = InterpRecord.load("interp-proportion")
    assert {"1/3", "2/5", "1/2"} <= set(record.vocabulary)
    program = TracrModel.load(record.program)
    tokens, mask = program.encode(["xyx"])
    with torch.no_grad():
        said = record.tokens(program(tokens), mask)[0].tolist()
    assert [record.vocabulary[token] if token >= 0 else None for token in said] == [None, "1", "1/2", "2/3"]


def test_other_questions_have_other_truths_or_none() -> None:
    fixed = acdc.tasks.load("interp-reverse", distribution="fixed").prepare(acdc.load("interp-reverse"))
    assert fixed.truth is not None
    assert fixed.truth.name == "resample/fixed"
    zero = acdc.tasks.load("interp-reverse", ablation="zero").prepare(acdc.load("interp-reverse"))
    assert zero.truth is None
    assert zero.warnings == ("interp-reverse: the true circuit is known for resample ablation only, not for zero",)


def test_bad_input_is_named() -> None:
    with pytest.raises(AcdcError, match="unknown distribution 'fixd': did you mean fixed"):
        acdc.tasks.load("interp-hist", distribution="fixd")
    with pytest.raises(TaskError, match="task 'interp-hist' is what the model 'interp-hist' does"):
        acdc.tasks.load("interp-hist").prepare(acdc.load("interp-shift"))
    assert acdc.tasks.default_task("interp-hist") == "interp-hist"
