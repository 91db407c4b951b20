"""The table of all methods in docs/methods.md, from the results of `acdc benchmark`.

    acdc benchmark trained --cases tiny-tasks-ioi --methods all --seeds 0,1 -o runs/trained
    python -m acdc.benchmarks.measuring.methods runs/trained

The rows of any number of such folders come to those in docs/methods/results.csv; a row that is there already gives way
to a new one, and rows of earlier versions, which lack columns, stay out. A mean says something only beside means over
the same cases and seeds. So methods that were run on fewer cases than the others, as those that train masks, stand in
a second table with all others on these same cases, and a seed that some method lacks counts for stability alone. What
was not run is said.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from acdc.benchmarks.measuring.correlation import write_between
from acdc.benchmarks.report import number
from acdc.benchmarks.runner import KL_AT
from acdc.benchmarks.summary import Line, by_case, leaderboard, per_case
from acdc.benchmarks.table import Row, from_csv, to_csv
from acdc.methods import METHODS
from acdc.shown import counted
from acdc.store.writing import write_atomically

START, END = "<!-- methods -->", "<!-- end of methods -->"
COLUMNS = (
    "method", "edge AUC", "CPR", "CMD", *(f"KL at {100 * share:g}%" for share in KL_AT.values()),
    "log KL", "edges", "stability", "passes", "seconds", "MB",
)  # fmt: skip


def page(rows: Sequence[Row]) -> str:
    """The tables of every suite as Markdown."""
    parts = []
    for suite in dict.fromkeys(row.suite for row in rows):
        parts += [f"### {suite}", *_suite([row for row in rows if row.suite == suite])]
    return "\n\n".join(parts)


def _suite(rows: list[Row]) -> list[str]:
    cases = {name: {row.case for row in rows if row.method == name} for name in METHODS}
    every = set().union(*cases.values())
    fewer = [name for name in METHODS if cases[name] and cases[name] != every]
    missing = [name for name in METHODS if not cases[name]]
    parts = [_table([row for row in rows if row.method not in fewer])]
    if fewer:
        common = every.intersection(*(cases[name] for name in fewer))
        few = ", ".join(f"{name} on {len(cases[name])}" for name in fewer)
        parts.append(f"Run on fewer of the {counted(len(every), 'case')}: {few}.")
        if common:
            parts[-1] += f" On those that all have ({', '.join(sorted(common))}):"
            parts.append(_table([row for row in rows if row.case in common]))
    if missing:
        parts.append(f"Not run: {', '.join(missing)}.")
    return parts


def _table(rows: list[Row]) -> str:
    compared = _compared(rows)
    cases = len({row.case for row in compared})
    seeds, every = (", ".join(map(str, sorted({row.seed for row in some}))) for some in (compared, rows))
    lines = {line.method: line for line in leaderboard(compared)}
    stability = {line.method: line.stability for line in leaderboard(rows)}
    more = f"; stability is of seeds {every}" if every != seeds else ""
    text = [f"{counted(cases, 'case')}, seeds {seeds}{more}.", ""]
    text += ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for name in METHODS:
        if name in lines:
            of = [row for row in compared if row.method == name and row.error is None]
            line = dataclasses.replace(lines[name], stability=stability[name])
            text.append("| " + " | ".join(_cells(line, of, cases)) + " |")
    return "\n".join(text)


def _compared(rows: list[Row]) -> list[Row]:
    """Of each case, the rows of the seeds that every method has."""
    kept = []
    for group in by_case(rows).values():
        methods = {row.method for row in group}
        seeds = [{row.seed for row in group if row.method == method} for method in methods]
        kept += [row for row in group if row.seed in set.intersection(*seeds)]
    return kept


def _cells(line: Line, rows: list[Row], cases: int) -> list[str]:
    there = len({row.case for row in rows})
    name = line.method if there == cases else f"{line.method} ({there} of {cases})"
    means = {key: figure.mean for key, figure in line.figures.items()}
    nats = []
    for column in (*KL_AT, "log_kl"):
        values = per_case(rows, lambda row, column=column: getattr(row, column))  # type: ignore[misc]
        least = f" · {line.least[column]}" if values else ""
        of = f" of {len(values)}" if 0 < len(values) < there else ""
        nats.append(_short(statistics.median(values) if values else None) + least + of)
    share = means.get("share_kept")
    passes = [line.costs[kind] for kind in ("forward", "backward") if kind in line.costs]
    peak = line.costs.get("peak_bytes")
    return [
        name,
        *(_short(means.get(key)) for key in ("edge_auc", "cpr", "cmd")),
        *nats,
        "–" if share is None else f"{100 * share:.3g}%",
        _stability(line, there),
        f"{sum(passes):.0f}" if passes else "–",
        number(line.costs.get("processor_seconds"), 2),
        "–" if peak is None else f"{peak / 1e6:.3g}",
    ]


def _stability(line: Line, cases: int) -> str:
    found = line.stability
    if found is None:
        return "–"
    return _short(found.mean, 2) + (f" of {found.n}" if found.n < cases else "")


def _short(value: float | None, digits: int = 3) -> str:
    """A number without the zero before its point."""
    text = number(value, digits)
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="of benchmarks, with their results.csv")
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/methods"))
    parser.add_argument("--page", type=Path, default=Path("docs/methods.md"))
    given = parser.parse_args()
    if not given.page.is_file():
        parser.error(
            f"there is no page {given.page} to write the table into: run it where docs/ is, or give --page"
        )
    file = given.out / "results.csv"
    files = [file] if file.exists() else []
    files += [folder / "results.csv" for folder in given.folders]
    rows = {
        row.key: row
        for path in files
        for row in from_csv(path.read_text())
        if row.kept is not None or row.error is not None  # others lack the columns of this table
    }
    write_atomically(file, to_csv([rows[key] for key in sorted(rows)]), replace=True)
    write_between(given.page, START, END, page(from_csv(file.read_text())))


if __name__ == "__main__":
    main()
