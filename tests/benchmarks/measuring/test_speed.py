"""The speed benchmark: what its ratios mean, and that what it times is right."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from acdc.benchmarks.measuring.speed import __main__ as command
from acdc.benchmarks.measuring.speed import clock, report, works
from acdc.benchmarks.measuring.speed.cases import SHAPES, Case, Shape
from acdc.benchmarks.measuring.speed.works import WORKS, Row, Settings
from acdc.engine.measure import bind
from acdc.graph import Graph
from acdc.methods.exact import exact_scores

TINY = Shape("tiny", 2, 2, 16, 40, acdc_shares=(0.5,))
ONCE = Settings(repeats=1)


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "SHORTEST", 0.0)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(TINY, 2, 4)


def row(**fields: object) -> Row:
    values: dict[str, object] = {"work": "eap", "shape": "S", "what": "all edges", "pairs": 2, "tokens": 4}
    values |= {"threads": 1, "seconds": (3.0, 1.0, 2.0), "cpu_seconds": (3.0, 1.0, 2.0)}
    return Row(**{**values, **fields})  # type: ignore[arg-type]


# ---- timing -----------------------------------------------------------------------------------------------------


def test_reference_is_the_mean_of_before_and_after_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = [1.0, 1.0, 3.0, 5.0], [10.0, 10.0, 30.0, 50.0]  # the first of each only sizes the samples
    work = [7.0, 8.0]
    left = {"f": iter(forward), "fb": iter(backward), "work": iter(work)}

    def timed(function: object, *, calls: int = 1) -> clock.Sample:
        return clock.Sample(next(left[function()]), 0.0, 5)  # type: ignore[operator]

    monkeypatch.setattr(clock, "timed", timed)
    parts = [clock.Part(2, lambda: "f"), clock.Part(1, lambda: "fb")]
    found = clock.side_by_side(lambda: "work", parts, rounds=2, warm=False)
    assert found.seconds == (7.0, 8.0)
    assert found.reference_seconds == (2 * 2 + 20, 2 * 4 + 40)
    assert found.peak_bytes == found.reference_peak_bytes == 5


@pytest.mark.parametrize("warm", [True, False])
def test_operations_are_a_multiple_of_the_references(case: Case, warm: bool) -> None:
    def thrice() -> None:
        for _ in range(3):
            case.forward()

    found = clock.side_by_side(thrice, [clock.Part(2, case.forward)], rounds=2, warm=warm)
    assert found.operations == 1.5
    assert clock.side_by_side(lambda: None, [clock.Part(1, lambda: None)], rounds=1).operations is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak memory and sets it back")
def test_peak_memory_is_that_of_the_call() -> None:
    size = 64_000_000
    big, small = (clock.timed(lambda n=n: torch.ones(n, dtype=torch.uint8)) for n in (size, 1000))  # type: ignore[misc]
    assert big.bytes is not None
    assert small.bytes is not None
    assert size * 0.9 < big.bytes < size * 1.5
    assert small.bytes < size / 2


def test_ratio_is_the_median_of_the_rounds_own_ratios_per_thing() -> None:
    slow_machine_in_the_first_round = row(reference_seconds=(3.0, 0.5, 1.0), per=2)
    assert slow_machine_in_the_first_round.ratio == 1.0
    assert row().ratio is None


def test_limits() -> None:
    assert row().within is None
    two = {"threads": 2, "reference_seconds": (2.0, 1.0, 1.0)}
    assert row(**two, limit=1.5).within is True
    assert row(**two, limit=1.2).within is False
    assert row(threads=2, limit_seconds=1.9).within is False
    assert row(threads=2, limit_seconds=2.1, peak_bytes=11, bytes_allowed=10).within is False


def test_one_thread_is_judged_by_processor_time() -> None:
    slow_clock = row(threads=1, seconds=(9.0,), cpu_seconds=(2.0,), limit_seconds=2.1)
    assert slow_clock.within is True
    reference = {"reference_seconds": (1.0,), "reference_cpu_seconds": (1.0,)}
    assert dataclasses.replace(slow_clock, **reference, limit=2.0).within is True  # type: ignore[arg-type]
    assert dataclasses.replace(slow_clock, **reference, limit=1.9).within is False  # type: ignore[arg-type]


# ---- works ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eap", "eap-ig", "circuit", "curve", "acdc", "guided", "exact", "streaming"])
def test_works_give_rows_and_their_answers_are_those_of_the_slow_way(name: str, case: Case) -> None:
    rows = list(WORKS[name].run(case, ONCE))
    assert rows
    for found in rows:
        assert found.shape == "tiny"
        assert found.ratio is not None
        assert found.edges == case.problem.graph.n_edges
        if name in ("eap", "acdc", "guided", "exact"):
            assert found.error is not None
            assert found.error < 1e-4


def test_threshold_keeps_about_the_share(case: Case) -> None:
    kept = works.run_acdc(case, works.threshold_for(case, 0.5)).kept.sum()
    assert 0.4 < kept / case.problem.graph.n_edges < 0.6


def test_bare_passes_are_those_of_the_whole_model(case: Case) -> None:
    shapes = []
    hook = case.module.lm_head.register_forward_hook(lambda module, inputs, out: shapes.append(list(out.shape)))
    case.forward()
    case.forward_backward()
    hook.remove()
    assert shapes == [[2, 4, TINY.vocabulary_size]] * 2
    assert all(parameter.grad is None for parameter in case.module.parameters())


def test_exact_scores_of_some_destinations_are_those_of_all(case: Case) -> None:
    patching = case.problem.patching()
    measure = bind(case.problem.outcome, patching)
    some = [1, 9]
    found, everything = exact_scores(patching, measure, destinations=some), exact_scores(patching, measure)
    np.testing.assert_allclose(found[:, some], everything[:, some], atol=1e-6)
    assert not np.delete(found, some, axis=1).any()


def test_growth_covers_the_depths_and_shrinking_circuits(case: Case) -> None:
    rows = list(WORKS["growth"].run(case, Settings(repeats=1, depths=(3, 1))))
    assert list(dict.fromkeys(found.layers for found in rows)) == [1, 3]
    assert all(found.error is not None and found.error < 1e-5 for found in rows)
    deepest = [found for found in rows if found.layers == 3]
    assert {found.edges for found in deepest} == {Graph(3, 2).n_edges}
    assert len({found.kept for found in deepest}) > 2


# ---- report -----------------------------------------------------------------------------------------------------


def test_slope_of_a_power_law() -> None:
    x = np.array([1.0, 2.0, 5.0])
    assert report.slope(x, 3 * x**1.7) == pytest.approx(1.7)


def test_new_rows_replace_those_of_the_same_measurement(tmp_path: Path) -> None:
    report.write(tmp_path, [row(), row(work="curve"), row(shape="M")], "first")
    report.write(tmp_path, [row(seconds=(9.0,))], "second")
    rows, commands = report.load(tmp_path)
    assert commands == ["first", "second"]
    assert sorted((found.work, found.shape, found.seconds[0]) for found in rows) == [
        ("curve", "S", 3.0), ("eap", "M", 3.0), ("eap", "S", 9.0),
    ]  # fmt: skip
    table = (tmp_path / "README.md").read_text()
    assert table.count("| eap: all edges |") == 2
    assert not (tmp_path / "growth.svg").exists()


def test_growth_is_plotted(tmp_path: Path) -> None:
    rows = [
        row(work="growth", reference_seconds=(1.0,), reference_cpu_seconds=(1.0,), seconds=(float(n),),
            cpu_seconds=(float(n),), layers=n, kept=n, edges=100)
        for n in (2, 4, 8)
    ]  # fmt: skip
    report.write(tmp_path, rows, "growth")
    assert "growth.svg" in (tmp_path / "README.md").read_text()
    assert "(layers)^1.00" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "growth.svg").read_text().startswith("<?xml")


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(SHAPES, "S", TINY)
    monkeypatch.setitem(SHAPES, "M", dataclasses.replace(TINY, name="M", d_model=256))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    arguments = ["--shapes", "S", "M", "--work", "eap", "acdc", "help", "--pairs", "2", "--tokens", "3"]
    command.main([*arguments, "--repeats", "1", "-o", str(tmp_path)])
    assert "acdc on M: takes minutes; left out without --long" in capsys.readouterr().out
    found = [(found.work, found.shape) for found in report.load(tmp_path)[0]]
    assert sorted(found) == [("acdc", "tiny"), ("eap", "M"), ("eap", "tiny"), ("help", "")]
