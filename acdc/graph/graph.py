"""The computational graph of a decoder: who writes to the residual stream, who reads it, in which order.

Sources write (`input`, heads `a0.h1`, MLPs `m0`), destinations read (`a0.h1<q>`, `m0`, `logits`), and an edge
is a pair (source, destination) with the source executed first. Everything is an array over destinations and
sources; names are made on demand. Coarser graphs (q/k/v merged, grouped keys and values) are the same arrays with
destinations merged: `port_destination` maps each *port* (the finest destination: one per head and q/k/v, MLP and
logits) to the destination it belongs to, and the engine only ever runs ports.

`Graph` says in a few options which decoder it is of; the rows that they make (`components`) say all the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import networkx as nx
import numpy as np
import numpy.typing as npt

from acdc.errors import AcdcError, check_names, check_type, unknown
from acdc.graph.components import (
    BoolArray,
    Component,
    ComponentTable,
    FloatArray,
    head_rows,
    input_rows,
    logits_rows,
    mixer_rows,
    mlp_rows,
)

_SUBLAYERS = "in graph.sublayers (sources and ports of a layer's heads or MLP)"
_RENAMED = {
    "first_source": _SUBLAYERS,
    "first_port": _SUBLAYERS,
    "sources_per_layer": _SUBLAYERS,
    "ports_per_layer": _SUBLAYERS,
}
"""Attributes of the last version, and where that is now."""


@dataclasses.dataclass(frozen=True)
class Graph(ComponentTable):
    """The computational graph of a decoder with `n_layers` layers of `n_heads` heads (or a mixer) and one MLP.

    Attributes:
        n_kv_heads: key/value heads a layer (grouped-query attention); meant for `group_kv` and None without it.
        mlp: whether layers have an MLP.
        parallel: parallel blocks (GPT-NeoX, Phi-2): the MLP does not read the heads of its own layer.
        qkv: "split" gives every head three destinations (q, k, v), "merged" one.
        group_kv: one k and one v destination a key/value group instead of one a query head.
        inputs: "single": `input` is token plus position embedding; "split": `input.token` and `input.position`;
            "token": `input` is the token embedding alone and positions are a constant that is never ablated (the
            convention of the EAP and MIB code bases).
        mixers: layers that have one mixer in place of heads (a state space, linear attention, a convolution).
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int | None = None
    mlp: bool = True
    parallel: bool = False
    qkv: Literal["split", "merged"] = "split"
    group_kv: bool = False
    inputs: Literal["single", "split", "token"] = "single"
    mixers: tuple[int, ...] = ()

    if not TYPE_CHECKING:  # type checkers are to know what there is

        def __getattr__(self, name: str) -> Any:
            if name in _RENAMED:
                raise AttributeError(f"graph.{name} is now {_RENAMED[name]}")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def unlike(self, other: Graph) -> str:
        """What this graph has instead of another: "n_layers=1 instead of 2, qkv='merged' instead of 'split'"."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)]
        return ", ".join(f"{name}={ours!r} instead of {theirs!r}" for name, ours, theirs in pairs if ours != theirs)

    def __post_init__(self) -> None:
        if self.n_layers < 1 or self.n_heads < 1:
            raise AcdcError(f"expected at least one layer and one head, got {self.n_layers} and {self.n_heads}")
        if self.qkv not in ("split", "merged"):
            raise unknown("q/k/v option", str(self.qkv), ("split", "merged"))
        if self.inputs not in ("single", "split", "token"):
            raise unknown("input option", str(self.inputs), ("single", "split", "token"))
        if self.group_kv and (not self.n_kv_heads or self.n_heads % self.n_kv_heads):
            raise AcdcError(f"group_kv needs n_kv_heads that divides n_heads={self.n_heads}, got {self.n_kv_heads}")
        if self.group_kv and self.qkv == "merged":
            raise AcdcError('group_kv and qkv="merged" exclude each other: choose one')
        if list(self.mixers) != sorted(set(self.mixers) & set(range(self.n_layers))):
            raise AcdcError(f"expected mixers to be layers in rising order, got {self.mixers}")
        # Graphs with the same edges are equal:
        if not self.group_kv:
            object.__setattr__(self, "n_kv_heads", None)
        if not self.mlp:
            object.__setattr__(self, "parallel", False)

    @cached_property
    def components(self) -> tuple[Component, ...]:
        """The rows: the inputs at stage 0, then per layer its heads and, one stage later or beside them, its MLP."""
        rows = input_rows(["input.token", "input.position"] if self.inputs == "split" else ["input"])
        stage = 1
        for layer in range(self.n_layers):
            merged = self.qkv == "merged"
            if layer in self.mixers:
                rows += mixer_rows(layer, stage)
            else:
                rows += head_rows(layer, self.n_heads, stage, merged=merged, groups=self.n_kv_heads)
            stage += not self.parallel
            if self.mlp:
                rows += mlp_rows(layer, stage)
            stage += 1
        return tuple(rows + logits_rows(self.n_layers, stage))

    # ---- edges -------------------------------------------------------------------------------------------------

    def to_ports(self, edges: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Spread an array `[..., n_destinations, n_sources]` over ports, `[..., n_ports, n_sources]`."""
        return edges[..., self.port_destination, :]

    def from_ports(self, values: FloatArray) -> FloatArray:
        """Sum an array over ports `[n_ports, n_sources]` into destinations `[n_destinations, n_sources]`."""
        total = np.zeros((self.n_destinations, self.n_sources))
        np.add.at(total, self.port_destination, values)
        return total

    def edge_name(self, destination: int, source: int) -> str:
        return f"{self.sources[source]}->{self.destinations[destination]}"

    def edge_names(self, edges: BoolArray) -> list[str]:
        """Names of the kept edges, in array order."""
        return [self.edge_name(d, s) for d, s in np.argwhere(edges)]

    def edge(self, name: str) -> tuple[int, int]:
        """Index (destination, source) of an edge given by name.

        Raises:
            AcdcError: the name is malformed, names an unknown end, or its source is not executed first.
        """
        check_type("the name of an edge, like 'a0.h1->m2'", name, str)
        source, arrow, destination = name.partition("->")
        if not arrow:
            raise AcdcError(f"expected an edge like 'a0.h1->m2', got {name!r}")
        if source not in self.source_index:
            raise unknown("source", source, self.sources)
        if destination not in self.destination_index:
            raise unknown("destination", destination, self.destinations)
        d, s = self.destination_index[destination], self.source_index[source]
        if not self.valid[d, s]:
            raise AcdcError(f"{name!r} is not an edge: {source} is not executed before {destination}")
        return d, s

    def edges_from_names(self, names: Collection[str]) -> BoolArray:
        """`[n_destinations, n_sources]` mask of the named edges."""
        check_names("edges", names)
        edges = np.zeros_like(self.valid)
        for name in names:
            edges[self.edge(name)] = True
        return edges

    def edges_from_sources(self, kept: BoolArray) -> BoolArray:
        """Node level: every outgoing edge of the kept sources `[n_sources]`."""
        return self.valid & kept[None, :]

    def to_networkx(self, edges: BoolArray | None = None) -> nx.DiGraph[str]:
        """A directed graph of the kept (default: all) edges.

        Nodes are sources and destinations by name with attributes `kind` ("input", "head", "mlp", "logits" or
        "port") and `layer`; a head's destinations feed it through edges marked `internal=True`.
        """
        edges = self.valid if edges is None else edges & self.valid
        graph: nx.DiGraph[str] = nx.DiGraph()
        for s in np.flatnonzero(edges.any(axis=0)):
            graph.add_node(
                self.sources[s], kind=self.component(self.sources[s]).kind, layer=int(self.source_layer[s])
            )
        for d in np.flatnonzero(edges.any(axis=1)):
            name = self.destinations[d]
            kind = "port" if self.destination_ports[d] else self.nodes[name].kind
            graph.add_node(name, kind=kind, layer=int(self.destination_layer[d]))
            for s in np.unique(self.port_source[self.port_destination == d]):
                if s < self.n_sources and self.sources[s] != name:
                    row = self.component(self.sources[s])
                    graph.add_node(row.name, kind=row.kind, layer=row.layer)
                    graph.add_edge(name, row.name, internal=True)
        for d, s in np.argwhere(edges):
            graph.add_edge(self.sources[s], self.destinations[d], internal=False)
        return graph
