"""CD-T: what a node writes, followed to the logits by contextual decomposition (Hsu et al. 2024, arXiv 2407.00886).

The stream is split into what comes of a node, β, and the rest, γ. No gradient is taken; β is carried on by a rule for
each part: the scale of a norm and the pattern of attention are those of the whole stream and constants; what is linear
carries β alone, its bias stays with the rest; and an activation gives β what it gives the whole less what it gives the
rest. The node's effect is the metric without what β has come to at the logits.

The rules are of attention and plain MLPs. The paper has none for gated MLPs, experts, or mixers, which are refused.
β is a node's output less its reference, so that the method takes every ablation.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from acdc.engine.measure import bind, refuse_non_finite
from acdc.engine.memory import tokens_at_once
from acdc.engine.patching import Patching
from acdc.engine.plain_run import full_context
from acdc.engine.problem import Problem
from acdc.errors import UnsupportedModelError
from acdc.methods.aggregates import Estimates, sums
from acdc.methods.method import Method, estimates_of
from acdc.methods.nodes import as_asked
from acdc.methods.ways_back import rule_of
from acdc.metrics import Outcome
from acdc.model import forward
from acdc.model.architecture import Decomposition, Norm
from acdc.model.backward import Flow
from acdc.model.forward import Context


@torch.no_grad()
def effects(patching: Patching, outcome: Outcome, *, first: int = 0) -> Tensor:
    """What the metric becomes without what each node's output comes to at the logits, less what it is: `[S, prompt]`.

    Args:
        first: prompts before these, for messages.
    """
    graph, model, trace = patching.graph, patching.model.decomposition, patching.clean
    context = full_context(patching.model, patching.prompts)
    measure = bind(outcome, patching)
    assert trace.final_input is not None
    stream = context.at_read(trace.final_input)
    whole = measure.value(forward.readout(model, stream, measure.rows))
    refuse_non_finite(whole, outcome, "for the full model", first=first)
    differences = patching.source_differences()  # R[s] − A[s], [S, B, W, D]
    B, T = patching.prompts.clean.shape
    found = whole.new_zeros(graph.n_sources, B)
    size = max(1, tokens_at_once(patching.model.device) // (B * T))
    place = {s: (stage.sublayer.layer, stage.place) for stage in patching.stages for s in stage.sublayer.sources}
    for low in range(0, graph.n_sources, size):
        chunk = range(low, min(low + size, graph.n_sources))
        own = differences.new_zeros(len(chunk), B, T, differences.shape[-1])
        own[:, :, patching.start :] = -differences[chunk.start : chunk.stop]
        part = _carried(patching, context, own, [place.get(s) for s in chunk])
        inside = context.at_read(part)
        rest = _final(model.final_norm, stream, inside)
        logits = forward.readout(_without_norm(model), rest, measure.rows)
        found[chunk.start : chunk.stop] = measure.value(logits) - whole
    return found


def _carried(patching: Patching, context: Context, own: Tensor, place: list[tuple[int, str] | None]) -> Tensor:
    """β of each node at the end, `[C, B, T, D]`.

    Args:
        own: what each node writes; place: in which sublayer, None for inputs.
    """
    model, trace = patching.model.decomposition, patching.clean

    def starting(at: tuple[int, str] | None) -> Tensor:
        here = torch.tensor([p == at for p in place], device=own.device)
        return own * here[:, None, None, None]

    part = starting(None)
    for index, layer in enumerate(model.layers):
        attention, before = layer.attention, part
        normed = _linear(attention.norm, trace.attention_input[index], part)
        v = forward.raw_projection(attention, "v", normed[None])
        if attention.v.bias is not None:
            v = v - attention.v.bias[:, None, None, None]
        q, k = (forward.per_head(attention, x[index]) for x in (trace.q, trace.k))
        pattern = forward.attention_weights(attention, q, k, context)
        z = pattern @ forward.per_head(attention, v)
        written = forward.write(attention, z * attention.multiplier).sum(0)
        part = part + written + starting((index, "attention"))
        reads = trace.mlp_input[index]
        inside = _linear(layer.mlp_norm, reads, before if model.parallel else part)
        given = reads if layer.mlp_norm is None else layer.mlp_norm.module(reads)
        part = part + layer.mlp(given) - layer.mlp(given - inside) + starting((index, "mlp"))
    return part


def _linear(norm: Norm | None, whole: Tensor, part: Tensor) -> Tensor:
    """A part of a norm's input as it comes out, with the scale of the whole."""
    if norm is None:
        return part
    centre = part - part.mean(-1, keepdim=True) if norm.centred else part
    return (centre * norm.inverse_scale(whole) * norm.gain).to(part.dtype)


def _final(norm: Norm | None, stream: Tensor, part: Tensor) -> Tensor:
    """What the unembedding reads without a part of the stream."""
    return (stream if norm is None else norm.module(stream)) - _linear(norm, stream, part)


def _without_norm(model: Decomposition) -> Decomposition:
    return dataclasses.replace(model, final_norm=None)


def _cd_t(problem: Problem) -> Estimates:
    model = problem.model
    if Flow(model, rule_of("relp")).gated:
        raise UnsupportedModelError(f"cd-t has no rule for gated MLPs, and {model.name} has them; use relp, or nap")
    for layer in model.decomposition.layers:
        if layer.attention.v.norm is not None or layer.attention.v.latent is not None or layer.attention.coupled:
            raise UnsupportedModelError(
                f"cd-t has no rule for norms of values or of what heads write, and {model.name} has them; use nap"
            )
    total = np.zeros((3, problem.graph.n_sources))
    batches = problem.batches("gradients")
    for i, (first, patching) in enumerate(batches.after(0)):
        problem.progress(i, len(batches), "contextual decomposition")
        total += sums(effects(patching, problem.outcome, first=first))
    problem.progress(len(batches), len(batches), "contextual decomposition")
    return as_asked(problem, estimates_of(problem, batches.ranks.summed(total)))


CD_T = Method(
    name="cd-t",
    description="contextual decomposition: what a node writes, followed to the logits by rules (plain MLPs only)",
    cost="2 forward, and one a node",
    paper="Hsu et al. 2024, arXiv 2407.00886",
    score=_cd_t,
    signs="estimated",
    grain="node",
    shares_prompts=True,
)
