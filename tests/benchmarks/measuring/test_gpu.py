"""The measurements on a GPU, tried out on a CPU with a toy: they resume, and what takes too long stops nothing else."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from acdc.benchmarks.measuring import gpu
from acdc.benchmarks.measuring.gpu import SUBJECTS, Plan, make_ready, measure_all, one, page, rows_in

TOY = SUBJECTS["tiny"]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(tmp_path / "rows", torch.device("cpu"), ["tiny"])


def test_every_work_is_measured_and_is_in_the_page(plan: Plan) -> None:
    assert list(one(plan, "tiny", TOY.works)) == list(TOY.works)
    rows = rows_in(plan.folder).all()
    assert {row["work"] for row in rows} == set(TOY.works) == set(gpu.WORKS)
    assert all(row.get("error") is None and row["seconds"] > 0 for row in rows)
    assert {(row["tf32"], row["prompts"], row["tokens"]) for row in rows} == {("off", 4, 4)}
    assert plan.missing("tiny") == []
    lines = [line for line in page(rows).splitlines() if line.startswith("| a toy")]
    assert [line.split(" | ")[3] for line in lines] == list(TOY.works)
    assert lines[0].split(" | ")[5] == "1"  # the forward pass, in forward passes


LIMIT = 6.0
CHILD = """
import signal, sys
for work in sys.argv[1:]:
    print(work, flush=True)
    if work == "eap":
        signal.pause()
    if work == "circuit":
        sys.exit("CUDA error: an illegal memory access was encountered")
"""
"""Where a work takes for ever, and another one ends the process."""


def test_what_takes_too_long_or_ends_the_process_is_an_error_and_the_rest_goes_on(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def command(plan: Plan, subject: str, works: list[str]) -> list[str]:
        started.append(list(works))
        return [sys.executable, "-c", CHILD, *works]

    monkeypatch.setattr(gpu, "command_for", command)

    measure_all(dataclasses.replace(plan, limit=LIMIT))
    works = list(TOY.works)
    assert started == [works, works[works.index("eap") + 1 :], works[works.index("circuit") + 1 :]]
    errors = {row["work"]: row["error"] for row in rows_in(plan.folder).all() if row.get("error")}
    assert errors == {
        "eap": f"over {LIMIT:.3g} s",
        "circuit": "CUDA error: an illegal memory access was encountered",
    }
    assert set(plan.missing("tiny")) == set(works) - errors.keys()  # errors stay
    assert set(dataclasses.replace(plan, retry=True).missing("tiny")) == set(works)
    started.clear()
    measure_all(dataclasses.replace(plan, minutes=0))
    assert started == []  # there is no time
    assert "over" in page(rows_in(plan.folder).all())


def test_a_model_that_cannot_be_made_is_the_error_of_its_works(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "command_for", lambda *_: [sys.executable, "-c", "raise SystemExit('not fetched')"])
    measure_all(plan)
    rows = rows_in(plan.folder).all()
    assert {row["work"]: row["error"] for row in rows} == dict.fromkeys(TOY.works, "not fetched")


def test_weights_are_drawn_in_the_dtype_that_is_asked_for() -> None:
    ready = make_ready(dataclasses.replace(TOY, dtype="bfloat16"), torch.device("cpu"))
    assert ready.model.dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32


def test_the_page_says_when_there_is_nothing() -> None:
    assert "No GPU has been measured yet" in page([])
