"""CSV: one line for every edge of the graph, `source,destination,score,kept`.

The table does not name its graph, but since every edge is there, the names tell it.
"""

from __future__ import annotations

import csv
import io
import re

import numpy as np

from acdc.circuit import Circuit, Provenance
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.io.edges import circuit_from_edges, number
from acdc.io.files import decode
from acdc.io.header import graph_from_options

COLUMNS = ["source", "destination", "score", "kept"]
_WHAT = "CSV"


def write(circuit: Circuit) -> str:
    """Every valid edge in array order; the score is empty if there are no scores."""
    graph = circuit.graph
    where = np.argwhere(graph.valid)
    kept = circuit.edges[graph.valid].tolist()
    scores = [""] * len(where) if circuit.scores is None else circuit.scores.values[graph.valid].tolist()
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(COLUMNS)
    for (d, s), score, inside in zip(where, scores, kept, strict=True):
        table.writerow([graph.sources[s], graph.destinations[d], score, "true" if inside else "false"])
    return out.getvalue()


def read(content: bytes, graph: Graph | None = None) -> Circuit:
    """A circuit from a table; without `graph`, the table must list every edge."""
    rows = list(csv.reader(io.StringIO(decode(content, f"the {_WHAT}"))))
    if not rows or rows[0] != COLUMNS:
        raise AcdcError(
            f"the {_WHAT} needs the columns {','.join(COLUMNS)}, got {','.join(rows[0]) if rows else ''!r}"
        )
    kept: dict[str, bool] = {}
    scores: dict[str, float] = {}
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        inside = {"true": True, "1": True, "false": False, "0": False}.get(row[-1].strip().lower())
        if len(row) != len(COLUMNS) or inside is None:
            raise AcdcError(f"line {line} of the {_WHAT}: expected source,destination,score,true|false, got {row}")
        name = f"{row[0]}->{row[1]}"
        if name in kept:
            raise AcdcError(f"line {line} of the {_WHAT}: {name!r} is listed twice")
        kept[name] = inside
        if row[2].strip():
            scores[name] = number(row[2], name)
    found = _graph(set(kept)) if graph is None else graph
    return circuit_from_edges(found, kept, scores, Provenance(versions={}), _WHAT)


def _graph(names: set[str]) -> Graph:
    """The graph that has exactly these edges."""
    text = "\n".join(names)
    layers = [int(x) for x in re.findall(r"\b[am](\d+)", text)]
    heads = [int(x) for x in re.findall(r"\ba\d+\.h(\d+)", text)]
    groups = [int(x) for x in re.findall(r"\ba\d+\.g(\d+)", text)]
    if layers and heads and max(layers) < 10**4 and max(heads) < 10**4:
        options = {
            "n_layers": max(layers) + 1,
            "n_heads": max(heads) + 1,
            "n_kv_heads": max(groups) + 1 if groups else None,
            "group_kv": bool(groups),
            "mlp": re.search(r"\bm\d", text) is not None,
            "parallel": "a0.h0->m0" not in names,
            "qkv": "split" if "<" in text else "merged",
            "inputs": "split" if "input.token" in text else "single",
        }
        options["parallel"] = options["parallel"] and options["mlp"]
        graph = graph_from_options(options, f"the {_WHAT}")
        if graph.n_edges == len(names) and names == set(graph.edge_names(graph.valid)):
            return graph
    raise AcdcError(f"the {_WHAT} does not list every edge of a graph: give `graph`, like model.graph()")
