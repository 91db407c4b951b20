"""What is packaged says the same everywhere, and README reads on an index page once the repository has an address."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def setup() -> Any:
    spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_reads_on_an_index_page(setup: Any) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    made = setup.absolute(readme, "https://example.org/acdc")
    links = re.findall(r"\]\(([^)\s]+)\)", made)
    assert links
    assert all(re.match("https?:|#", link) for link in links)
    assert "](https://example.org/acdc/raw/main/docs/pictures/induction.svg)" in made
    assert "](https://example.org/acdc/blob/main/docs/memory.md)" in made
    assert setup.absolute(readme, "") == readme


def test_one_line_holds_the_address(setup: Any) -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    assert setup.repository(text) == setup.repository(text.replace('repository = ""', 'repository = "x/"')).replace(
        "x", ""
    )
    assert setup.repository("") == ""


def test_versions_agree() -> None:
    pyproject, citation = ((ROOT / name).read_text("utf-8") for name in ("pyproject.toml", "CITATION.cff"))
    version = re.search(r'^version = "(.*)"', pyproject, re.MULTILINE)
    assert version is not None
    assert f"version: {version[1]}\n" in citation
    python = re.search(r'requires-python = ">=(.*)"', pyproject)
    hosted = (ROOT / ".github/workflows/test.yml").read_text("utf-8")
    assert python is not None
    assert f'"{python[1]}"' in hosted
    for named in re.findall(r"Python :: (3\.\d+)", pyproject):
        assert f'"{named}"' in hosted


def test_no_address_is_invented() -> None:
    for name in ("CITATION.cff", "SECURITY.md", "CODE_OF_CONDUCT.md", "mkdocs.yml"):
        text = (ROOT / name).read_text("utf-8")
        assert not re.findall(r"\S+@\S+\.\w+|https?://", text), name
