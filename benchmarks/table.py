"""The results table: one row for each method, case and seed, in one SQLite file.

SQLite, because rows come one at a time, from several processes at once, and each must be there whole or not at all
however a process ends; a Parquet file is written once, by one. It comes with Python, and `pandas.read_sql` and any
other tool read it. Write-ahead logging lets readers and writers go on beside each other (on one machine: the file
must not be on a network drive).
"""

from __future__ import annotations

import dataclasses
import sqlite3
import typing
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from acdc.errors import AcdcError, WriteError
from acdc.store.writing import cannot_write

APPLICATION = 0x61636463  # "acdc", where SQLite files say whose they are
VERSION = 2
FILE = "results.sqlite"


@dataclasses.dataclass(frozen=True)
class Row:
    """What one method did on one case with one seed; figures are None where they are undefined, or after an error.

    Attributes:
        error: why there are no figures; None if there are.
        warnings: what the user should know, a line each.
        metric: the outcome metric that figures are in; method_metric: the one the method was given.
        truth: name of the true circuit, like "resample/varied" (ablation/distribution); None if nobody knows it.
        ranking: what edges were ranked by: "scores", "sweep" (over the threshold of a search), or "circuit" (a search
            without a ranking: the kept edges above all others).
        edge_auc … recovered_at_some_threshold: of the ranking, by magnitude, against the truth.
        precision … missed: of the circuit that the method gives without being told a size.
        reproduces, minimal: where outputs are exact: whether this circuit gives all of them, and no edge of it can go.
        found_without_witnesses: whether the method gives exactly the truth from prompts that are random alone; the
            task's own are led by pairs chosen with the truth.
        faithfulness: of this circuit on held-out prompts; discovery_faithfulness: on the prompts it was found on;
            random_faithfulness: mean of random circuits of its size.
        kl, exact_match: of this circuit on held-out prompts; None for numerical outputs.
        cpr, cmd: of the ranking, on held-out prompts.
        seconds … work: cost of the circuit; ranking_seconds … ranking_work: of the ranking. Passes are over all of the
            task's prompts; work is in plain forward passes over them, by floating-point operations.
        roc: JSON `[[false positive rate, …], [true positive rate, …]]`.
        curve: JSON `[[size, …], [faithfulness, …]]`; sizes are shares of the true circuit's edges, or of all.
        reasons: JSON, for a search that does not find the truth: what each wrong edge does.
        versions, machine: JSON, of what it was run with and on.
    """

    suite: str
    case: str
    method: str
    seed: int
    error: str | None = None
    warnings: str | None = None
    model: str | None = None
    task: str | None = None
    ablation: str | None = None
    metric: str | None = None
    method_metric: str | None = None
    truth: str | None = None
    ranking: str | None = None
    n_edges_total: int | None = None
    n_true: int | None = None
    n_edges: int | None = None
    edge_auc: float | None = None
    node_auc: float | None = None
    average_precision: float | None = None
    best_f1: float | None = None
    recovered_at_some_threshold: bool | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    hamming: int | None = None
    true_positives: int | None = None
    false_positives: int | None = None
    missed: int | None = None
    reproduces: bool | None = None
    minimal: bool | None = None
    found_without_witnesses: bool | None = None
    faithfulness: float | None = None
    discovery_faithfulness: float | None = None
    random_faithfulness: float | None = None
    kl: float | None = None
    exact_match: float | None = None
    cpr: float | None = None
    cmd: float | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    forward: float | None = None
    backward: float | None = None
    work: float | None = None
    ranking_seconds: float | None = None
    ranking_peak_bytes: int | None = None
    ranking_forward: float | None = None
    ranking_backward: float | None = None
    ranking_work: float | None = None
    roc: str | None = None
    curve: str | None = None
    reasons: str | None = None
    versions: str | None = None
    machine: str | None = None

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.suite, self.case, self.method, self.seed


FIELDS = tuple(field.name for field in dataclasses.fields(Row))
_KEY = 'suite, "case", method, seed'
_TYPES = {name: typing.get_args(hint) or (hint,) for name, hint in typing.get_type_hints(Row).items()}
_SQL_TYPES = {str: "TEXT", int: "INTEGER", float: "REAL", bool: "INTEGER"}


class Table:
    """The rows in one file; made if there is none.

    Raises:
        AcdcError: the file is something else, or was made by another version, whose figures may differ.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._version = metadata.version("acdc-circuits")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            self._open()
        except OSError as error:
            raise cannot_write(self.path, error) from None
        except sqlite3.OperationalError as error:
            raise WriteError(f"{str(self.path)!r} is not a results table that can be used: {error}") from None
        except sqlite3.Error as error:
            raise AcdcError(f"{str(self.path)!r} is not a results table that can be used: {error}") from None

    def _open(self) -> None:
        columns = ", ".join(f'"{name}" {_SQL_TYPES[_TYPES[name][0]]}' for name in FIELDS)
        self._database.execute("BEGIN IMMEDIATE")  # two processes may make the table at once
        with self._database:
            if (
                not self._pragma("application_id")
                and not self._database.execute("SELECT * FROM sqlite_master").fetchone()
            ):
                self._database.execute(f"CREATE TABLE rows ({columns}, PRIMARY KEY ({_KEY}))")
                self._database.execute("CREATE TABLE made_by (acdc TEXT)")
                self._database.execute("INSERT INTO made_by VALUES (?)", (self._version,))
                self._database.execute(f"PRAGMA application_id = {APPLICATION}")
                self._database.execute(f"PRAGMA user_version = {VERSION}")
        if self._pragma("application_id") != APPLICATION:
            raise AcdcError(f"{str(self.path)!r} is not a results table of acdc benchmark; choose another folder")
        if self._pragma("user_version") != VERSION:
            raise self._other(f"table format {self._pragma('user_version')}", f"format {VERSION}")
        (made_by,) = self._database.execute("SELECT acdc FROM made_by").fetchone()
        if made_by != self._version:
            raise self._other(f"acdc {made_by}", f"acdc {self._version}")

    def _pragma(self, name: str) -> int:
        return int(self._database.execute(f"PRAGMA {name}").fetchone()[0])

    def _other(self, theirs: str, ours: str) -> AcdcError:
        return AcdcError(
            f"the results table {str(self.path)!r} was made by {theirs}, and this is {ours}: their rows cannot be "
            "compared; choose another folder with -o/--out"
        )

    def add(self, row: Row) -> None:
        """Add a row, for good; one with this key that is there already stays, unless it is an error.

        Raises:
            WriteError: it cannot be written.
        """
        names = ", ".join(f'"{name}"' for name in FIELDS)
        update = ", ".join(f'"{name}" = excluded."{name}"' for name in FIELDS)
        self._execute(
            f"INSERT INTO rows ({names}) VALUES ({', '.join('?' * len(FIELDS))}) "
            f"ON CONFLICT DO UPDATE SET {update} WHERE rows.error IS NOT NULL",
            tuple(dataclasses.astuple(row)),
        )

    def _execute(self, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """The rows that a query gives.

        Raises:
            WriteError: the disk is full, or the file or its folder has gone.
        """
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise WriteError(
                f"the results table {str(self.path)!r} cannot be used: {error}; rows that were finished stay "
                "in it, and the same command goes on from there"
            ) from None

    def has(self, key: tuple[str, str, str, int], *, errors: bool = True) -> bool:
        """Whether there is a row; with `errors=False`, one with figures."""
        query = f"SELECT 1 FROM rows WHERE ({_KEY}) = (?, ?, ?, ?)"
        return bool(self._execute(query + " AND error IS NULL" * (not errors), key))

    def rows(self, suite: str | None = None) -> list[Row]:
        """The rows, of one suite or all, by case, method and seed."""
        where, values = ("WHERE suite = ?", (suite,)) if suite is not None else ("", ())
        found = self._execute(f"SELECT * FROM rows {where} ORDER BY {_KEY}", values)
        return [Row(**dict(self._typed(row))) for row in found]

    @staticmethod
    def _typed(values: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
        for name, value in zip(FIELDS, values, strict=True):
            yield name, bool(value) if value is not None and bool in _TYPES[name] else value

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
