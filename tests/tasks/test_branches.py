"""Answers of several tokens: one run of a prompt with all of them gives what a run an answer would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import acdc
from acdc.engine.measure import bind
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.engine.references import mean_references
from acdc.errors import AcdcError, TaskError, UnsupportedModelError
from acdc.metrics import OUTCOMES
from acdc.model.model import Model
from acdc.tasks.prompts import Padding, Prompts
from problems import tiny
from tiny_tokenizers import StandIn

Texts = list[list[list[int]]]
CLEAN, CORRUPTED = [[3, 1, 4, 1, 5], [9, 2, 6]], [[3, 2, 7, 1, 5], [9, 8, 6]]
ANSWERS: Texts = [[[7, 8, 2]], [[1], [4, 4]]]
WRONG: Texts = [[[7, 9], [5, 5, 5, 1]], [[6, 3, 2]]]


def branched(padding: Padding = "right") -> Prompts:
    return Prompts.from_continuations(CLEAN, CORRUPTED, ANSWERS, WRONG, padding=padding)


@torch.no_grad()
def slow_log_probability(
    model: Model, prompt: int, text: list[int], edges: np.ndarray, ablation: Any
) -> tuple[float, int]:
    """Log-probability of one answer under a circuit, in a run of its own, and its number of tokens."""
    rows = [[*side[prompt], *text[:-1]] for side in (CLEAN, CORRUPTED)]
    read = torch.arange(len(CLEAN[prompt]) - 1, len(rows[0]))[None]
    clean, corrupted = (torch.tensor([row]) for row in rows)
    alone = Prompts(clean, corrupted, torch.ones_like(clean, dtype=torch.bool), read)
    logits = Patching(model, model.graph(), alone, ablation=ablation).logits(edges)[0, 0]
    return float(logits.log_softmax(-1)[range(len(text)), text].sum()), len(text)


def slow(model: Model, metric: str, prompt: int, edges: np.ndarray, ablation: Any) -> float:
    right, wrong = (
        [slow_log_probability(model, prompt, text, edges, ablation) for text in texts[prompt]]
        for texts in (ANSWERS, WRONG)
    )
    if metric.endswith("by-token"):
        right, wrong = ([(total / n, 1) for total, n in part] for part in (right, wrong))
    a, w = (np.array([total for total, _ in part]) for part in (right, wrong))
    if "log" not in metric:
        return float(np.exp(a).sum() - (np.exp(w).sum() if "difference" in metric else 0))
    return float(a.mean() - w.mean()) if "difference" in metric else float(np.log(np.exp(a).sum()))


METRICS = [name for name, outcome in OUTCOMES.items() if outcome.takes_texts and outcome.differentiable]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("ablation", ["resample", "zero"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt-neox-parallel"])
def test_every_answer_is_as_likely_as_alone(family: str, ablation: Any, padding: Padding) -> None:
    model = tiny(family)
    graph = model.graph()
    edges = graph.valid & (np.random.default_rng(0).random(graph.valid.shape) < 0.7)
    patching = Patching(model, graph, branched(padding), ablation=ablation)
    with torch.no_grad():
        for metric in METRICS:
            measure = bind(OUTCOMES[metric], patching)
            found = measure.value(patching.logits(edges, rows=measure.rows))[0].tolist()
            expected = [slow(model, metric, i, edges, ablation) for i in range(len(CLEAN))]
            assert found == pytest.approx(expected, rel=1e-8, abs=1e-10), metric


def test_of_one_token_the_difference_is_that_of_logits() -> None:
    model = tiny("gpt2")
    one = Prompts.from_tokens(CLEAN, CORRUPTED, [7, 1], [[5, 6], [2, 3]])
    texts = Prompts.from_continuations(CLEAN, CORRUPTED, [[[7]], [[1]]], [[[5], [6]], [[2], [3]]])
    graph = model.graph()
    for prompts in (one, texts):
        task = acdc.tasks.as_dataset(prompts, model, metric="log-probability-difference")
        found = acdc.score(model, task, "exact").values
        expected = acdc.score(model, one, "exact", metric="logit-difference").values
        np.testing.assert_allclose(found, expected, atol=1e-9)
    assert graph.n_edges


def test_edges_are_ranked_by_what_their_removal_does_to_whole_answers() -> None:
    model, metric = tiny("gpt2"), "log-probability-difference"
    graph = model.graph()
    scores = acdc.score(model, branched(), "exact", metric=metric)
    full = np.mean([slow(model, metric, i, graph.valid, "resample") for i in (0, 1)])
    for name in ("input->a0.h0<q>", "m0->logits", "a0.h1->a1.h0<k>"):
        edges = np.array(graph.valid)
        edges[graph.edge(name)] = False
        without = np.mean([slow(model, metric, i, edges, "resample") for i in (0, 1)])
        assert scores[name] == pytest.approx(full - without, abs=1e-9)


@pytest.mark.filterwarnings("ignore:.*does not do the task")
@pytest.mark.parametrize("method", ["eap-ig", "guided", "acdc"])
def test_methods_search_and_judge_by_whole_answers(method: str) -> None:
    model = tiny("gpt2")
    task = acdc.tasks.as_dataset(branched(), model, metric="log-probability-difference")
    circuit = acdc.discover(model, task, method, **({} if method != "acdc" else {"threshold": 0.05}))
    found = acdc.evaluate(model, task, circuit, random_circuits=0)
    expected = np.mean([slow(model, task.metric.name, i, circuit.edges, "resample") for i in (0, 1)])
    assert found.circuit == pytest.approx(expected, abs=1e-8)


def test_a_mean_by_position_counts_an_answers_tokens_from_its_prompt() -> None:
    model = tiny("gpt2")
    graph = model.graph()
    both = Prompts.from_continuations(CLEAN[:1], CORRUPTED[:1], [[[7, 8, 2]]], [[[7, 8, 3]]])
    twice = Prompts.from_continuations(CLEAN[:1] * 2, CORRUPTED[:1] * 2, [[[7, 8, 2]]] * 2, None)
    assert both.branched
    assert not twice.branched
    values = []
    for prompts in (both, twice):  # the two branches see the same tokens, so their mean is that of each
        patching = Patching(model, graph, prompts, ablation="mean-position")
        with torch.no_grad():
            values.append(
                float(bind(OUTCOMES["log-probability"], patching).value(patching.logits(graph.valid & False))[0, 0])
            )
    assert values[0] == pytest.approx(values[1], abs=1e-9)


@pytest.mark.parametrize("ablation", ["resample", "mean", "mean-position"])
@pytest.mark.parametrize("metric", ["kl", "l2", "log-probability"])
def test_wrong_answers_change_nothing_but_what_reads_them(metric: str, ablation: Any) -> None:
    model = tiny("gpt2")
    graph = model.graph()
    values = []
    for wrong in (None, WRONG, [[[2, 2, 2, 2, 2]], [[7]]]):
        prompts = Prompts.from_continuations(CLEAN, CORRUPTED, ANSWERS, wrong)
        patching = Patching(model, graph, prompts, ablation=ablation)
        with torch.no_grad():
            values.append(bind(OUTCOMES[metric], patching).value(patching.logits(graph.valid & False)))
    torch.testing.assert_close(values[1], values[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(values[2], values[0], rtol=0, atol=1e-9)


def test_means_are_over_prompts_and_not_over_answers() -> None:
    model = tiny("gpt2")
    graph = model.graph()
    alone = Prompts.from_tokens(CLEAN, CORRUPTED)
    for per_position in (False, True):
        own = mean_references(model, graph, alone, per_position=per_position)
        with_answers = mean_references(model, graph, branched(), per_position=per_position)
        for a, b in zip((*own.inputs, *own.outputs), (*with_answers.inputs, *with_answers.outputs), strict=True):
            torch.testing.assert_close(b[..., : a.shape[-2], :], a, rtol=0, atol=1e-9)


def test_lengths_are_of_the_prompts() -> None:
    assert branched().lengths == (3, 5)
    assert str(branched()) == "2 pairs of 3 to 5 tokens"
    assert branched().compared.sum(1).tolist() == [3, 2]  # the end, and what leads to each further right token


def test_a_model_that_cannot_keep_answers_apart_is_refused() -> None:
    longer: Texts = [[[7] * 12], [[1]]]
    prompts = Prompts.from_continuations(CLEAN, CORRUPTED, longer, WRONG)
    with pytest.raises(UnsupportedModelError, match="side by side"):
        Problem(tiny("llama-dynamic"), tiny("llama-dynamic").graph(), prompts, OUTCOMES["log-probability"])


def test_a_metric_of_one_token_refuses_texts() -> None:
    with pytest.raises(
        TaskError, match=r"several tokens, and metric 'logit-difference' takes one; .*log-probability"
    ):
        acdc.score(tiny("gpt2"), branched(), "eap", metric="logit-difference")


@pytest.mark.parametrize("bad", [[[[1]]], [[[1]], [[]]], [[[1]], [[-2]]], [[[1]], [3]], [[["x"]], [[1]]]])
def test_bad_texts_are_named(bad: Any) -> None:
    with pytest.raises(TaskError, match="answers"):
        Prompts.from_continuations(CLEAN, CORRUPTED, bad)


# ---- files ------------------------------------------------------------------------------------------------------


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return path


def test_a_file_may_have_answers_of_several_tokens(tmp_path: Path, gpt2_like: StandIn) -> None:
    line = {
        "clean": "When Mary and John",
        "corrupted": "When Anna and Paul",
        "answers": " went to",
        "wrong_answers": " gave",
    }
    data = acdc.tasks.load(write(tmp_path, line)).prepare(gpt2_like)
    assert data.metric.name == "log-probability-difference"
    assert "several tokens" in data.warnings[0]
    token = gpt2_like.tokenizer.convert_tokens_to_ids
    prompts = data.discovery
    assert prompts.branch is not None
    assert prompts.clean[0].tolist()[-1] == token("Ġwent")
    assert prompts.positions.tolist() == [[3, 4]]
    assert prompts.answers is not None
    assert prompts.wrong is not None
    assert prompts.answers.tolist() == [[[token("Ġwent")], [token("Ġto")]]]
    assert prompts.wrong.tolist() == [[[token("Ġgave")], [-1]]]
    with pytest.raises(TaskError, match=r"2 tokens .*, expected one; .*log-probability-difference"):
        acdc.tasks.load(tmp_path / "mine.jsonl", metric="logit-difference").prepare(gpt2_like)


def test_token_files_list_the_tokens_of_an_answer(tmp_path: Path) -> None:
    line = {"clean_tokens": [1, 2], "corrupted_tokens": [1, 3], "answer_tokens": [[5, 6], 7], "wrong_tokens": 4}
    data = acdc.tasks.load(write(tmp_path, line)).prepare(StandIn(vocabulary_size=100))
    assert data.discovery.answers is not None
    assert data.discovery.answers.tolist() == [[[5, 7], [6, -1]]]
    bad = line | {"answer_tokens": [[5, "x"]]}
    with pytest.raises(AcdcError, match="'answer_tokens': expected a token id"):
        acdc.tasks.load(write(tmp_path, bad))


def test_a_model_is_checked_on_whole_answers() -> None:
    model = tiny("gpt2")
    data = acdc.tasks.as_dataset(branched(), model, metric="log-probability-difference")
    report = acdc.tasks.check_task(model, data)
    every = model.graph().valid
    expected = [slow(model, "log-probability-difference", i, every, "resample") for i in (0, 1)]
    assert report.discovery.clean == pytest.approx(np.mean(expected), abs=1e-5)
