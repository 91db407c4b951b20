"""A curve goes into a table or a plot."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import acdc
from command_line import Command


def test_a_curve_is_written_as_its_file_ends(command: Command) -> None:
    model, task = acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse", size=4)
    circuit = acdc.score(model, task, "eap-ig").top(12)
    made = circuit.provenance.having(task_options={"size": 4})
    acdc.Circuit(circuit.graph, circuit.edges, circuit.scores, made).save("run")
    quick = ("evaluate", "run", "--random-circuits", 0)
    assert command(*quick, "--curve", "-o", "curve.csv").status == 0
    rows = list(csv.DictReader(Path("curve.csv").read_text().splitlines()))
    sizes = [int(row["edges"]) for row in rows]
    assert [float(rows[-1][name]) for name in ("share", "faithfulness", "kl")] == pytest.approx([1, 1, 0], abs=1e-6)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == circuit.graph.n_edges
    assert command(*quick, "--curve", "-o", "curve.svg").status == 0
    assert "<svg" in Path("curve.svg").read_text()
    assert command(*quick, "--curve", "-o", "curve.svg").status == 2  # it is there
    assert "give --curve too" in command(*quick, "-o", "other.csv").err
    assert "ends in .csv" in command(*quick, "--curve", "-o", "other.txt").err


def test_what_cannot_be_measured_is_refused_before_the_rest_is(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = acdc.load("tracr-reverse")
    graph = model.graph()
    made = acdc.score(model, acdc.tasks.load("tracr-reverse", size=4), "eap-ig").top(12).provenance
    acdc.Circuit(graph, graph.valid, provenance=made.having(task_options={"size": 4})).save("whole")

    def measured(*_: object, **__: object) -> None:
        raise AssertionError("measured before it was refused")

    monkeypatch.setattr(acdc, "evaluate", measured)
    for option, words in (("--missed", "nothing was left out"), ("--curve", "leave out --curve")):
        refused = command("evaluate", "whole", option)
        assert refused.status == 2
        assert words in refused.err
