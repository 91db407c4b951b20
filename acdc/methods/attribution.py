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
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from acdc.engine.batches import Batches
from acdc.engine.measure import Measure, Measures, bind, refuse_non_finite
from acdc.engine.patching import Patching
from acdc.engine.plain_run import plain_run
from acdc.engine.problem import Progress, no_progress
from acdc.engine.stage import Stage
from acdc.errors import TaskError, check_whole
from acdc.graph import BoolArray, FloatArray, Units
from acdc.methods.aggregates import sums
from acdc.metrics import Outcome
from acdc.model import forward, passes
from acdc.model.backward import Flow, Rule
from acdc.model.trace import Added, Trace

Ends = Callable[[Trace], list[Tensor]]
STEPS = 5
"""Gradients on the way from the corrupted to the clean prompt, unless told otherwise."""


def path(steps: int, ablation: str) -> list[float]:
    """Where EAP-IG takes gradients, as alphas of `attribute`: from the corrupted end, the clean end left out.

    Under zero ablation the corrupted end is no embedding at all: a norm's slope there is 1/√eps, which would outweigh
    every other gradient, or be infinite. So gradients are taken a quarter of a step further on then.
    """
    check_whole("a number of steps", steps, least=1)
    begin = 0.25 if ablation == "zero" else 0.0
    return [(k + begin) / steps for k in range(steps)]


class Gradients:
    """First-order scores on every prompt of one batch, added up gradient by gradient.

    Attributes:
        scores: `[prompt, n_ports, n_sources]`, the sum so far.
        reference, clean: the ends of the path of embeddings, `[1, B, T, D]`.
    """

    def __init__(self, patching: Patching, outcome: Outcome, flow: Flow, *, first: int = 0) -> None:
        self.patching, self.outcome, self.flow, self._first = patching, outcome, flow, first
        parts = [x.expand_as(patching.clean_inputs[0]) for x in patching.references.inputs]
        self.reference = torch.stack(parts).sum(0)
        self.clean = torch.stack(list(patching.clean_inputs)).sum(0)
        graph = patching.graph
        self.scores = self.clean.new_zeros(len(patching.prompts), graph.n_ports, graph.n_sources)
        self._measure: Measure | None = None

    @property
    def measure(self) -> Measure:
        """The metric, bound when it is first asked for: a clean run that was made by then is not made again."""
        self._measure = self._measure or bind(self.outcome, self.patching)
        return self._measure

    @cached_property
    def difference(self) -> Tensor:
        """R[s] − A[s] of every source, `[n_sources, B, W, D]`."""
        return self.patching.source_differences()

    def clean_run(self) -> None:
        """Make the run that the sources' clean outputs come from, where no gradient is taken at the clean prompt."""
        _ = self.patching.clean

    def at(
        self,
        x: Tensor,
        *,
        is_clean: bool = False,
        added: Added | None = None,
        dropped: int | None = None,
        more: Ends | None = None,
    ) -> tuple[Trace, list[Tensor]]:
        """Run the model from the embedding `x` `[1, B, T, D]`, and take the metric's gradients.

        Args:
            is_clean: whether it is the clean embedding, so that the run need not be made again.
            added: a change of what a sublayer writes, which everything that runs later is differentiated from.
            dropped: a layer through what it writes no gradient flows.
            more: further places to take gradients at, of a trace.

        Returns:
            The trace, and gradients at the ends of the stages after the change, of the logits, and at `more`.

        Raises:
            TaskError: the metric is NaN or infinite, or has no gradient.
        """
        patching = self.patching
        with torch.enable_grad(), patching.model.frozen(), self.flow.running() as decomposition:
            x = x.requires_grad_(added is None)
            context, trace = plain_run(
                patching.model,
                patching.prompts,
                x=x,
                ungrouped=True,
                decomposition=decomposition,
                added=added,
                dropped=dropped,
            )
            assert trace.final_input is not None
            if is_clean:
                patching.adopt_clean(trace)
            at_read = context.at_read(trace.final_input)
            value = self.measure.value(forward.readout(decomposition, at_read, self.measure.rows))
            refuse_non_finite(value, self.outcome, "for the full model", first=self._first)
            ends = [end for stage in stages_behind(patching, added) for end in stage.ends(trace)]
            ends += [trace.final_input]
            found = gradient_of(value.sum(), [*ends, *(more(trace) if more else [])], self.outcome)
            passes.count(backward=len(patching.prompts))
        return trace, list(found)

    @torch.no_grad()
    def add(
        self,
        trace: Trace,
        gradients: Sequence[Tensor],
        difference: Tensor | None = None,
        *,
        added: Added | None = None,
    ) -> None:
        """Add what the gradients say of a difference of the sources to the scores.

        Args:
            difference: `[n_sources, B, W, D]`, or of the sources of `added` alone; None: the whole one.
            added: as given to `at`.
        """
        difference = self.difference if difference is None else difference
        frozen = self.flow.rule.frozen_norms
        _accumulate(self.scores, self.patching, trace, gradients, difference, added=added, frozen=frozen)


def attribute(
    patching: Patching, outcome: Outcome, *, alphas: Sequence[float], first: int = 0, flow: Flow | None = None
) -> Tensor:
    """Scores of every edge on every prompt of one batch, `[prompt, n_ports, n_sources]`.

    Args:
        alphas: where gradients are taken: embedding = reference + alpha · (clean − reference); scores are the mean.
        first: number of prompts before these, for messages.
        flow: how gradients flow back; None: by the derivative.

    Raises:
        TaskError: the metric, or its gradient, is NaN or infinite, or it has no gradient.
    """
    run = Gradients(patching, outcome, flow or Flow(patching.model, Rule()), first=first)
    # The clean end first: its run is also where the sources' clean outputs come from.
    for alpha in sorted(alphas, reverse=True):
        x = run.reference + alpha * (run.clean - run.reference) + patching.constant
        trace, gradients = run.at(x, is_clean=alpha == 1.0)
        run.add(trace, gradients)
        del trace, gradients  # so that the next run finds their memory free
    refuse_bad_gradient(run.scores, outcome)
    return run.scores / len(alphas)


def attribution(
    outcome: Outcome, batches: Batches, units: Units, *, alphas: Sequence[float], progress: Progress = no_progress
) -> tuple[FloatArray, FloatArray]:
    """Scores of all prompts, batch by batch; arguments as for `attribute`.

    Returns: as `summed`.
    """

    def scores(patching: Patching, first: int) -> Tensor:
        return attribute(patching, outcome, alphas=alphas, first=first)

    return summed(scores, batches, units, progress=progress)


def summed(
    scores_of: Callable[[Patching, int], Tensor],
    batches: Batches,
    units: Units,
    *,
    progress: Progress = no_progress,
) -> tuple[FloatArray, FloatArray]:
    """Scores of all prompts, batch by batch.

    Args:
        scores_of: `(patching, prompts before these)` to scores `[prompt, n_ports, n_sources]`.

    Returns:
        Sums over the prompts of each unit's score, `[3, *units.shape]` (`aggregates.sums`), and of the absolute value
        of the score of all of a component's outputs together, `[n_sources]`.
    """
    found: list[FloatArray] = []
    components: list[FloatArray] = []
    for first, patching in batches.after(0):
        progress(len(found), len(batches), "attribution")
        graph = patching.graph
        scores = scores_of(patching, first)  # [prompt, port, source]
        merged = scores.new_zeros(len(scores), *graph.valid.shape)
        merged.index_add_(1, torch.as_tensor(graph.port_destination, device=scores.device), scores)
        found.append(sums(units.collect(merged).movedim(0, -1)))
        components.append(sums(scores.sum(1).T)[1])
    progress(len(batches), len(batches), "attribution")
    total, whole = (batches.ranks.summed(np.sum(part, axis=0)) for part in (found, components))
    return total, whole


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
    return measures.batches.ranks.summed(total.numpy())


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
            "gradient, or none at the corrupted end (acdc methods), another metric, or float32"
        )


def _accumulate(
    scores: Tensor,
    patching: Patching,
    trace: Trace,
    gradients: Sequence[Tensor],
    difference: Tensor,
    *,
    added: Added | None,
    frozen: bool,
) -> None:
    """Add one gradient's scores to `scores` `[prompt, n_ports, n_sources]`: a product of matrices for each prompt.

    Those of the sources before a layer take one product for all its ports.

    Args:
        added: what the gradients are behind: only its sources are scored, with their differences alone; None: all.
    """
    start, given = patching.start, iter(gradients)
    n, B = difference.shape[:2]
    flat = difference.view(n, B, -1).permute(1, 2, 0)  # [B, W D, S]
    stages_after = stages_behind(patching, added)
    first, last = columns_of(patching, added)
    for _, group in groupby(stages_after, key=lambda stage: stage.sublayer.layer):
        stages = list(group)
        ports = slice(stages[0].sublayer.every_port.start, stages[-1].sublayer.every_port.stop)
        before = min(last, stages[0].earlier)
        back = difference.new_empty(ports.stop - ports.start, *difference.shape[1:])
        for stage in stages:
            own = stage.sublayer.every_port
            out = back[own.start - ports.start : own.stop - ports.start]
            stage.gradients(trace, [next(given) for _ in stage.ends(trace)], start, out, frozen=frozen)
            if (end := min(last, stage.earlier)) > before:
                rows = out.reshape(len(own), B, -1).transpose(0, 1)  # [B, port, W D]
                scores[:, own.start : own.stop, before:end] += rows @ flat[..., before - first : end - first]
        scores[:, ports, first:before] += back.view(len(back), B, -1).transpose(0, 1) @ flat[..., : before - first]
    logits = gradients[-1][0, :, start:].reshape(B, 1, -1)
    scores[:, -1, first:last] += (logits @ flat)[:, 0]


def stages_behind(patching: Patching, added: Added | None) -> list[Stage]:
    """The stages that read a change, in order; all where there is none."""
    if added is None:
        return list(patching.stages)
    return [stage for stage in patching.stages if added.is_before(stage.sublayer.layer, stage.place)]


def columns_of(patching: Patching, added: Added | None) -> tuple[int, int]:
    """First and last plus one of the sources that a change is of; all where there is none."""
    if added is None:
        return 0, patching.graph.n_sources
    own = [x.sublayer.outputs for x in patching.stages if added.at(x.sublayer.layer, x.place)]
    return own[0].start, own[-1].stop
