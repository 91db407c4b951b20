"""Random graphs and circuits for hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from acdc.circuit import Circuit, Provenance, Scores
from acdc.graph import Graph, units_of
from acdc.graph.units import UNITS


@st.composite
def graphs(draw: st.DrawFn, **fixed: Any) -> Graph:
    """Small graphs of every kind; options given by name are not drawn."""
    groups = draw(st.integers(1, 2))
    options: dict[str, Any] = {
        "n_layers": draw(st.integers(1, 3)),
        "n_heads": groups * draw(st.integers(1, 2)),
        "n_kv_heads": groups,
        "mlp": draw(st.booleans()),
        "parallel": draw(st.booleans()),
        "qkv": draw(st.sampled_from(["split", "merged"])),
        "group_kv": draw(st.booleans()),
        "inputs": draw(st.sampled_from(["single", "split", "token"])),
    } | fixed
    if options["qkv"] == "merged":
        options["group_kv"] = False
    return Graph(**options)


@st.composite
def edge_masks(draw: st.DrawFn, graph: Graph) -> np.ndarray:
    """Random sets of edges of a graph, from none to all."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]))
    return (random.random(graph.valid.shape) < density) & graph.valid


TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)


@st.composite
def provenances(draw: st.DrawFn) -> Provenance:
    """Provenances with any text in them."""
    return Provenance(
        model=draw(TEXTS),
        task=draw(TEXTS),
        method=draw(TEXTS),
        options=draw(
            st.dictionaries(TEXTS, st.one_of(st.none(), st.booleans(), st.integers(-9, 9), TEXTS), max_size=2)
        ),
        seed=draw(st.none() | st.integers(0, 9)),
        command=tuple(draw(st.lists(TEXTS, max_size=2))),
        measured=draw(st.dictionaries(TEXTS, st.floats(allow_nan=False, allow_infinity=False), max_size=2)),
    )


@st.composite
def circuits(draw: st.DrawFn, **fixed: Any) -> Circuit:
    """Random circuits of edges and of nodes, with and without scores; graph options given by name are not drawn."""
    graph = draw(graphs(**fixed))
    provenance = draw(provenances())
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores, unit = None, draw(st.sampled_from(tuple(UNITS)))
    units, edges = units_of(graph, unit), draw(edge_masks(graph))
    if unit == "node":
        edges = units.mask(edges.any(axis=0))
    if draw(st.booleans()):
        values = random.normal(size=units.shape) * 10.0 ** draw(st.integers(-12, 12))
        nodes = values if unit == "node" else random.normal(size=graph.n_sources) if draw(st.booleans()) else None
        scores = Scores(graph, units.spread(values), provenance.method, provenance, nodes, unit=unit)
    return Circuit(graph, edges, scores, provenance, unit)
