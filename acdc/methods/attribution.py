"""Edge attribution patching (EAP) and its kin, in closed form.

score(s→d) = Σ_{prompt, position} (R[s] − A[s]) · ∂metric/∂x_d, with R the reference and A the clean output of
source s, and the gradient taken at d's residual input, before the norm. It is the first-order change of the metric
when the edge is removed. Variants differ in where the gradient is taken: at the clean input (EAP), on the line from
the corrupted to the clean embedding (EAP-IG), or at both ends (clean-corrupted).

All heads read one residual stream in these runs, so one backward pass gives the gradient g of every q, k and v
projection; what is missing is only the way back through each head's weights W and through the norm, whose
vector-Jacobian product is linear. With x̂ the normalised input, σ its scale and γ the gain,

    ∂metric/∂x_d = (1/σ) (h − mean(h) − x̂ · mean(h ⊙ x̂)),   h = γ ⊙ Wᵀ g   (RMSNorm: without mean(h))

where γ and the centring are folded into W, and mean(h ⊙ x̂) is g · (projection − its constant part) / d_model. So
an edge costs d_model multiply-adds a token, in one matrix product per layer and prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from acdc.engine.batches import Batches
from acdc.engine.measure import Measure, bind, refuse_non_finite
from acdc.engine.patching import Patching
from acdc.engine.references import full_context
from acdc.errors import AcdcError, TaskError
from acdc.graph import FloatArray, Graph
from acdc.metrics import Outcome
from acdc.model import forward, passes
from acdc.model.architecture import Attention, Norm

STEPS = 5
"""Gradients on the way from the corrupted to the clean prompt, unless told otherwise."""


def path(steps: object) -> list[float]:
    """Where EAP-IG takes gradients, as alphas of `attribute`: from the corrupted end, the clean end left out."""
    if not isinstance(steps, int) or steps < 1:
        raise AcdcError(f"expected steps to be a whole number, at least one step, got {steps!r}")
    return [k / steps for k in range(steps)]


def attribute(patching: Patching, outcome: Outcome, *, alphas: Sequence[float], first: int = 0) -> Tensor:
    """Scores of every edge on every prompt of one batch, `[prompt, n_ports, n_sources]`.

    Args:
        alphas: where gradients are taken: embedding = reference + alpha · (clean − reference); scores are the mean.
        first: number of prompts before these, for messages.

    Raises:
        TaskError: the metric, or its gradient, is NaN or infinite, or it has no gradient.
    """
    model, graph = patching.model, patching.graph
    decomposition = model.decomposition
    context = full_context(model, patching.prompts)
    reference = torch.stack([x.expand_as(patching.clean_inputs[0]) for x in patching.references.inputs]).sum(0)
    clean = torch.stack(list(patching.clean_inputs)).sum(0)
    measure: Measure | None = None
    difference: Tensor | None = None
    scores = clean.new_zeros(len(patching.prompts), graph.n_ports, graph.n_sources)
    # The clean end first: its run is also where the sources' clean outputs come from.
    for alpha in sorted(alphas, reverse=True):
        with torch.enable_grad(), model.frozen():
            x = (reference + alpha * (clean - reference) + patching.constant).requires_grad_()
            trace = forward.run(decomposition, context, x, ungrouped=True)
            assert trace.final_input is not None
            if alpha == 1.0:
                patching.adopt_clean(trace)
            measure = measure or bind(outcome, patching)
            at_read = context.at_read(trace.final_input)
            value = measure.value(forward.readout(decomposition, at_read, measure.rows))
            refuse_non_finite(value, outcome, "for the full model", first=first)
            ends = [r for raw in trace.raw for r in raw] + trace.mlp_input + [trace.final_input]
            gradients = gradient_of(value.sum(), ends, outcome)
            passes.count(backward=len(patching.prompts))
        with torch.no_grad():
            if difference is None:
                difference = source_differences(patching)
            _accumulate(scores, patching, trace, gradients, difference)
        del trace, ends, gradients, at_read, value  # so that the next run finds their memory free
    refuse_bad_gradient(scores, outcome)
    return scores / len(alphas)


def attribution(outcome: Outcome, batches: Batches, *, alphas: Sequence[float]) -> FloatArray:
    """Mean scores over all prompts, `[n_destinations, n_sources]`; arguments as for `attribute`."""
    first, found = 0, []
    for patching in batches:
        scores = attribute(patching, outcome, alphas=alphas, first=first)  # [prompt, port, source]
        found.append(scores.double().sum(0).cpu().numpy())
        first += len(scores)
    return patching.graph.from_ports(np.sum(found, axis=0)) / first


def gradient_of(value: Tensor, inputs: Sequence[Tensor], outcome: Outcome) -> Sequence[Tensor]:
    """∂value/∂input of each input, zeros where the value does not depend on it.

    Raises:
        TaskError: the metric has no gradient.
    """
    other = "use a method that takes no gradient (acdc methods), or a metric that has one"
    if not value.requires_grad:
        raise TaskError(f"metric {outcome.name!r} has no gradient (it is detached, or picks by argmax): {other}")
    try:
        return torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).partition("\n")[0]
        raise TaskError(f"metric {outcome.name!r} has no gradient ({reason}): {other}") from error


def refuse_bad_gradient(scores: Tensor, outcome: Outcome) -> None:
    """Refuse scores from a gradient that is NaN or infinite, as that of a square root at 0 is."""
    if not torch.isfinite(scores).all():
        raise TaskError(
            f"the gradient of metric {outcome.name!r} is NaN or infinite on these prompts: use a method that takes no "
            "gradient (acdc methods), another metric, or float32"
        )


@torch.no_grad()
def source_differences(patching: Patching) -> Tensor:
    """R[s] − A[s] of every source on the window: `[n_sources, B, W, D]`."""
    model, graph, start = patching.model, patching.graph, patching.start
    references, clean = patching.references, patching.clean
    B, T = patching.prompts.clean.shape
    out = patching.clean_inputs[0].new_empty(graph.n_sources, B, T - start, model.d_model)
    for i, (reference, own) in enumerate(zip(references.inputs, patching.clean_inputs, strict=True)):
        out[i] = (reference - own)[0, :, start:]
    for index, layer in enumerate(model.decomposition.layers):
        z = (references.z[index] - clean.z[index])[..., start:, :]
        out[graph.layer_heads(index).outputs] = forward.write(layer.attention, z)[:, 0]
        if graph.mlp:
            out[graph.layer_mlp(index).outputs] = (references.mlp[index] - clean.mlp_output[index])[0, :, start:]
    return out


def _accumulate(
    scores: Tensor, patching: Patching, trace: forward.Trace, gradients: Sequence[Tensor], difference: Tensor
) -> None:
    """Add one gradient's scores to `scores` `[prompt, n_ports, n_sources]`: a product of matrices for each prompt."""
    graph: Graph = patching.graph
    n_layers, start = graph.n_layers, patching.start
    B = difference.shape[1]
    flat = difference.view(graph.n_sources, B, -1).permute(1, 2, 0)  # [B, W D, S]
    for index, layer in enumerate(patching.model.decomposition.layers):
        sublayers = graph.sublayers_of(index)
        every = slice(sublayers[0].every_port.start, sublayers[-1].every_port.stop)
        back = difference.new_empty(every.stop - every.start, *difference.shape[1:])  # gradients, all ports
        heads = graph.layer_heads(index)
        x = trace.attention_input[index][0, :, start:]
        for i, (name, ports) in enumerate(heads.ports.items()):
            g = gradients[3 * index + i][:, 0, :, start:]
            raw = trace.raw[index][i][:, 0, :, start:]
            place = slice(ports.start - every.start, ports.stop - every.start)
            _at_residual(layer.attention, name, x, g, raw, out=back[place])
        if graph.mlp:
            (port,) = graph.layer_mlp(index).every_port
            back[port - every.start] = gradients[3 * n_layers + index][0, :, start:]
            if not graph.parallel:
                own = back[port - every.start].reshape(B, 1, -1)
                scores[:, port, heads.outputs] += (own @ flat[..., heads.outputs])[:, 0]
        scores[:, every, : heads.sources.start] += (
            back.view(len(back), B, -1).transpose(0, 1) @ flat[..., : heads.sources.start]
        )
    scores[:, -1] += (gradients[-1][0, :, start:].reshape(B, 1, -1) @ flat)[:, 0]


def _at_residual(attention: Attention, port: str, x: Tensor, g: Tensor, raw: Tensor, *, out: Tensor) -> None:
    """Gradient at each head's residual input, from the gradient at its projection, into `out` `[H, B, W, D]`.

    Args:
        x: the residual input all heads share, `[B, W, D]`; g, raw: gradient and value of the raw projection,
            `[H, B, W, d_head]`.
    """
    H, B, W, d_head = g.shape
    weight = forward.per_head(attention, getattr(attention, port).weight)  # [H, d_head, D]
    norm: Norm | None = attention.norm
    if norm is None:
        torch.bmm(g.reshape(H, B * W, d_head), weight, out=out.view(H, B * W, -1))
        return
    weight = weight * norm.gain
    if norm.centred:
        weight = weight - weight.mean(-1, keepdim=True)
    inverse = norm.inverse_scale(x)  # [B, W, 1]
    centre = x - x.mean(-1, keepdim=True) if norm.centred else x
    normalised = (centre * inverse).to(g.dtype)
    zero = forward.raw_projection(attention, port, norm.module(torch.zeros_like(x[:1, :1]))[None, None])
    constant = forward.per_head(attention, zero)[:, 0]  # [H, 1, 1, d_head]
    scaled = g * inverse.to(g.dtype)
    along = (scaled * (raw - constant)).sum(-1, keepdim=True) / x.shape[-1]  # [H, B, W, 1]
    torch.bmm(scaled.reshape(H, B * W, d_head), weight, out=out.view(H, B * W, -1))
    out.addcmul_(normalised, along, value=-1)
