"""All effects to first order, from one backward pass through the residual stream.

The gradient at the residual stream before and inside every layer is all that the one pass has to give; from there the
way back to projections, patterns and results of heads stays inside a layer and is taken layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acdc.engine.measure import Measure, bind, refuse_non_finite
from acdc.engine.patching import Patching
from acdc.engine.plain_run import plain_run
from acdc.graph import FloatArray
from acdc.methods.attribution import gradient_of, refuse_bad_gradient
from acdc.metrics import Outcome
from acdc.model import forward, passes
from acdc.model.forward import Context
from acdc.model.trace import Trace
from acdc.tracing import sites
from acdc.tracing.rest import Values
from acdc.tracing.sites import Site


def first_order_effects(
    patching: Patching,
    outcome: Outcome,
    values: Values,
    chosen: Sequence[Site],
    masks: Sequence[Tensor],
    effects: Sequence[FloatArray],
) -> Measure:
    """Estimate every effect on the prompts of one batch.

    Args:
        masks: `[B, T]` of each place.
        effects: for each site `[layer, component, place, B]`, which are filled in.

    Returns:
        The metric bound to these prompts.

    Raises:
        TaskError: the metric, or its gradient, is NaN or infinite, or it has no gradient.
    """
    model = patching.model
    decomposition = model.decomposition
    with torch.enable_grad(), model.frozen():
        x = torch.stack(list(patching.clean_inputs)).sum(0) + patching.constant
        context, trace = plain_run(model, patching.prompts, x=x.requires_grad_())
        assert trace.final_input is not None
        patching.adopt_clean(trace)
        measure = bind(outcome, patching)
        value = measure.value(forward.readout(decomposition, context.at_read(trace.final_input), measure.rows))
        refuse_non_finite(value, outcome, "for the full model")
        inputs = [*trace.attention_input, *trace.mlp_input, trace.final_input]
        given = gradient_of(value.sum(), inputs, outcome)
        passes.count(backward=len(patching.prompts))
    L = len(decomposition.layers)
    at_attention, at_mlp, behind = given[:L], given[L : 2 * L], given[-1]
    place = torch.stack(list(masks)).to(behind.dtype)  # [place, B, T]
    there = torch.stack(list(masks)).any(2).cpu().numpy()  # [place, B]
    clean = trace.detached()
    for index in reversed(range(L)):
        layer = decomposition.layers[index]
        inside = behind if decomposition.parallel else behind + at_mlp[index]
        before = at_attention[index]
        if layer.mixer is not None:  # what the mixer alone hands back
            before = before + inside + (at_mlp[index] if decomposition.parallel else 0.0)
        for site, found in zip(chosen, effects, strict=True):
            if not sites.components(layer, site):
                continue
            gradients = {"residual": before, "attention": inside, "mlp": behind}
            gradient = (
                gradients[site.name][None]
                if site.name in gradients
                else _inside(patching, context, clean, index, site, values, inside)
            )
            base, reference = values(index, site)
            each = ((reference - base) * gradient).sum(-1)[:, 0]  # [component, B, T]
            refuse_bad_gradient(each, outcome)
            total = torch.einsum("cbt,pbt->cpb", each, place).double().cpu().numpy()
            total[:, ~there] = float("nan")
            found[index, : len(total)] = total
        behind = before
    return measure


def _inside(
    patching: Patching, context: Context, trace: Trace, index: int, site: Site, values: Values, given: Tensor
) -> Tensor:
    """The gradient at a site of the heads, `[component, 1, B, T, X]`, from that at what they write."""
    attention = patching.model.decomposition.layers[index].attention
    with torch.enable_grad(), patching.model.frozen():
        value = values(index, site)[0].detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(
            sites.written(attention, context, trace, index, site, value), value, given
        )
    return gradient
