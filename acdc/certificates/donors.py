"""What a circuit can tell of a donor, the input whose activations stand in for everything that is removed.

A removed edge brings what its source writes on the donor to a port. The port reads the sum of all that is brought to
it, through its weights, and nothing else of the donor. So donors that bring the same to every port which the output
hangs on are one to the circuit, whatever else they differ in; and where all donors bring the same, as in the true
circuit of a compiled program, one stands for all.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from acdc.engine.plain_run import plain_run
from acdc.engine.stages import stages_of
from acdc.graph import BoolArray, Graph
from acdc.graph.components import Sublayer
from acdc.inspection.runs import written
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts


@torch.no_grad()
def brought(model: Model, graph: Graph, edges: BoolArray, donors: Prompts) -> Tensor:
    """`[donor, …]`: what removed edges bring to the ports that the circuit's output hangs on.

    Where a port normalises what it reads, the sum is given as it is in the residual stream.

    Args:
        edges: `[n_destinations, n_sources]` that are kept.
        donors: whose clean inputs are meant.
    """
    own = torch.stack(written(model, graph, *plain_run(model, donors))[0])  # [source, B, T, D]
    removed = (graph.valid & ~edges)[graph.port_destination] & graph.valid_ports
    _, reaches = graph.reachable(edges)
    if any(stage.coupled for stage in stages_of(model, graph)):
        reaches = np.ones_like(reaches)  # what one head writes depends on the others
    live = np.append(reaches, True)[graph.port_source] & removed.any(axis=1)
    found = [own.new_zeros(own.shape[1], 0)]
    for sublayer in graph.sublayers:
        for name, ports in sublayer.ports.items():
            for i, port in enumerate(ports):
                if live[port]:
                    total = own[torch.from_numpy(np.flatnonzero(removed[port]))].sum(0)
                    weight = _read_by(model, sublayer, name, i)
                    found.append((total if weight is None else total @ weight.T).flatten(1))
    return torch.cat(found, dim=1)


def _read_by(model: Model, sublayer: Sublayer, port: str, component: int) -> Tensor | None:
    """`[read, d_model]` the first matrix that a port's input goes through; None behind a norm, or if not known."""
    decomposition = model.decomposition
    if sublayer.kind == "logits":
        return decomposition.unembedding if decomposition.final_norm is None else None
    layer = decomposition.layers[sublayer.layer]
    if sublayer.kind == "head" and layer.attention.norm is None:
        weight: Tensor = getattr(layer.attention, port).weight
        return weight[component * len(weight) // layer.attention.n_heads]
    if sublayer.kind == "mlp" and layer.mlp_norm is None and isinstance(layer.parts.mlp, torch.nn.Sequential):
        first = layer.parts.mlp[0]
        return first.weight if isinstance(first, torch.nn.Linear) else None
    return None
