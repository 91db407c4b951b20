"""Circuit metrics are those of the MIB benchmark, on its own reference points."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc.errors import AcdcError
from acdc.metrics import (
    MIB_SHARES,
    area,
    cmd,
    cpr,
    faithfulness,
    kl_area,
    log_cmd,
    log_cpr,
    log_kl_area,
    normalised_faithfulness,
    relative_difference,
    weighted_edge_count,
)

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


# ---- over orders of magnitude -----------------------------------------------------------------------------------


def test_log_integrals_are_means_over_orders_of_magnitude() -> None:
    perfect = [1.0] * 10
    assert log_cpr(MIB_SHARES, perfect) == pytest.approx(1)
    assert log_cmd(MIB_SHARES, perfect) == 0
    assert log_cpr((0.001, 0.01, 0.1, 1), [0, 0, 1, 1]) == pytest.approx(0.5)
    assert log_cmd((0.001, 0.01, 0.1, 1), [2, 0, 1, 1]) == pytest.approx((1 + 0.5 + 0) / 3)
    unnormalised = np.trapezoid([0.2, 0.9, 1.3], np.log([0.001, 0.05, 1]))  # as MIB's option `log_scale`
    assert log_cpr((0.001, 0.05, 1), [0.2, 0.9, 1.3]) == pytest.approx(unnormalised / np.log(1000))


def test_areas_under_the_divergence() -> None:
    assert kl_area((0.1, 0.5, 1), [4.0, 1.0, 0.0]) == pytest.approx(0.4 * 2.5 + 0.5 * 0.5)
    assert log_kl_area((0.01, 0.1, 1), [4.0, 1.0, 0.0]) == pytest.approx((2.5 + 0.5) / 2)


def test_an_area_takes_many_curves_at_once() -> None:
    curves = np.arange(12.0).reshape(2, 2, 3)
    found = area((0.1, 0.2, 1), curves)
    assert found.shape == (2, 2)
    assert found[1, 0] == pytest.approx(area((0.1, 0.2, 1), curves[1, 0]))


def test_sizes_that_are_no_axis_are_refused() -> None:
    with pytest.raises(AcdcError, match="rising shares, got"):
        cpr((0.1, 0.1, 1), [0.0, 0.0, 0.0])
    with pytest.raises(AcdcError, match="rising shares above 0"):
        log_cpr((0, 0.1, 1), [0.0, 0.0, 0.0])
    with pytest.raises(AcdcError, match=r"values for two sizes or more, got \[2\] for sizes \[3\]"):
        cmd((0.1, 0.2, 1), [0.0, 0.0])


# ---- one circuit ------------------------------------------------------------------------------------------------


def test_normalised_faithfulness_is_prompt_by_prompt_and_bounded() -> None:
    found = normalised_faithfulness([3.0, 2.0, 5.0, 9.0, -4.0], full=3.0, corrupted=[1.0, 1.0, 1.0, 1.0, 1.0])
    assert found.tolist() == [1, 0.5, 0, 0, 0]  # too much is as bad as too little
    assert normalised_faithfulness([3.0, 4.0], full=[3.0, 3.0], corrupted=[3.0, 3.0]).tolist() == [1, 0]


@given(numbers, st.integers(-100, 100), st.integers(-100, 100))
def test_a_circuit_between_the_two_runs_is_as_faithful_either_way(share: float, full: int, corrupted: int) -> None:
    circuit = corrupted + (abs(share) % 1) * (full - corrupted)
    found = float(normalised_faithfulness(circuit, full=full, corrupted=corrupted))
    if full != corrupted:
        assert found == pytest.approx(faithfulness(circuit, full=full, empty=corrupted), abs=1e-9)
    else:
        assert found == 1


def test_differences_are_relative_to_what_the_edges_do() -> None:
    assert relative_difference(2.0, 1.5, full=3.0, empty=1.0) == 0.25
    assert relative_difference(1.5, 2.0, full=1.0, empty=3.0) == 0.25
    assert relative_difference(2.0, 1.5, full=2.0, empty=0) == 0.25  # as Wang et al., who divide by the full model
    assert np.isnan(relative_difference([2.0, 1.0], 1.0, full=3.0, empty=3.0)).all()


def test_an_edge_weighs_what_is_kept_of_its_source() -> None:
    edges = np.array([[True, False, True], [True, True, False]])  # [n_destinations, n_sources]
    assert weighted_edge_count(edges) == 4
    assert weighted_edge_count(edges, [1, 0.5, 0.25]) == pytest.approx(2 + 0.5 + 0.25)
