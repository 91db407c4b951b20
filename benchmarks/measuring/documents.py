"""Documents whose examples are run: below a block of Python, or of `acdc` commands, stands what it prints.

    python -m acdc.benchmarks.measuring.documents docs/ioi.md

runs the blocks in order, in an empty folder, writes what they printed below them, and puts the pictures they made
beside the document. The tests run the documents too, and compare.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from acdc.store.writing import write_atomically

_BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")


@dataclasses.dataclass(frozen=True)
class Block:
    """A block that was run.

    Attributes:
        code: what was run.
        shown: what the document says it prints.
        printed: what it printed.
    """

    code: str
    shown: str
    printed: str


def run(document: str, folder: Path) -> list[Block]:
    """Run the blocks of a document, in a folder for the files they write."""
    namespace: dict[str, Any] = {"__name__": "document"}
    blocks = []
    for language, code, shown in _BLOCK.findall(document):
        printed = _python(code, namespace, folder) if language == "python" else _commands(code, folder)
        blocks.append(Block(code, shown, "".join(line.rstrip() + "\n" for line in printed.splitlines())))
    return blocks


def with_output(document: str, blocks: list[Block]) -> str:
    """The document with what its blocks printed below them."""
    rest = iter(blocks)

    def replace(match: re.Match[str]) -> str:
        block, (language, code, _) = next(rest), match.groups()
        shown = f"\n\n```text\n{block.printed}```" if block.printed else ""
        return f"```{language}\n{code}```{shown}"

    return _BLOCK.sub(replace, document)


def different(shown: str, printed: str, *, tolerance: float = 0.02) -> list[tuple[str, str]]:
    """Words that differ; numbers may, by `tolerance` of 1 or of themselves."""
    words, others = shown.split(), printed.split()
    if len(words) != len(others):
        return [(shown, printed)]
    return [(a, b) for a, b in zip(words, others, strict=True) if a != b and not _close(a, b, tolerance)]


def pictures(document: str) -> list[str]:
    """Names of the pictures it shows."""
    return _PICTURE.findall(document)


def _close(a: str, b: str, tolerance: float) -> bool:
    try:
        x, y = (float(word.strip("[](),;%").replace("−", "-")) for word in (a, b))
    except ValueError:
        return False
    return abs(x - y) <= tolerance * max(1, abs(x))


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _python(code: str, namespace: dict[str, Any], folder: Path) -> str:
    printed = io.StringIO()
    with _inside(folder), contextlib.redirect_stdout(printed):
        exec(compile(code, "document", "exec"), namespace)
    return printed.getvalue()


def _commands(code: str, folder: Path) -> str:
    """Lines that start with `acdc`; what they print, one after the other."""
    printed = ""
    for line in code.splitlines():
        _, *arguments = shlex.split(line, comments=True)
        command = [sys.executable, "-m", "acdc", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{line}: {done.stderr}")
        printed += done.stdout
    return printed


def main(paths: Annotated[list[Path], typer.Argument(help="Documents to run and to complete.")]) -> None:
    """Run documents and write what they print into them."""
    for path in paths:
        document = path.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            document = with_output(document, run(document, folder))
            for name in pictures(document):
                if (folder / name).is_file():
                    write_atomically(path.parent / name, (folder / name).read_bytes())
        write_atomically(path, document)


if __name__ == "__main__":
    typer.run(main)
