"""Edge attribution patching (EAP) and its kin, in closed form.

score(s→d) = Σ_{prompt, position} (R[s] − A[s]) · ∂metric/∂x_d, with R the reference and A the clean output of
source s, and the gradient taken at d's residual input, before the norm. It is the first-order change of the metric
when the edge is removed. Variants differ in where the gradient is taken: at the clean input (EAP), on the line from
the corrupted to the clean embedding (EAP-IG), or at both ends (clean-corrupted).

All components read one residual stream in these runs, so one backward pass is enough: every stage knows the way back
from there to the input of each of its ports (`Stage.gradients`). So an edge costs d_model multiply-adds a token, in one
matrix product per layer and prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from acdc.engine.batches import Batches
from acdc.engine.measure import Measure, Measures, bind, refuse_non_finite
from acdc.engine.patching import Patching
from acdc.engine.plain_run import plain_run
from acdc.engine.problem import Progress, no_progress
from acdc.errors import AcdcError, TaskError
from acdc.graph import BoolArray, FloatArray, Units
from acdc.methods.aggregates import sums
from acdc.metrics import Outcome
from acdc.model import forward, passes
from acdc.model.trace import Trace

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
    reference = torch.stack([x.expand_as(patching.clean_inputs[0]) for x in patching.references.inputs]).sum(0)
    clean = torch.stack(list(patching.clean_inputs)).sum(0)
    measure: Measure | None = None
    difference: Tensor | None = None
    scores = clean.new_zeros(len(patching.prompts), graph.n_ports, graph.n_sources)
    # The clean end first: its run is also where the sources' clean outputs come from.
    for alpha in sorted(alphas, reverse=True):
        with torch.enable_grad(), model.frozen():
            x = (reference + alpha * (clean - reference) + patching.constant).requires_grad_()
            context, trace = plain_run(model, patching.prompts, x=x, ungrouped=True)
            assert trace.final_input is not None
            if alpha == 1.0:
                patching.adopt_clean(trace)
            measure = measure or bind(outcome, patching)
            at_read = context.at_read(trace.final_input)
            value = measure.value(forward.readout(decomposition, at_read, measure.rows))
            refuse_non_finite(value, outcome, "for the full model", first=first)
            ends = [end for stage in patching.stages for end in stage.ends(trace)] + [trace.final_input]
            gradients = gradient_of(value.sum(), ends, outcome)
            passes.count(backward=len(patching.prompts))
        with torch.no_grad():
            if difference is None:
                difference = patching.source_differences()
            _accumulate(scores, patching, trace, gradients, difference)
        del trace, ends, gradients, at_read, value  # so that the next run finds their memory free
    refuse_bad_gradient(scores, outcome)
    return scores / len(alphas)


def attribution(
    outcome: Outcome, batches: Batches, units: Units, *, alphas: Sequence[float], progress: Progress = no_progress
) -> tuple[FloatArray, FloatArray]:
    """Scores of all prompts, batch by batch; arguments as for `attribute`.

    Returns:
        Sums over the prompts of each unit's score, `[3, *units.shape]` (`aggregates.sums`), and of the absolute value
        of the score of all of a component's outputs together, `[n_sources]`.
    """
    found: list[FloatArray] = []
    components: list[FloatArray] = []
    for first, patching in batches.after(0):
        progress(len(found), len(batches), "attribution")
        graph = patching.graph
        scores = attribute(patching, outcome, alphas=alphas, first=first)  # [prompt, port, source]
        merged = scores.new_zeros(len(scores), *graph.valid.shape)
        merged.index_add_(1, torch.as_tensor(graph.port_destination, device=scores.device), scores)
        found.append(sums(units.collect(merged).movedim(0, -1)))
        components.append(sums(scores.sum(1).T)[1])
    progress(len(batches), len(batches), "attribution")
    return np.sum(found, axis=0), np.sum(components, axis=0)


def weight_gradient(
    measures: Measures,
    weights: BoolArray | FloatArray,
    of: Callable[[Measure, Tensor], Tensor],
    *,
    input_scales: Sequence[float] = (1.0,),
    sparse: bool = False,
) -> FloatArray:
    """Gradient in each edge's weight, where edges carry these shares: `[n_destinations, n_sources]` both.

    Args:
        of: the number for each prompt whose mean is taken: `Measure.value` or `Measure.distance`.
        input_scales, sparse: as for `Patching.logits`; the gradients are summed.

    Raises:
        TaskError: the metric has no gradient.
    """
    total = torch.zeros(weights.shape, dtype=torch.float64)
    for patching, measure in measures:
        model, share = patching.model, len(patching.prompts) / len(measures.batches.prompts)
        for input_scale in input_scales:
            with torch.enable_grad(), model.frozen():
                given = torch.as_tensor(weights, device=model.device).to(model.dtype).requires_grad_()
                logits = patching.logits(given, rows=measure.rows, input_scale=input_scale, sparse=sparse)
                if not logits.requires_grad:
                    continue
                (gradient,) = gradient_of(of(measure, logits).mean(), [given], measures.outcome)
                passes.count(backward=len(patching.prompts))
            total += share * gradient.double().cpu()
    return total.numpy()


def gradient_of(
    value: Tensor,
    inputs: Sequence[Tensor],
    outcome: Outcome,
    *,
    create_graph: bool = False,
    retain_graph: bool = False,
) -> Sequence[Tensor]:
    """∂value/∂input of each input, zeros where the value does not depend on it; options as of `torch.autograd.grad`.

    Raises:
        TaskError: the metric has no gradient.
    """
    other = "use a method that takes no gradient (acdc methods), or a metric that has one"
    if not value.requires_grad:
        raise TaskError(f"metric {outcome.name!r} has no gradient (it is detached, or picks by argmax): {other}")
    try:
        return torch.autograd.grad(
            value, inputs, allow_unused=True, materialize_grads=True,
            create_graph=create_graph, retain_graph=create_graph or retain_graph,
        )  # fmt: skip
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).partition("\n")[0]
        raise TaskError(f"metric {outcome.name!r} has no gradient ({reason}): {other}") from error


def refuse_bad_gradient(scores: Tensor | FloatArray, outcome: Outcome) -> None:
    """Refuse scores from a gradient that is NaN or infinite, as that of a square root at 0 is."""
    if not torch.isfinite(torch.as_tensor(scores)).all():
        raise TaskError(
            f"the gradient of metric {outcome.name!r} is NaN or infinite on these prompts: use a method that takes no "
            "gradient (acdc methods), another metric, or float32"
        )


def _accumulate(
    scores: Tensor, patching: Patching, trace: Trace, gradients: Sequence[Tensor], difference: Tensor
) -> None:
    """Add one gradient's scores to `scores` `[prompt, n_ports, n_sources]`: a product of matrices for each prompt.

    Those of the sources before a layer take one product for all its ports.
    """
    start, given = patching.start, iter(gradients)
    n, B = difference.shape[:2]
    flat = difference.view(n, B, -1).permute(1, 2, 0)  # [B, W D, S]
    for _, group in groupby(patching.stages, key=lambda stage: stage.sublayer.layer):
        stages = list(group)
        ports = slice(stages[0].sublayer.every_port.start, stages[-1].sublayer.every_port.stop)
        before = stages[0].earlier
        back = difference.new_empty(ports.stop - ports.start, *difference.shape[1:])
        for stage in stages:
            own = stage.sublayer.every_port
            out = back[own.start - ports.start : own.stop - ports.start]
            stage.gradients(trace, [next(given) for _ in stage.ends(trace)], start, out)
            if stage.earlier > before:
                rows = out.reshape(len(own), B, -1).transpose(0, 1)  # [B, port, W D]
                scores[:, own.start : own.stop, before : stage.earlier] += rows @ flat[..., before : stage.earlier]
        scores[:, ports, :before] += back.view(len(back), B, -1).transpose(0, 1) @ flat[..., :before]
    scores[:, -1] += (gradients[-1][0, :, start:].reshape(B, 1, -1) @ flat)[:, 0]
