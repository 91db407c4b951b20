"""Terminal views name every edge, strongest first, and run nothing that a name says."""

from __future__ import annotations

import io
import re

import numpy as np
from hypothesis import given, settings
from rich.console import Console

from acdc.circuit import Circuit, Scores
from acdc.graph import Graph
from acdc.viz import terminal
from strategies import circuits


def shown(what: object) -> str:
    out = io.StringIO()
    Console(file=out, width=500, color_system=None).print(what)
    return out.getvalue()


@settings(max_examples=25)
@given(circuits(group_kv=False, qkv="split"))
def test_the_table_has_every_edge(circuit: Circuit) -> None:
    rows = shown(terminal.table(circuit, most=10**6)).splitlines()[1:]
    found = [
        f"{source.split()[0]}->{row.split()[0]}" for row in rows for source in row.split(maxsplit=1)[1].split(", ")
    ]
    assert sorted(found) == sorted(circuit.edge_names())


def test_the_strongest_come_first() -> None:
    graph = Graph(2, 1)
    values = np.zeros(graph.valid.shape)
    for name, score in (("input->logits", 0.5), ("m0->logits", -2.0), ("m1->logits", 1.0)):
        values[graph.edge(name)] = score
    circuit = Scores(graph, values).top(3, prune=False)
    assert "m0 -2, m1 +1, input +0.5" in shown(terminal.table(circuit))
    assert re.findall(r"── (\S+)", shown(terminal.tree(circuit))) == ["m0", "m1", "input"]


def test_long_tables_are_cut() -> None:
    circuit = Circuit(Graph(3, 2), Graph(3, 2).valid)
    assert "and 17 more" in shown(terminal.table(circuit, most=5))


def test_the_tree_expands_each_component_once() -> None:
    names = ["input->m0", "m0->m1", "m0->logits", "m1->logits", "input->a0.h0<k>", "a0.h0->m0"]
    text = shown(terminal.tree(Circuit.from_names(Graph(2, 1), names)))
    assert text.startswith("logits\n")
    assert text.count("k: input") == 1
    assert text.count("m0") == 2
    assert text.count("m0 …") == 1
    assert shown(terminal.tree(Circuit.from_names(Graph(2, 1), names), depth=1)).count("\n") == 3


def test_empty_circuits() -> None:
    circuit = Circuit.from_names(Graph(1, 1), [])
    assert shown(terminal.tree(circuit)) == "logits\n"
    assert len(shown(terminal.table(circuit)).splitlines()) == 1
