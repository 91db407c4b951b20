"""What is packaged says the same everywhere, and README reads on an index page once the repository has an address."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
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


@pytest.mark.slow
def test_the_tests_run_from_the_source_distribution(tmp_path: Path) -> None:
    """All are found there, where parts of the package are copies and no links, and some are run."""
    pytest.importorskip("setuptools")
    skipped = shutil.ignore_patterns(
        ".git", ".venv", "*.egg-info", "__pycache__", ".*_cache", "build", "dist", "runs"
    )
    shutil.copytree(ROOT, tmp_path / "copy", symlinks=True, ignore=skipped)
    build = "from setuptools import build_meta; build_meta.build_sdist(r'{}')"
    run(tmp_path / "copy", "-c", build.format(tmp_path))
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert run(unpacked, "-c", "import acdc; print(acdc.__file__)").strip() == str(
        unpacked / "acdc" / "__init__.py"
    )
    everywhere = run(ROOT, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider").splitlines()[-1]
    assert (
        run(unpacked, "-m", "pytest", "--collect-only", "-q").splitlines()[-1].split()[0] == everywhere.split()[0]
    )
    files = (
        "test_packaging.py",
        "test_site.py",
        "test_imports.py",
        "test_readme.py",
        "metrics",
        "formats/test_formats.py",
    )
    run(unpacked, "-m", "pytest", "-q", *(f"tests/{name}" for name in files))


def run(folder: Path, *arguments: str) -> str:
    """What Python prints in a folder, from which it imports."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout
