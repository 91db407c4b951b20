"""The table of all methods: means of the same cases side by side, and what was not run is said."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from acdc.benchmarks.measuring import methods
from acdc.benchmarks.table import Row, from_csv, packed, to_csv

KEPT = packed(np.arange(50) == 0)
PAGE = f"before\n{methods.START}\nold\n{methods.END}\nafter\n"


def row(case: str, method: str, kl: float, **other: object) -> Row:
    return Row("s", case, method, 0, kl_at_2=kl, cmd=0.25, n_edges=1, n_edges_total=50, **({"kept": KEPT} | other))  # type: ignore[arg-type]


def cells(text: str, method: str) -> list[list[str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines()]
    return [line for line in lines if line[0] == method]


def test_methods_on_fewer_cases_stand_beside_all_others_on_these() -> None:
    rows = [row(case, "eap", kl) for case, kl in (("one", 1), ("two", 4), ("three", 6))]
    rows += [row(case, "exact", kl) for case, kl in (("one", 2), ("two", 3), ("three", 5))]
    rows += [row("two", "ugs", 7), row("two", "random", 9), row("three", "random", 8)]
    text = methods.page(rows)
    column = methods.COLUMNS.index("KL at 2%")
    assert [line[column] for line in cells(text, "eap")] == ["4 · 1", "4 · 0"]  # of three cases, and of "two"
    assert [line[column] for line in cells(text, "exact")] == ["3 · 2", "3 · 1"]
    assert [line[column] for line in cells(text, "ugs")] == ["7 · 0"]
    assert "Run on fewer of the 3 cases: ugs on 1, random on 2. On those that all have (two):" in text
    assert "Not run: guided, acdc," in text


def test_seeds_that_some_method_lacks_count_for_stability_alone() -> None:
    rows = [row("one", "eap", 1), row("one", "guided", 2)]
    rows.append(dataclasses.replace(row("one", "eap", 9, kept=packed(np.arange(50) < 2)), seed=1))
    (found,) = cells(methods.page(rows), "eap")
    assert found[methods.COLUMNS.index("KL at 2%")] == "1.000 · 1"
    assert found[methods.COLUMNS.index("stability")] == ".50"


def test_what_failed_or_is_undefined_is_counted() -> None:
    rows = [row("one", "eap", 1), row("two", "eap", 2)]
    rows += [Row("s", "one", "cd-t", 0, error="no rule"), row("two", "cd-t", 3, kl_at_10=1.0)]
    rows += [row("one", "exact", 1, kl_at_10=0.5), row("two", "exact", 1)]
    text = methods.page(rows)
    assert cells(text, "cd-t (1 of 2)")
    assert cells(text, "exact")[0][methods.COLUMNS.index("KL at 10%")] == ".500 · 1 of 1"


def test_rows_come_to_those_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, rows in {
        "out": [row("one", "eap", 1), row("two", "eap", 2)],
        "runs": [
            row("two", "eap", 5),
            row("one", "exact", 3),
            Row("s", "one", "gim", 0, n_edges=2),  # an old one
        ],
    }.items():
        Path(folder).mkdir()
        Path(folder, "results.csv").write_text(to_csv(rows))
    Path("page.md").write_text(PAGE)
    monkeypatch.setattr(sys, "argv", ["methods", "runs", "-o", "out", "--page", "page.md"])
    methods.main()
    found = {(one.case, one.method): one.kl_at_2 for one in from_csv(Path("out/results.csv").read_text())}
    assert found == {("one", "eap"): 1, ("two", "eap"): 5, ("one", "exact"): 3}
    text = Path("page.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "### s" in text
