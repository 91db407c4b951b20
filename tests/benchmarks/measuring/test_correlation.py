"""Correlations of attribution with exact patching: the sample that stands for a large model is measured exactly."""

from __future__ import annotations

import numpy as np
import pytest

import acdc
from acdc.benchmarks.measuring import correlation
from acdc.engine.problem import Problem


def test_a_sample_of_edges_is_what_exact_patching_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    model = acdc.load("tiny-tasks-gqa")
    data, graph = acdc.tasks.load("ioi", size=8).prepare(model), model.graph()
    problem = Problem(model, graph, data.discovery[:1], data.metric, data.ablation)
    assert (correlation.sample(graph) == graph.valid).all()
    monkeypatch.setattr(correlation, "LARGE", 0)
    monkeypatch.setattr(correlation, "EACH", 5)
    chosen = correlation.sample(graph)
    assert {name: int((chosen & of[:, None]).sum()) for name, of in correlation.classes(graph).items()} == {
        name: 5 for name in correlation.CLASSES
    }
    exact = acdc.score(model, data.discovery[:1], "exact", metric=data.metric, ablation=data.ablation).values
    found = correlation.effects(problem, chosen)
    np.testing.assert_allclose(found[chosen], exact[chosen], atol=1e-4)
    assert np.isnan(found[~chosen]).all()
