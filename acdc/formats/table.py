"""CSV: one line for every edge of the graph, `source,destination,score,kept`.

A fifth column, `acdc`, holds the header in the first line of edges and nothing in the others. Tables without it can be
read too: since every edge is there, the names tell the graph, all but what `input` stands for.
"""

from __future__ import annotations

import csv
import io

import numpy as np

from acdc.circuit import Circuit
from acdc.circuit.folder import graph_from_options
from acdc.errors import AcdcError, UnknownGraphError
from acdc.formats.edges import circuit_from_edges, number
from acdc.formats.header import Header, from_header, header_text
from acdc.graph import Graph, graph_options
from acdc.store.reading import decode, parse_json

COLUMNS = ["source", "destination", "score", "kept"]
HEADER = "acdc"
_WHAT = "CSV"


def write(circuit: Circuit) -> str:
    """Every valid edge in array order; the score is empty if there are no scores."""
    graph = circuit.graph
    where = np.argwhere(graph.valid)
    kept = circuit.edges[graph.valid].tolist()
    scores = [""] * len(where) if circuit.scores is None else circuit.scores.values[graph.valid].tolist()
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow([*COLUMNS, HEADER])
    head = header_text(circuit)
    for (d, s), score, inside in zip(where, scores, kept, strict=True):
        table.writerow([graph.sources[s], graph.destinations[d], score, "true" if inside else "false", head])
        head = ""
    return out.getvalue()


def read(content: bytes, graph: Graph | None = None) -> Circuit:
    """A circuit from a table; without a header or `graph`, the table must list every edge."""
    try:
        rows = list(csv.reader(io.StringIO(decode(content, f"the {_WHAT}"))))
    except csv.Error as error:
        raise AcdcError(f"the {_WHAT} cannot be read: {error}") from None
    head = None
    if rows and rows[0] == [*COLUMNS, HEADER]:
        head = next((row[-1] for row in rows[1:] if len(row) > len(COLUMNS) and row[-1].strip()), None)
        rows = [row[: len(COLUMNS)] for row in rows]
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
    if head is None:
        found = Header(_graph(set(kept)) if graph is None else graph)
    else:
        found = from_header(parse_json(head, f"the header of the {_WHAT}"), graph, f"the {_WHAT}")
        if len(kept) < found.graph.n_edges:
            raise AcdcError(
                f"the {_WHAT} lists {len(kept):,} of {found.graph.n_edges:,} edges, and with a header it lists all: it "
                "was cut short"
            )
    return circuit_from_edges(found, kept, scores, _WHAT)


def _graph(names: set[str]) -> Graph:
    """The graph that has exactly these edges."""
    options = graph_options(names)
    if options is not None:
        graph = graph_from_options(options, f"the {_WHAT}")
        if graph.n_edges == len(names) and names == set(graph.edge_names(graph.valid)):
            return graph
    raise UnknownGraphError(f"the {_WHAT} does not list every edge of a graph: give `graph`, like model.graph()")
