"""What docs/pictures.md shows is what its commands make."""

from __future__ import annotations

import html
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from acdc.cli import main as cli

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "pictures.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)


def parts(picture: Path) -> list[str]:
    """Names of the nodes and edges drawn; Graphviz escapes more of their letters than matplotlib."""
    found = re.findall(r'id="((?:node|edge):[^"]+)"', picture.read_text(encoding="utf-8"))
    return sorted(map(html.unescape, found))


def test_commands_make_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    for line in "".join(blocks("sh")).splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
        with pytest.raises(SystemExit) as exit:
            cli.main()
        assert not exit.value.code, line
    made = {"induction.svg": "runs/induction/circuit.svg"}
    shown = re.findall(r"\]\(pictures/([^)]+\.svg)\)", TEXT)
    assert len(shown) == 3
    for name in shown:
        assert parts(DOCS / "pictures" / name) == parts(tmp_path / made.get(name, name)) != []
    assert opened == [(tmp_path / "runs/induction/circuit.html").as_uri()] * 2


def test_python_runs_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, "pictures.md", "exec"), namespace)
    assert (tmp_path / "compare.html").is_file()


def test_pictures_are_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links
    assert [link for link in links if not (DOCS / link).is_file()] == []
