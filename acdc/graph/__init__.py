"""The computational graph: names and order of what writes to the residual stream and what reads it."""

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
from acdc.graph.names import graph_options, names_an_mlp, split_destination, split_edge

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
    "graph_options",
    "head_name",
    "mlp_name",
    "names_an_mlp",
    "split_destination",
    "split_edge",
]
