"""The page of a circuit with positions: a column for each place, every component where it is read, tokens below.

The data are those of any page (`acdc.viz.page.data`), of the graph whose nodes are components at places. What a head
reads as key or value leads from the place where it is written to that where the head attends from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from acdc.formats.circuit_tracer import At, read_at
from acdc.tracing.positional_circuit import PositionalCircuit
from acdc.viz.layout import rows_of
from acdc.viz.page.data import VERSION, packed


def positional_data(
    circuit: PositionalCircuit, *, tokens: Sequence[str] | None, roles: Mapping[str, Sequence[str]] | None
) -> dict[str, Any]:
    """All that the page shows, as values that JSON has.

    Args:
        tokens: of each place, on an example prompt.
        roles: components by what they do.
    """
    graph = circuit.graph
    ordered = circuit.by == "position"
    pairs: dict[tuple[At, At, str], None] = {}
    for source, (name, place), d, _ in read_at(graph, circuit.kept, ordered):
        pairs[source, (name, place), graph.destination_ports[d]] = None
    order = {row.name: i for i, row in enumerate(graph.components)}
    ends = [row.name for row in graph.components if not row.ports or not row.writes]
    used = {at for source, reader, _ in pairs for at in (source, reader)}
    used |= {(name, len(circuit.places) - 1) for name in ends if not any(name == other for other, _ in used)}
    nodes = sorted(used, key=lambda at: (order[at[0]], at[1]))
    sources = [at for at in nodes if at[0] in graph.source_index]
    destinations = list(dict.fromkeys((reader, port) for _, reader, port in pairs))
    source_number = {at: i for i, at in enumerate(sources)}
    destination_number = {reader: i for i, reader in enumerate(destinations)}

    def called(at: At) -> str:
        return f"{at[0]}@{circuit.places[at[1]]}"

    rows = {node.name: i for i, row in enumerate(rows_of(graph.nodes[name] for name, _ in nodes)) for node in row}
    facts = {
        "model": circuit.model, "task": circuit.task, "method": circuit.method, "metric": circuit.metric,
        "ablation": circuit.ablation, "kept": f"{circuit.n_units:,} edges at {len(circuit.places)} places",
    }  # fmt: skip
    return {
        "format": "acdc-page",
        "version": VERSION,
        "title": " · ".join(filter(None, (circuit.task, circuit.model))) or "circuit",
        "compare": -1,
        "graph": {
            "sources": [called(at) for at in sources],
            "destinations": [called(at) + f"<{port}>" * bool(port) for at, port in destinations],
            "ends": [(called(at), port) for at, port in destinations],
            "nodes": [
                {
                    "name": called(at),
                    "kind": graph.nodes[at[0]].kind,
                    "layer": graph.nodes[at[0]].layer,
                    "sublayer": f"{graph.nodes[at[0]].sublayer}@{circuit.places[at[1]]}",
                    "row": rows[at[0]],
                    "column": i,
                    "place": at[1],
                    "label": at[0],
                }
                for i, at in enumerate(nodes)
            ],
            "feeds": [[source_number.get(at, len(sources))] for at, _ in destinations],
            "inputs": sum(graph.nodes[name].kind == "input" for name, _ in sources),
            "total": len(pairs),
            "edgeSource": packed([source_number[source] for source, _, _ in pairs], "<u2"),
            "edgeDestination": packed([destination_number[reader, port] for _, reader, port in pairs], "<u2"),
        },
        "places": [
            {"label": label, "tokens": "" if tokens is None else tokens[i]} for i, label in enumerate(circuit.places)
        ],
        "circuits": [
            {
                "name": circuit.method or "circuit", "unit": "line", "asked": len(pairs),
                "kept": packed(np.arange(len(pairs)), "<u4"), "scores": None, "scoreSigns": False,
                "signs": packed(np.zeros(len(pairs)), "<i1"), "order": None, "rankedBy": "", "measured": {},
                "curve": None, "effects": None, "facts": {key: value for key, value in facts.items() if value},
            }
        ],
        "roles": {
            role: own
            for role, names in (roles or {}).items()
            if (own := [called(at) for at in nodes if at[0] in names])
        },
        "rolesFrom": None,
        "patterns": None,
        "direct": None,
        "lens": None,
        "notes": [
            "A line ends where what it carries is used: what a head reads as key or value of one place, at the place "
            "that the head attends from."
        ],
    }  # fmt: skip
