"""From coarse to fine against one grain: both are counted over the same units, in a process that can tell its peak."""

from __future__ import annotations

import sys

import pytest

from acdc.benchmarks.measuring.grains import WAYS, measured


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the resident set is Linux's")
def test_both_ways_are_counted_over_the_same_units() -> None:
    one, fine = (measured("tiny-tasks", "ioi", way, size=4, faithfulness=0.8, runs=0) for way in WAYS)
    assert one.units == fine.units == 1024 + 512
    assert one.nodes == 20 > fine.nodes
    assert 0 < fine.kept < one.units
    assert 0 < one.kept < one.units
