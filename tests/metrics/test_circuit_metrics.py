"""Circuit metrics are those of the MIB benchmark, on its own reference points."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc.metrics import MIB_SHARES, cmd, cpr, faithfulness

numbers = st.floats(-100, 100)


@pytest.mark.parametrize(("circuit", "expected"), [(3.0, 1.0), (1.0, 0.0), (2.0, 0.5), (5.0, 2.0), (0.0, -0.5)])
def test_faithfulness_is_the_share_of_the_way_from_empty_to_full(circuit: float, expected: float) -> None:
    assert faithfulness(circuit, full=3.0, empty=1.0) == expected


@given(numbers, st.integers(-100, 100), st.integers(-100, 100), st.integers(1, 9), numbers)
def test_faithfulness_knows_no_unit_no_zero_and_no_direction(
    circuit: float, full: int, empty: int, scale: int, shift: float
) -> None:
    if full == empty:
        assert math.isnan(faithfulness(circuit, full=full, empty=empty))
        return
    plain = faithfulness(circuit, full=full, empty=empty)
    for factor in (scale, -scale):
        moved = [factor * value + shift for value in (circuit, full, empty)]
        assert faithfulness(moved[0], full=moved[1], empty=moved[2]) == pytest.approx(plain, abs=1e-9)


def test_reference_points_of_the_benchmark() -> None:
    """A perfect ranking has CPR .999 and CMD 0; one that is nothing until it is all has .25 and .75."""
    assert MIB_SHARES == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    perfect, nothing = [1.0] * 10, [0.0] * 9 + [1.0]
    assert cpr(MIB_SHARES, perfect) == pytest.approx(0.999)
    assert cmd(MIB_SHARES, perfect) == 0
    assert cpr(MIB_SHARES, nothing) == pytest.approx(0.25)
    assert cmd(MIB_SHARES, nothing) == pytest.approx(0.749)


def test_too_good_counts_for_cpr_and_against_cmd() -> None:
    twice = [2.0] * 10
    assert cpr(MIB_SHARES, twice) == pytest.approx(2 * 0.999)
    assert cmd(MIB_SHARES, twice) == pytest.approx(0.999)


@given(st.lists(numbers, min_size=10, max_size=10))
def test_integrals_are_trapezoids_over_the_share(values: list[float]) -> None:
    steps = list(zip(MIB_SHARES, MIB_SHARES[1:], values, values[1:], strict=False))
    assert cpr(MIB_SHARES, values) == pytest.approx(sum((b - a) * (x + y) / 2 for a, b, x, y in steps), abs=1e-9)
    away = sum((b - a) * (abs(1 - x) + abs(1 - y)) / 2 for a, b, x, y in steps)
    assert cmd(MIB_SHARES, values) == pytest.approx(away, abs=1e-9)
    assert cmd(MIB_SHARES, values) >= abs(0.999 - cpr(MIB_SHARES, values)) - 1e-9
    assert np.isfinite(away)
