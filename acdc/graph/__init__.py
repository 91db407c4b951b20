"""The computational graph: names and order of what writes to the residual stream and what reads it."""

from acdc.graph.graph import BoolArray, FloatArray, Graph, IntArray, node_kind

__all__ = ["BoolArray", "FloatArray", "Graph", "IntArray", "node_kind"]
