"""Tracr tasks: prompts that can show the whole true circuit, and the truth that belongs to them."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import acdc
from acdc.errors import AcdcError, TaskError
from acdc.graph import Graph
from acdc.model.programs.tracr import TracrModel, builtin_names
from acdc.tasks.programs import tracr
from acdc.tasks.programs.derive import causal_edges, circuit_outputs, finest_graph, read_positions
from acdc.tasks.programs.inputs import Pairs
from acdc.tasks.programs.truth import CASES, witness_pairs
from acdc.tasks.prompts import Prompts
from acdc.tasks.task import Task


def model_of(name: str) -> Any:
    module = TracrModel.load(name)
    return SimpleNamespace(
        name=name, tokenizer=None, vocabulary_size=module.unembedding.out_features, device=torch.device("cpu"),
        context_length=module.program.context_length, bos_token_id=0, program=module,
    )  # fmt: skip


def pairs_of(prompts: Prompts) -> Pairs:
    assert prompts.corrupted_mask is not None
    assert prompts.position_ids is not None
    positions = prompts.corrupted_position_ids
    return Pairs(
        prompts.clean, prompts.mask, prompts.position_ids, prompts.corrupted, prompts.corrupted_mask,
        prompts.position_ids if positions is None else positions,
    )  # fmt: skip


@pytest.mark.parametrize("name", builtin_names())
def test_discovery_prompts_show_the_true_circuit_and_nothing_else(name: str) -> None:
    model = model_of(name)
    graph = finest_graph(model.program)
    for ablation, distribution in CASES:
        task = tracr.TracrTask.of(name, distribution=distribution, ablation=ablation, size=16, seed=3)
        truth = task.truth()
        assert truth is not None
        dataset = task.prepare(model)
        shown = causal_edges(model.program, pairs_of(dataset.discovery), ablation=ablation).edges
        assert graph.edge_names(shown) == list(truth.edges)
        assert bool(dataset.warnings) == (not truth.edges)


@pytest.mark.parametrize("name", builtin_names())
def test_keeping_the_truth_reproduces_the_held_out_outputs(name: str) -> None:
    model = model_of(name)
    task = tracr.TracrTask.of(name)
    truth, dataset = task.truth(), task.prepare(model)
    assert truth is not None
    assert dataset.held_out is not None
    pairs = pairs_of(dataset.held_out)
    full, circuit = circuit_outputs(
        model.program, pairs, truth.mask(finest_graph(model.program)), ablation=task.ablation
    )
    read = read_positions(model.program, pairs.clean_mask)
    torch.testing.assert_close(circuit[read], full[read], atol=1e-2, rtol=0)


@pytest.mark.parametrize("name", ["tracr-reverse", "tracr-shift", "tracr-hist-no-bos"])
def test_answers_are_what_the_program_gives(name: str) -> None:
    model = model_of(name)
    program = model.program.program
    prompts = tracr.TracrTask.of(name).prepare(model).discovery
    assert prompts.answers is not None
    assert prompts.wrong is not None
    start = int(program.bos is not None)
    for i in range(len(prompts)):
        real = int(prompts.mask[i].sum())
        read = [position for position in prompts.positions[i].tolist() if position >= 0]
        assert read == list(range(start, real))
        (expected,) = model.program.run([[program.vocabulary[t] for t in prompts.clean[i, start:real].tolist()]])
        for j, value in enumerate(expected):
            answer, wrong = int(prompts.answers[i, j, 0]), prompts.wrong[i, j].tolist()
            if value is None:
                assert answer == -1
            else:
                assert program.output_vocabulary[answer] == value
                assert sorted([answer, *wrong]) == list(range(len(program.output_vocabulary)))


def test_numerical_programs_have_no_answers() -> None:
    prompts = tracr.TracrTask.of("tracr-proportion").prepare(model_of("tracr-proportion")).discovery
    assert prompts.answers is None
    assert prompts.wrong is None
    with pytest.raises(TaskError, match="needs answers"):
        tracr.TracrTask.of("tracr-proportion", metric="logit-difference").prepare(model_of("tracr-proportion"))


def test_a_metric_that_needs_answers_reads_only_positions_that_have_one() -> None:
    dataset = tracr.TracrTask.of("tracr-shift", metric="logit-difference").prepare(model_of("tracr-shift"))
    for prompts in (dataset.discovery, dataset.held_out):
        assert prompts is not None
        assert prompts.answers is not None
        assert ((prompts.answers[..., 0] >= 0) == (prompts.positions >= 0)).all()
        assert (prompts.positions >= 0).any(1).all()


def test_prompts_depend_on_the_seed_and_are_disjoint() -> None:
    model = model_of("tracr-reverse")

    def rows(prompts: Prompts | None) -> list[tuple[int, ...]]:
        assert prompts is not None
        pairs = pairs_of(prompts)
        return [tuple(row) for row in torch.cat(list(vars(pairs).values()), -1).tolist()]

    first, again, other = (
        tracr.TracrTask.of("tracr-reverse", seed=seed, size=20).prepare(model) for seed in (0, 0, 1)
    )
    assert rows(first.discovery) == rows(again.discovery)
    assert rows(first.held_out) == rows(again.held_out)
    assert rows(first.held_out) != rows(other.held_out)
    every = rows(first.discovery) + rows(first.held_out)
    assert len(every) == len(set(every)) == 40


def test_without_witnesses_the_prompts_are_random_alone() -> None:
    model = model_of("tracr-shuffle-dyck")

    def rows(witnesses: bool) -> list[tuple[int, ...]]:
        prompts = tracr.TracrTask.of("tracr-shuffle-dyck", size=8, witnesses=witnesses).prepare(model).discovery
        return [tuple(row) for row in torch.cat(list(vars(pairs_of(prompts)).values()), -1).tolist()]

    shown = witness_pairs(model.program, tracr.truth_of("tracr-shuffle-dyck").get("resample", "varied"))
    assert shown is not None
    chosen = [tuple(row) for row in torch.cat(list(vars(shown).values()), -1).tolist()]
    assert set(chosen) <= set(rows(True))
    assert not set(chosen) & set(rows(False))
    assert rows(False)[: 8 - len(chosen)] == rows(True)[len(chosen) :]
    with pytest.raises(AcdcError, match="witnesses to be true or false, got 1"):
        acdc.tasks.load("tracr-shuffle-dyck", witnesses=1)


def test_a_task_is_a_task_and_says_which_truth_it_is_for() -> None:
    task = tracr.TracrTask.of("tracr-reverse", distribution="mixed", ablation="zero")
    assert isinstance(task, Task)
    assert (task.metric, task.ablation, task.seed) == ("l2", "zero", 0)
    assert (
        "right if it reproduces all outputs and no edge can go, under zero ablation with mixed" in task.description
    )
    assert "the true circuit is that of resample ablation" in tracr.TracrTask.of("tracr-reverse").description
    assert task.truth() == tracr.truth_of("tracr-reverse").get("zero", "mixed")
    assert tracr.TracrTask.of("tracr-reverse", ablation="mean").truth() is None


def test_truths_by_name() -> None:
    circuits = {circuit.name: circuit for circuit in tracr.truth_of("tracr-reverse").circuits}
    assert list(circuits) == ["structural", "semantic", *(f"{ablation}/{kind}" for ablation, kind in CASES)]
    assert circuits["semantic"].mask(Graph(4, 1)).any()


def test_errors() -> None:
    with pytest.raises(AcdcError, match="did you mean tracr-reverse"):
        tracr.TracrTask.of("tracr-revers")
    with pytest.raises(AcdcError, match="unknown distribution 'mixd'"):
        tracr.TracrTask.of("tracr-reverse", distribution="mixd")
    with pytest.raises(AcdcError, match="unknown ablation"):
        tracr.TracrTask.of("tracr-reverse", ablation="nothing")
    with pytest.raises(TaskError, match="is what the model 'tracr-reverse' does, got model 'tracr-hist'"):
        tracr.TracrTask.of("tracr-reverse").prepare(model_of("tracr-hist"))
    with pytest.raises(TaskError, match="ask for"):
        tracr.TracrTask.of("tracr-majority", distribution="fixed", size=600).prepare(model_of("tracr-majority"))
    few = dataclasses.replace(tracr.TracrTask.of("tracr-shuffle-dyck2"), size=1)
    assert "to show every true edge" in few.prepare(model_of("tracr-shuffle-dyck2")).warnings[0]
