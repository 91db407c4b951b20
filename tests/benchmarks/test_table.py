"""The results table keeps every row whole, for many at once, and refuses what it cannot compare."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from acdc.benchmarks.table import Row, Table, from_csv, packed, to_csv, unpacked
from acdc.errors import AcdcError


def row(**fields: object) -> Row:
    return Row(**{"suite": "s", "case": "c", "method": "m", "seed": 0} | fields)  # type: ignore[arg-type]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    given = row(edge_auc=0.5, recovered_at_some_threshold=True, n_edges=3, warnings="one\ntwo", kl=None)
    Table(tmp_path).add(given)
    (found,) = Table(tmp_path).rows("s")
    assert found == given
    assert found.recovered_at_some_threshold is True
    assert Table(tmp_path).rows("another") == []


@pytest.mark.parametrize("n", [0, 1, 8, 479])
def test_a_packed_circuit_comes_back(n: int) -> None:
    kept = np.random.default_rng(n).random(n) < 0.3
    assert (unpacked(packed(kept), n) == kept).all()


def test_rows_come_back_from_the_spreadsheet_but_for_long_fields(tmp_path: Path) -> None:
    given = [
        row(edge_auc=0.5, recovered_at_some_threshold=True, minimal=False, n_edges=3, warnings="one\ntwo, three"),
        row(seed=1, error="no luck", roc="[[0], [1]]", machine="{}"),
    ]
    assert from_csv(to_csv(given)) == [given[0], dataclasses.replace(given[1], roc=None, machine=None)]
    assert from_csv("suite,case,method,seed,f1\ns,c,m,0,0.25\n") == [row(f1=0.25)]  # of an earlier version


def test_an_undefined_figure_is_none(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.add(row(precision=float("nan")))
    assert table.rows()[0].precision is None


def test_only_an_error_gives_way_to_a_later_row(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.add(row(error="out of luck"))
    assert table.has(row().key)
    table.add(row(f1=1.0))
    table.add(row(f1=0.0))
    table.add(row(error="too late"))
    assert table.rows() == [row(f1=1.0)]


def test_errors_are_forgotten_and_rows_with_figures_are_not(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.add(row(error="out of luck"))
    table.add(row(seed=1, error="of another case"))
    table.add(row(seed=2, f1=1.0))
    table.forget_errors([row().key, row(seed=2).key, row(seed=3).key])
    assert [found.seed for found in table.rows()] == [1, 2]


def test_many_can_make_and_fill_one_table_at_once(tmp_path: Path) -> None:
    def fill(worker: int) -> None:
        table = Table(tmp_path)
        for seed in range(20):
            table.add(row(seed=seed, n_edges=worker))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fill, range(8)))
    assert [found.seed for found in Table(tmp_path).rows()] == list(range(20))


def test_a_damaged_row_is_said_and_missing(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.add(row(f1=1.0))
    (path,) = (tmp_path / "rows").iterdir()
    path.write_text(path.read_text()[:-20])
    with pytest.warns(UserWarning, match="is damaged, or no row of this table"):
        table = Table(tmp_path)
    assert not table.has(row().key)
    table.add(row(f1=0.5))
    assert Table(tmp_path).rows() == [row(f1=0.5)]


def test_a_table_of_another_version_is_refused(tmp_path: Path) -> None:
    Table(tmp_path).add(row())
    (path,) = (tmp_path / "rows").iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"made_by": "acdc 0.0.1"}))
    with pytest.raises(AcdcError, match=r"made by acdc 0\.0\.1, and this is acdc .* choose another folder"):
        Table(tmp_path)


def in_sqlite(folder: Path, rows: list[Row], version: str) -> None:
    """The table as earlier versions wrote it."""
    names = [field.name for field in dataclasses.fields(Row)]
    with sqlite3.connect(folder / "results.sqlite") as database:
        database.execute(f"CREATE TABLE rows ({', '.join(names).replace('case', chr(34) + 'case' + chr(34))})")
        database.executemany(
            f"INSERT INTO rows VALUES ({', '.join('?' * len(names))})", [dataclasses.astuple(row) for row in rows]
        )
        database.execute("CREATE TABLE made_by (acdc TEXT)")
        database.execute("INSERT INTO made_by VALUES (?)", (version,))
    database.close()


def test_a_table_of_earlier_versions_is_taken_over_once(tmp_path: Path) -> None:
    rows = [row(reproduces=True, minimal=False, f1=0.5), row(seed=1, error="no")]
    in_sqlite(tmp_path, rows, metadata.version("acdc-circuits"))
    before = (tmp_path / "results.sqlite").read_bytes()
    table = Table(tmp_path)
    assert table.rows() == rows
    assert table.rows()[0].minimal is False
    assert (tmp_path / "results.sqlite").read_bytes() == before
    for path in (tmp_path / "rows").iterdir():
        path.unlink()
    assert Table(tmp_path).rows() == []


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    in_sqlite(tmp_path, [row()], "0.0.1")
    with pytest.raises(AcdcError, match=r"made by acdc 0\.0\.1, and this is acdc"):
        Table(tmp_path)
    (tmp_path / "results.sqlite").write_text("not a table " * 100)
    with pytest.raises(AcdcError, match="is not a results table"):
        Table(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.sqlite"]
    (tmp_path / "rows").write_text("mine")
    with pytest.raises(AcdcError, match="is not a folder of results"):
        Table(tmp_path)
