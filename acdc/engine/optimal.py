"""Optimal ablation (Li & Janson 2024, arXiv 2409.09951): each source has the constant that does least harm.

The constant of a source v is a*_v = argmin_a E[loss(model in which everybody reads a instead of what v writes)], with
an expectation over the clean prompts that a circuit is found on: the paper's definition for one component, which does
not depend on the circuit, so that removing an edge means the same in every one. (The paper also fits constants to one
finished circuit; here those of single components are kept.) The loss is the distance from the full model: the task's
metric if that is a distance, else KL over the vocabulary.

All sources are learned at once, each by its own loss, by Adam from the mean, in units of how much the source's output
varies. What follows a source is the plain model run from there on. Of all steps the best is kept, source by source, so
that no constant is worse than the mean on these prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from acdc.circuit.constants import Constants
from acdc.engine.batches import Batches
from acdc.engine.measure import Measure, bind
from acdc.engine.patching import Patching
from acdc.engine.plain_run import embedded, plain_run
from acdc.engine.ranks import sharing_if
from acdc.engine.references import References, means_over, zero_references
from acdc.engine.stages import stages_of
from acdc.errors import AcdcError, TaskError
from acdc.graph import Graph
from acdc.metrics import OUTCOMES, Outcome
from acdc.model import forward, passes
from acdc.model.model import Model
from acdc.model.trace import rest_of_run

if TYPE_CHECKING:
    from acdc.engine.problem import Problem

INPUT_STEPS, STEPS = 300, 100
RATE, BETAS = 0.3, (0.8, 0.95)
"""Of Adam: a learning rate in standard deviations of the source's output, falling to 0 in a straight line, and a short
memory, for so few steps. With these the loss is within some percent of the least (see the tests). Constants of the
inputs go furthest from the mean and take more steps than those of heads and MLPs: with 100, their loss was 19% above
the least in a random model. They are one or two sources, so that costs little."""
FEWEST_PROMPTS, MOST_PROMPTS = 4, 64
"""Prompts that constants are learned on: the first ones."""


def references_of(constants: Constants, model: Model, graph: Graph) -> References:
    """The constants as what removed edges carry.

    Raises:
        AcdcError: they are of another model.
    """
    zero = zero_references(model, graph)
    given = [x.shape for x in constants.inputs], [x.shape for x in constants.outputs]
    if given != ([x.shape[-1:] for x in zero.inputs], [(len(x), x.shape[-1]) for x in zero.outputs]):
        raise AcdcError(f"the constants of optimal ablation are not of model {model.name!r}: learn them anew")
    inputs = (
        torch.from_numpy(a).to(x)[None, None, None] for a, x in zip(constants.inputs, zero.inputs, strict=True)
    )
    outputs = (
        torch.from_numpy(a).to(x)[:, None, None, None] for a, x in zip(constants.outputs, zero.outputs, strict=True)
    )
    return References(tuple(inputs), tuple(outputs))


@torch.inference_mode(False)
def learned(problem: Problem) -> Constants:
    """The constants of all sources, learned on the problem's prompts.

    Raises:
        AcdcError: too few prompts, a metric without a gradient, or not enough memory.
    """
    prompts = problem.prompts[:MOST_PROMPTS]
    if len(prompts) < FEWEST_PROMPTS:
        raise AcdcError(
            f"optimal ablation learns a constant for every node, and on {len(prompts)} prompts it would only learn "
            f"these: give at least {FEWEST_PROMPTS}, or use ablation 'mean'"
        )
    outcome = _loss(problem)
    inner = dataclasses.replace(problem, ablation="mean", prompts=prompts)
    with sharing_if(False):
        batches = inner.batches("gradients")
        means, scales = _spread(inner, batches.size)
        groups = range(len(means))
        best = [
            *_descent(inner, batches, outcome, groups[:1], means, scales, n_steps=INPUT_STEPS, done=0),
            *_descent(inner, batches, outcome, groups[1:], means, scales, n_steps=STEPS, done=INPUT_STEPS + 1),
        ]
    found = [(m + s * k).double().cpu().numpy() for m, s, k in zip(means, scales, best, strict=True)]
    return Constants(tuple(found[0]), tuple(found[1:]))


def _descent(
    inner: Problem,
    batches: Batches,
    outcome: Outcome,
    groups: Sequence[int],
    means: Sequence[Tensor],
    scales: Sequence[Tensor],
    *,
    n_steps: int,
    done: int,
) -> list[Tensor]:
    """Of each of some groups, the least harmful shifts from the means, in units of the scale.

    Args:
        done: steps that were taken before, of all groups together.
    """
    prompts, at_once = inner.prompts, inner.rows_at_once("gradients")
    shifts = {g: torch.zeros_like(means[g], requires_grad=True) for g in groups}
    best = {g: shift.detach().clone() for g, shift in shifts.items()}
    lowest = {g: shift.new_full((len(shift),), np.inf) for g, shift in best.items()}
    optimiser = torch.optim.Adam(list(shifts.values()), lr=RATE, betas=BETAS)
    for step in range(n_steps + 1):
        inner.progress(done + step, INPUT_STEPS + STEPS + 2, "constants of optimal ablation")
        optimiser.zero_grad()
        losses = {g: torch.zeros_like(low) for g, low in lowest.items()}
        for patching in batches:
            measure = bind(outcome, patching)
            for group, some, loss in _losses(patching, measure, shifts, means, scales, at_once):
                losses[group][some] += loss.detach().to(losses[group]) / len(prompts)
                if step < n_steps:
                    _backward(loss.sum() / len(prompts), outcome)
                    passes.count(backward=len(loss) * len(patching.prompts))
        for group, loss in losses.items():
            if not torch.isfinite(loss).all():
                raise TaskError(f"the loss of optimal ablation ({outcome.name}) is NaN or infinite: try float32")
            better = loss < lowest[group]
            best[group][better], lowest[group][better] = shifts[group].detach()[better], loss[better]
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / n_steps)
        if step < n_steps:
            optimiser.step()
    return list(best.values())


def _loss(problem: Problem) -> Outcome:
    """The distance from the full model that constants are to make small."""
    own = problem.outcome
    outcome = own if own.is_distance or problem.model.vocabulary_size == 1 else OUTCOMES["kl"]
    if not outcome.differentiable:
        raise AcdcError(
            f"optimal ablation goes by the gradient of the distance from the full model, and metric {outcome.name!r} "
            "has none: use kl or logit-difference, or ablation 'mean'"
        )
    return outcome


def _spread(problem: Problem, batch_size: int) -> tuple[list[Tensor], list[Tensor]]:
    """Means of what sources write, and how much it varies: of the inputs `[input, D]`, then of each stage
    `[component, X]`; `[…, 1]` each, 1 where it does not vary."""
    model, stages = problem.model, stages_of(problem.model, problem.graph)

    def values(batch: object) -> list[Tensor]:
        inputs, _ = embedded(model, problem.graph, batch)  # type: ignore[arg-type]
        _, trace = plain_run(model, batch)  # type: ignore[arg-type]
        written = [torch.stack(list(inputs)), *(stage.output(trace) for stage in stages)]
        wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in written]
        return [*wide, *(x.square() for x in wide)]

    dtype = torch.promote_types(model.dtype, torch.float32)
    found = means_over(
        values, problem.prompts, per_position=False, batch_size=batch_size, device=model.device, dtype=dtype
    )
    flat = [x[:, 0, 0, 0] for x in found]
    means, squares = flat[: len(flat) // 2], flat[len(flat) // 2 :]
    scales = [
        (b - a.square()).clamp(min=0).mean(-1, keepdim=True).sqrt() for a, b in zip(means, squares, strict=True)
    ]
    return means, [torch.where(scale > 0, scale, 1.0) for scale in scales]


def _losses(
    patching: Patching,
    measure: Measure,
    shifts: Mapping[int, Tensor],
    means: Sequence[Tensor],
    scales: Sequence[Tensor],
    at_once: int,
) -> Iterator[tuple[int, slice, Tensor]]:
    """Sums over a batch of each source's loss, some at once: their group, which of it they are, and `[source]`.

    Args:
        at_once: sources of a group, each of which is a run.
    """
    model, context, trace = patching.model, patching.context, patching.clean
    for group, shift in shifts.items():
        mean, scale = means[group], scales[group]
        for start in range(0, len(shift), at_once):
            some = slice(start, min(start + at_once, len(shift)))
            with torch.enable_grad(), model.frozen():
                constant = (mean[some] + scale[some] * shift[some]).to(model.dtype)[:, None, None, None]
                if group == 0:
                    own = torch.stack(list(patching.clean_inputs))[some]
                    change = (constant - own)[:, 0, :, context.start :]
                    x = trace.attention_input[0][..., context.start :, :] + change
                    x = rest_of_run(model.decomposition, context, trace, x, 0)
                else:
                    stage = patching.stages[group - 1]
                    change = (constant - stage.output(trace)[some])[..., context.start :, :]
                    written = stage.write(change, np.arange(some.start, some.stop))[:, 0]
                    x = stage.rest(model, context, trace, written)
                logits = forward.readout(model.decomposition, x, measure.rows)
                yield group, some, measure.distance(logits).sum(-1)


def _backward(loss: Tensor, outcome: Outcome) -> None:
    try:
        loss.backward()
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).partition("\n")[0]
        raise TaskError(
            f"metric {outcome.name!r} has no gradient ({reason}): use ablation 'mean', or kl"
        ) from error
