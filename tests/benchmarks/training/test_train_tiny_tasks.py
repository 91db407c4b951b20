"""The tiny-tasks models: what they do, and that their training can be made again and goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import acdc
from acdc.benchmarks.training import train_tiny_tasks as training
from acdc.benchmarks.training.tiny_corpus import ARROW, IOI_NAMES, TASKS, WORD, never_held_out, vocabulary
from acdc.benchmarks.training.train_tiny_tasks import (
    MODELS,
    RECIPES,
    accuracy,
    collate,
    draw,
    encode,
    held_out_lines,
    train,
)
from acdc.model.load import BUILTIN

BUILT_IN = [name for name in MODELS if (BUILTIN / name).is_dir()]


@pytest.fixture(scope="module", params=BUILT_IN)
def model(request: pytest.FixtureRequest) -> acdc.Model:
    return acdc.load(request.param)


@pytest.mark.parametrize("task", TASKS)
def test_it_does_each_task_on_held_out_lines(task: str, model: acdc.Model) -> None:
    assert accuracy(model.module, model.tokenizer, held_out_lines(task, 120, seed=2)) >= 0.95  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS)
def test_it_does_the_built_in_tasks(task: str, model: acdc.Model) -> None:
    report = acdc.tasks.check_task(model, acdc.tasks.load(task, size=60))
    assert not report.problems
    assert report.held_out is not None
    for quality in (report.discovery, report.held_out):
        assert quality.accuracy is not None
        assert quality.accuracy >= 0.95
        assert quality.clean > quality.corrupted


def test_indirect_objects_are_what_it_was_made_for(model: acdc.Model) -> None:
    assert acdc.tasks.default_task(model.name) == "ioi"


@pytest.mark.slow
def test_its_circuit_for_indirect_objects_works_on_held_out_prompts(model: acdc.Model) -> None:
    task = acdc.tasks.load("ioi", size=32)
    circuit = acdc.discover(model, task, faithfulness=0.9)
    judged = acdc.evaluate(model, task, circuit)
    assert circuit.n_edges < judged.n_edges_total / 2
    assert judged.faithfulness > 0.75 > max(judged.random_faithfulness) + 0.2


def test_record_and_weights_are_small_and_tell_the_accuracy(model: acdc.Model) -> None:
    folder = BUILTIN / model.name
    record = json.loads((folder / "training.json").read_text())
    assert min(record["accuracy"][task] for task in TASKS) >= 0.95
    assert record["seconds"] < 2 * 3600
    assert (folder / "model.safetensors").stat().st_size < 4_000_000


def test_every_word_is_one_token(model: acdc.Model) -> None:
    tokens = model.tokenizer([f"{word} {word}" for word in vocabulary()])["input_ids"]
    assert all(len(row) == 3 and row[1] == row[2] != model.tokenizer.unk_token_id for row in tokens)
    assert len({row[1] for row in tokens}) == len(vocabulary()) == model.vocabulary_size - 3


def test_arrows_become_weights() -> None:
    tokenizer = training.make_tokenizer()
    lines = draw(random.Random(0), 60, RECIPES["tiny-tasks"].shares)
    tokens, weights = collate(encode(tokenizer, lines), tokenizer.pad_token_id)
    for line, row, weight in zip(lines, tokens.tolist(), weights, strict=True):
        words = [word for word in tokenizer.convert_ids_to_tokens(row) if word != "<pad>"]
        marked = WORD.findall(line.text.replace("<s>", ""))
        assert words == ["<s>", *(word for word in marked if word != ARROW)]
        predictable = [marked[i + 1] for i, word in enumerate(marked) if word == ARROW]
        assert [words[i] for i in weight.nonzero()[:, 0].tolist()] == predictable
        assert float(weight.sum()) == pytest.approx(len(predictable) ** 0.5)


def test_misread_words_are_no_special_tokens_and_never_what_a_task_holds_out() -> None:
    tokenizer = training.make_tokenizer()
    known = torch.tensor(tokenizer.convert_tokens_to_ids(never_held_out()))
    tokens, _ = collate(encode(tokenizer, draw(random.Random(0), 40, RECIPES["tiny-tasks"].shares)), 2)
    special = tokens < 3
    read = training.read_as(tokens, 1.0, known)
    assert torch.equal(read[special], tokens[special])
    assert torch.isin(read[~special], known).all()
    assert torch.equal(training.read_as(tokens, 0.0, known), tokens)
    names = {name for split in IOI_NAMES for name in split.of(True)}
    assert names
    assert not names & {*never_held_out()}


def test_shifted_lines_stay_within_the_context() -> None:
    positions = training.shifted_positions(torch.zeros(500, 20))
    assert (positions.diff(dim=1) == 1).all()
    assert positions.min() == 0
    assert positions.max() == training.CONTEXT - 1


SHORT: dict[str, Any] = {"batch_size": 16, "report_every": 2, "curve_lines": 4}


def weights_of(name: str, **settings: Any) -> dict[str, Tensor]:
    recipe = dataclasses.replace(RECIPES[name], steps=4, induction_steps=min(1, RECIPES[name].induction_steps))
    return train(name, recipe=recipe, **SHORT, **settings)[0].state_dict()


@pytest.mark.parametrize("name", MODELS)
def test_training_goes_on_as_if_it_had_not_been_cut_off(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights_of(name)
    save = training._save_progress

    def save_and_stop(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    path = tmp_path / "state.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(training, "_save_progress", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            weights_of(name, resume=path)
    resumed = weights_of(name, resume=path)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    with pytest.raises(SystemExit, match="of a training with seed 0, not 1"):
        weights_of(name, resume=path, seed=1)


def test_another_seed_gives_another_model() -> None:
    first, other = (weights_of("tiny-tasks", seed=seed) for seed in (1, 2))
    assert not all(torch.equal(first[key], other[key]) for key in first)
