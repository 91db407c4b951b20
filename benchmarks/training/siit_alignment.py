"""Which part of a network stands for which part of a program, and interventions on both.

Heads and MLPs of the program's true circuit are aligned with heads and MLPs of the network. Swapping a part, or an
edge, means the same in both; the network's other parts and edges stand for nothing, and swapping them has to change
nothing.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from acdc.graph import Graph, split_destination, split_edge
from acdc.model.programs import tracr
from acdc.model.programs.tracr import TracrModel
from acdc.tasks.programs.derive import finest_graph
from acdc.tasks.programs.truth import TrueCircuits


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    """A program and a network that has a part for each of its parts.

    Attributes:
        program: the Tracr model.
        truth: its true circuits.
        low: the network's graph.
        nodes: the network's head or MLP for each of the program's that are in its true circuit.
    """

    program: TracrModel
    truth: TrueCircuits
    low: Graph
    nodes: dict[str, str]

    @classmethod
    def draw(cls, program: TracrModel, *, n_heads: int, seed: int) -> Alignment:
        """Heads take any place in the layer of the program's, MLPs have the one of theirs."""
        rng = np.random.default_rng(seed)
        truth = TrueCircuits.load(tracr.BUILTIN / program.program.name)
        high = finest_graph(program)
        low = Graph(program.program.n_layers, n_heads, inputs="split")
        ends = {end for edge in truth.get("resample", "varied").edges for end in split_edge(edge)}
        used = {split_destination(end)[0] for end in ends}
        nodes: dict[str, str] = {}
        for layer in range(high.n_layers):
            places = rng.permutation(n_heads)
            heads = sorted(row.name for row in high.layer_heads(layer).components if row.name in used)
            others = low.layer_heads(layer).components
            nodes |= {head: others[place].name for head, place in zip(heads, places, strict=False)}
            nodes |= {row.name: row.name for row in high.layer_mlp(layer).components if row.name in used}
        return cls(program, truth, low, nodes)

    @cached_property
    def high(self) -> Graph:
        """The program's graph."""
        return finest_graph(self.program)

    def translate(self, edge: str) -> str:
        """The network's edge for one of the program's."""
        source, destination = split_edge(edge)
        node, port = split_destination(destination)
        return f"{self.nodes.get(source, source)}->{self.nodes.get(node, node)}{port}"

    @cached_property
    def edges(self) -> tuple[Tensor, Tensor]:
        """The true edges, `[E, 2]` (destination, source) of the program and of the network, in one order."""
        names = self.truth.get("resample", "varied").edges
        high = [self.high.edge(name) for name in names]
        low = [self.low.edge(self.translate(name)) for name in names]
        return torch.tensor(high), torch.tensor(low)

    @cached_property
    def true(self) -> Tensor:
        """`[n_ports, S]` the network's true edges."""
        mask = torch.zeros(self.low.n_ports, self.low.n_sources, dtype=torch.bool)
        mask[tuple(self.edges[1].T)] = True
        return mask

    @cached_property
    def false(self) -> Tensor:
        """`[n_ports, S]` all its other edges."""
        return torch.from_numpy(self.low.valid) & ~self.true

    @cached_property
    def inside(self) -> Tensor:
        """`[nodes, 2]`: sources of the program and of the network that stand for each other."""
        pairs = [(self.high.source_index[a], self.low.source_index[b]) for a, b in self.nodes.items()]
        return torch.tensor(pairs)

    @cached_property
    def outside(self) -> Tensor:
        """`[S]`: the network's heads and MLPs that stand for nothing."""
        mask = torch.ones(self.low.n_sources, dtype=torch.bool)
        mask[: self.low.n_inputs] = False
        mask[self.inside[:, 1]] = False
        return mask


@dataclasses.dataclass(frozen=True, eq=False)
class Swap:
    """An intervention for each prompt: the edges swapped in the program and in the network, `[B, n_ports, S]`."""

    high: Tensor
    low: Tensor

    @classmethod
    def none(cls, alignment: Alignment, n: int) -> Swap:
        high, low = alignment.high, alignment.low
        return cls(
            torch.zeros(n, high.n_ports, high.n_sources, dtype=torch.bool),
            torch.zeros(n, low.n_ports, low.n_sources, dtype=torch.bool),
        )

    @classmethod
    def of_nodes(cls, alignment: Alignment, node: Tensor, outside: Tensor) -> Swap:
        """Swap all that an aligned node writes, and all that nodes outside write.

        Args:
            node: `[B]` index into `alignment.inside`, -1 for none.
            outside: `[B, S]` or `[S]`, nodes of the network.
        """
        swap = cls.none(alignment, len(node))
        for mask, index in zip((swap.high, swap.low), alignment.inside.T, strict=True):
            chosen = F.one_hot(index[node.clamp(min=0)], mask.shape[2]).bool() & (node >= 0)[:, None]
            mask |= chosen[:, None]
        swap.low.logical_or_((outside & alignment.outside).expand(len(node), -1)[:, None])
        return swap

    @classmethod
    def of_edges(cls, alignment: Alignment, true: Tensor, false: Tensor) -> Swap:
        """Swap true edges `[B, E]` in both, and others `[B, n_ports, S]` in the network."""
        swap = cls.none(alignment, len(true))
        for mask, index in zip((swap.high, swap.low), alignment.edges, strict=True):
            mask[:, index[:, 0], index[:, 1]] = true
        swap.low.logical_or_(false & alignment.false)
        return swap

    @classmethod
    def random(cls, alignment: Alignment, n: int, generator: torch.Generator, *, edge_share: float = 0.5) -> Swap:
        """Random interventions, so many of them of edges and the others of nodes.

        Of nodes: one aligned node or none, and none, some or all of those outside. Of edges: one true edge, several or
        none, and none, some or all of the others.
        """

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        def share(n: int) -> Tensor:
            """`[n, 1]`: a third nothing, a third all, a third anything between."""
            return (3 * uniform(n, 1) - 1).clamp(0, 1)

        half, E = n - round(n * edge_share), len(alignment.edges[0])
        node = torch.randint(-1, len(alignment.inside), (half,), generator=generator)
        nodes = cls.of_nodes(alignment, node, uniform(half, alignment.low.n_sources) < share(half))
        rest, kind = n - half, uniform(n - half, 1)
        one = F.one_hot(torch.randint(E, (rest,), generator=generator), E).bool()
        true = torch.where(kind < 0.5, one, (uniform(rest, E) < 0.3) & (kind < 0.7))
        false = uniform(rest, alignment.low.n_ports, alignment.low.n_sources) < share(rest)[..., None]
        edges = cls.of_edges(alignment, true, false)
        return cls(torch.cat((nodes.high, edges.high)), torch.cat((nodes.low, edges.low)))
