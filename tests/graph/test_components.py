"""Everything about a graph follows from the rows of its table, and nobody else computes it or takes names apart."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from acdc.errors import AcdcError
from acdc.graph import Component, Graph, Port
from acdc.graph.components import ComponentTable, head_rows, input_rows, logits_rows, mlp_rows
from strategies import graphs

ROOT = Path(__file__).parents[2]


@given(graphs())
def test_sublayers_cover_sources_and_ports_in_order(graph: Graph) -> None:
    sources = [s for sublayer in graph.sublayers for s in sublayer.sources]
    ports = [p for sublayer in graph.sublayers for p in sublayer.every_port]
    assert sources == list(range(graph.n_sources))
    assert ports == list(range(graph.n_ports))
    for sublayer in graph.sublayers:
        for name, own in sublayer.ports.items():
            ends = [f"{row.name}<{name}>" if name else row.name for row in sublayer.components]
            assert [graph.ports[p] for p in own] == ends
        assert [graph.sources[s] for s in sublayer.sources] == [r.name for r in sublayer.components if r.writes]


def test_lookups() -> None:
    graph = Graph(2, 4, n_kv_heads=2, group_kv=True)
    assert [row.name for row in graph.layer_heads(1).components] == ["a1.h0", "a1.h1", "a1.h2", "a1.h3"]
    assert [row.kind for row in graph.components_of(1)] == ["head"] * 4 + ["mlp"]
    assert graph.component("a1.h2") == graph.layer_heads(1).components[2]
    assert graph.names("mlp") == ("m0", "m1")
    d = graph.destination_index["a1.g1<k>"]
    assert (graph.destination_nodes[d], graph.destination_ports[d]) == ("a1.g1", "k")
    assert graph.nodes["a1.g1"].shared
    assert not graph.nodes["a1.h1"].shared
    assert graph.nodes["a1.g1"].sublayer == graph.nodes["a1.h3"].sublayer == "a1"
    with pytest.raises(AcdcError, match="no component of kind 'mlp'"):
        Graph(1, 2, mlp=False).layer_mlp(0)


def test_nodes_are_in_the_order_of_a_picture() -> None:
    graph = Graph(2, 11, n_kv_heads=1, group_kv=True, inputs="split")
    names = (
        "input.token",
        "input.position",
        "a0.g0",
        "a0.h0",
        "a0.h2",
        "a0.h10",
        "m0",
        "a1",
        "a1.h1",
        "m1",
        "logits",
    )
    assert sorted(reversed(names), key=lambda name: graph.nodes[name].order) == list(names)
    assert [graph.nodes[name].row for name in names[-4:]] == [(1, 0), (1, 0), (1, 1), (2, 0)]


class WithExperts(ComponentTable):
    """A decoder with an MLP of two experts in its only layer: a kind of component that no other file knows."""

    @cached_property
    def components(self) -> tuple[Component, ...]:
        experts = [
            Component(f"m0.e{i}", "expert", 0, 2, (Port("", f"m0.e{i}"),), number=i, sublayer="m0") for i in (0, 1)
        ]
        return (*input_rows(["input"]), *head_rows(0, 2, 1), *experts, *mlp_rows(1, 3), *logits_rows(2, 4))


def test_a_new_kind_of_component_is_rows() -> None:
    table = WithExperts()
    assert table.sources == ("input", "a0.h0", "a0.h1", "m0.e0", "m0.e1", "m1")
    assert table.destinations[6:] == ("m0.e0", "m0.e1", "m1", "logits")
    expert = table.destination_index["m0.e1"]
    assert [name for name, reads in zip(table.sources, table.valid[expert], strict=True) if reads] == [
        *("input", "a0.h0", "a0.h1")
    ]
    edges = np.zeros_like(table.valid)
    for source, destination in (("input", "m0.e0"), ("m0.e0", "logits"), ("m0.e1", "logits"), ("a0.h0", "m0.e1")):
        edges[table.destination_index[destination], table.source_index[source]] = True
    pruned = table.prune(edges)
    assert pruned.sum() == 2
    assert table.nodes["m0"].kind == table.nodes["m0.e1"].kind == "expert"


FORBIDDEN = re.compile(
    r"""first_port|first_source|node_kind
    |[*+]\s*((?!model\.)\w+\.)?n_heads|(?<!model\.)n_heads\s*[*+]|//\s*(\w+\.)?n_heads|divmod\([^)]*n_heads   # indices
    |\.(partition|split|rsplit|rpartition)\(["'](->|<|\.h)["']\)                       # names taken apart
    |startswith\(\(?f?["'](a|m|input|logits)["'{]
    |endswith\(\(?["']<?[qkv]?>
    |["'][am]\{[\w.]+\}                                                                # names put together
    """,
    re.VERBOSE,
)
ELSEWHERE = {
    "benchmarks/measuring/peers": "runs in other tools' environments, without acdc",
    "benchmarks/measuring/planted.py": "plants faults into programs that have no graph yet",
    "acdc/model": "an architecture's own weights",
}


def test_nobody_else_computes_indices_or_takes_names_apart() -> None:
    found = []
    for folder in ("acdc", "viz", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if name.startswith(("acdc/viz/", "acdc/benchmarks/")):  # copies, where links cannot be
                continue
            if "/graph/" in name or any(f"{name}/".startswith(f"{place}/") for place in ELSEWHERE):
                continue
            lines = path.read_text().splitlines()
            found += [f"{name}:{n}: {line.strip()}" for n, line in enumerate(lines, 1) if FORBIDDEN.search(line)]
    assert not found, "\n".join(found)
