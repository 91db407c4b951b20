"""What the README shows is true: its Python runs, its commands exist, its files are there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import acdc
from acdc.cli import main as cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def test_python_runs_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert (tmp_path / "runs/induction/circuit.json").is_file()


def test_output_is_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["acdc", "discover", "tracr-reverse"])
    with pytest.raises(SystemExit):
        cli.main()
    printed = [line.rstrip() for line in capfd.readouterr().out.splitlines()]
    (shown,) = blocks("text")
    assert [line for line in shown.splitlines() if line != "…" and line not in printed] == []


@pytest.mark.parametrize(
    ("model", "n_edges"), [("tracr-reverse", 10), ("tracr-proportion", 5), ("tracr-hist", 4), ("tracr-sort", 8)]
)
@pytest.mark.parametrize("method", ["guided", "acdc"])
def test_true_circuits_are_found_exactly(model: str, n_edges: int, method: str) -> None:
    assert f"`{model}`" in README
    subject, task = acdc.load(model), acdc.tasks.load(model)
    truth = acdc.evaluate(subject, task, acdc.discover(subject, task, method), random_circuits=0).truth
    assert truth is not None
    assert (truth.true_positives, truth.false_positives, truth.missed) == (n_edges, 0, 0)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("acdc ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_and_options_exist(line: str) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
    command = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, arguments)


@pytest.mark.parametrize("language", ["json", "csv"])
def test_files_of_prompts_are_read(language: str, tmp_path: Path) -> None:
    (block,) = blocks(language)
    path = tmp_path / f"prompts.{language}"
    path.write_text(block)
    task = acdc.tasks.load(path, metric="kl")
    assert task.description.startswith("3 prompt pairs" if language == "json" else "1 prompt pair of")


def test_files_it_points_to_are_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).is_file()] == []


def test_the_map_in_contributing_names_files_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:acdc|metrics|viz|benchmarks|docs|tests)/[\w/.]*)`", text)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
