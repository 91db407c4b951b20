"""The planted-fault suite: rows come back as they were written, and the page counts them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from acdc.benchmarks.measuring.planted import KINDS, circuits
from acdc.benchmarks.measuring.trust import Row, add, read
from acdc.benchmarks.measuring.trust_page import page


def row(part: str, name: str, case: str, ok: bool, said: str = "") -> Row:
    return Row(part, name, case, 0, ok, 0.5, 3, 4, 1.5, said)


def test_rows_come_back_and_are_counted(tmp_path: Path) -> None:
    rows = [
        row("fault", "hole", "tracr-hist 0", True),
        row("fault", "hole", "tracr-sort 1", False),
        row("truth", "quick", "tracr-hist", False, "adversary"),
        row("proof", "fixed", "tracr-hist", True, "proof: all pairs"),
        row("proof", "mixed", "tracr-sort", False, "no proof: some, drawn"),
        row("trained", "guided", "tiny-tasks ioi", False, "held-out matrix"),
        row("search", "guided", "tiny-tasks sva", True, "disjoint fresh prompts, 64 each"),
    ]
    path = tmp_path / "results.csv"
    for one in rows:
        add(path, one)
    assert list(read(path).values()) == rows
    text = page(rows, "## What this says\n\nby hand")
    assert "| hole | adversary | 1 of 2" in text
    assert "tracr-sort 1" in text
    assert "| quick | tracr | 1 of 1 | adversary 1" in text
    assert "`tracr-sort`, mixed inputs: 1 of 4 pairs" in text
    assert "| guided | 1 |" in text
    assert "| guided | tiny-tasks sva | disjoint fresh prompts, 64 each | 0.50 | 3 | 4 | 0.75 |" in text
    assert text.endswith("by hand\n")


def test_there_are_at_least_a_dozen_kinds_each_with_a_check() -> None:
    assert len({kind.name for kind in KINDS}) >= 12
    assert len({kind.check for kind in KINDS}) >= 9


def test_planting_can_go_on() -> None:
    kind = KINDS[0]
    two, three = ([(name, seed, p.circuit.edge_names()) for name, seed, p in circuits(kind, n)] for n in (2, 3))
    assert three[:2] == two
    assert dataclasses.is_dataclass(kind)
