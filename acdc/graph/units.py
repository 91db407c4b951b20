"""What one switch is: an edge, or all edges that a node writes to.

The engine runs masks of edges. A *unit* is what a method switches as one: a set of edges. `mask` spreads switches, one
for each unit, over the edges; `collect` sums what belongs to edges (gradients, first-order effects) into units. Whoever
scores, selects or searches speaks of units by their names, and of edges only through these two.

With edges, the default, a unit is one edge, and an array over units is the array over edges itself, so that nothing is
spread or collected. A finer unit (an edge at some positions) has a mask with one axis more.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from acdc.errors import unknown
from acdc.graph.components import BoolArray, FloatArray, IntArray
from acdc.graph.graph import Graph

if TYPE_CHECKING:
    from torch import Tensor

Unit = Literal["edge", "node"]


@dataclasses.dataclass(frozen=True)
class Units:
    """The edges of a graph as units.

    Attributes:
        unit: what one is; plural: several.
    """

    unit: ClassVar[Unit] = "edge"
    plural: ClassVar[str] = "edges"
    graph: Graph

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all units, in array order."""
        return tuple(self.graph.edge_names(self.graph.valid))

    def names_of(self, switches: BoolArray) -> list[str]:
        """Of some, `shape`, in array order."""
        return self.graph.edge_names(switches)

    @property
    def valid(self) -> BoolArray:
        """`shape`: where an array over units has one."""
        return self.graph.valid

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an array over units."""
        return self.valid.shape

    @property
    def n(self) -> int:
        return int(self.valid.sum())

    def mask(self, switches: BoolArray) -> BoolArray:
        """Edges that are kept, `[..., n_destinations, n_sources]`, where these units are `[..., *shape]`."""
        return switches

    def spread(self, values: FloatArray) -> FloatArray:
        """The value of each edge's unit: `[..., *shape]` as `[..., n_destinations, n_sources]`."""
        return values

    def collect(self, values: Tensor) -> Tensor:
        """Sums over the edges of each unit: `[..., n_destinations, n_sources]` as `[..., *shape]`."""
        return values

    def of_edges(self, edges: BoolArray) -> BoolArray:
        """Units of which some edge is kept, `shape`."""
        return edges

    def going(self, edges: BoolArray, some: IntArray) -> IntArray:
        """The edges of a circuit that go with some of its units, both as flat indices."""
        return some

    def values_of(self, values: FloatArray) -> FloatArray:
        """Values of the units from those that `spread` gave, `shape`; some of an edge each may be missing, as 0."""
        return values


class Nodes(Units):
    """All edges out of a source together: what a node writes reaches everybody or nobody.

    An array over units is `[n_sources]`. The mask of kept nodes has the edges between them: those into a node that is
    not kept matter to nobody, unless heads share a norm, and then it is what such a head writes on its reference input.
    """

    unit = "node"
    plural = "nodes"

    @property
    def names(self) -> tuple[str, ...]:
        return self.graph.sources

    def names_of(self, switches: BoolArray) -> list[str]:
        return [self.graph.sources[i] for i in np.flatnonzero(switches)]

    @cached_property
    def valid(self) -> BoolArray:
        return np.ones(self.graph.n_sources, dtype=bool)

    def mask(self, switches: BoolArray) -> BoolArray:
        alive = self._read(switches)
        return self.graph.valid & switches[..., None, :] & alive[..., :, None]

    def _read(self, switches: BoolArray) -> BoolArray:
        """`[..., n_destinations]`: whether a kept node reads each destination."""
        logits = np.ones_like(switches[..., :1])  # they read theirs
        kept = np.moveaxis(np.concatenate((switches, logits), axis=-1), -1, 0)
        alive = np.zeros((self.graph.n_destinations, *switches.shape[:-1]), dtype=bool)
        np.logical_or.at(alive, self.graph.port_destination, kept[self.graph.port_source])
        return np.moveaxis(alive, 0, -1)

    def spread(self, values: FloatArray) -> FloatArray:
        return np.where(self.graph.valid, values[..., None, :], 0.0)

    def collect(self, values: Tensor) -> Tensor:
        return values.sum(-2)

    def of_edges(self, edges: BoolArray) -> BoolArray:
        return np.asarray(edges.any(axis=-2))

    def going(self, edges: BoolArray, some: IntArray) -> IntArray:
        left = self.of_edges(edges)
        left[some] = False
        return np.flatnonzero(edges & ~self.mask(left))

    def values_of(self, values: FloatArray) -> FloatArray:
        largest = np.abs(values).argmax(axis=-2)
        return np.take_along_axis(values, largest[..., None, :], axis=-2)[..., 0, :]


UNITS: dict[str, type[Units]] = {"edge": Units, "node": Nodes}


def units_of(graph: Graph, unit: str) -> Units:
    """The units of a graph.

    Raises:
        AcdcError: there are no units of that name.
    """
    if not isinstance(unit, str) or unit not in UNITS:
        raise unknown("unit", str(unit), UNITS)
    return UNITS[unit](graph)
