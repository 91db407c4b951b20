"""Notebooks that are run: below each cell of code stands what it prints, and what its last expression shows.

    python -m acdc.benchmarks.measuring.notebooks docs/notebooks/*.ipynb

runs the cells in order, in an empty folder, and writes their outputs, without Jupyter: a notebook is JSON, and
cells are plain Python here. The tests run the notebooks too.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from acdc.store.writing import write_atomically

Outputs = list[dict[str, Any]]


def run(notebook: dict[str, Any], folder: Path) -> list[Outputs]:
    """Outputs of the cells of code, run in order, in a folder for the files they write."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    before = Path.cwd()
    os.chdir(folder)
    try:
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        return [_run(source(cell), namespace, number) for number, cell in enumerate(cells, start=1)]
    finally:
        os.chdir(before)


def source(cell: dict[str, Any]) -> str:
    """A cell's text."""
    return "".join(cell["source"])


def with_outputs(notebook: dict[str, Any], outputs: list[Outputs]) -> dict[str, Any]:
    """The notebook with these outputs."""
    rest = iter(enumerate(outputs, start=1))
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            number, found = next(rest)
            cell = cell | {"execution_count": number, "outputs": found}
        cells.append(cell)
    return notebook | {"cells": cells}


def _run(code: str, namespace: dict[str, Any], number: int) -> Outputs:
    tree = ast.parse(code, f"cell {number}")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
    found: Outputs = []
    if printed.getvalue():
        found.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if value is not None:
        found.append(
            {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": _shown(value)}
        )
    return found


def _shown(value: Any) -> dict[str, list[str]]:
    """What a notebook shows of a value: its picture if it has one, else its table, and its text."""
    data = {"text/plain": _lines(repr(value))}
    for name, method in (("image/svg+xml", "_repr_svg_"), ("text/html", "_repr_html_")):
        shown = getattr(value, method)() if hasattr(type(value), method) else None
        if shown is not None:
            return {name: _lines(shown)} | data
    return data


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main(paths: Annotated[list[Path], typer.Argument(help="Notebooks to run and to complete.")]) -> None:
    """Run notebooks and write what they show into them."""
    for path in paths:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as folder:
            outputs = run(notebook, Path(folder))
        content = json.dumps(with_outputs(notebook, outputs), indent=1, ensure_ascii=False)
        write_atomically(path, content + "\n")


if __name__ == "__main__":
    typer.run(main)
