"""Notebooks are run: every cell works, and what the committed one shows is what its code prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acdc.benchmarks.measuring.documents import different
from acdc.benchmarks.measuring.notebooks import run, with_outputs
from acdc.model.pretrained import fetched_folder

FOLDER = Path(__file__).parents[3] / "docs" / "notebooks"
REAL = "smollm2-135m-q4"


def read(name: str) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))
    return notebook


def printed(outputs: list[dict[str, Any]]) -> str:
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")


@pytest.mark.parametrize(
    "name",
    [
        "first-circuit",
        pytest.param("your-own", marks=pytest.mark.slow),
        pytest.param(
            "ioi-real-model",
            marks=[
                pytest.mark.real,
                pytest.mark.filterwarnings("default"),
                pytest.mark.skipif(fetched_folder(REAL) is None, reason=f"acdc models fetch {REAL}"),
            ],
        ),
    ],
)
def test_a_notebook_shows_what_its_code_prints(name: str, tmp_path: Path) -> None:
    notebook = read(name)
    shown = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = run(notebook, tmp_path)
    assert len(shown) == len(outputs)
    if name != "your-own":  # what it trains is another model on another processor
        wrong = [pair for a, b in zip(shown, outputs, strict=True) for pair in different(printed(a), printed(b))]
        assert wrong == []
    kinds = [[sorted(output.get("data", ())) for output in part] for part in (*shown, *outputs)]
    assert kinds[: len(shown)] == kinds[len(shown) :]


def test_every_notebook_has_its_outputs_and_is_small() -> None:
    paths = sorted(FOLDER.glob("*.ipynb"))
    assert [path.stem for path in paths] == ["first-circuit", "ioi-real-model", "your-own"]
    for path in paths:
        notebook = read(path.stem)
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert all(cell["outputs"] for cell in cells)
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
        assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
        assert path.stat().st_size < 200_000


def test_a_cell_shows_what_it_prints_and_its_last_value(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["text"]},
        {"cell_type": "code", "source": ["x = 2\n", "print('two', x)\n", "x + 1"]},
        {"cell_type": "code", "source": ["y = x"]},
    ]
    outputs = run({"cells": cells}, tmp_path)
    first, second = outputs
    assert (printed(first), first[1]["data"]) == ("two 2\n", {"text/plain": ["3"]})
    assert second == []
    assert with_outputs({"cells": cells}, outputs)["cells"][2] == cells[2] | {"execution_count": 2, "outputs": []}
