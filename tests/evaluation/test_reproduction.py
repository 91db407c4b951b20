"""A circuit of a program is right if it reproduces every output and no edge can go, whatever single edges do."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import acdc
from acdc.circuit import Circuit
from acdc.evaluation.judging import judging_problem
from acdc.evaluation.reproduction import reproduction
from acdc.graph import Graph


def judged(edges: Any, graph: Graph, **options: Any) -> Any:
    model, task = acdc.load("tracr-palindrome"), acdc.tasks.load("tracr-palindrome", **options)
    return acdc.evaluate(model, task, Circuit(graph, edges), random_circuits=0, confidence=None)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return acdc.load("tracr-palindrome").graph(inputs="split")


def test_with_zeros_the_singly_necessary_edges_are_no_circuit_without_spare_edges(graph: Graph) -> None:
    options = {"ablation": "zero", "distribution": "mixed"}
    model, task = acdc.load("tracr-palindrome"), acdc.tasks.load("tracr-palindrome", **options)
    truth = task.truth()
    assert truth.edges_are == "singly necessary edges"
    whole = judged(truth.mask(graph), graph, **options)
    assert whole.truth.edges_are == "singly necessary edges"
    assert (whole.truth.missed, whole.truth.false_positives) == (0, 0)
    assert whole.reproduction.reproduced == whole.reproduction.n_prompts
    assert whole.reproduction.removable is not None  # though the full model needs each
    assert not whole.reproduction.is_right
    found = acdc.discover(model, task, graph=graph)
    kept = judged(found.edges, graph, **options)
    assert kept.truth.missed > 0
    assert kept.reproduction.is_right


def test_the_true_circuit_is_right_and_no_other_size_is(graph: Graph) -> None:
    truth = acdc.tasks.load("tracr-palindrome").truth().mask(graph)
    assert judged(truth, graph).reproduction.is_right
    more, fewer = truth.copy(), truth.copy()
    more[tuple(np.argwhere(graph.valid & ~truth)[0])] = True
    fewer[tuple(np.argwhere(truth)[0])] = False
    assert judged(more, graph).reproduction == dataclasses.replace(
        judged(truth, graph).reproduction, removable=graph.edge_name(*np.argwhere(graph.valid & ~truth)[0])
    )
    missing = judged(fewer, graph).reproduction
    assert missing.reproduced < missing.n_prompts
    assert not missing.is_right


def test_edges_are_looked_at_beyond_the_first_batch(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = acdc.load("tracr-palindrome"), acdc.tasks.load("tracr-palindrome")
    truth = task.truth().mask(graph)
    spare = np.argwhere(graph.valid & ~truth)[-1]
    edges = truth.copy()
    edges[tuple(spare)] = True
    assert tuple(np.argwhere(edges)[1]) < tuple(spare)
    monkeypatch.setattr("acdc.evaluation.reproduction.CIRCUITS_AT_ONCE", 2)
    problem = judging_problem(model, task.prepare(model), graph)
    assert reproduction([problem], edges).removable == graph.edge_name(*spare)


def test_where_no_circuit_is_the_true_one_outputs_still_decide(graph: Graph) -> None:
    found = judged(graph.valid, graph, ablation="mean")
    assert found.truth is None
    assert found.reproduction.reproduced == found.reproduction.n_prompts


def test_noisy_outputs_are_not_judged_so() -> None:
    model = acdc.load("induction-2l")
    task = acdc.tasks.load("induction", size=4)
    result = acdc.evaluate(model, task, Circuit(model.graph(), model.graph().valid), random_circuits=0)
    assert result.reproduction is None
