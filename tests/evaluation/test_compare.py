"""Circuits beside each other: sets, ranks, and who is faithful where."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

import acdc
from acdc.circuit import Circuit, Scores
from acdc.errors import AcdcError
from acdc.evaluation.compare import compare
from acdc.graph import Graph
from command_line import Command

GRAPH = Graph(n_layers=1, n_heads=2)


def circuit(*names: str, seed: int | None = None) -> Circuit:
    scores = None
    if seed is not None:
        values = np.where(GRAPH.valid, np.random.default_rng(seed).normal(size=GRAPH.valid.shape), 0.0)
        scores = Scores(GRAPH, values)
    return Circuit(GRAPH, GRAPH.edges_from_names(list(names)), scores)


def test_edges_are_sets_and_rankings_are_ranks() -> None:
    a = circuit("input->logits", "input->m0", "m0->logits", seed=0)
    b = circuit("input->logits", "input->a0.h0<v>", "a0.h0->logits", seed=1)
    found = compare([a, b, circuit("input->logits")], ["a", "b", "c"])
    pair = found.pairs[0]
    assert pair.jaccard == pytest.approx(1 / 5)
    assert set(pair.only_first) == {"input->m0", "m0->logits"}
    assert set(pair.only_second) == {"input->a0.h0<v>", "a0.h0->logits"}
    assert a.scores is not None
    assert b.scores is not None
    sizes = [np.abs(x.scores.values[GRAPH.valid]) for x in (a, b)]  # type: ignore[union-attr]
    assert pair.rank_correlation == pytest.approx(float(scipy.stats.spearmanr(*sizes).statistic))
    assert [p.rank_correlation for p in found.pairs[1:]] == [None, None]
    assert found.edges == (3, 3, 1)


def test_each_ranks_by_the_aggregate_it_was_chosen_by() -> None:
    rng = np.random.default_rng(3)
    values, absolute = (np.where(GRAPH.valid, rng.normal(size=GRAPH.valid.shape), 0.0) for _ in range(2))
    scores = Scores(GRAPH, values, absolute=np.abs(absolute), rms=np.abs(absolute))
    made = circuit("input->logits").provenance
    some = [
        Circuit(GRAPH, scores.top(4, aggregate=by).edges, scores, made.having(selection={"aggregate": by}))
        for by in ("mean-absolute", "signed")
    ]
    sizes = [np.abs(x)[GRAPH.valid] for x in (absolute, values)]
    expected = float(scipy.stats.spearmanr(*sizes).statistic)
    assert compare(some, ["a", "b"]).pairs[0].rank_correlation == pytest.approx(expected)
    same = compare([some[0], dataclasses.replace(some[0])], ["a", "b"])
    assert same.pairs[0].rank_correlation == pytest.approx(1)


def test_what_a_file_does_not_rank_is_not_compared() -> None:
    whole = circuit("input->logits", "input->m0", "m0->logits", "input->a0.h0<v>", "a0.h0->logits", seed=0)
    assert whole.scores is not None
    held = Scores(GRAPH, np.where(whole.edges, whole.scores.values, 0.0))
    own = compare([whole, Circuit(GRAPH, whole.edges, held)], ["a", "b"])
    assert own.pairs[0].rank_correlation == pytest.approx(1)
    two = GRAPH.edges_from_names(["input->m0", "m0->logits"])
    few = Circuit(GRAPH, two, Scores(GRAPH, np.where(two, whole.scores.values, 0.0)))
    assert compare([whole, few], ["a", "b"]).pairs[0].rank_correlation is None


def test_what_cannot_be_compared_is_refused() -> None:
    a = circuit("input->logits")
    other = Graph(n_layers=2, n_heads=2)
    b = Circuit(other, other.valid)
    with pytest.raises(AcdcError, match="n_layers=2 instead of 1"):
        compare([a, b], ["a", "b"])
    with pytest.raises(AcdcError, match="two circuits or more"):
        compare([a], ["a"])
    with pytest.raises(AcdcError, match="a name of its own"):
        compare([a, a], ["a", "a"])


@pytest.mark.filterwarnings("always")
def test_the_command_judges_each_on_the_others_task(tmp_path: Path, command: Command) -> None:
    model = acdc.load("tracr-hist")
    for name, ablation in (("one", "resample"), ("other", "zero")):
        task = acdc.tasks.load("tracr-hist", ablation=ablation, seed=1)
        acdc.discover(model, task, "eap-ig", edges=8).save(tmp_path / name)
    result = command("compare", str(tmp_path / "one"), str(tmp_path / "other"), "--json")
    assert "differ" not in result.err  # a run from Python knows the seed of its task
    found = json.loads(result.out)
    assert found["prompts"] == ["held-out"] * 2
    table = np.array(found["faithfulness"])
    assert table.shape == (2, 2)
    for row, name in enumerate(("one", "other")):
        loaded = Circuit.load(tmp_path / name)
        for column, ablation in enumerate(("resample", "zero")):
            task = acdc.tasks.load("tracr-hist", ablation=ablation, seed=1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                judged = acdc.evaluate(model, task, loaded, random_circuits=0)
            assert table[row, column] == pytest.approx(judged.faithfulness)
    text = command("compare", str(tmp_path / "one"), str(tmp_path / "other"), "--only-edges").out
    assert "Jaccard" in text
    assert "held-out" not in text


@pytest.mark.filterwarnings("ignore:the (held-out )?prompts of tracr-hist differ")
def test_prompts_that_another_circuit_was_found_on_are_said() -> None:
    model = acdc.load("tracr-hist")
    data = acdc.tasks.load("tracr-hist").prepare(model)
    some = dataclasses.replace(data, discovery=data.discovery[:8], held_out=data.discovery[8:20])
    other = dataclasses.replace(data, discovery=data.discovery[10:16], held_out=data.discovery[20:24])
    found = [acdc.discover(model, each, "eap-ig", edges=8) for each in (some, other)]
    given = iter((some, other))

    class Given:
        def __init__(self, prepared: Any) -> None:
            self.prepared = prepared

        def prepare(self, model: Any) -> Any:
            return self.prepared

    said = compare(found, ["one", "two"], opened=lambda _: (model, Given(next(given))))  # type: ignore[return-value,arg-type]
    assert said.notes == (
        "of the 12 prompts of one's task circuits were found on some: two on 6; all are judged on the other 6",
    )
    left = dataclasses.replace(some, held_out=data.discovery[16:20])
    assert said.faithfulness is not None
    for row, one in zip(said.faithfulness, found, strict=True):
        assert row[0] == pytest.approx(acdc.evaluate(model, left, one, random_circuits=0).faithfulness)
    assert said.prompts == ("held-out", "held-out")
    foreign = [dataclasses.replace(each, provenance=each.provenance.having(prompts_sha256="")) for each in found]
    given = iter((some, other))
    said = compare(foreign, ["one", "two"], opened=lambda _: (model, Given(next(given))))  # type: ignore[return-value,arg-type]
    assert (said.notes, said.prompts) == ((), ("given", "given"))


def test_one_run_is_too_few_for_the_command(tmp_path: Path, command: Command) -> None:
    found = command("compare", str(tmp_path))
    assert found.status == 2


@pytest.mark.parametrize("words", [("evaluate",), ("compare",)])
def test_a_task_that_only_python_had_is_said_to_be_the_runs(
    words: tuple[str], tmp_path: Path, command: Command
) -> None:
    model = acdc.load("tracr-hist")
    prompts = acdc.tasks.load("tracr-hist").prepare(model).discovery
    for name in ("one", "other"):
        task = dataclasses.replace(acdc.tasks.load("tracr-hist").prepare(model), name="prompts", discovery=prompts)
        acdc.discover(model, task, "eap-ig", edges=8).save(tmp_path / name)
    result = command(*words, *(str(tmp_path / name) for name in ("one", "other")[: 1 + (words[0] == "compare")]))
    assert result.status == 2
    assert "the run names 'prompts' as its task" in result.err
