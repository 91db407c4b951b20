"""`acdc trace` writes what it found, and refuses in one line what it cannot do."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import acdc
from command_line import Command


def test_a_tracing_is_written_as_table_heat_maps_and_page(command: Command) -> None:
    result = command(
        "trace",
        "induction-2l",
        "--size",
        4,
        "--sites",
        "residual,heads",
        "--by",
        "all",
        "--method",
        "both",
        "--json",
    )
    assert result.status == 0
    record = json.loads(result.out)
    folder = Path(record["folder"])
    assert folder == Path("runs/induction-2l-induction-trace")
    assert {path.name for path in folder.iterdir()} == {f"trace.{x}" for x in ("csv", "json", "svg", "pdf", "html")}
    with (folder / "trace.csv").open() as file:
        rows = list(csv.DictReader(file))
    task = acdc.tasks.load("induction", size=4)
    found = acdc.trace(acdc.load("induction-2l"), task, sites=["residual", "head"], by="all")
    exact = [row for row in rows if row["method"] == "exact"]
    assert [float(row["effect"]) for row in exact] == [row["effect"] for row in found.rows()]
    assert len(rows) == 2 * len(exact)
    assert set(record["agreement"]) == {"residual", "head"}
    shown = command("trace", "induction-2l", "--size", 4, "--by", "all", "-o", "here")
    assert "residual" in shown.out
    assert "of all)" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sites", "residul"), "unknown site 'residul': did you mean residual"),
        (("--sites", ","), "expected comma-separated sites"),
        (("--spans", "IO"), "places are by position"),
        (("--direction", "denoise", "--ablation", "zero"), "takes no zero values"),
    ],
)
def test_what_cannot_be_traced_is_one_line(command: Command, arguments: tuple[str, ...], message: str) -> None:
    result = command("trace", "induction-2l", "--size", 2, *arguments)
    assert result.status == 2
    assert message in result.err
    assert result.err.splitlines()[-1].startswith("error: ")
    assert not Path("runs").exists()


def test_help_has_an_example(command: Command) -> None:
    assert "Example: acdc trace" in command("trace", "--help").out


def test_a_trace_may_be_replaced_and_what_is_no_result_may_not(command: Command) -> None:
    options = ("trace", "induction-2l", "--size", 4, "--sites", "residual", "--by", "all", "-o", "here")
    assert command(*options).status == 0
    assert "or replace it with --force" in command(*options).err
    before = Path("here/trace.csv").read_text()
    assert command(*options, "--force", "--ablation", "zero").status == 0
    assert Path("here/trace.csv").read_text() != before
    Path("own").mkdir()
    Path("own/notes.txt").write_text("mine")
    refused = command(*options[:-1], "own", "--force")
    assert refused.status == 2
    assert "own holds neither a circuit nor a trace" in refused.err
