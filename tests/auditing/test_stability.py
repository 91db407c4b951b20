"""Stability: samples of prompts are cut and searched as the circuit was, and what they do not give again is told."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from typing import Any

import numpy as np
import pytest

import acdc
from acdc.auditing import stability
from acdc.auditing.record import Finding
from acdc.circuit import Circuit
from acdc.circuit.selection import Aggregate
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.graph import units_of
from acdc.methods.attribution import STEPS, path
from acdc.methods.by_prompt import resampled_sizes, scores_by_prompt
from acdc.tasks.prompts import Prompts


def test_searches_on_other_samples_say_how_often_each_edge_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same searches made by hand, on samples that share no prompt."""
    model, task = acdc.load("tiny-tasks-gqa"), acdc.tasks.load("ioi", size=8)
    data = task.prepare(model)
    circuit = acdc.discover(model, data, "eap", edges=40)
    seen: list[Prompts] = []

    def discover(model: acdc.Model, data: acdc.tasks.Dataset, method: str, **settings: Any) -> Circuit:
        seen.append(data.discovery)
        return acdc.discover(model, data, method, **settings)

    monkeypatch.setattr(stability, "discover", discover)
    report = acdc.audit(model, task, circuit, checks=["stability"], size=16, searches=3)
    found = report["stability"].details["searches on other prompts"]
    rows = [set(map(tuple, prompts.clean.tolist())) for prompts in (data.discovery, *seen)]
    assert [len(set.intersection(a, b)) for i, a in enumerate(rows) for b in rows[:i]] == [0] * 6
    again = [
        acdc.discover(model, dataclasses.replace(data, discovery=prompts, held_out=None), "eap", edges=40).edges
        for prompts in seen
    ]
    share = np.mean(again, axis=0)
    assert (found["always"], found["ever"]) == (int((share == 1).sum()), int((share > 0).sum()))
    assert found["always / ever"] == found["always"] / found["ever"] < 1
    assert found["edges"] == [40, 40, 40]
    graph = circuit.graph
    kept = {name: round(float(share[graph.edge(name)]), 3) for name in graph.edge_names(share > 0)}
    assert found["how often each edge is kept"] == kept
    assert found["overlap with the circuit"] == [acdc.metrics.jaccard(edges, circuit.edges) for edges in again]
    assert "keep" in report["stability"].found


def test_a_search_that_has_no_other_prompts_says_so() -> None:
    model = acdc.load("tiny-tasks-gqa")
    data = acdc.tasks.load("ioi", size=32).prepare(model)
    few = dataclasses.replace(data, held_out=data.held_out[:16] if data.held_out is not None else None)
    circuit = acdc.discover(model, few, "eap", edges=40)
    report = acdc.audit(model, few, circuit, checks=["stability"], size=16, searches=2)
    said = report["stability"].details["searches on other prompts"]
    assert said == {"not run": "there are 16 other prompts, and the circuit was found on 32"}
    assert "no search on other samples: there are 16" in report["stability"].found
    with pytest.raises(AcdcError, match="number of searches"):
        acdc.audit(model, few, circuit, searches=-1)


@pytest.mark.parametrize(
    "how",
    [
        {"method": "eap", "edges": 40, "select": "greedy", "aggregate": "signed"},
        {"method": "eap", "edges": 8, "units": "node"},
        {"method": "eap", "threshold": 0.05},
        {"method": "eap", "faithfulness": 0.8},
        {"method": "acdc", "threshold": 0.3},
    ],
    ids=lambda how: f"{how['method']}-{list(how)[1]}-{how.get('select') or how.get('units', '')}",
)
def test_a_search_is_made_again_as_it_was_asked(how: dict[str, Any]) -> None:
    """On its own prompts it finds the circuit that is audited."""
    model = acdc.load("tiny-tasks-gqa")
    data = acdc.tasks.load("ioi", size=16).prepare(model)
    circuit = acdc.discover(model, data, **how)
    same = dataclasses.replace(data, discovery=data.held_out, held_out=data.discovery)
    asked = stability._asked(circuit)
    sizes = {"edges", "threshold", "faithfulness"}
    assert {name: asked[name] for name in sizes & set(asked)} == {name: how[name] for name in sizes & set(how)}
    found = acdc.audit(model, same, circuit, checks=["stability"], size=16, searches=2)["stability"].details
    assert found["searches on other prompts"]["overlap with the circuit"] == [1.0, 1.0]


def test_a_circuit_on_the_front_of_a_search_is_searched_for_by_its_size() -> None:
    model = acdc.load("induction-2l")
    data = acdc.tasks.load("induction", size=32).prepare(model)
    circuit = acdc.discover(model, data, faithfulness=0.95)
    few = acdc.cut(model, data, circuit, edges=6)
    assert stability._asked(few) == {"edges": 6}
    found = acdc.audit(model, data, few, checks=["stability"], size=16, searches=1)["stability"].details
    assert found["searches on other prompts"]["edges"] == [6]


@pytest.mark.parametrize("kept", [5, 14, 55, 100])
def test_a_ranking_of_noise_is_not_stable(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=64)
    graph, rng = model.graph(), np.random.default_rng(0)
    noise = rng.lognormal(sigma=2, size=(32, graph.n_edges))
    best = graph.valid.copy()
    best[graph.valid] = np.argsort(np.argsort(-noise.mean(0))) < kept
    ranked = acdc.score(model, task, "eap-ig", metric="kl").top(kept, prune=False)

    def stable(circuit: Circuit) -> Finding:
        return acdc.audit(model, task, circuit, checks=["stability"], size=64, metric="kl")["stability"]

    assert stable(ranked).verdict == "pass"
    monkeypatch.setattr(stability, "scores_by_prompt", lambda *_, **__: noise)
    assert stable(Circuit(graph, best)).verdict == "fail"
    assert "say nothing of these" in stable(ranked & Circuit(graph, ~best & graph.valid)).found


def test_searches_are_told_of_a_circuit_that_no_ranking_speaks_of() -> None:
    model, data = (
        acdc.load("induction-2l"),
        acdc.tasks.load("induction", size=16).prepare(acdc.load("induction-2l")),
    )
    circuit = acdc.discover(model, data, "random", edges=12)
    for searches, verdict in ((0, "not applicable"), (1, "not applicable"), (2, "pass")):
        audited = acdc.audit(model, data, circuit, checks=["stability"], size=16, searches=searches)["stability"]
        assert audited.verdict == verdict, audited.found


def test_searches_that_find_other_circuits_fault_one_that_no_ranking_speaks_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = acdc.load("induction-2l")
    task = acdc.tasks.load("induction", size=16)
    circuit = acdc.discover(model, task, "guided", units="node")
    same = acdc.audit(model, task, circuit, checks=["stability"], size=64, searches=3)["stability"]
    assert same.verdict == "pass"
    assert "what is resampled is a ranking of edges, and the circuit is of nodes; searches on 3" in same.found
    assert same.details["searches on other prompts"]["nodes"] == [circuit.n_units] * 3
    others = itertools.cycle([["input"], ["input", "a0.h0"], ["input", "m0"]])
    units = units_of(circuit.graph, "node")

    def discover(*_: Any, **__: Any) -> Circuit:
        kept = np.isin(units.names, next(others))
        return Circuit(circuit.graph, circuit.graph.prune(units.mask(kept)), unit="node")

    monkeypatch.setattr(stability, "discover", discover)
    other = acdc.audit(model, task, circuit, checks=["stability"], size=64, searches=3)["stability"]
    assert other.verdict == "fail", other.found


@pytest.mark.parametrize(
    ("select", "aggregate"),
    [("top", "mean-absolute"), ("greedy", "mean-absolute"), ("top", "signed"), ("top", "rms")],
)
def test_samples_of_a_ranking_are_cut_as_the_circuit_was(
    select: str, aggregate: Aggregate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How often each edge is kept, by a loop over samples that cuts as `Scores.top` does."""
    monkeypatch.setattr(stability, "RESAMPLES", 100)
    model, task = acdc.load("interp-reverse"), acdc.tasks.load("interp-reverse", size=32)
    data = task.prepare(model)
    circuit = acdc.discover(model, data, "eap-ig", edges=6, select=select, aggregate=aggregate)
    found = acdc.audit(model, task, circuit, checks=["stability"], size=64)["stability"].details
    assert found["ranking and circuit overlap"] == 1.0
    problem = Problem(model, circuit.graph, data.discovery, data.metric, data.ablation)
    scores = scores_by_prompt(problem, alphas=path(STEPS, data.ablation))
    kept = []
    for sizes in resampled_sizes(scores, 100, seed=0, aggregate=aggregate):
        spread = np.zeros(circuit.graph.valid.shape)
        spread[circuit.graph.valid] = sizes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some are of fewer edges
            kept.append(acdc.Scores(circuit.graph, spread, "eap-ig", absolute=spread).top(6, select=select).edges)
    share = np.mean(kept, axis=0)[circuit.edges].round(3)
    assert found["how often each edge is kept"] == dict(zip(circuit.edge_names(), share.tolist(), strict=True))
