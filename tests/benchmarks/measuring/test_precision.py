"""Tests in bfloat16 beside tests in float32: what is compared is what a search would be told."""

from __future__ import annotations

import numpy as np
import pytest

import acdc
from acdc.benchmarks.measuring.precision import Compared, compare
from acdc.engine.measure import Measures
from acdc.engine.problem import Problem


def test_rises_are_those_of_circuits_without_one_edge() -> None:
    found = compare("tiny-tasks", size=8, edges=60, tests=6)
    model = acdc.load("tiny-tasks")
    data = acdc.tasks.load("ioi", size=8, metric="kl").prepare(model)
    problem = Problem(model, model.graph(), data.discovery, data.metric)
    measures = Measures(data.metric, problem.searched())
    assert found.separation == pytest.approx(measures.separation())
    for edge, (rise, _) in zip(found.edges, found.rises.T, strict=True):
        less = found.kept.copy()
        less.flat[edge] = False
        assert rise == pytest.approx(measures.distance(less) - measures.distance(found.kept), abs=1e-5)
    assert 0 < found.errors.max() < 0.05


def test_the_report_says_what_is_decided_alike() -> None:
    nothing, edges = np.zeros((1, 1), dtype=bool), np.arange(3)
    rises = np.array([[0.02, 0.0005, 0.3], [0.03, 0.002, 0.3]])
    found = Compared(nothing, edges, rises, (2.0, 1.0), separation=1.0)
    assert found.agreement(0.001) == pytest.approx(2 / 3)
    assert found.agreement(0.01) == 1
    report = found.report()
    assert "| processor seconds, 3 edges | 2.0 | 1.0 |" in report
    assert "| decided alike at τ = 0.001 | | 66.7% |" in report
