"""The results table: one row for each method, case and seed, each a file in the folder `rows`.

Rows come one at a time, from several processes and machines at once, and each must be there whole or not at all
however a process ends (`acdc.store.rows`). What is in them is JSON; `results.csv` beside the report has them together.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import dataclasses
import io
import sqlite3
import types
import typing
import zlib
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from acdc.errors import AcdcError
from acdc.graph import BoolArray
from acdc.store.folders import whole_folder
from acdc.store.reading import spreadsheet_cell
from acdc.store.rows import Rows

ROWS = "rows"
FORMAT = 4
OLD = "results.sqlite"
"""The table of earlier versions, read once if there is no other."""
KEY = ("suite", "case", "method", "seed")
LONG_FIELDS = ("roc", "curve", "reasons", "machine")
"""Fields that `results.csv` leaves out."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What one method did on one case with one seed; figures are None where they are undefined, or after an error.

    Attributes:
        error: why there are no figures; None if there are.
        warnings: what the user should know, a line each.
        metric: the outcome metric that figures are in; method_metric: the one the method was given.
        truth: name of the true circuit, like "resample/varied" (ablation/distribution); None if nobody knows it.
        ranking: what edges were ranked by: "scores", "sweep" (over the threshold of a search), "front" (the order in
            which a search let them go), or "circuit" (a search without a ranking: the kept edges above all others).
        edge_auc … recovered_at_some_threshold: of the ranking, by magnitude, against the truth.
        precision … missed: of the circuit that the method gives without being told a size.
        reproduces, minimal: where outputs are exact: whether this circuit gives all of them, and no edge of it can go.
        found_without_witnesses: whether the method gives exactly the truth from prompts that are random alone; the
            task's own are led by pairs chosen with the truth.
        faithfulness: of this circuit on held-out prompts; discovery_faithfulness: on the prompts it was found on;
            random_faithfulness: mean of random circuits of its size.
        kl, exact_match: of this circuit on held-out prompts; None for numerical outputs.
        cpr, cmd: of the ranking by the mean score, as MIB defines them, on held-out prompts; a front has no CPR.
        log_cmd, log_kl: distance of the faithfulness from 1, and KL in nats, over orders of magnitude of the size, of
            the ranking by its own aggregate (`Scores.aggregate`), on held-out prompts.
        kl_at_half, kl_at_2, kl_at_10: as for `log_kl`, KL of the circuits of 0.5, 2 and 10% of the edges; None
            too where that is less than an edge.
        kept: the circuit's edges among all, as `packed`, so that circuits of several seeds can be compared.
        seconds … work: cost of the circuit; ranking_seconds … ranking_work: of the ranking (of a mask, which is trained
            once, that of the circuit again). Passes are over all of the task's prompts; work is in plain forward
            passes over them, by floating-point operations; processor seconds are of all threads.
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
    log_cmd: float | None = None
    log_kl: float | None = None
    kl_at_half: float | None = None
    kl_at_2: float | None = None
    kl_at_10: float | None = None
    kept: str | None = None
    seconds: float | None = None
    processor_seconds: float | None = None
    peak_bytes: int | None = None
    forward: float | None = None
    backward: float | None = None
    work: float | None = None
    ranking_seconds: float | None = None
    ranking_processor_seconds: float | None = None
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


def packed(kept: BoolArray) -> str:
    """Which of all edges (`[n_edges]`) are kept, as text: a bit an edge, compressed, in base 64."""
    return base64.b64encode(zlib.compress(np.packbits(kept).tobytes(), 9)).decode()


def unpacked(text: str, n_edges: int) -> BoolArray:
    """`[n_edges]`: what `packed` was given."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    return np.unpackbits(bits, count=n_edges).astype(np.bool_)


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as `results.csv`: numbers to six digits, and without `LONG_FIELDS`."""
    names = [field.name for field in dataclasses.fields(Row) if field.name not in LONG_FIELDS]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = (getattr(row, name) for name in names)
        writer.writerow(
            [f"{value:.6g}" if isinstance(value, float) else spreadsheet_cell(value) for value in values]
        )
    return file.getvalue()


def from_csv(text: str) -> list[Row]:
    """The rows of a `results.csv`, of this version or an earlier one, which has fewer columns."""
    kinds = {name: _kind(hint) for name, hint in typing.get_type_hints(Row).items()}
    rows = csv.DictReader(io.StringIO(text))
    return [
        Row(**{name: kinds[name](value) for name, value in row.items() if value or name in KEY}) for row in rows
    ]


def _kind(hint: Any) -> Callable[[str], Any]:
    """How a cell is read: as what a field is where it is not None."""
    (kind,) = (kind for kind in typing.get_args(hint) or (hint,) if kind is not types.NoneType)
    return "True".__eq__ if kind is bool else kind


class Table:
    """The rows in the folder `rows` of a folder; made if there is none.

    Raises:
        AcdcError: there is something else, or rows that another version made, whose figures may differ.
        WriteError: it cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        version = metadata.version("acdc-circuits")
        self._rows = Rows(self.folder / ROWS, f"acdc {version} (rows of format {FORMAT})", KEY)
        if (self.folder / OLD).exists() and not self._rows.folder.exists():
            self._convert(_old_rows(self.folder / OLD, version))
        self._rows.open()
        self._finished = {row.key for row in self.rows() if row.error is None}

    def _convert(self, rows: list[Row]) -> None:
        try:
            with whole_folder(self._rows.folder) as staging:
                for row in rows:
                    dataclasses.replace(self._rows, folder=staging).put(dataclasses.asdict(row))
        except AcdcError:
            if not self._rows.folder.is_dir():  # no other process was faster
                raise

    def add(self, row: Row) -> None:
        """Add a row, for good; one with this key that is there already stays, unless it is an error.

        Raises:
            WriteError: it cannot be written.
        """
        there = self._rows.get(row.key)
        self._rows.put(dataclasses.asdict(row), instead=there is not None and there["error"] is not None)

    def forget_errors(self, keys: Iterable[tuple[str, str, str, int]]) -> None:
        """Remove the rows with these keys that are errors, so that they are missing again.

        Raises:
            WriteError: one cannot be removed.
        """
        for key in keys:
            row = self._rows.get(key)
            if row is not None and row["error"] is not None:
                self._rows.remove(key)

    def has(self, key: tuple[str, str, str, int]) -> bool:
        """Whether there is a row, be it an error."""
        if key in self._finished:
            return True
        row = self._rows.get(key)
        if row is not None and row["error"] is None:
            self._finished.add(key)
        return row is not None

    def claimed(self, key: tuple[str, str, str, int]) -> contextlib.AbstractContextManager[bool]:
        """Whether this process alone may compute a row now: for a `with` block."""
        return self._rows.claimed(key)

    def rows(self, suite: str | None = None) -> list[Row]:
        """The rows, of one suite or all, by case, method and seed."""
        rows = [Row(**row) for row in self._rows.all()]
        return sorted((row for row in rows if suite in (None, row.suite)), key=lambda row: row.key)


def _old_rows(path: Path, version: str) -> list[Row]:
    """The rows of a table as earlier versions kept it, in SQLite, which is left as it is."""
    truths = [name for name, hint in typing.get_type_hints(Row).items() if bool in typing.get_args(hint)]
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
            (made_by,) = database.execute("SELECT acdc FROM made_by").fetchone()
            database.row_factory = sqlite3.Row
            values = [dict(row) for row in database.execute("SELECT * FROM rows")]
        rows = [Row(**row | {n: bool(row[n]) for n in truths if row[n] is not None}) for row in values]
    except (sqlite3.Error, KeyError, TypeError) as error:
        raise AcdcError(
            f"{str(path)!r} is not a results table that can be used: {error}; choose another folder, or remove it"
        ) from None
    if made_by != version:
        raise AcdcError(
            f"the results table {str(path)!r} was made by acdc {made_by}, and this is acdc {version}: their rows "
            "cannot be compared; choose another folder with -o/--out"
        )
    return rows
