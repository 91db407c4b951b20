"""AtP*: attribution patching that saturated softmaxes and cancelling layers do not fool (Kramár et al. 2024).

*QK-fix.* Where a head attends to one place alone, the derivative of its softmax is zero, and yet a query or key that
changes much moves it. So for edges into queries and keys the attention is computed again with what the head would read
without the edge, and only what follows the head is taken to be linear: Σ (z(without) − z) · ∂metric/∂z.

*GradDrop.* Effects through two layers may cancel in one gradient. So gradients are taken with each layer in turn left
out of the way back, and the absolute scores of all of them averaged; the layer that an edge leads into (a node is in)
is passed over, since without it nothing is left. The score's sign is that of the mean with every layer. How a mean of
absolute values varies says nothing of signs, so there is no root mean square for `--select bootstrap` to go by.

What a circuit of the best edges then leaves out is bounded by `acdc.missed`.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from acdc.engine.attention_stage import AttentionStage
from acdc.engine.memory import tokens_at_once
from acdc.engine.patching import Patching
from acdc.engine.plain_run import full_context
from acdc.engine.problem import Problem
from acdc.errors import AcdcError, UnsupportedModelError
from acdc.graph import FloatArray
from acdc.methods.aggregates import Estimates
from acdc.methods.attribution import Gradients, refuse_bad_gradient
from acdc.methods.method import Method, helpfulness
from acdc.model import forward
from acdc.model.backward import Flow, Rule
from acdc.model.trace import Trace


def _atp_star(
    problem: Problem,
    *,
    qk_fix: Annotated[bool, "whether attention is recomputed for what queries and keys read"] = True,
    grad_drop: Annotated[
        bool, "whether layers are left out of the way back in turn, against parts that cancel"
    ] = True,
) -> Estimates:
    graph, units = problem.graph, problem.units
    if qk_fix and any(
        x.q.norm_across_heads or x.k.norm_across_heads for x in problem.model.decomposition.attentions
    ):
        raise UnsupportedModelError(
            "the QK-fix runs each head alone, and heads of this model share a norm of queries and keys; take "
            "qk_fix=false, or eap"
        )
    own = graph.destination_layer[:, None] if problem.unit == "edge" else graph.source_layer
    if problem.unit not in ("edge", "node"):
        raise AcdcError(f"atp-star ranks edges and nodes, not units {problem.unit!r}")
    layers = range(graph.n_layers) if grad_drop and graph.n_layers > 1 else range(0)
    weight = np.sum([np.broadcast_to(own != layer, units.shape) for layer in layers], axis=0) if layers else None
    sums = np.zeros((2, *units.shape))
    batches, flow = problem.batches("gradients"), Flow(problem.model, Rule())
    port_destination = torch.as_tensor(graph.port_destination)
    for i, (first, patching) in enumerate(batches.after(0)):
        problem.progress(i, len(batches), "attribution")
        plain, *dropped = every_drop(patching, problem, flow, layers, first=first, qk_fix=qk_fix)

        def of_units(scores: Tensor, patching: Patching = patching) -> FloatArray:
            merged = scores.new_zeros(len(scores), *graph.valid.shape)
            merged.index_add_(1, port_destination.to(scores.device), scores)
            found: FloatArray = units.collect(merged).double().cpu().numpy()
            return found

        signed = of_units(plain)  # [prompt, *units]
        size = np.abs(signed)
        if weight is not None:
            parts = [np.abs(of_units(x)) * (own != layer) for layer, x in zip(layers, dropped, strict=True)]
            size = np.sum(parts, axis=0) / np.maximum(weight, 1)
        sums += np.stack([signed.sum(0), size.sum(0)])
    problem.progress(len(batches), len(batches), "attribution")
    signed, size = batches.ranks.summed(sums) / len(problem.prompts)
    values = helpfulness(problem, np.sign(signed) * size)
    return Estimates(values, size)


def every_drop(
    patching: Patching, problem: Problem, flow: Flow, layers: range, *, first: int, qk_fix: bool
) -> list[Tensor]:
    """Scores of every edge on each prompt of one batch, `[prompt, n_ports, n_sources]`.

    Args:
        layers: each to be left out of the way back once.
        first: prompts before these, for messages.

    Returns:
        By the whole gradient first, then without each layer.
    """
    run = Gradients(patching, problem.outcome, flow, first=first)
    found: list[Tensor] = []
    attended: list[list[Tensor]] = []  # by run, by layer: gradients at what heads attended to
    stages = [stage for stage in patching.stages if isinstance(stage, AttentionStage)]

    def more(trace: Trace) -> list[Tensor]:
        return [trace.attended[stage.sublayer.layer] for stage in stages]

    clean: Trace | None = None
    for dropped in (None, *layers):
        trace, gradients = run.at(
            run.clean + patching.constant, is_clean=dropped is None, dropped=dropped, more=more
        )
        run.scores = torch.zeros_like(run.scores)
        run.add(trace, gradients[: len(gradients) - len(stages)])
        found.append(run.scores)
        attended.append(gradients[len(gradients) - len(stages) :])
        clean = clean or trace
        del trace, gradients
    if qk_fix:
        assert clean is not None
        for i, stage in enumerate(stages):
            fix_queries_and_keys(patching, run.difference, stage, clean, [x[i] for x in attended], found)
    for scores in found:
        refuse_bad_gradient(scores, problem.outcome)
    return found


@torch.no_grad()
def fix_queries_and_keys(
    patching: Patching,
    difference: Tensor,
    stage: AttentionStage,
    trace: Trace,
    gradients: list[Tensor],
    scores: list[Tensor],
) -> None:
    """Write the QK-fix of one layer's edges into queries and keys to each run's scores.

    Args:
        difference: R[s] − A[s], `[n_sources, B, W, D]`.
        trace: the clean run; gradients: each run's at what the heads attended to, `[H, 1, B, T, d_head]`.
        scores: each run's, `[prompt, n_ports, n_sources]`, written to.
    """
    attention, index, start = stage.attention, stage.sublayer.layer, patching.start
    context = full_context(patching.model, patching.prompts)
    x, z = trace.attention_input[index].detach(), trace.attended[index].detach()  # [1, B, T, D], [H, 1, B, T, d]
    every = torch.stack(gradients)[:, :, 0]  # [run, H, B, T, d]
    q, k, v = (forward.per_head(attention, part[index].detach()) for part in (trace.q, trace.k, trace.v))
    size = max(1, tokens_at_once(x.device) // q[..., 0].numel())
    for port in "qk":
        ports = stage.sublayer.ports[port]
        for low in range(0, stage.earlier, size):
            chunk = slice(low, min(low + size, stage.earlier))
            changed = x.repeat(chunk.stop - chunk.start, 1, 1, 1)  # [C, B, T, D]
            changed[:, :, start:] += difference[chunk]
            new = forward.per_head(attention, forward.project(attention, port, changed[None], context))
            parts = (new, k, v) if port == "q" else (q, new, v)
            moved = forward.attend(attention, *parts, context) - z  # [H, C, B, T, d]
            effect = torch.einsum("hcbte,rhbte->rbhc", moved, every)
            for own, each in zip(scores, effect, strict=True):
                own[:, ports.start : ports.stop, chunk] = each


ATP_STAR = Method(
    name="atp-star",
    description="attribution patching with attention recomputed for queries and keys, and layers left out in turn",
    cost="(2 + layers) forward, (1 + layers) backward, and a head's attention an edge into queries and keys",
    paper="Kramár et al. 2024, arXiv 2403.00745",
    score=_atp_star,
    gradient="clean",
    signs="estimated",
    shares_prompts=True,
)
