"""The computational graph: names and order of what writes to the residual stream and what reads it."""

from typing import TYPE_CHECKING

from acdc.graph.components import (
    LOGITS,
    BoolArray,
    Component,
    FloatArray,
    IntArray,
    Node,
    Port,
    Sublayer,
    head_name,
    mlp_name,
)
from acdc.graph.graph import Graph
from acdc.graph.names import graph_options, names_an_mlp, names_digest, split_destination, split_edge
from acdc.graph.units import Unit, Units, units_of

__all__ = [
    "LOGITS",
    "BoolArray",
    "Component",
    "FloatArray",
    "Graph",
    "IntArray",
    "Node",
    "Port",
    "Sublayer",
    "Unit",
    "Units",
    "graph_options",
    "head_name",
    "mlp_name",
    "names_an_mlp",
    "names_digest",
    "split_destination",
    "split_edge",
    "units_of",
]

if not TYPE_CHECKING:  # type checkers are to know what there is

    def __getattr__(name: str) -> object:
        if name == "node_kind":
            raise AttributeError("acdc.graph.node_kind(name) is now graph.component(name).kind")
        raise AttributeError(f"module 'acdc.graph' has no attribute {name!r}")
