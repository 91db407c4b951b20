"""Attribution by its definition, with a residual stream of its own for every destination."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import oracle
from acdc.engine.measure import Measure
from acdc.engine.patching import Patching
from acdc.engine.plain_run import full_context
from acdc.graph import FloatArray
from acdc.model import forward


def slow_gradients(
    patching: Patching, measure: Measure, embedding: Tensor, shifts: dict[tuple[int, str], Tensor] | None = None
) -> Tensor:
    """∂metric/∂x_d by giving every destination a residual stream of its own: `[n_ports, B, T, D]`.

    Args:
        embedding: `[1, B, T, D]`.
        shifts: what is added to what a sublayer, ("attention" or "mlp") of a layer, writes.
    """
    model, graph = patching.model, patching.graph
    context = full_context(model, patching.prompts)
    leaves = [torch.zeros_like(embedding, requires_grad=True) for _ in range(graph.n_ports)]
    x, shifts = embedding, shifts or {}
    for index, layer in enumerate(model.decomposition.layers):
        attention, rows = layer.attention, graph.layer_heads(index)
        heads = [torch.stack([x + leaves[port] for port in ports]) for ports in rows.ports.values()]
        q, k, v = (
            forward.project(attention, port, own, context, heads=range(graph.n_heads))
            for port, own in zip("qkv", heads, strict=True)
        )
        z = forward.scaled_by_post_norm(attention, forward.attend(attention, q, k, v, context))
        after = x + forward.attention_output(attention, z) + shifts.get((index, "attention"), 0.0)
        x = after + forward.mlp(
            layer, (x if graph.parallel else after) + leaves[graph.layer_mlp(index).every_port[0]]
        )
        x = x + shifts.get((index, "mlp"), 0.0)
    logits = forward.readout(model.decomposition, context.at_read(x + leaves[-1]), measure.rows)
    with model.frozen():
        gradients = torch.autograd.grad(measure.value(logits).sum(), leaves)
    return torch.cat(gradients)


def slow_scores(patching: Patching, measure: Measure, alphas: Sequence[float]) -> FloatArray:
    """The definition, with the outputs of sources from the plain module: Σ (R[s] − A[s]) · mean gradient at d."""
    module, graph, prompts = patching.model.module, patching.graph, patching.prompts
    clean = oracle.source_outputs(module, graph, prompts.clean, prompts.mask)
    corrupted = oracle.source_outputs(module, graph, prompts.corrupted, prompts.mask)
    if patching.ablation == "zero":
        corrupted = {source: torch.zeros_like(output) for source, output in corrupted.items()}
    difference = torch.stack([corrupted[s] - clean[s] for s in graph.sources])
    gradient = sum(
        slow_gradients(patching, measure, (corrupted["input"] + a * (clean["input"] - corrupted["input"]))[None])
        for a in alphas
    )
    assert isinstance(gradient, Tensor)
    scores = gradient.flatten(1) @ difference.flatten(1).T / len(alphas)
    return graph.from_ports(np.where(graph.valid_ports, scores.numpy(), 0.0))
