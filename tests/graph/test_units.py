"""Units: masks are those of the edges they switch, and what is collected is a sum over these."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acdc.circuit import selection
from acdc.errors import AcdcError, EmptyCircuitError
from acdc.graph import Graph, units_of
from strategies import graphs


@given(graphs(), st.data())
def test_a_node_switches_all_edges_out_of_it(graph: Graph, data: st.DataObject) -> None:
    units = units_of(graph, "node")
    assert units.names == graph.sources
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=units.n, max_size=units.n)))
    mask = units.mask(kept)
    assert (graph.prune(mask) == graph.prune(graph.edges_from_sources(kept))).all()
    assert (units.of_edges(mask) == kept).all()
    for d, s in np.argwhere(mask):
        readers = graph.port_source[graph.port_destination == d]
        assert kept[s]
        assert any(reader == graph.n_sources or kept[reader] for reader in readers)
    assert (units.mask(np.stack([kept, ~kept]))[0] == mask).all()
    values = np.random.default_rng(0).normal(size=graph.valid.shape) * graph.valid
    assert units.collect(torch.as_tensor(values)).numpy() == pytest.approx(values.sum(axis=0))
    assert (units.values_of(units.spread(np.arange(units.n))) == np.arange(units.n)).all()


@given(graphs())
def test_an_edge_is_its_own_unit(graph: Graph) -> None:
    units = units_of(graph, "edge")
    assert units.n == len(units.names) == graph.n_edges
    assert units.mask(graph.valid) is graph.valid


@given(graphs(), st.integers(0, 2**31))
def test_the_best_nodes_are_connected_and_no_more_than_asked_for(graph: Graph, seed: int) -> None:
    units, values = units_of(graph, "node"), np.random.default_rng(seed).random(graph.n_sources)
    for n in (1, 2, 3, units.n):
        try:
            kept = selection.top_units(units, values, n)
        except EmptyCircuitError:
            continue
        assert 0 < kept.sum() <= n
        assert (units.of_edges(graph.prune(units.mask(kept))) == kept).all()
    assert selection.top_units(units, values, units.n).all()


def test_unknown_units_are_refused() -> None:
    with pytest.raises(AcdcError, match="did you mean node"):
        units_of(Graph(1, 1), "nodes")
