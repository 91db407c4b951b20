"""Cells of the report on real models: measured as the library measures, a file each, and missing ones are named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import acdc
from acdc.benchmarks.measuring import real
from acdc.model.pretrained import PRETRAINED


@pytest.fixture(scope="module")
def cell() -> real.Cell:
    return real.compute(acdc.load("tiny-tasks-gqa"), "ioi", "eap", size=16, resume=Path("unused"))


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


def test_a_ranking_that_can_goes_by_kl_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "SHARES", (0.05, 0.2))
    model = acdc.load("tiny-tasks-gqa")
    cell = real.compute(model, "ioi", "clean-corrupted", size=8, resume=Path("unused"))
    assert cell.aggregates == ("mean-absolute", "signed", "mean-absolute, kl", "signed, kl")
    data = acdc.tasks.load("ioi", size=8).prepare(model)
    scores = acdc.score(model, data, "clean-corrupted", metric="kl")
    curve = acdc.curve(model, data, scores, shares=real.SHARES, aggregate="mean-absolute")
    np.testing.assert_allclose([size.kl for size in cell.sizes if size.aggregate == "mean-absolute, kl"], curve.kl)


@pytest.mark.filterwarnings("ignore:.*prompts:UserWarning")
def test_a_cell_of_a_search_is_its_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "SHARES", (0.05, 0.2))
    model, resume = acdc.load("tiny-tasks-gqa"), tmp_path / "resume"
    cell = real.compute(model, "ioi", "guided", size=8, resume=resume)
    data = acdc.tasks.load("ioi", size=8).prepare(model)
    found = acdc.discover(model, data, "guided", metric="kl", edges=int(0.05 * model.graph().n_edges))
    circuits = [found.scores.top(int(share * model.graph().n_edges)) for share in real.SHARES]
    assert cell.aggregates == (real.FRONT,)
    assert [size.n_edges for size in cell.sizes] == [circuit.n_edges for circuit in circuits]
    results = [acdc.evaluate(model, data, circuit, random_circuits=0) for circuit in circuits]
    np.testing.assert_allclose([size.kl for size in cell.sizes], [result.kl for result in results])
    assert cell.seconds > 0
    assert not resume.exists()
    assert real.RULES.get(real.FRONT) is None
    assert "| guided |" in real.markdown([cell], [], "")


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
    monkeypatch.setattr(real, "TASKS", {cell.model: ("ioi", "sva")})
    monkeypatch.setitem(PRETRAINED, cell.model, next(iter(PRETRAINED.values())))
    computed: list[tuple[str, str]] = []

    def compute(model: acdc.Model, task: str, method: str, *, size: int, resume: Path) -> real.Cell:
        computed.append((task, method))
        if task == "sva":
            raise KeyboardInterrupt
        return dataclasses.replace(cell, method=method)

    monkeypatch.setattr(real, "compute", compute)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            real.main(["--models", cell.model, "--methods", "eap", "random", "-o", str(tmp_path)])
    assert computed == [("ioi", "eap"), ("ioi", "random"), ("sva", "eap"), ("sva", "eap")]
    text = (tmp_path / "README.md").read_text()
    assert f"## ioi on {cell.model}" in text
    assert f"ioi on {cell.model} (guided, eap-ig, clean-corrupted); sva on {cell.model} (guided, eap" in text
