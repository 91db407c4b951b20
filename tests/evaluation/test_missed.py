"""A bound on what a circuit left out is above the largest effect there is; random sets are enough of them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

import acdc
import problems
from acdc.errors import AcdcError
from acdc.evaluation.missed import _difference, _sets
from acdc.graph import units_of


def test_the_bound_is_above_the_largest_effect_that_was_left_out() -> None:
    """The most important nodes and edges are left out, and all others kept: the worst circuit there is."""
    model, prompts = problems.tiny("gpt2"), problems.make_prompts()
    for unit in ("node", "edge"):
        scores = acdc.score(model, prompts, "exact", units=unit)
        units = units_of(model.graph(), unit)
        effects = np.abs(units.values_of(scores.values)).ravel()
        order = np.argsort(effects)[effects.size - units.n :]
        kept = np.isin(np.arange(effects.size), order[:4]).reshape(units.shape)
        circuit = acdc.Circuit(model.graph(), units.mask(kept), unit=unit)
        found = acdc.missed(model, prompts, circuit, share=0.2)
        assert found.bound >= effects.max()
        assert found.outside == units.n - units.of_edges(circuit.edges).sum() == np.isfinite(found.effects).sum()
        assert found.unit in units.names
        assert found.record().keys() & {"effects", "bounds"} == set()


@pytest.mark.parametrize(
    ("effects", "samples"),
    [((1.0, 1.0, *[0.0] * 8), None), ((1.0, 1.0, *[0.0] * 98), 400), ((1.0, -1.0, 0.5, 0.5, *[0.0] * 16), None)],
)
def test_where_removals_add_up_the_bound_holds_as_often_as_it_says(
    effects: tuple[float, ...], samples: int | None
) -> None:
    """Two large units that are in no set together have no noise in the sets that hold them."""
    true, failed, n = np.array(effects), 0, 300
    for seed in range(n):
        chosen = _sets(len(true), samples, 0.05, np.random.default_rng(seed), "edges")
        estimate, error = _difference(chosen @ true, chosen)
        quantile = scipy.stats.t.ppf(1 - 0.05 / (2 * len(true)), len(chosen) - 2)
        failed += bool((np.abs(estimate) + quantile * error).max() < np.abs(true).max() - 1e-9)
    assert failed <= 0.05 * n


def test_each_estimate_is_a_difference_of_means_as_student_tests_it() -> None:
    rng = np.random.default_rng(0)
    change, chosen = rng.standard_normal(40), rng.random((40, 6)) < 0.3
    estimate, error = _difference(change, chosen)
    for i in range(6):
        test = scipy.stats.ttest_ind(change[chosen[:, i]], change[~chosen[:, i]], equal_var=True)
        assert estimate[i] / error[i] == pytest.approx(test.statistic)


def test_a_bound_needs_samples_and_something_to_miss() -> None:
    model, prompts = problems.tiny("gpt2"), problems.make_prompts()
    graph = model.graph()
    some = acdc.Circuit(graph, np.zeros_like(graph.valid), unit="node")
    with pytest.raises(AcdcError, match="nothing was left out"):
        acdc.missed(model, prompts, acdc.Circuit(graph, graph.valid))
    with pytest.raises(AcdcError, match="take more"):
        acdc.missed(model, prompts, some, samples=4)
    with pytest.raises(AcdcError, match="between 0 and 1"):
        acdc.missed(model, prompts, some, share=1.5)
