"""What the command line says of a figure: its interval where there is one that says something, else the range."""

from __future__ import annotations

import dataclasses
import math

import pytest

import acdc
from acdc.cli import report


@pytest.fixture(scope="module")
def evaluation() -> acdc.Evaluation:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=8)
    circuit = acdc.score(model, task, "eap").top(20)
    return acdc.evaluate(model, task, circuit, random_circuits=0)


@pytest.mark.parametrize("interval", [(math.nan, math.nan), (-math.inf, math.inf)])
def test_without_an_interval_the_range_over_prompts_is_shown(
    evaluation: acdc.Evaluation, interval: tuple[float, float], capsys: pytest.CaptureFixture[str]
) -> None:
    report.show_evaluation(
        dataclasses.replace(evaluation, faithfulness_interval=interval, faithfulness_range=(0.25, 0.75))
    )
    shown = capsys.readouterr().out
    assert "prompt by prompt" in shown
    assert "0.250 to 0.750" in shown
    assert "inf" not in shown
    report.show_evaluation(dataclasses.replace(evaluation, faithfulness_interval=(0.125, 0.5)))
    shown = capsys.readouterr().out
    assert "[0.125, 0.500]" in shown
    assert "prompt by prompt" not in shown
