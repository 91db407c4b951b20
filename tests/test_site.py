"""The documentation's site: its reference says what there is, and it builds without a warning where MkDocs is."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from acdc.benchmarks.measuring import reference

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", reference.pages())
def test_the_reference_is_that_of_the_registries(name: str) -> None:
    again = "make it again: python -m acdc.benchmarks.measuring.reference docs/reference"
    assert (ROOT / "docs/reference" / name).read_text("utf-8") == reference.pages()[name], again


def test_every_page_of_the_navigation_is_there() -> None:
    made = {"index.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    made |= {f"notebooks/{path.stem}.md" for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")}
    named = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert [page for page in named if page not in made and not (ROOT / "docs" / page).is_file()] == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra [docs]")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in ("index.html", "reference/python.html", "conventions.html"):
        text = (tmp_path / page).read_text("utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', text), page
