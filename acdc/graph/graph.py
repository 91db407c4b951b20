"""The computational graph of a decoder: who writes to the residual stream, who reads it, in which order.

Sources write (`input`, heads `a0.h1`, MLPs `m0`), destinations read (`a0.h1<q>`, `m0`, `logits`), and an edge
is a pair (source, destination) with the source executed first. Everything is an array over destinations and
sources; names are made on demand. Coarser graphs (q/k/v merged, grouped keys and values) are the same arrays with
destinations merged: `port_destination` maps each *port* (the finest destination: one per head and q/k/v, MLP and
logits) to the destination it belongs to, and the engine only ever runs ports.

Array order of ports: per layer all q, all k, all v, then the MLP; last the logits.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Literal

import networkx as nx
import numpy as np
import numpy.typing as npt

from acdc.errors import AcdcError, unknown

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Graph:
    """The computational graph of a decoder with `n_layers` layers of `n_heads` heads and one MLP.

    Attributes:
        n_kv_heads: key/value heads a layer (grouped-query attention); meant for `group_kv` and None without it.
        mlp: whether layers have an MLP.
        parallel: parallel blocks (GPT-NeoX, Phi-2): the MLP does not read the heads of its own layer.
        qkv: "split" gives every head three destinations (q, k, v), "merged" one.
        group_kv: one k and one v destination a key/value group instead of one a query head.
        inputs: "single": `input` is token plus position embedding; "split": `input.token` and `input.position`;
            "token": `input` is the token embedding alone and positions are a constant that is never ablated (the
            convention of the EAP and MIB code bases).
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int | None = None
    mlp: bool = True
    parallel: bool = False
    qkv: Literal["split", "merged"] = "split"
    group_kv: bool = False
    inputs: Literal["single", "split", "token"] = "single"

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
        # Graphs with the same edges are equal:
        if not self.group_kv:
            object.__setattr__(self, "n_kv_heads", None)
        if not self.mlp:
            object.__setattr__(self, "parallel", False)

    # ---- sizes -------------------------------------------------------------------------------------------------

    @property
    def n_inputs(self) -> int:
        """Number of input sources: two when the input is split, else one."""
        return 2 if self.inputs == "split" else 1

    @property
    def sources_per_layer(self) -> int:
        return self.n_heads + self.mlp

    @property
    def ports_per_layer(self) -> int:
        return 3 * self.n_heads + self.mlp

    @property
    def n_sources(self) -> int:
        return self.n_inputs + self.n_layers * self.sources_per_layer

    @property
    def n_ports(self) -> int:
        return self.n_layers * self.ports_per_layer + 1

    @property
    def n_destinations(self) -> int:
        return len(self.destinations)

    @property
    def n_edges(self) -> int:
        """Number of valid edges."""
        return int(self.valid.sum())

    # ---- names -------------------------------------------------------------------------------------------------

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources in execution order."""
        names = ["input.token", "input.position"] if self.inputs == "split" else ["input"]
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}" for head in range(self.n_heads)]
            names += [f"m{layer}"] * self.mlp
        return tuple(names)

    @cached_property
    def ports(self) -> tuple[str, ...]:
        """Names of the ports, the finest destinations, in array order."""
        names = []
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}<{port}>" for port in "qkv" for head in range(self.n_heads)]
            names += [f"m{layer}"] * self.mlp
        return (*names, "logits")

    @cached_property
    def destinations(self) -> tuple[str, ...]:
        """Names of the destinations in array order."""
        return tuple(dict.fromkeys(self._destination_of_port))

    @cached_property
    def _destination_of_port(self) -> tuple[str, ...]:
        names = []
        for layer in range(self.n_layers):
            for port in "qkv":
                for head in range(self.n_heads):
                    if self.qkv == "merged":
                        names.append(f"a{layer}.h{head}")
                    elif self.group_kv and port != "q":
                        assert self.n_kv_heads is not None
                        names.append(f"a{layer}.g{head * self.n_kv_heads // self.n_heads}<{port}>")
                    else:
                        names.append(f"a{layer}.h{head}<{port}>")
            names += [f"m{layer}"] * self.mlp
        return (*names, "logits")

    @cached_property
    def port_destination(self) -> IntArray:
        """`[n_ports]`: index of the destination that each port belongs to."""
        index = {name: i for i, name in enumerate(self.destinations)}
        return np.array([index[name] for name in self._destination_of_port], dtype=np.int64)

    @cached_property
    def source_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.sources)}

    @cached_property
    def destination_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.destinations)}

    # ---- order -------------------------------------------------------------------------------------------------
    # A *stage* is a set of components that cannot read each other: 0 the inputs, 1 + 2l the heads of layer l,
    # 2 + 2l its MLP, 2L + 1 the logits. In parallel blocks the MLP shares the stage of its layer's heads.

    @cached_property
    def source_stage(self) -> IntArray:
        """`[n_sources]`: stage at which each source is executed."""
        stages = [0] * self.n_inputs
        for layer in range(self.n_layers):
            stages += [1 + 2 * layer] * self.n_heads + [self._mlp_stage(layer)] * self.mlp
        return np.array(stages, dtype=np.int64)

    @cached_property
    def port_stage(self) -> IntArray:
        """`[n_ports]`: stage of the component each port belongs to."""
        stages: list[int] = []
        for layer in range(self.n_layers):
            stages += [1 + 2 * layer] * (3 * self.n_heads) + [self._mlp_stage(layer)] * self.mlp
        return np.array([*stages, 2 * self.n_layers + 1], dtype=np.int64)

    def _mlp_stage(self, layer: int) -> int:
        return 1 + 2 * layer if self.parallel else 2 + 2 * layer

    @cached_property
    def source_layer(self) -> IntArray:
        """`[n_sources]`: layer of each source, -1 for the inputs."""
        layers = np.repeat(np.arange(self.n_layers), self.sources_per_layer)
        return np.concatenate([np.full(self.n_inputs, -1), layers]).astype(np.int64)

    @cached_property
    def destination_layer(self) -> IntArray:
        """`[n_destinations]`: layer of each destination, `n_layers` for the logits."""
        port_layer = np.append(np.repeat(np.arange(self.n_layers), self.ports_per_layer), self.n_layers)
        layers = np.empty(self.n_destinations, dtype=np.int64)
        layers[self.port_destination] = port_layer
        return layers

    @cached_property
    def port_source(self) -> IntArray:
        """`[n_ports]`: index of the source whose component each port feeds; `n_sources` for the logits."""
        index: list[int] = []
        for layer in range(self.n_layers):
            first = self.first_source(layer)
            index += 3 * list(range(first, first + self.n_heads)) + [first + self.n_heads] * self.mlp
        return np.array([*index, self.n_sources], dtype=np.int64)

    @cached_property
    def reads_everywhere(self) -> BoolArray:
        """`[n_ports]`: ports whose component uses every position of what they read (keys and values)."""
        return np.array([name.endswith(("<k>", "<v>")) for name in self.ports])

    def first_source(self, layer: int) -> int:
        """Index of the first source of a layer, which is the number of sources before it."""
        return self.n_inputs + layer * self.sources_per_layer

    def first_port(self, layer: int) -> int:
        """Index of the first port of a layer."""
        return layer * self.ports_per_layer

    # ---- edges -------------------------------------------------------------------------------------------------

    @cached_property
    def valid_ports(self) -> BoolArray:
        """`[n_ports, n_sources]`: whether the source is executed before the port's component."""
        return self.source_stage[None, :] < self.port_stage[:, None]

    @cached_property
    def valid(self) -> BoolArray:
        """`[n_destinations, n_sources]`: whether (source, destination) is an edge."""
        valid = np.zeros((self.n_destinations, self.n_sources), dtype=bool)
        valid[self.port_destination] = self.valid_ports
        return valid

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

    def edges_from_names(self, names: list[str]) -> BoolArray:
        """`[n_destinations, n_sources]` mask of the named edges."""
        edges = np.zeros_like(self.valid)
        for name in names:
            edges[self.edge(name)] = True
        return edges

    def edges_from_sources(self, kept: BoolArray) -> BoolArray:
        """Node level: every outgoing edge of the kept sources `[n_sources]`."""
        return self.valid & kept[None, :]

    # ---- reachability ------------------------------------------------------------------------------------------

    def reachable(self, edges: BoolArray) -> tuple[BoolArray, BoolArray]:
        """Which sources are fed from the input, and which feed the logits, through kept edges.

        Args:
            edges: `[n_destinations, n_sources]`.

        Returns:
            (from_input, to_logits), both `[n_sources]`.
        """
        ports = np.asarray(self.to_ports(edges & self.valid))
        component_ports = _component_matrix(ports, self.port_source, self.n_sources)
        from_input = self.source_stage == 0
        for stage in range(1, int(self.source_stage.max()) + 1):
            here = self.source_stage == stage
            from_input[here] = (component_ports[:-1][here] & from_input).any(axis=1)
        to_logits = component_ports[-1].copy()
        for stage in range(int(self.source_stage.max()), 0, -1):
            here = self.source_stage == stage
            to_logits |= component_ports[:-1][here & to_logits].any(axis=0)
        return from_input, to_logits

    def prune(self, edges: BoolArray) -> BoolArray:
        """Drop dangling edges: those on no path from the input to the logits."""
        from_input, to_logits = self.reachable(edges)
        component_alive = np.append(from_input & to_logits, True)
        destination_alive = np.zeros(self.n_destinations, dtype=bool)
        np.logical_or.at(destination_alive, self.port_destination, component_alive[self.port_source])
        return edges & self.valid & (from_input & to_logits)[None, :] & destination_alive[:, None]

    def to_networkx(self, edges: BoolArray | None = None) -> nx.DiGraph[str]:
        """A directed graph of the kept (default: all) edges.

        Nodes are sources and destinations by name with attributes `kind` ("input", "head", "mlp", "logits" or
        "port") and `layer`; a head's destinations feed it through edges marked `internal=True`.
        """
        edges = self.valid if edges is None else edges & self.valid
        graph: nx.DiGraph[str] = nx.DiGraph()
        for s in np.flatnonzero(edges.any(axis=0)):
            graph.add_node(self.sources[s], kind=node_kind(self.sources[s]), layer=int(self.source_layer[s]))
        for d in np.flatnonzero(edges.any(axis=1)):
            name = self.destinations[d]
            graph.add_node(name, kind=node_kind(name), layer=int(self.destination_layer[d]))
            for s in np.unique(self.port_source[self.port_destination == d]):
                if s < self.n_sources and self.sources[s] != name:
                    graph.add_node(self.sources[s], kind="head", layer=int(self.source_layer[s]))
                    graph.add_edge(name, self.sources[s], internal=True)
        for d, s in np.argwhere(edges):
            graph.add_edge(self.sources[s], self.destinations[d], internal=False)
        return graph


def node_kind(name: str) -> str:
    """What a node is, from its name: "input", "head", "mlp", "logits", or "port" (one of a head's q, k, v)."""
    if name == "logits":
        return "logits"
    if name.startswith("input"):
        return "input"
    if name.startswith("m"):
        return "mlp"
    return "port" if "<" in name else "head"


def _component_matrix(ports: BoolArray, port_source: IntArray, n_sources: int) -> BoolArray:
    """`[n_sources + 1, n_sources]`: whether any port of the component (last row: logits) reads the source."""
    matrix = np.zeros((n_sources + 1, n_sources), dtype=bool)
    np.logical_or.at(matrix, port_source, ports)
    return matrix
