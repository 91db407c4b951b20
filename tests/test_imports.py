"""The import graph, drawn from the sources: down by the floors that CONTRIBUTING lists, and in no circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import networkx as nx
import pytest

import acdc

ROOT = Path(__file__).parents[1]
LINKS = ("metrics", "viz", "benchmarks")
"""Folders beside acdc/ that are part of the package by links."""


class Import(NamedTuple):
    """An import statement, of a module or of a name in one."""

    importer: str
    imported: str
    line: int
    function: str


def floors() -> list[set[str]]:
    """The rooms of each floor as the table in CONTRIBUTING has them, from the ground up."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("imports go down only")[2]
    rows = re.findall(r"^\| (`.*?) \|", text.partition("\n\n- ")[0], re.MULTILINE)
    return [set(re.findall(r"`(\w+)(?:/|\.py)`", row)) for row in reversed(rows)]


def modules() -> dict[str, Path]:
    found = {}
    for folder in ("acdc", *LINKS):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            if parts[0] == "acdc" and parts[1] in LINKS:  # by the link
                continue
            name = ".".join(parts if parts[0] == "acdc" else ["acdc", *parts])
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(name: str, source: str) -> Iterator[Import]:
    """Every import of our own modules, in functions too, but for those that only type checkers see."""

    def visit(node: ast.AST, function: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.FunctionDef):
                yield from visit(child, child.name)
            elif isinstance(child, ast.Import):
                yield from (Import(name, a.name, child.lineno, function) for a in child.names if is_ours(a.name))
            elif isinstance(child, ast.ImportFrom) and child.module and is_ours(child.module):
                for alias in child.names:
                    yield Import(name, target(child.module, alias.name), child.lineno, function)
            else:
                yield from visit(child, function)

    return visit(ast.parse(source), "")


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "acdc"


def target(module: str, name: str) -> str:
    """The module that `from module import name` asks for: a submodule, or the one where the name is."""
    if f"{module}.{name}" in MODULES:
        return f"{module}.{name}"
    return acdc._WHERE.get(name, module) if module == "acdc" else module


EVERY = [found for name, path in MODULES.items() for found in imports(name, path.read_text())]


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def upward(found: Import, height: dict[str, int]) -> bool:
    """Whether an import goes to another room that is no lower."""
    here, there = room(found.importer), room(found.imported)
    return here != there and height[here] <= height[there]


def is_allowed(found: Import) -> bool:
    """An object is asked for its picture, so there is one way up: from `_repr_…_` and `plot` to `acdc.viz`."""
    return (found.function.startswith("_repr_") or found.function == "plot") and room(found.imported) == "viz"


def test_imports_go_down_only() -> None:
    height = {name: i for i, floor in enumerate(floors()) for name in floor}
    facade = max(height[name] for name in ("discovery", "inspection"))  # `import acdc` is the API as users see it
    height |= {"": facade + 0.5, "__main__": 100}
    rooms = {room(name) for name in MODULES}
    assert rooms == height.keys(), "CONTRIBUTING lists every room once"
    up = [
        f"{found.importer}, line {found.line}: {found.imported}"
        for found in EVERY
        if found.importer != "acdc" and upward(found, height) and not is_allowed(found)
    ]
    assert up == []


def test_there_is_no_circle() -> None:
    graph = nx.DiGraph((found.importer, found.imported) for found in EVERY if not is_allowed(found))
    graph.remove_node("acdc")  # imports what is asked of it
    circles = [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]
    assert circles == []


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) == "metrics"])
def test_metrics_know_no_model_and_no_graph(name: str) -> None:
    """Of acdc they need the ground alone: the error to raise, and the registry of records."""
    rooms = {room(found.imported) for found in imports(name, MODULES[name].read_text())}
    assert rooms <= {"metrics", "errors", "registry"}


@pytest.mark.parametrize(
    "line", ["def f():\n from acdc.methods import eap", "import acdc.discovery", "import acdc"]
)
def test_an_upward_import_is_found(line: str) -> None:
    height = {name: i for i, floor in enumerate(floors()) for name in floor} | {"": 100}
    (found,) = imports("acdc.engine.new", line)
    assert upward(found, height)
    assert not is_allowed(found)


def test_no_file_is_too_long_to_read() -> None:
    every = [*MODULES.values(), *(ROOT / "tests").rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in every}
    assert {name: length for name, length in lengths.items() if length > 500} == {}
