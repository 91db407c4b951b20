"""The results table keeps every row whole, for many at once, and refuses what it cannot compare."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from acdc.benchmarks.table import Row, Table
from acdc.errors import AcdcError


def row(**fields: object) -> Row:
    return Row(**{"suite": "s", "case": "c", "method": "m", "seed": 0} | fields)  # type: ignore[arg-type]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    given = row(edge_auc=0.5, recovered_at_some_threshold=True, n_edges=3, warnings="one\ntwo", kl=None)
    with Table(tmp_path / "t.sqlite") as table:
        table.add(given)
    with Table(tmp_path / "t.sqlite") as table:
        (found,) = table.rows("s")
        assert found == given
        assert found.recovered_at_some_threshold is True
        assert table.rows("another") == []


def test_an_undefined_figure_is_none(tmp_path: Path) -> None:
    with Table(tmp_path / "t.sqlite") as table:
        table.add(row(precision=float("nan")))
        assert table.rows()[0].precision is None


def test_only_an_error_gives_way_to_a_later_row(tmp_path: Path) -> None:
    with Table(tmp_path / "t.sqlite") as table:
        table.add(row(error="out of luck"))
        assert table.has(row().key)
        assert not table.has(row().key, errors=False)
        table.add(row(f1=1.0))
        table.add(row(f1=0.0))
        table.add(row(error="too late"))
        assert table.rows() == [row(f1=1.0)]


def test_many_can_make_and_fill_one_table_at_once(tmp_path: Path) -> None:
    def fill(worker: int) -> None:
        with Table(tmp_path / "t.sqlite") as table:
            for seed in range(20):
                table.add(row(seed=seed, n_edges=worker))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fill, range(8)))
    with Table(tmp_path / "t.sqlite") as table:
        assert [found.seed for found in table.rows()] == list(range(20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE made_by SET acdc = '0.0.1'", r"made by acdc 0\.0\.1, and this is acdc .* choose another folder"),
        ("PRAGMA user_version = 99", "made by table format 99"),
        ("PRAGMA application_id = 7", "is not a results table of acdc benchmark"),
    ],
)
def test_a_table_of_another_version_is_refused(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "t.sqlite"
    Table(path).close()
    with sqlite3.connect(path) as database:
        database.execute(change)
    database.close()
    with pytest.raises(AcdcError, match=message):
        Table(path)


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text, other = tmp_path / "notes.txt", tmp_path / "other.sqlite"
    text.write_text("not a table " * 100)
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE mine (x)")
    database.close()
    for path in (text, other, tmp_path):
        with pytest.raises(AcdcError, match="is not a results table"):
            Table(path)
    assert text.read_text().startswith("not a table")
