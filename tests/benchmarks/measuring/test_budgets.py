"""Guided pruning and ACDC are compared at the same budget, on the same prompts."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import problems
from acdc.benchmarks.measuring import budgets
from acdc.benchmarks.suites import get_suite
from acdc.engine.measure import Measures
from acdc.errors import AcdcError
from acdc.methods.search import Search


def test_acdc_s_circuit_is_the_smallest_within_the_budget_of_those_tried() -> None:
    patching, measure = problems.make("gpt2-scaled-by-layer", metric="kl")
    budget = 0.3 * Measures.of(patching, measure).separation()
    kept, tau, seconds, all_seconds = budgets.best_within(patching, measure, budget)
    assert problems.distance(patching, measure, kept) <= budget * (1 + 1e-9)
    assert seconds < all_seconds
    again = Search(patching, measure)
    again.sweep(lambda new, old: new - old < tau)
    assert (again.kept == kept).all()
    higher = Search(patching, measure)
    higher.sweep(lambda new, old: new - old < tau * 1.5)
    assert higher.distance > budget or higher.kept.sum() >= kept.sum()


def test_a_tiny_budget_is_kept_too() -> None:
    patching, measure = problems.make("gpt2-scaled-by-layer", metric="kl")
    budget = 1e-6 * Measures.of(patching, measure).separation()
    kept, _, _, _ = budgets.best_within(patching, measure, budget)
    assert problems.distance(patching, measure, kept) <= budget


@pytest.mark.parametrize("budget", [0.0, -1.0])
def test_a_budget_must_be_positive(budget: float) -> None:
    patching, measure = problems.make("gpt2-scaled-by-layer", metric="kl")
    with pytest.raises(AcdcError, match="expected a budget above 0, got"):
        budgets.best_within(patching, measure, budget)


def test_the_comparison_is_written_to_files(tmp_path: Path) -> None:
    (case,) = get_suite("trained", cases=["induction-2l-resample"]).cases
    rows = list(budgets.compare(case, "kl", [0.1, 0.3]))
    assert [row.budget for row in rows] == [0.1, 0.3]
    for row in rows:
        assert 0 < row.guided_edges <= row.acdc_edges
        assert row.guided_held_out < 1.5 * row.budget
        assert 0 < row.threshold <= 1
    assert rows[1].guided_edges <= rows[0].guided_edges
    assert np.isclose(budgets.ratio(rows[:1]), rows[0].guided_edges / rows[0].acdc_edges)
    budgets.write(tmp_path, rows, "python -m acdc.benchmarks.measuring.budgets")
    table = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [int(row["guided_edges"]) for row in table] == [row.guided_edges for row in rows]
    text = (tmp_path / "README.md").read_text()
    assert f"| 10% | {rows[0].acdc_edges} | {rows[0].guided_edges} |" in text
    assert (tmp_path / "edges.svg").read_text().startswith("<svg")


def test_unknown_cases_are_refused() -> None:
    with pytest.raises(AcdcError, match="unknown case of suite"):
        budgets.main(["--cases", "nothing"])
