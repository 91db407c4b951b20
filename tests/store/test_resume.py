"""Interrupted work goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import acdc
import families
import problems
from acdc.errors import AcdcError
from acdc.model import passes
from acdc.store import resume as resuming
from acdc.store.resume import Expected, ResumeFile, digest
from acdc.tasks.prompts import Prompts

WORK: list[tuple[str, dict[str, Any]]] = [
    ("acdc", {"threshold": 0.003}),
    ("acdc", {"threshold": 0.02, "batch_size": 1}),
    ("acdc", {"threshold": 0.8, "units": "node"}),
    ("guided", {"faithfulness": 0.8}),
    ("guided", {"faithfulness": 0.8, "batch_size": 2}),
    ("guided", {"faithfulness": 0.8, "memory": "5MB"}),  # for one prompt at a time, the others on disk
    ("guided", {"faithfulness": 0.6, "units": "node", "batch_size": 3}),
    ("exact", {"edges": 20}),
    ("exact", {"edges": 20, "batch_size": 2}),
    ("exact", {"edges": 3, "units": "node", "batch_size": 2}),
]


def prompts() -> Prompts:
    """Prompts that the model gets right."""
    model, pairs = families.tiny("gpt2-scaled-by-layer", torch.float64), problems.make_prompts(size=4)
    with torch.no_grad():
        answers, wrong = (
            model.plain_logits(tokens, pairs.mask)[:, -1].argmax(-1) for tokens in (pairs.clean, pairs.corrupted)
        )
    return Prompts.from_tokens(pairs.clean, pairs.corrupted, answers, wrong)


class InterruptedAfter:
    """A progress callback that interrupts the work after some calls."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, done: int, total: int | None, text: str) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("method", "options"), WORK)
def test_interrupted_again_and_again_it_ends_with_the_same_circuit(
    method: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "LEAST_SECONDS", 0.0)
    model = families.tiny("gpt2-scaled-by-layer", torch.float64)
    with passes.count_passes() as whole:
        expected = acdc.discover(model, prompts(), method, **options)
    file = tmp_path / "progress"
    interruptions = calls = 0
    while True:
        try:
            with passes.count_passes() as last:
                found = acdc.discover(
                    model, prompts(), method, resume=file, progress=InterruptedAfter(calls), **options
                )
            break
        except KeyboardInterrupt:
            interruptions += 1
            calls += 1 if "units" in options else 3  # there are few nodes
    assert interruptions > 2
    assert found.edge_names() == expected.edge_names()
    assert found.scores is not None
    assert expected.scores is not None
    for name in ("values", "removal", "absolute", "order", "front"):
        ours, whole_one = getattr(found.scores, name), getattr(expected.scores, name)
        if ours is not None or whole_one is not None:
            np.testing.assert_array_equal(ours, whole_one, err_msg=name)
    assert last.forward < whole.forward
    assert not file.exists()


def in_a_child(work: Callable[[], object]) -> int:
    """The process that does some work and ends, as it is now."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return child


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("method", "options", "kills"),
    [("guided", {"faithfulness": 0.8}, 10), ("acdc", {"threshold": 0.02}, 5), ("eap-ig", {"edges": 9}, 5)],
)
def test_killed_at_any_moment_it_ends_with_the_same_result(
    method: str, options: dict[str, Any], kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same call after a kill, at a random moment: edges, scores, order and the front to the bit."""
    monkeypatch.setattr(resuming, "LEAST_SECONDS", 0.0)
    model, pairs = families.tiny("gpt2-scaled-by-layer"), prompts()
    file, result = tmp_path / "progress", tmp_path / "result.npz"

    def work() -> None:
        found = acdc.discover(model, pairs, method, resume=file, **options)
        assert found.scores is not None
        names = ("values", "removal", "absolute", "order", "front")
        arrays = {name: array for name in names if (array := getattr(found.scores, name)) is not None}
        np.savez(result, edges=found.edges, **arrays)

    def wait(child: int) -> float:
        start = time.perf_counter()
        os.waitpid(child, 0)
        return time.perf_counter() - start

    seconds = wait(in_a_child(work))
    whole = dict(np.load(result))
    dice, gone_on = random.Random(0), 0
    for _ in range(kills):
        result.unlink()
        child = in_a_child(work)
        time.sleep(dice.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        wait(child)
        gone_on += file.exists()
        wait(in_a_child(work))
        again = dict(np.load(result))
        assert again.keys() == whole.keys()
        for name, array in again.items():
            np.testing.assert_array_equal(array, whole[name], err_msg=name)
    assert gone_on or method == "eap-ig"  # which notes nothing


EXPECTED: Expected = {"kept": ((2, 2), np.bool_), "stage": ((1,), np.int64), "scores": ((2,), np.float64)}


def noted(file: Path, **changed: Any) -> Path:
    ResumeFile(file, "a").save(**{"kept": np.eye(2, dtype=bool), "stage": 3, "scores": np.ones(2)} | changed)
    return file


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "LEAST_SECONDS", 0.0)


@pytest.mark.usefixtures("at_once")
def test_what_was_noted_is_for_the_same_work_only(tmp_path: Path) -> None:
    file = noted(tmp_path / "folder" / "progress")
    same = ResumeFile(file, "a").load(EXPECTED)
    assert (same["kept"] == np.eye(2)).all()
    assert same["stage"].item() == 3
    with pytest.raises(AcdcError, match=r"of other work .*delete it to begin anew, or choose another"):
        ResumeFile(file, "b").load(EXPECTED)
    with pytest.raises(AcdcError, match="is a folder"):
        ResumeFile(file.parent, "a").load(EXPECTED)
    assert file.exists()
    assert ResumeFile().load(EXPECTED) == {}
    assert ResumeFile(tmp_path / "none", "a").load(EXPECTED) == {}


@pytest.mark.usefixtures("at_once")
def test_a_file_with_any_flipped_bit_is_not_gone_on_from(tmp_path: Path) -> None:
    file = noted(tmp_path / "progress")
    whole = file.read_bytes()
    for position in range(len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        with pytest.raises(AcdcError, match="delete it to begin anew"):
            ResumeFile(file, "a").load(EXPECTED)
    for length in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(AcdcError, match="is damaged: expected"):
            ResumeFile(file, "a").load(EXPECTED)
    assert file.read_bytes() == whole[: len(whole) - 1]  # left alone


@pytest.mark.parametrize("method", ["acdc", "guided", "exact"])
def test_work_does_not_begin_over_a_file_that_is_not_its_own(method: str, tmp_path: Path) -> None:
    """A file of another program is refused, and left as it is."""
    model, file = families.tiny("gpt2-scaled-by-layer", torch.float64), tmp_path / "progress"
    options: dict[str, Any] = {"edges": 9} if method == "exact" else {"threshold": 0.02}
    file.write_bytes(b"my thesis")
    with pytest.raises(AcdcError, match="is damaged: expected whole notes"):
        acdc.discover(model, prompts(), method, resume=file, **options)
    assert file.read_bytes() == b"my thesis"


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "changed",
    [
        {"kept": np.eye(3, dtype=bool)},
        {"kept": np.eye(2)},
        {"stage": np.arange(2)},
        {"stage": 3.0},
        {"scores": [1.0, math.nan]},
        {"scores": [1.0, math.inf]},
        {"more": 1},
    ],
)
def test_arrays_of_other_kinds_are_not_gone_on_from(tmp_path: Path, changed: dict[str, Any]) -> None:
    file = noted(tmp_path / "progress", **changed)
    with pytest.raises(AcdcError, match="is damaged: expected"):
        ResumeFile(file, "a").load(EXPECTED)
    file = noted(tmp_path / "progress", scores=[1.0, math.inf])
    assert ResumeFile(file, "a").load(EXPECTED, endless=["scores"])["scores"][1] == math.inf


@pytest.mark.usefixtures("at_once")
def test_work_goes_on_when_progress_cannot_be_noted(tmp_path: Path) -> None:
    (tmp_path / "progress").mkdir()
    unlucky = ResumeFile(tmp_path / "progress", "a")
    with pytest.warns(UserWarning, match="no progress is noted"):
        unlucky.save(stage=1)
    unlucky.save(stage=2)


def test_notes_are_not_written_all_the_time(tmp_path: Path) -> None:
    often = ResumeFile(tmp_path / "progress", "a")
    often.save(stage=1)
    assert not (tmp_path / "progress").exists()


def test_the_key_depends_on_content() -> None:
    ones = torch.ones(2, 2)
    assert digest([ones, "a"]) == digest([torch.ones(2, 2), "a"])
    assert (
        len({digest(values) for values in ([ones], [ones.view(4)], [ones.double()], [2 * ones], [ones, None])}) == 5
    )
    assert digest([np.zeros(2000)]) != digest([np.eye(1, 2000, 1000)[0]])
    assert digest([torch.ones(2, dtype=torch.bfloat16)]) != digest([torch.zeros(2, dtype=torch.bfloat16)])
