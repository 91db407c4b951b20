"""Intervals hold the true value as often as they say, and there is none where the data say too little."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from acdc.errors import AcdcError
from acdc.metrics import (
    faithfulness,
    faithfulness_interval,
    faithfulness_range,
    is_above_zero,
    magnitude_interval,
    mean_interval,
    proportion_interval,
    ratio_interval,
    share_interval,
)

random = np.random.default_rng(0)
FULL, EMPTY = random.normal(3, 1, 60), random.normal(0, 1, 60)
CIRCUIT = EMPTY + 0.8 * (FULL - EMPTY) + random.normal(0, 0.1, 60)


def missing(interval: tuple[float, float]) -> bool:
    return all(map(math.isnan, interval))


# ---- coverage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [8, 32])
def test_means_and_ratios_hold_the_true_value_as_often_as_they_say(n: int) -> None:
    """A mean of 5 and a ratio of means of .8, on 1000 sets of prompts."""
    draw = np.random.default_rng(n)
    full, empty = draw.normal(5, 1, (1000, n)), draw.normal(0, 1, (1000, n))
    circuit = empty + 0.8 * (full - empty) + draw.normal(0, 0.5, (1000, n))
    means = [mean_interval(values) for values in full]
    ratios = [faithfulness_interval(*values) for values in zip(circuit, full, empty, strict=True)]
    for found, truth in ((means, 5), (ratios, 0.8)):
        given = [(low, high) for low, high in found if not math.isnan(low)]
        assert len(given) > 700
        assert 0.93 <= np.mean([low <= truth <= high for low, high in given]) <= 0.97


def test_a_skewed_mean_is_held_where_students_t_would_miss_it() -> None:
    """Waiting times of 64 prompts: where their mean is missed, it is mostly above t's interval."""
    x = np.random.default_rng(0).exponential(size=(1500, 64))
    found = [(*mean_interval(values), values) for values in x]
    given = [(low, high, values) for low, high, values in found if not math.isnan(low)]
    reach = stats.t.ppf(0.975, 63) / 8
    ours = np.mean([low <= 1 <= high for low, high, _ in given])
    students = np.mean([abs(values.mean() - 1) <= reach * values.std(ddof=1) for *_, values in given])
    assert len(given) > 1200
    assert ours > students + 0.005
    assert 0.93 <= ours <= 0.97


@pytest.mark.parametrize("n", [8, 20, 40])
@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.86, 0.98])
def test_proportions_are_held_as_often_as_they_say(n: int, p: float) -> None:
    """By summing over all counts, not by drawing."""
    held = [low <= p <= high for low, high in (proportion_interval(k, n) for k in range(n + 1))]
    assert stats.binom.pmf(np.arange(n + 1), n, p)[held].sum() > 0.929


# ---- what they are ----------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.random.default_rng(1).normal(5, 2, 40)
    assert mean_interval(values) == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval()))
    wider = stats.ttest_1samp(values, 0).confidence_interval(0.99)
    assert mean_interval(values, confidence=0.99) == pytest.approx(tuple(wider))


def test_skewed_values_have_the_longer_arm_on_the_side_of_their_tail() -> None:
    values = np.random.default_rng(5).exponential(size=100)
    low, high = mean_interval(values)
    mirrored = mean_interval(-values)
    assert high - values.mean() > 1.1 * (values.mean() - low)
    assert mirrored == pytest.approx((-high, -low))


def test_halls_transformation_is_inverted() -> None:
    values = np.random.default_rng(5).exponential(size=100)
    g, s, t = stats.skew(values), values.std(ddof=1), stats.t.ppf(0.975, 99) / 10
    for end, quantile in zip(mean_interval(values), (t, -t), strict=True):
        w = (values.mean() - end) / s
        assert w + g * w**2 / 3 + g**2 * w**3 / 27 + g / 600 == pytest.approx(quantile)


def test_the_interval_is_that_of_the_ratio_of_means() -> None:
    value = faithfulness(float(CIRCUIT.mean()), full=float(FULL.mean()), empty=float(EMPTY.mean()))
    low, high = faithfulness_interval(CIRCUIT, FULL, EMPTY)
    assert low < value < high
    assert high - low < 0.1  # prompts stay whole, so what they share cancels
    shuffled = np.random.default_rng(0).permutation(CIRCUIT)
    apart = faithfulness_interval(shuffled, FULL, EMPTY)
    assert apart[1] - apart[0] > 3 * (high - low)
    wider = faithfulness_interval(CIRCUIT, FULL, EMPTY, confidence=0.999)
    assert wider[0] < low < high < wider[1]


def test_at_its_ends_a_ratio_is_just_possible() -> None:
    """Fieller's interval ends where numerator − r · denominator has a mean of zero at p = .05."""
    a, b = CIRCUIT - EMPTY, FULL - EMPTY
    for r in ratio_interval(a, b):
        assert stats.ttest_1samp(a - r * b, 0).pvalue == pytest.approx(0.05)


@pytest.mark.parametrize(("tell", "known"), [(2, False), (7, False), (8, True), (24, True)])
def test_prompts_that_say_nothing_make_no_ratio_sure(tell: int, known: bool) -> None:
    """Where model and empty circuit differ on two prompts of 24, those two decide."""
    apart = (np.arange(24) < tell).astype(float)
    low, high = ratio_interval(0.65 * apart, apart)
    assert (low, high) == pytest.approx((0.65, 0.65)) if known else math.isnan(low) and math.isnan(high)


def test_units_and_direction_do_not_matter() -> None:
    plain = faithfulness_interval(CIRCUIT, FULL, EMPTY)
    for factor, shift in ((7, -3), (-2, 5)):
        moved = faithfulness_interval(*(factor * x + shift for x in (CIRCUIT, FULL, EMPTY)))
        assert moved == pytest.approx(plain)


def test_an_interval_stays_in_the_range_of_the_values() -> None:
    values = np.array([0.95, 1, 0.95, 0.99, 1, 1, 0.93, 0.96, 0.97, 0.98] * 2)
    assert share_interval(values)[1] <= 1
    assert mean_interval(values - 0.9, within=(0.07, 1))[0] == 0.07
    assert mean_interval(values, within=(0, 0.97))[1] == 0.97
    assert share_interval([1, 0, 1, 1, 1, 1, 1, 1]) == proportion_interval(7, 8)


def test_the_interval_of_a_magnitude() -> None:
    assert magnitude_interval((-3, 1)) == (0, 3)
    assert magnitude_interval((-3, -1)) == (1, 3)
    assert magnitude_interval((1, 3)) == (1, 3)
    assert missing(magnitude_interval((math.nan, math.nan)))


# ---- none, and no width -----------------------------------------------------------------------------------------


def test_a_figure_without_spread_has_an_interval_without_width() -> None:
    assert mean_interval([2.5] * 3) == (2.5, 2.5)
    assert mean_interval([0.0] * 8) == (0, 0)
    assert faithfulness_interval(FULL, FULL, EMPTY) == (1, 1)
    assert faithfulness_interval(EMPTY, FULL, EMPTY) == (0, 0)
    nearly = np.float32(FULL) * (1 + np.random.default_rng(0).normal(0, 1e-8, 60))
    assert faithfulness_interval(nearly, FULL, EMPTY) == pytest.approx((1, 1), abs=1e-6)


def test_all_or_none_of_the_prompts_still_leave_doubt() -> None:
    low, high = proportion_interval(32, 32)
    assert (low, high) == (pytest.approx(0.05 ** (1 / 32)), 1)
    assert proportion_interval(0, 32) == pytest.approx((0, 1 - low))


def test_what_one_prompt_says_of_others_is_unknown() -> None:
    assert missing(mean_interval([1.0]))
    assert missing(mean_interval([]))
    assert missing(proportion_interval(1, 1))
    assert missing(faithfulness_interval([1.0], [2.0], [0.0]))


def test_a_model_that_does_not_do_the_task_has_no_faithfulness() -> None:
    assert missing(faithfulness_interval(CIRCUIT, FULL, FULL))
    assert missing(faithfulness_range(CIRCUIT, FULL, FULL))


def test_prompts_that_do_not_tell_full_from_empty_leave_everything_open() -> None:
    noise = np.random.default_rng(3).normal(0, 1, 20)
    assert faithfulness_interval(noise[::-1], noise, noise.mean() - noise) == (-math.inf, math.inf)


def test_too_few_prompts_have_a_range_and_no_interval() -> None:
    values = np.random.default_rng(0).normal(5, 1, 8)
    assert not missing(mean_interval(values))
    assert missing(mean_interval(values[:7]))
    assert missing(faithfulness_interval(CIRCUIT[:7], FULL[:7], EMPTY[:7]))
    tail = np.random.default_rng(0).exponential(size=64)
    assert not missing(mean_interval(tail))
    assert missing(mean_interval(tail[:63]))
    assert faithfulness_range([1.0, 0, 3], [2.0, 4, 5], [0.0, 0, 5]) == (0, 0.5)


def test_one_prompt_that_makes_up_the_figure_leaves_no_interval() -> None:
    values = np.append(np.random.default_rng(0).normal(1, 0.01, 40), 9)
    assert missing(mean_interval(values))
    assert missing(faithfulness_interval(np.append(FULL, 99), np.append(FULL, 3), np.append(EMPTY, 0)))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(AcdcError, match=r"confidence between 0 and 1, such as 0\.95, got 95"):
        mean_interval([1.0, 2.0], confidence=95)
    with pytest.raises(AcdcError, match=r"got shapes \[\[2\], \[3\], \[2\]\]"):
        faithfulness_interval([1.0, 2.0], [1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(AcdcError, match="as many numerators as denominators, got 2 and 3"):
        ratio_interval([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(AcdcError, match=r"got shape \[1, 2\]"):
        mean_interval([[1.0, 2.0]])
    with pytest.raises(AcdcError, match="between 0 and 3 successes of 3, got 4"):
        proportion_interval(4, 3)


def test_a_mean_is_told_to_be_above_zero_by_a_one_sided_test() -> None:
    rng = np.random.default_rng(0)
    told = [is_above_zero(rng.normal(0.0, 1.0, 20)) for _ in range(400)]
    assert 0.02 < np.mean([x is True for x in told]) < 0.08
    assert np.mean([is_above_zero(rng.normal(1.0, 1.0, 20)) is True for _ in range(100)]) > 0.95
    assert is_above_zero([1.0, 2.0, 3.0]) is None  # too few
    assert is_above_zero([2.0, 2.0]) is True
    assert is_above_zero([0.0, 0.0]) is False
