"""The report says what the table says, in one page that needs nothing else, and trusts no text in it."""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from acdc.benchmarks.report import estimate, write_report
from acdc.benchmarks.runner import run
from acdc.benchmarks.suites import Case, Suite
from acdc.benchmarks.summary import leaderboard
from acdc.benchmarks.table import Row, Table, packed
from acdc.circuit import Circuit
from acdc.errors import AcdcError

SUITE = Suite(
    "tiny",
    "",
    tuple(
        Case(name, f"tracr-{name}", f"tracr-{name}", inputs="split", gradient_metric="projection")
        for name in ("hist", "first")
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small benchmark with its report."""
    folder = tmp_path_factory.mktemp("benchmark")
    run(SUITE, folder, methods=["acdc", "guided", "eap"])
    write_report(folder, "tiny", command="acdc benchmark tiny")
    return folder


class Page(HTMLParser):
    """Collects the attributes that load or link to something, and whether tags are balanced."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("href", "src", "xlink:href")]
        self.ids += [value or "" for name, value in attributes if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open.pop()


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    for address in page.addresses:
        if address.startswith("#"):
            assert address[1:] in page.ids
        else:
            assert address.startswith("data:application/json;base64,")
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\((?!#)", text)
    assert text.count("<svg") >= 4 + 2  # plots, and a true circuit for each case


def test_the_circuits_in_the_page_can_be_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    addresses = [a for a in Page((folder / "report.html").read_text()).addresses if a.startswith("data:")]
    assert len(addresses) == 2 * 4
    for address in addresses:
        (tmp_path / "circuit.json").write_bytes(base64.b64decode(address.partition(",")[2]))
        circuit = Circuit.load(tmp_path)
        made = circuit.provenance
        assert circuit == Circuit.load(
            next((folder / "circuits" / "tiny").glob(f"{made.model[6:]}/{made.method}-*"))
        )


def test_the_figures_of_the_table_are_in_the_report(folder: Path) -> None:
    html, markdown = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for text in (html, markdown):
        assert "acdc benchmark tiny" in text
        assert re.search(
            r"acdc(</code>|`), told nothing but the task, gives exactly\s+the true circuit on\s2 of 2", text
        )
        assert "resample" in html
        for method in ("acdc", "guided", "eap", "random"):
            assert method in text
    rows = Table(folder).rows()
    random = [row for row in rows if row.method == "random"]
    share = sum((row.n_edges or 0) / (row.n_edges_total or 1) for row in random) / len(random)
    assert "of all edges" in markdown
    assert f"{100 * share:.3g}%" in html
    assert f"{100 * share:.3g}%" in markdown
    listed = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert [(line["case"], line["method"], int(line["n_edges"])) for line in listed] == [
        (row.case, row.method, row.n_edges) for row in rows
    ]
    assert "found exactly by acdc" in html
    assert (folder / "figures" / "roc.svg").read_text().startswith("<svg")


def test_the_same_table_gives_the_same_report(folder: Path) -> None:
    before = (folder / "report.html").read_text()
    write_report(folder, "tiny", command="acdc benchmark tiny")
    assert (folder / "report.html").read_text() == before


EVIL = "<script>alert(1)</script>|`&\"'"


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    wrong = {"edge": EVIL, "kind": "missed", "alone": 0.1, "in_circuit": 0.2}
    why = {"metric": EVIL, "distance": 1.0, "allowed": 0.1, "edges": [wrong], "more": 3}
    good = Row(
        EVIL, EVIL, EVIL, 0, warnings=EVIL, model=EVIL, task=EVIL, metric=EVIL, method_metric=EVIL, truth=EVIL,
        n_edges_total=9, n_true=4, n_edges=3, edge_auc=0.5, f1=0.5, hamming=2, missed=2, false_positives=0,
        faithfulness=0.5, seconds=1.0, average_precision=0.5, ranking_seconds=1.0, roc="[[0, 1], [0, 1]]",
        curve="[[1], [1]]", reasons=json.dumps(why), versions=json.dumps({EVIL: EVIL}),
    )  # fmt: skip
    table = Table(tmp_path)
    table.add(good)
    table.add(dataclasses.replace(good, seed=1, error=EVIL))
    write_report(tmp_path, EVIL, command=EVIL)
    html, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert Page(html).open == []
    lines = [line for line in markdown.splitlines() if not line.startswith("    ")]  # an indented line is code
    assert not any("<script" in line for line in lines)
    tables = [re.sub(r"\\\|", "", line) for line in lines if line.startswith("|")]
    widths = {len(re.findall(r"\|", line)) for line in tables}
    assert len(widths) <= 3  # circuits, rankings, cases


def test_wrong_edges_errors_and_missing_circuit_files_are_shown(tmp_path: Path) -> None:
    wrong = {"edge": "m0->logits", "kind": "missed", "alone": 0.25, "in_circuit": 0.001}
    why = {"metric": "l2", "distance": 0.125, "allowed": 0.002, "edges": [wrong], "more": 0}
    row = Row(
        "tiny", "hist", "acdc", 0, truth="resample/varied", n_true=4, n_edges=3, hamming=1, missed=1,
        false_positives=0, f1=0.9, reasons=json.dumps(why),
    )  # fmt: skip
    table = Table(tmp_path)
    table.add(row)
    table.add(Row("tiny", "sort", "acdc", 0, error="out of memory"))
    write_report(tmp_path, "tiny", command="acdc benchmark tiny")
    for name in ("report.html", "report.md"):
        text = " ".join((tmp_path / name).read_text().split())
        assert "1 missed" in text
        assert "removed from the full model alone it costs 0.250" in text
        assert "put back into the circuit it gains 0.001" in text
        assert "out of memory" in text
        assert re.search("gives exactly the true circuit on 0 of 2 cases", text)


def test_there_is_no_report_of_an_empty_table(tmp_path: Path) -> None:
    for make in (lambda: None, lambda: Table(tmp_path)):
        make()
        with pytest.raises(AcdcError, match=r"there is nothing to report: .* run acdc benchmark tracr"):
            write_report(tmp_path, "tracr", command="")
    assert not (tmp_path / "report.html").exists()


def test_the_leaderboard_counts_on_how_many_cases_no_method_has_less() -> None:
    figures = {"one": {"a": 0.2, "b": 0.1}, "two": {"a": 0.3, "b": 0.3}, "three": {"a": 0.5}}
    rows = [
        Row("s", case, method, 0, cmd=value, n_edges=1)
        for case, values in figures.items()
        for method, value in values.items()
    ]
    least = {line.method: line.least for line in leaderboard(rows)}
    assert {name: {k: n for k, n in counts.items() if n} for name, counts in least.items()} == {
        "a": {"cmd": 2},
        "b": {"cmd": 2},
    }


def test_stability_is_the_mean_overlap_of_circuits_of_one_definition(tmp_path: Path) -> None:
    def row(case: str, method: str, seed: int, *kept: int, **other: object) -> Row:
        edges = np.isin(np.arange(11), kept)
        return Row("s", case, method, seed, n_edges_total=11, n_edges=len(kept), kept=packed(edges), **other)  # type: ignore[arg-type]

    rows = [
        row("one", "a", 0, 1, 2, 3), row("one", "a", 1, 1, 2, 4), row("one", "a", 2, 1, 2, 3),
        row("two", "a", 0, 5), row("two", "a", 1, 6), row("two", "a", 2, 5, ablation="zero"),
        row("three", "a", 0, 7),
        row("one", "b", 0, 1),
        Row("s", "one", "b", 1, n_edges_total=11, n_edges=1),  # an older one, whose circuit is not in the table
    ]  # fmt: skip
    table = Table(tmp_path)
    for one in rows:
        table.add(one)
    found = {line.method: line.stability for line in leaderboard(table.rows("s"))}
    assert found["a"] is not None
    assert found["a"].n == 2
    assert found["a"].mean == pytest.approx(((2 / 4 + 2 / 4 + 1) / 3 + 0) / 2)
    assert found["b"] is None
    write_report(tmp_path, "s", command="")
    assert "| stability |" in (tmp_path / "report.md").read_text()
    assert "<th>stability</th>" in (tmp_path / "report.html").read_text()


def test_the_leaderboard_counts_errors_as_not_found_and_averages_seeds_first() -> None:
    rows = [
        Row("s", "a", "x", 0, truth="t", hamming=0, f1=1.0),
        Row("s", "a", "x", 1, truth="t", hamming=2, f1=0.5),
        Row("s", "b", "x", 0, truth="t", hamming=0, f1=0.25),
        Row("s", "b", "x", 1, truth="t", hamming=0, f1=0.25),
        Row("s", "c", "x", 0, error="no"),
        Row("s", "a", "random", 0, truth="t", hamming=9, f1=0.0),
    ]
    first, last = leaderboard(rows)
    assert (first.method, last.method) == ("x", "random")
    assert (first.cases, first.errors) == (3, 1)
    assert first.figures["f1"].mean == pytest.approx(0.5)
    assert (first.figures["f1"].least, first.figures["f1"].greatest) == (0.25, 0.75)
    assert estimate(first.figures["f1"], 2) == "0.50 (0.25 to 0.75)"  # no interval from two cases
    assert first.found is not None
    assert first.found.mean == pytest.approx(1 / 3)  # b alone: a fails with one seed, c with an error
    assert 0 < first.found.low < first.found.mean < first.found.high < 1
