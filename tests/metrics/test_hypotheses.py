"""Tests of hypotheses: their p-values are rarely small where the hypothesis holds, and small where it is far off."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from acdc.errors import AcdcError
from acdc.metrics.hypotheses import (
    any_of,
    holm,
    hsic,
    mean_exceeds,
    mean_falls_short,
    quantile_bounded_by_largest,
    share_exceeds,
    share_falls_short,
)


@pytest.mark.parametrize("kind", ["bernoulli", "beta", "constant", "rare"])
def test_a_true_mean_is_rarely_rejected(kind: str) -> None:
    rng = np.random.default_rng(0)
    draw = {
        "bernoulli": lambda: (rng.random(60) < 0.1).astype(float),
        "beta": lambda: rng.beta(1, 9, 60),
        "constant": lambda: np.full(60, 0.1),
        "rare": lambda: 0.5 * (rng.random(60) < 0.2),
    }[kind]
    p = np.array([mean_exceeds(draw(), 0.1) for _ in range(2000)])
    for level in (0.05, 0.01):
        assert (p <= level).mean() <= level


def test_a_mean_far_off_is_rejected() -> None:
    rng = np.random.default_rng(0)
    assert mean_exceeds(rng.beta(2, 8, 200), 0.1) < 1e-6
    assert mean_falls_short(np.zeros(500), 0.02) < 0.05 * 0.02
    assert mean_exceeds(np.array([0.0] * 99 + [1e-9]), 0.0) == 0
    assert mean_exceeds(np.zeros(5), 0.0) == 1
    assert mean_exceeds(np.ones(5), 1.0) == 1
    with pytest.raises(AcdcError, match="between 0 and 1"):
        mean_exceeds(np.array([1.2]), 0.5)


def test_shares_are_binomial_tails_summed() -> None:
    n, p = 12, 0.3
    for k in range(n + 1):
        assert share_exceeds(k, n, p) == pytest.approx(sum(stats.binom.pmf(j, n, p) for j in range(k, n + 1)))
        assert share_falls_short(k, n, p) == pytest.approx(sum(stats.binom.pmf(j, n, p) for j in range(k + 1)))


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.6, 0.013], 0.05) == [False, True, False, True]  # 0.05/4, /3, then 0.04 > 0.05/2
    assert holm([], 0.05) == []
    assert any_of([0.2, 0.01]) == pytest.approx(0.02)
    assert any_of([]) == 1


def test_dependence_is_seen_and_independence_is_not_rejected() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(80)
    assert hsic(x, x**2 + 0.1 * rng.standard_normal(80))[1] < 0.01
    p = [hsic(rng.standard_normal(30), rng.standard_normal(30), permutations=99, seed=i)[1] for i in range(200)]
    assert np.mean(np.array(p) <= 0.05) <= 0.1
    assert hsic(x, np.zeros(80)) == (0.0, 1.0)
    for n in (16, 20, 32):  # every permutation is as dependent, and rounding must not tell them apart
        assert {hsic(np.repeat([0, 1], n // 2), np.arange(n) == 0, seed=i)[1] for i in range(4)} == {1.0}


def test_the_largest_of_many_bounds_a_quantile() -> None:
    rng = np.random.default_rng(0)
    q = quantile_bounded_by_largest(50)
    assert np.mean(rng.random((4000, 50)).max(axis=1) >= q) == pytest.approx(0.95, abs=0.015)
