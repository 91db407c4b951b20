"""Gradients of a circuit's weights on each prompt, collected by its backward passes and nowhere else.

As gradients of a tensor of weights they would be an array of all edges that could be, for each prompt, made anew at
every sum of the network and full of zeros. Here each sum adds those of its own edges to one array `[prompt, edge]`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from acdc.graph import BoolArray, Graph, IntArray


class EdgeGradients:
    """Where they are collected.

    Args:
        kept: the circuit, `[n_destinations, n_sources]`.
        found: zeros `[prompt, edge]`, of its edges in array order.

    Attributes:
        root: a number that everything in the circuit is differentiated down to.
    """

    def __init__(self, graph: Graph, kept: BoolArray, found: Tensor) -> None:
        number = np.full(kept.shape, -1)
        number[kept] = np.arange(int(kept.sum()))
        self._number: IntArray = np.asarray(graph.to_ports(number))
        self._found = found
        self.root = found.new_zeros((), requires_grad=True)

    def place(self, ports: IntArray, sources: IntArray, kept: BoolArray) -> Place:
        """Where the weights `[port, source]` of some edges belong, of those that are kept."""
        device = self._found.device
        rows, columns = np.nonzero(kept)
        edges = self._number[ports[rows], sources[columns]]
        entries = rows * kept.shape[1] + columns
        return Place(self._found, *(torch.as_tensor(x, device=device) for x in (entries, edges)))

    def of(self, value: Tensor) -> Tensor:
        """Gradients of a number that was made from the circuit's logits, `[prompt, edge]`; it can be asked again."""
        self._found.zero_()
        torch.autograd.grad(value, [self.root], retain_graph=True)
        return self._found.clone()


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """Of some weights: which are wanted, and as which edges.

    Attributes:
        found: `[prompt, edge]`.
        entries: `[wanted]`, flat indices of those in `[port, source]`; edges: `[wanted]`.
    """

    found: Tensor
    entries: Tensor
    edges: Tensor

    def add(self, gradients: Tensor) -> None:
        """Add gradients `[prompt, port, source]`."""
        self.found.index_add_(1, self.edges, gradients.flatten(1)[:, self.entries])
