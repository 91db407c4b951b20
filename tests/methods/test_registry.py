"""Methods are known by their records: no other file asks for one by its name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from acdc.methods import DEFAULT_RANKING, DEFAULT_SEARCH, METHODS

ROOT = Path(__file__).parents[2]
MEASURED = {"measuring"}
"""The part of benchmarks/ where scripts compare the methods they name, with each other or with other programs."""
OTHERS = {
    "acdc/tasks/peer_formats.py": "programs whose prompt files are read",
    "acdc/tracing/trace.py": "ways to trace",
    "acdc/tracing/positional.py": "scores of edges at positions, which are those of two methods",
    "acdc/tracing/positional_circuit.py": "the same",
    "acdc/cli/positions.py": "the same",
    "acdc/cli/certificates.py": "what is smoothed",
    "acdc/neurons/scores.py": "scores of neurons, which are called as those of nodes",
    "acdc/neurons/search.py": "the same",
    "acdc/cli/neurons.py": "the same",
    "acdc/cli/main.py": "help that shows names",
}
"""Files that may name methods, and for what."""
WORDS = {"acdc", "exact", "random"}
"""Names that are ordinary words too: looked for only where something is called a method."""


def sources() -> Iterator[Path]:
    """All but methods themselves, audits and certificates, which are of the rankings they name, and what measures."""
    for folder in ("acdc", "metrics", "viz", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).parts
            if parts[:2] in {("acdc", name) for name in ("methods", "auditing", "certificates")} or (
                folder == "benchmarks" and parts[1] in MEASURED
            ):
                continue
            if parts[0] == "acdc" and parts[1] in ("metrics", "viz", "benchmarks"):  # links to the folders
                continue
            if str(path.relative_to(ROOT)) not in OTHERS:
                yield path


def asked_for(tree: ast.Module, names: set[str]) -> Iterator[str]:
    """Where a method's name is used as a value, or is part of a text that is no docstring."""
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    unusual = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, sorted(names - WORDS)))})(?![\w-])")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            if unusual.search(node.value):
                yield f"line {node.lineno}: {node.value!r:.80}"
        elif isinstance(node, ast.Compare | ast.Subscript) and "method" in ast.unparse(node).lower():
            values = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            if values & names:
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_no_file_but_its_own_names_a_method() -> None:
    names = set(METHODS)
    found = [
        f"{path.relative_to(ROOT)}, {place}"
        for path in sources()
        for place in asked_for(ast.parse(path.read_text()), names)
    ]
    assert found == []


@pytest.mark.parametrize("line", ['run(model, "eap-ig")', 'if method == "acdc": pass', 'METHODS["exact"]'])
def test_the_search_for_names_finds_them(line: str) -> None:
    assert list(asked_for(ast.parse(f'"""guided"""\n{line}'), set(METHODS)))


def test_a_records_fields_are_those_of_its_functions() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert method.description
        assert method.cost
        assert method.options_from(method.options) == method.options
    assert METHODS[DEFAULT_SEARCH].search is not None
    assert METHODS[DEFAULT_RANKING].score is not None
    assert next(iter(METHODS)) == DEFAULT_SEARCH  # as the command line's help says
