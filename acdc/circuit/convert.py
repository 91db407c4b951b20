"""Scored edges as other libraries have them: a pandas table, a networkx graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from acdc.errors import AcdcError
from acdc.graph import BoolArray, FloatArray, Graph

if TYPE_CHECKING:
    import networkx as nx
    import pandas


def frame(
    graph: Graph, edges: BoolArray, values: FloatArray | None, removal: FloatArray | None
) -> pandas.DataFrame:
    """A row an edge, NaN where a number is not known.

    Args:
        edges, values, removal: `[n_destinations, n_sources]`.

    Raises:
        AcdcError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise AcdcError("to_frame needs pandas, which is not installed: pip install pandas") from None
    destination, source = np.nonzero(edges)
    missing = np.full(len(source), np.nan)
    return pandas.DataFrame(
        {
            "edge": graph.edge_names(edges),
            "source": np.array(graph.sources, dtype=object)[source],
            "destination": np.array(graph.destinations, dtype=object)[destination],
            "score": missing if values is None else values[destination, source],
            "removal": missing if removal is None else removal[destination, source],
        }
    )


def scored_network(
    graph: Graph, edges: BoolArray, values: FloatArray | None, nodes: FloatArray | None
) -> nx.DiGraph[str]:
    """The edges as `Graph.to_networkx` gives them, with the attribute `score` of edges and nodes where it is known.

    Args:
        edges, values: `[n_destinations, n_sources]`.
        nodes: `[n_sources]`.
    """
    result = graph.to_networkx(edges)
    if values is not None:
        for d, s in np.argwhere(edges):
            result.edges[graph.sources[s], graph.destinations[d]]["score"] = float(values[d, s])
    if nodes is not None:
        for name in result.nodes.keys() & graph.source_index.keys():
            result.nodes[name]["score"] = float(nodes[graph.source_index[name]])
    return result
