"""The report of a benchmark: `report.html`, one page that needs nothing else, and `report.md`, with `results.csv`.

A report is made from the results table and the circuits beside it alone, so that it can be made again at any time.
Templates escape everything; the only markup put into a page as it is are figures drawn here.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from acdc.benchmarks.figures import figures, picture
from acdc.benchmarks.runner import KL_AT, circuit_folder
from acdc.benchmarks.suites import SUITES
from acdc.benchmarks.summary import Estimate, by_case, leaderboard
from acdc.benchmarks.table import OLD, ROWS, Row, Table, to_csv
from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.methods import METHODS
from acdc.model.load import builtin_models
from acdc.shown import counted
from acdc.store.writing import write_atomically

MOST_INSIDE = 5000
"""A circuit with more edges is not put into the page."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A circuit beside the truth: the methods that found it, and in words and as a figure how it differs."""

    methods: tuple[str, ...]
    words: str
    svg: Markup | None


@dataclasses.dataclass(frozen=True)
class CaseReport:
    """All there is to show of one case."""

    name: str
    description: str
    rows: tuple[Row, ...]
    links: Mapping[tuple[str, str, str, int], str]
    pictures: tuple[Picture, ...]
    n_edges_total: int | None
    n_true: int | None
    truth: str | None


def check_folder(folder: Path) -> None:
    """Refuse a folder whose files a report would replace though no benchmark made them.

    Raises:
        AcdcError: it holds such a file.
    """
    marks = {"report.html": b"acdc benchmark", "report.md": b"acdc benchmark", "results.csv": b"suite,case,method,"}
    for name, mark in marks.items():
        path = folder / name
        if path.exists() and not (path.is_file() and mark in path.read_bytes()):
            raise AcdcError(
                f"{path} is not of a benchmark, and would be replaced: choose another folder with -o/--out"
            )


def write_report(folder: str | Path, suite: str, *, command: str) -> dict[str, Path]:
    """Write the report of a suite into the folder of its results table.

    Args:
        command: the command line that makes it, to be shown.

    Returns:
        The files by kind: "html", "markdown" and "csv".

    Raises:
        AcdcError: the table has no rows of the suite.
    """
    folder = Path(folder)
    there = (folder / ROWS).exists() or (folder / OLD).exists()
    rows = Table(folder).rows(suite) if there else []
    if not rows:
        raise AcdcError(
            f"there is nothing to report: {str(folder / ROWS)!r} has no row of suite {suite!r}; "
            f"run acdc benchmark {suite} -o {folder} first"
        )
    lines = leaderboard(rows)
    drawn = figures(rows, lines)
    context = {
        "suite": suite,
        "description": SUITES[suite].description
        if suite in SUITES
        else "; ".join(dict.fromkeys(f"{row.model} on {row.task}" for row in rows)),
        "command": command,
        "lines": lines,
        "methods": [line.method for line in lines],
        "metrics": _method_metrics(rows),
        "kl_at": {
            name: f"{100 * share:g}%"
            for name, share in KL_AT.items()
            if any(name in line.figures for line in lines)
        },
        "stable": any(line.stability is not None for line in lines),
        "rows": rows,
        "has_truth": any(row.n_true is not None for row in rows),
        "exact": any(row.reproduces is not None for row in rows),
        "blind": any(row.found_without_witnesses is not None for row in rows),
        "singly": any(row.truth is not None and row.truth.startswith("zero/") for row in rows),
        "figures": {name: Markup(svg) for name, svg in drawn.items()},
        "cases": [_case(name, group, folder) for name, group in by_case(rows).items()],
        "searches": [line for line in lines if line.found and _searches(line.method)],
        "wrong": [(row, json.loads(row.reasons)) for row in rows if row.reasons],
        "mixed": {line.method: names for line in lines if (names := _mixed(rows, line.method))},
        "other_metric": sorted({row.method for row in rows if row.method_metric != row.metric}),
        "errors": [row for row in rows if row.error],
        "warnings": sorted({(row.case, text) for row in rows for text in (row.warnings or "").splitlines()}),
        "seeds": sorted({row.seed for row in rows}),
        "versions": _distinct(row.versions for row in rows),
        "machines": _distinct(row.machine for row in rows),
    }
    files = {"html": folder / "report.html", "markdown": folder / "report.md", "csv": folder / "results.csv"}
    (folder / "figures").mkdir(exist_ok=True)
    for name, svg in drawn.items():
        write_atomically(folder / "figures" / f"{name}.svg", svg + "\n")
    environment = _environment()
    write_atomically(files["html"], environment.get_template("report.html").render(context))
    write_atomically(files["markdown"], environment.get_template("report.md").render(context))
    write_atomically(files["csv"], to_csv(rows))
    return files


def _case(name: str, rows: list[Row], folder: Path) -> CaseReport:
    first = next((row for row in rows if row.error is None), rows[0])
    return CaseReport(
        name,
        builtin_models().get(first.model or "", ""),
        tuple(rows),
        {row.key: link for row in rows if (link := _link(row, folder)) is not None},
        tuple(_pictures([row for row in rows if row.error is None and row.seed == first.seed], folder)),
        first.n_edges_total,
        first.n_true,
        first.truth,
    )


def _pictures(rows: Sequence[Row], folder: Path) -> list[Picture]:
    """The true circuit first, then every other circuit that some method found, each once."""
    if not rows or rows[0].truth is None:
        return []
    try:
        truth = Circuit.load(folder / circuit_folder(rows[0].suite, rows[0].case, "truth", rows[0].seed))
        found = {row.method: Circuit.load(folder / circuit_folder(*row.key)) for row in rows}
    except AcdcError:  # the files are gone: the figures remain
        return []
    groups: dict[Circuit, list[str]] = {truth: []}
    for method, circuit in found.items():
        groups.setdefault(circuit, []).append(method)
    pictures = []
    for circuit, methods in groups.items():
        false, missed = int((circuit.edges & ~truth.edges).sum()), int((~circuit.edges & truth.edges).sum())
        words = f"{counted(circuit.n_edges - false, 'true edge')}, {false} false, {missed} missed"
        svg = picture(circuit, truth)
        pictures.append(Picture(tuple(methods), words, None if svg is None else Markup(svg)))
    return pictures


def _link(row: Row, folder: Path) -> str | None:
    """The circuit of a row in the page itself, as a file to save, without its scores; a big one where it is."""
    path = circuit_folder(*row.key)
    try:
        circuit = Circuit.load(folder / path)
    except AcdcError:  # there was an error, or the file is gone
        return None
    if circuit.n_edges > MOST_INSIDE:
        return (path / "circuit.json").as_posix()
    with tempfile.TemporaryDirectory() as place:
        text = (dataclasses.replace(circuit, scores=None).save(place) / "circuit.json").read_text()
    content = json.dumps(json.loads(text), separators=(",", ":"))
    return "data:application/json;base64," + base64.b64encode(content.encode()).decode()


def _method_metrics(rows: Sequence[Row]) -> dict[str, str]:
    """The metrics each method was given, by method."""
    given: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.method_metric:
            given.setdefault(row.method, {})[row.method_metric] = None
    return {method: ", ".join(metrics) for method, metrics in given.items()}


def _searches(method: str) -> bool:
    """Whether a method of the table searches; not known of one that is not here any more."""
    record = METHODS.get(method)
    return record is not None and record.search is not None


def _mixed(rows: Sequence[Row], method: str) -> list[str]:
    """The cases on which a ranking puts a false edge above a true one."""
    mixed = (row.case for row in rows if row.method == method and row.recovered_at_some_threshold is False)
    return list(dict.fromkeys(mixed))


def _distinct(texts: Iterable[str | None]) -> list[str]:
    """JSON objects as text, each once."""
    return [
        ", ".join(f"{name} {value}" for name, value in json.loads(text).items())
        for text in dict.fromkeys(texts)
        if text
    ]


# ---- how things are written -------------------------------------------------------------------------------------


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    environment.filters |= {
        "number": number, "estimate": estimate, "percent": percent, "cell": cell, "verdict": verdict,
    }  # fmt: skip
    return environment


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, or three decimals from 0.001 to 1; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return str(value)
    if 0.001 <= abs(value) <= 1 or value == 0:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:.0f}"


def percent(value: Estimate | None) -> str:
    """The mean of a share in percent; a dash for None."""
    return "–" if value is None else f"{100 * value.mean:.3g}%"


def estimate(value: Estimate | None, digits: int = 3) -> str:
    """A mean with its confidence interval, or the range over cases where there is none."""
    if value is None:
        return "–"
    if math.isnan(value.low):
        spread = f" ({value.least:.{digits}f} to {value.greatest:.{digits}f})"
        return f"{value.mean:.{digits}f}" + (spread if value.n > 1 else "")
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def verdict(row: Row) -> str:
    """In a word or two, what a method's circuit is against the truth."""
    if row.error is not None:
        return "error"
    if row.hamming is None:
        return number(row.faithfulness)
    parts = [f"{n} {what}" for n, what in ((row.false_positives, "false"), (row.missed, "missed")) if n]
    return ", ".join(parts) or "exact"


def cell(text: object) -> str:
    """Text that stays text in a cell of a Markdown table."""
    plain = " ".join(str(text).split())
    for character, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        plain = plain.replace(character, written)
    for character in "\\`*_[]|#":
        plain = plain.replace(character, "\\" + character)
    return plain
