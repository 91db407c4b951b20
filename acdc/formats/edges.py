"""From the edges that a file lists to a circuit: what all readers have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from acdc.circuit import Circuit, Scores
from acdc.errors import AcdcError
from acdc.formats.header import Header
from acdc.graph import units_of


def number(value: Any, edge: str) -> float:
    """A score as a float."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):  # a whole number may be larger than any float
        raise AcdcError(f"the score of {edge!r}: expected a number, got {value!r:.60}") from None


def circuit_from_edges(header: Header, kept: Mapping[str, bool], scores: Mapping[str, float], what: str) -> Circuit:
    """A circuit from edges by name; edges that are not listed are not kept, and have the score of their unit or 0.

    Args:
        kept: whether each listed edge is in the circuit.
        scores: of some or all edges; empty if the file has none.
        what: names the file in the message of an error.
    """
    graph, provenance, unit = header.graph, header.provenance, header.unit
    units, nodes = units_of(graph, unit), None
    edges = np.zeros_like(graph.valid)
    values = np.zeros(graph.valid.shape)
    try:
        for name, inside in kept.items():
            edges[graph.edge(name)] = inside
        for name, score in scores.items():
            values[graph.edge(name)] = score
        if unit == "node":
            nodes = units.values_of(values)
            values = units.spread(nodes)
        found = None
        if header.scored or (header.scored is None and scores):
            found = Scores(graph, values, provenance.method, provenance, nodes, unit=unit, signs=header.signs)
        return Circuit(graph, edges, found, provenance, unit)
    except AcdcError as error:
        raise AcdcError(f"the {what}: {error}") from None
