"""What the command line says of a figure: its interval where there is one that says something, else the range."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch

import acdc
from acdc.cli import report
from command_line import Command


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


def test_held_out_prompts_of_another_seed_that_were_searched_on_are_left_out(command: Command) -> None:
    mixed = ("--task-option", "distribution=mixed")
    assert command("discover", "tracr-hist", "--method", "eap-ig", "--edges", 4, *mixed, "-o", "x").status == 0
    data = [
        acdc.tasks.load("tracr-hist", seed=seed, distribution="mixed").prepare(acdc.load("tracr-hist"))
        for seed in (0, 5)
    ]
    known = {tuple(row) for row in torch.cat((data[0].discovery.clean, data[0].discovery.corrupted), 1).tolist()}
    assert data[1].held_out is not None
    asked = torch.cat((data[1].held_out.clean, data[1].held_out.corrupted), 1).tolist()
    seen = sum(tuple(row) in known for row in asked)
    assert seen > 0
    judged = command("evaluate", "x", "--seed", 5)
    said = re.search(
        rf"note: (\d+) of {len(asked)} held-out prompts are among those that the circuit was found", judged.err
    )
    assert said is not None
    assert int(said[1]) >= seen
    assert f"on {len(asked) - int(said[1])} held-out prompts" in judged.out
    assert "left out" not in command("evaluate", "x").err
