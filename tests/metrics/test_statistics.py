"""Intervals hold the true value as often as they say, and are honest where the data say little."""

from __future__ import annotations

import math

import numpy as np
import pytest

from acdc.errors import AcdcError
from acdc.metrics import bootstrap_interval, faithfulness, faithfulness_interval

random = np.random.default_rng(0)
FULL, EMPTY = random.normal(3, 1, 60), random.normal(0, 1, 60)
CIRCUIT = EMPTY + 0.8 * (FULL - EMPTY) + random.normal(0, 0.1, 60)


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = bootstrap_interval(values)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert bootstrap_interval(values, np.median)[0] < np.median(values) < bootstrap_interval(values, np.median)[1]


def test_intervals_hold_the_true_value_as_often_as_they_say() -> None:
    """A ratio of means, .8 in truth, on 200 sets of 40 prompts."""
    held = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        full, empty = draw.normal(3, 1, 40), draw.normal(0, 1, 40)
        circuit = empty + 0.8 * (full - empty) + draw.normal(0, 0.5, 40)
        low, high = faithfulness_interval(circuit, full, empty, confidence=0.8, resamples=300)
        held += low <= 0.8 <= high
    assert 0.7 * 200 <= held <= 0.9 * 200


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


def test_units_and_direction_do_not_matter() -> None:
    plain = faithfulness_interval(CIRCUIT, FULL, EMPTY)
    for factor, shift in ((7, -3), (-2, 5)):
        moved = faithfulness_interval(*(factor * x + shift for x in (CIRCUIT, FULL, EMPTY)))
        assert moved == pytest.approx(plain)


def test_the_seed_decides() -> None:
    assert bootstrap_interval(CIRCUIT, seed=3) == bootstrap_interval(CIRCUIT, seed=3)
    assert bootstrap_interval(CIRCUIT, seed=3) != bootstrap_interval(CIRCUIT, seed=4)


def test_rounding_errors_do_not_show() -> None:
    """With few prompts many draws tie with the figure itself, if not for the order in which they are summed."""
    values = np.array([0.1, 0.7, 2.3, 4.9])
    for order in ([2, 0, 3, 1], [3, 2, 1, 0]):
        draws = [bootstrap_interval(values[order] * (1 + sign * 2**-52), seed=5) for sign in (-1, 0, 1)]
        assert draws[0] == pytest.approx(draws[1], rel=1e-9)
        assert draws[2] == pytest.approx(draws[1], rel=1e-9)


def test_a_figure_without_spread_has_an_interval_without_width() -> None:
    assert bootstrap_interval([2.5] * 8) == (2.5, 2.5)
    assert faithfulness_interval(FULL, FULL, EMPTY) == (1, 1)
    assert faithfulness_interval(EMPTY, FULL, EMPTY) == (0, 0)


def test_what_one_prompt_says_of_others_is_unknown() -> None:
    assert all(map(math.isnan, bootstrap_interval([1.0])))
    assert all(map(math.isnan, faithfulness_interval([1.0], [2.0], [0.0])))


def test_a_model_that_does_not_do_the_task_has_no_faithfulness() -> None:
    assert all(map(math.isnan, faithfulness_interval([1.0, 2, 4], [3.0, 5, 6], [3.0, 5, 6])))


def test_draws_without_a_value_widen_the_interval() -> None:
    """Full and empty differ on two of five prompts: one draw in thirteen holds neither."""
    low, high = faithfulness_interval([0, 0, 0, 1, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0])
    assert (low, high) == (-math.inf, math.inf)
    many = faithfulness_interval([0] * 30 + [1, 0] * 10, [0] * 30 + [1] * 20, [0] * 50)
    assert 0 < many[0] < 0.5 < many[1] < 1


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(AcdcError, match=r"confidence between 0 and 1, such as 0\.95, got 95"):
        bootstrap_interval([1.0, 2.0], confidence=95)
    with pytest.raises(AcdcError, match=r"got shapes \[\[2\], \[3\], \[2\]\]"):
        faithfulness_interval([1.0, 2.0], [1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(AcdcError, match=r"got shape \[1, 1, 2\]"):
        bootstrap_interval([[[1.0, 2.0]]])
