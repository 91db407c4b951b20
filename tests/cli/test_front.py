"""`acdc discover --front`: the whole front of size against distance."""

from __future__ import annotations

from pathlib import Path

import pytest

import acdc
from command_line import Command


def test_a_front_is_written_printed_and_looked_up(command: Command) -> None:
    shown = command("discover", "induction-2l", "--front", "--size", "32", "-o", "found").out
    lines = Path("found/front.csv").read_text().splitlines()
    assert lines[0] == "edges,distance"
    points = [tuple(map(float, line.split(","))) for line in lines[1:]]
    assert points == sorted(points, key=lambda point: (-point[0], point[1]))
    assert [distance for _, distance in points] == sorted(distance for _, distance in points)
    assert points[-1][0] == 0
    assert "edges" in shown
    assert "distance" in shown
    circuit = acdc.Circuit.load("found")
    assert circuit.scores is not None
    assert circuit.scores.top(circuit.n_edges) == circuit


@pytest.mark.parametrize("method", ["eap-ig", "acdc"])
def test_a_method_without_a_front_says_so(method: str, command: Command) -> None:
    result = command("discover", "tracr-hist", "--method", method, "--front")
    assert result.status == 2
    assert f"{method} has no front of size against distance; use guided" in result.err
