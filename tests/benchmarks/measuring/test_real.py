"""Cells of the report on real models: measured as the library measures, a file each, and missing ones are named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import acdc
from acdc.benchmarks.measuring.real import __main__ as command
from acdc.benchmarks.measuring.real import cells as real
from acdc.benchmarks.measuring.real import rivals
from acdc.benchmarks.measuring.real.report import RULES, markdown, nearest
from acdc.engine.circuits import measure_circuits
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.metrics import OUTCOMES, mean_interval
from acdc.model.pretrained import PRETRAINED


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> real.Cell:
    notes = tmp_path_factory.mktemp("found") / "eap"
    return real.compute(acdc.load("tiny-tasks-gqa"), "ioi", "eap", size=16, held_out=16, notes=notes)


def test_a_cell_is_the_curve_on_held_out_prompts(cell: real.Cell) -> None:
    model = acdc.load("tiny-tasks-gqa")
    data = acdc.tasks.load("ioi", size=16).prepare(model)
    curve = acdc.curve(model, data, acdc.score(model, data, "eap"), shares=real.SHARES, aggregate="signed")
    signed = [size for size in cell.sizes if size.aggregate == "signed"]
    assert cell.aggregates == ("mean-absolute", "signed")
    assert [size.kl for size in cell.sizes if size.aggregate != "signed"] != [size.kl for size in signed]
    assert cell.n_prompts == cell.n_held_out == 16
    assert [size.n_edges for size in signed] == list(curve.n_edges)
    np.testing.assert_allclose([size.kl for size in signed], curve.kl)
    np.testing.assert_allclose([size.unfaithfulness for size in signed], [abs(1 - f) for f in curve.faithfulness])
    assert (cell.forward, cell.backward) == (2 * 16, 16)
    assert signed[-1].kl < signed[0].kl


def test_what_was_found_is_measured_on_more_prompts_without_finding_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real, "SHARES", (0.05, 0.2))
    model, notes = acdc.load("tiny-tasks-gqa"), tmp_path / "found" / "eap"
    first = real.compute(model, "ioi", "eap", size=8, held_out=16, notes=notes)
    with monkeypatch.context() as patched:
        patched.setattr(real, "_cuts", lambda *_: pytest.fail("it was found before"))
        fewer = real.compute(model, "ioi", "eap", size=8, held_out=12, notes=notes)
    assert (fewer.n_prompts, fewer.n_held_out, first.n_held_out) == (8, 12, 16)
    assert (fewer.processor_seconds, fewer.forward) == (first.processor_seconds, first.forward)
    for size, other in zip(fewer.sizes, first.sizes, strict=True):
        np.testing.assert_allclose(size.kls[4:], other.kls[:8], rtol=1e-4, atol=1e-6)  # the same pairs
    other_prompts = real.compute(model, "ioi", "eap", size=6, held_out=12, notes=notes)
    assert other_prompts.forward == 2 * 6


def test_a_ranking_that_can_goes_by_kl_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "SHARES", (0.05, 0.2))
    model = acdc.load("tiny-tasks-gqa")
    cell = real.compute(model, "ioi", "clean-corrupted", size=8, held_out=8, notes=tmp_path / "found")
    assert cell.aggregates == ("mean-absolute", "signed", "mean-absolute, kl", "signed, kl")
    data = acdc.tasks.load("ioi", size=8).prepare(model)
    scores = acdc.score(model, data, "clean-corrupted", metric="kl")
    curve = acdc.curve(model, data, scores, shares=real.SHARES, aggregate="mean-absolute")
    np.testing.assert_allclose([size.kl for size in cell.sizes if size.aggregate == "mean-absolute, kl"], curve.kl)


@pytest.mark.filterwarnings("ignore:.*prompts:UserWarning")
def test_a_cell_of_a_search_is_its_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "SHARES", (0.05, 0.2))
    model, notes = acdc.load("tiny-tasks-gqa"), tmp_path / "guided"
    cell = real.compute(model, "ioi", "guided", size=8, held_out=8, notes=notes)
    data = acdc.tasks.load("ioi", size=8).prepare(model)
    found = acdc.discover(model, data, "guided", metric="kl", edges=int(0.05 * model.graph().n_edges))
    assert found.scores is not None
    curve = acdc.curve(model, data, found.scores, shares=real.SHARES, aggregate=None)
    assert cell.aggregates == (real.FRONT,)
    assert [size.n_edges for size in cell.sizes] == list(curve.n_edges)
    np.testing.assert_allclose([size.kl for size in cell.sizes], curve.kl)
    assert cell.seconds > 0
    assert not notes.with_suffix(".resume").exists()
    assert RULES.get(real.FRONT) is None
    assert "| guided |" in markdown([cell], [], "")


def test_a_cell_survives_its_file(cell: real.Cell, tmp_path: Path) -> None:
    undefined = dataclasses.replace(cell.sizes[0], kl_interval=(float("nan"), float("inf")))
    cells = real.cells_of(tmp_path)
    cells.open()
    cells.put(dataclasses.asdict(dataclasses.replace(cell, sizes=(undefined, *cell.sizes[1:]))))
    again = real.read(cells.get((cell.model, cell.task, cell.method)) or {})
    assert np.isnan(again.sizes[0].kl_interval).all()
    np.testing.assert_equal([vars(size) for size in again.sizes[1:]], [vars(size) for size in cell.sizes[1:]])
    assert dataclasses.replace(again, sizes=cell.sizes) == cell


def test_the_command_goes_on_and_names_what_is_missing(
    cell: real.Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "TASKS", {cell.model: ("ioi", "sva")})
    monkeypatch.setitem(PRETRAINED, cell.model, next(iter(PRETRAINED.values())))
    computed: list[tuple[str, str]] = []

    def compute(
        model: acdc.Model, task: str, method: str, *, size: int, held_out: int, notes: Path, given: float | None
    ) -> real.Cell:
        computed.append((task, method))
        if task == "sva":
            raise KeyboardInterrupt
        return dataclasses.replace(cell, method=method)

    monkeypatch.setattr(command, "compute", compute)
    asked = ["--models", cell.model, "--methods", "eap", "random", "--size", "16", "-o", str(tmp_path)]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            command.main([*asked, "--held-out", "16"])
    with pytest.raises(AcdcError, match="are of 16 prompts and 16 held out, not of 16 and 64"):
        command.main([*asked, "--held-out", "64", "--methods", "guided"])
    assert computed == [("ioi", "eap"), ("ioi", "random"), ("sva", "eap"), ("sva", "eap")]
    text = (tmp_path / "README.md").read_text()
    assert f"## ioi on {cell.model}" in text
    rest = ", ".join(method for method in real.METHODS if method not in ("eap", "random"))
    assert f"ioi on {cell.model} ({rest}); sva on {cell.model} (guided, eap" in text


def test_whole_components_go_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a loop of whole-circuit runs."""
    monkeypatch.setattr(rivals, "LEVELS", (0.01, 0.5))
    model = acdc.load("tiny-tasks-gqa")
    data = acdc.tasks.load("ioi", size=8).prepare(model)
    graph = model.graph()
    problem = Problem(model, graph, data.discovery, OUTCOMES["kl"], data.ablation)
    _, weakness, sizes = rivals._scored(model, data)
    kept = np.ones(graph.n_sources, dtype=bool)
    separation = measure_circuits(problem, [np.zeros_like(graph.valid)])[1][0]
    inner = np.arange(graph.n_inputs, graph.n_sources)
    expected, old = [graph.valid], 0.0
    for level in [*(share * separation for share in rivals.LEVELS), np.inf]:
        for source in inner[np.argsort(weakness[inner], kind="stable")]:
            fewer = kept.copy()
            fewer[source] = False
            new = measure_circuits(problem, [graph.edges_from_sources(fewer)])[1][0]
            if kept[source] and new - old <= level:
                kept, old = fewer, new
                expected.append(graph.prune(graph.edges_from_sources(kept)))
    order = rivals.components(model, data, rivals.Clock(np.inf))
    last = [circuit for circuit in expected if circuit.any()]
    for circuit in last[1:]:
        assert order[circuit].min() > order[graph.valid & ~circuit].max()
    assert np.array_equal(np.argsort(order[last[-1]]), np.argsort(sizes[last[-1]]))


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_a_rival_stops_when_its_time_is_over(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "FEW_STEPS", (1, 2))
    model = acdc.load("tiny-tasks-gqa")
    data = acdc.tasks.load("ioi", size=8).prepare(model)
    if name in rivals.MASKS:
        with pytest.raises(acdc.AcdcError, match="collapsed"):  # two steps decide nothing, and that is not a result
            rivals.RIVALS[name](model, data, rivals.Clock(-1.0))
        return
    order = rivals.RIVALS[name](model, data, rivals.Clock(-1.0))
    assert sorted(order.ravel()) == list(range(1, order.size + 1))


def test_a_rival_needs_the_time_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "TASKS", {"tiny-tasks-gqa": ("ioi",)})
    monkeypatch.setitem(PRETRAINED, "tiny-tasks-gqa", next(iter(PRETRAINED.values())))
    command.main(["--models", "tiny-tasks-gqa", "--methods", "ugs", "-o", str(tmp_path)])
    assert "first measure guided" in capsys.readouterr().out
    assert list((tmp_path / "cells").glob("*.json")) == []


def test_nearest_counts_sizes_and_what_prompts_tell_apart(cell: real.Cell) -> None:
    """A search that is a hair better on every prompt is surely nearer; one better on the mean alone is not."""

    def against(kls: np.ndarray) -> str:
        ours = dataclasses.replace(
            cell, method="guided", sizes=tuple(dataclasses.replace(size, kls=tuple(kls)) for size in cell.sizes[:8])
        )
        (line,) = (line for line in nearest([ours, other]).splitlines() if line.startswith("| tiny-tasks-gqa"))
        return line.split("|")[3:5]

    rng = np.random.default_rng(0)
    theirs = rng.uniform(1, 2, 32)
    other = dataclasses.replace(
        cell, sizes=tuple(dataclasses.replace(size, kls=tuple(theirs)) for size in cell.sizes)
    )
    assert against(theirs - rng.uniform(0.01, 0.02, 32)) == [" 8 of 8 ", " 8 of 8 "]
    noise = rng.normal(size=32)
    assert against(theirs - 1e-3 - (noise - noise.mean())) == [" 8 of 8 ", " 0 of 8 "]
    assert against(theirs + 0.01) == [" 0 of 8 ", " 0 of 8 "]
    assert np.isnan(mean_interval(-(np.arange(1.0, 33.0) ** 3))).all()
    assert against(theirs - np.arange(1.0, 33.0) ** 3 / 1e4 - 1e-6) == [" 8 of 8 ", " 8 of 8 "], (
        "nearer on every prompt"
    )
