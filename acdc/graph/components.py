"""The table a graph is made of: one row for each component, from which everything else about it follows.

A *component* reads the residual stream, writes to it, or both: an input, a head, an MLP, the logits. What it reads
comes in through its *ports*, each the sum of what earlier components wrote; several ports may belong to one
*destination*, which is what an edge ends in. A *stage* is a set of components that cannot read each other, because
they run at the same time: a component reads those of earlier stages. Components of one kind in one layer that are run
together are a *sublayer*.

A kind of component is nothing but rows: what knows two kinds of them is the table, and not who reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby

import numpy as np
import numpy.typing as npt

from acdc.errors import AcdcError

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Port:
    """One way into a component.

    Attributes:
        name: "q", "k" or "v" of a head; "" if it is the only one.
        node: what its destination is drawn as: the component, or a node that stands for several, like `a0.g1`.
        split: whether the destination is this port alone and not the whole node.
        everywhere: whether the component uses every position of what it reads (keys and values), to write at one.
    """

    name: str
    node: str
    split: bool = False
    everywhere: bool = False

    @property
    def destination(self) -> str:
        """Name of what an edge into it ends in."""
        return f"{self.node}<{self.name}>" if self.split else self.node


@dataclasses.dataclass(frozen=True)
class Component:
    """A row of the table.

    Attributes:
        kind: "input", "head", "mlp", "logits", or another.
        layer: -1 for the inputs, the number of layers for the logits.
        stage: when it runs; what reads and what is read are of different stages.
        number: among those of its kind in its layer.
        sublayer: name of all those of its kind in its layer.
        writes: whether it is a source.
    """

    name: str
    kind: str
    layer: int
    stage: int
    ports: tuple[Port, ...] = ()
    number: int = 0
    sublayer: str = ""
    writes: bool = True


@dataclasses.dataclass(frozen=True)
class Sublayer:
    """Components of one kind in one layer, and where they are in the arrays.

    Attributes:
        sources: indices of the components' outputs; empty for the logits.
        ports: for each port of the kind by name, its index for every component.
    """

    name: str
    kind: str
    layer: int
    stage: int
    components: tuple[Component, ...]
    sources: range
    ports: dict[str, range]

    @property
    def outputs(self) -> slice:
        """Where its components' outputs are among the sources."""
        return slice(self.sources.start, self.sources.stop)

    @property
    def every_port(self) -> range:
        """All its ports, which are next to each other."""
        ranges = list(self.ports.values())
        return range(ranges[0].start, ranges[-1].stop) if ranges else range(0)


@dataclasses.dataclass(frozen=True)
class Node:
    """What a person sees under a name: a component, one that several share, or a whole sublayer.

    Attributes:
        kind: of the components.
        layer: as theirs.
        row: (layer, which of its layer's sublayers).
        order: place among all nodes, in execution order.
        sublayer: name of the node it is merged into where heads of a layer are one.
        shared: whether it is no component of its own, but what several of them read (`a0.g1`).
    """

    name: str
    kind: str
    layer: int
    row: tuple[int, int]
    order: int
    sublayer: str
    shared: bool = False


class ComponentTable:
    """Rows in execution order, and what follows from them.

    Order of sources: that of the rows. Order of ports: sublayer by sublayer, first the first port of each component,
    then the second; so for heads all q, all k, all v.
    """

    @cached_property
    def components(self) -> tuple[Component, ...]:
        """The rows; those of one sublayer are next to each other, and stages do not fall."""
        raise NotImplementedError

    # ---- names -------------------------------------------------------------------------------------------------

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources in execution order."""
        return tuple(row.name for row in self.components if row.writes)

    @cached_property
    def ports(self) -> tuple[str, ...]:
        """Names of the ports, the finest destinations, in array order."""
        return tuple(f"{row.name}<{port.name}>" if port.name else row.name for row, port in self._ports)

    @cached_property
    def destinations(self) -> tuple[str, ...]:
        """Names of the destinations in array order."""
        return tuple(self.destination_index)

    @cached_property
    def source_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.sources)}

    @cached_property
    def destination_index(self) -> dict[str, int]:
        names = dict.fromkeys(port.destination for _, port in self._ports)
        return {name: i for i, name in enumerate(names)}

    @cached_property
    def destination_nodes(self) -> tuple[str, ...]:
        """`[n_destinations]`: name of the node that each destination leads into."""
        return tuple(self._port_of_destination[name].node for name in self.destinations)

    @cached_property
    def destination_ports(self) -> tuple[str, ...]:
        """`[n_destinations]`: "q", "k" or "v", or "" where the destination is the whole node."""
        ports = (self._port_of_destination[name] for name in self.destinations)
        return tuple(port.name if port.split else "" for port in ports)

    @cached_property
    def _port_of_destination(self) -> dict[str, Port]:
        return {port.destination: port for _, port in reversed(self._ports)}

    @cached_property
    def _ports(self) -> tuple[tuple[Component, Port], ...]:
        """Every port and the component it belongs to, in array order."""
        return tuple(
            (row, port)
            for rows in self._rows_of_sublayers
            for ports in zip(*(row.ports for row in rows), strict=True)
            for row, port in zip(rows, ports, strict=True)
        )

    # ---- sizes -------------------------------------------------------------------------------------------------

    @property
    def n_sources(self) -> int:
        return len(self.sources)

    @property
    def n_ports(self) -> int:
        return len(self._ports)

    @property
    def n_destinations(self) -> int:
        return len(self.destinations)

    @property
    def n_inputs(self) -> int:
        """Number of input sources: two when the input is split, else one."""
        return len(self.sublayers[0].sources)

    # ---- who belongs to whom -----------------------------------------------------------------------------------

    @cached_property
    def _rows_of_sublayers(self) -> tuple[tuple[Component, ...], ...]:
        return tuple(tuple(rows) for _, rows in groupby(self.components, lambda row: (row.layer, row.kind)))

    @cached_property
    def sublayers(self) -> tuple[Sublayer, ...]:
        """The rows by layer and kind, in execution order."""
        found, source, first = [], 0, 0
        for rows in self._rows_of_sublayers:
            row, n = rows[0], len(rows)
            written = n if row.writes else 0
            ports = {port.name: range(first + i * n, first + (i + 1) * n) for i, port in enumerate(row.ports)}
            name = row.sublayer or row.name
            place = range(source, source + written)
            found.append(Sublayer(name, row.kind, row.layer, row.stage, rows, place, ports))
            source, first = source + written, first + n * len(row.ports)
        return tuple(found)

    def sublayer(self, layer: int, kind: str) -> Sublayer | None:
        """Components of one kind in one layer; None if there are none."""
        return self._sublayer_index.get((layer, kind))

    def layer_heads(self, layer: int) -> Sublayer:
        """The heads of a layer.

        Raises:
            AcdcError: it has none.
        """
        return self._expected(layer, "head")

    def layer_mlp(self, layer: int) -> Sublayer:
        """The MLP of a layer; raises as `layer_heads`."""
        return self._expected(layer, "mlp")

    def sublayers_of(self, layer: int) -> tuple[Sublayer, ...]:
        """The sublayers of a layer, in execution order."""
        return tuple(sublayer for sublayer in self.sublayers if sublayer.layer == layer)

    def components_of(self, layer: int) -> tuple[Component, ...]:
        """The components of a layer, in execution order."""
        return tuple(row for sublayer in self.sublayers_of(layer) for row in sublayer.components)

    def sources_before(self, stage: int) -> int:
        """How many sources run before a stage: the first ones of the array."""
        return int((self.source_stage < stage).sum())

    def component(self, name: str) -> Component:
        """The row of a name.

        Raises:
            KeyError: no component has that name.
        """
        return self._component_index[name]

    def names(self, kind: str) -> tuple[str, ...]:
        """Names of all components of one kind, in execution order."""
        return tuple(row.name for row in self.components if row.kind == kind)

    def _expected(self, layer: int, kind: str) -> Sublayer:
        found = self.sublayer(layer, kind)
        if found is None:
            raise AcdcError(f"layer {layer} of the graph has no component of kind {kind!r}")
        return found

    @cached_property
    def _sublayer_index(self) -> dict[tuple[int, str], Sublayer]:
        return {(sublayer.layer, sublayer.kind): sublayer for sublayer in self.sublayers}

    @cached_property
    def _component_index(self) -> dict[str, Component]:
        return {row.name: row for row in self.components}

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """Every name a node can have, from fine to coarse, in execution order: `a0`, `a0.g0`, `a0.h0`, `m0`."""
        found: dict[str, Node] = {}
        places: dict[int, int] = {}
        for sublayer in self.sublayers:
            row = (sublayer.layer, places.get(sublayer.layer, 0))
            places[sublayer.layer] = row[1] + 1
            own = {component.name: component.number for component in sublayer.components}
            merged = {component.name: component.sublayer for component in sublayer.components}
            shared = [port.node for component in sublayer.components for port in component.ports]
            groups = {name: i for i, name in enumerate(dict.fromkeys(name for name in shared if name not in own))}
            numbers = [(n, 0, name) for name, n in groups.items()] + [(n, 1, name) for name, n in own.items()]
            for name in dict.fromkeys([sublayer.name, *(name for *_, name in sorted(numbers))]):
                into = merged.get(name, sublayer.name)
                found[name] = Node(name, sublayer.kind, sublayer.layer, row, len(found), into, name in groups)
        return found

    # ---- order -------------------------------------------------------------------------------------------------

    @cached_property
    def port_destination(self) -> IntArray:
        """`[n_ports]`: index of the destination that each port belongs to."""
        index = self.destination_index
        return np.array([index[port.destination] for _, port in self._ports], dtype=np.int64)

    @cached_property
    def port_source(self) -> IntArray:
        """`[n_ports]`: index of the source whose component each port feeds; `n_sources` for the logits."""
        index = self.source_index
        return np.array([index.get(row.name, len(index)) for row, _ in self._ports], dtype=np.int64)

    @cached_property
    def source_stage(self) -> IntArray:
        """`[n_sources]`: stage at which each source is executed."""
        return np.array([row.stage for row in self.components if row.writes], dtype=np.int64)

    @cached_property
    def port_stage(self) -> IntArray:
        """`[n_ports]`: stage of the component each port belongs to."""
        return np.array([row.stage for row, _ in self._ports], dtype=np.int64)

    @cached_property
    def source_layer(self) -> IntArray:
        """`[n_sources]`: layer of each source, -1 for the inputs."""
        return np.array([row.layer for row in self.components if row.writes], dtype=np.int64)

    @cached_property
    def destination_layer(self) -> IntArray:
        """`[n_destinations]`: layer of each destination, the number of layers for the logits."""
        layers = np.empty(self.n_destinations, dtype=np.int64)
        layers[self.port_destination] = [row.layer for row, _ in self._ports]
        return layers

    @cached_property
    def reads_everywhere(self) -> BoolArray:
        """`[n_ports]`: ports whose component uses every position of what they read (keys and values)."""
        return np.array([port.everywhere for _, port in self._ports])

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

    @cached_property
    def n_edges(self) -> int:
        """Number of valid edges."""
        return int(self.valid.sum())

    def reachable(self, edges: BoolArray) -> tuple[BoolArray, BoolArray]:
        """Which sources are fed from the input, and which feed the logits, through kept edges.

        Args:
            edges: `[n_destinations, n_sources]`.

        Returns:
            (from_input, to_logits), both `[n_sources]`.
        """
        ports = (edges & self.valid)[self.port_destination]
        reads = np.zeros((self.n_sources + 1, self.n_sources), dtype=bool)  # [component or logits, source]
        np.logical_or.at(reads, self.port_source, ports)
        from_input = self.source_stage == 0
        for stage in range(1, int(self.source_stage.max()) + 1):
            here = self.source_stage == stage
            from_input[here] = (reads[:-1][here] & from_input).any(axis=1)
        to_logits = reads[-1].copy()
        for stage in range(int(self.source_stage.max()), 0, -1):
            here = self.source_stage == stage
            to_logits |= reads[:-1][here & to_logits].any(axis=0)
        return from_input, to_logits

    def prune(self, edges: BoolArray) -> BoolArray:
        """Drop dangling edges: those on no path from the input to the logits."""
        from_input, to_logits = self.reachable(edges)
        component_alive = np.append(from_input & to_logits, True)
        destination_alive = np.zeros(self.n_destinations, dtype=bool)
        np.logical_or.at(destination_alive, self.port_destination, component_alive[self.port_source])
        return edges & self.valid & (from_input & to_logits)[None, :] & destination_alive[:, None]


def input_rows(names: Sequence[str]) -> list[Component]:
    """What the embedding writes."""
    return [Component(name, "input", -1, 0, number=i, sublayer=name) for i, name in enumerate(names)]


def head_rows(
    layer: int, n_heads: int, stage: int, *, merged: bool = False, groups: int | None = None
) -> list[Component]:
    """The heads of a layer.

    Args:
        merged: one destination a head, not one for each of q, k and v.
        groups: one k and one v destination for each of so many groups of heads.
    """
    rows = []
    for head in range(n_heads):
        own = head_name(layer, head)
        shared = own if groups is None else f"a{layer}.g{head * groups // n_heads}"
        ports = (
            Port("q", own, split=not merged),
            Port("k", shared, split=not merged, everywhere=True),
            Port("v", shared, split=not merged, everywhere=True),
        )
        rows.append(Component(own, "head", layer, stage, ports, number=head, sublayer=f"a{layer}"))
    return rows


def mixer_rows(layer: int, stage: int) -> list[Component]:
    """What mixes positions in a layer without heads."""
    name = f"x{layer}"
    return [Component(name, "mixer", layer, stage, (Port("", name, everywhere=True),), sublayer=name)]


def mlp_rows(layer: int, stage: int) -> list[Component]:
    """The MLP of a layer."""
    name = mlp_name(layer)
    return [Component(name, "mlp", layer, stage, (Port("", name),), sublayer=name)]


def logits_rows(n_layers: int, stage: int) -> list[Component]:
    """What reads the whole stream at the end."""
    return [Component(LOGITS, "logits", n_layers, stage, (Port("", LOGITS),), sublayer=LOGITS, writes=False)]


LOGITS = "logits"


def head_name(layer: int, head: int) -> str:
    return f"a{layer}.h{head}"


def mlp_name(layer: int) -> str:
    return f"m{layer}"
