"""Circuits run on all prompts of a problem, and what each metric makes of them, prompt by prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from acdc.engine.batches import Batches
from acdc.engine.measure import Measure, bind, refuse_non_finite
from acdc.engine.neurons import Neurons
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.graph import BoolArray, FloatArray
from acdc.metrics import Outcome

CIRCUITS_AT_ONCE = 64
"""Most circuits that are run as one batch."""


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """One metric, prompt by prompt.

    Attributes:
        full: `[prompt]` of the full model.
        corrupted: `[prompt]` of the full model on the corrupted prompts.
        circuits: `[C, prompt]` of each circuit.
    """

    full: FloatArray
    corrupted: FloatArray
    circuits: FloatArray


def measure_prompts(
    problem: Problem,
    circuits: Sequence[BoolArray],
    outcomes: Sequence[Outcome] | None = None,
    *,
    batches: Batches | None = None,
    places: Tensor | None = None,
    inside: Callable[[Patching, int], Neurons | None] | None = None,
) -> list[Measured]:
    """Run circuits on all prompts of a problem, once for all metrics.

    Args:
        circuits: masks `[n_destinations, n_sources]`, each run alone, and stacks of them `[C, …]`, which are run
            together: each then takes the work of their union, but all take one call, which is good for small models
            and for circuits that are alike.
        outcomes: the metrics; None: the problem's.
        batches: the problem's batches, kept from before with their clean and corrupted runs; None: made anew.
        places: `[prompt, position]` numbers; then a circuit has an axis of them before those of the edges, as for
            `Patching.logits`.
        inside: units inside nodes that are kept in the i-th of `circuits` (perhaps several sets of them, one after
            the other in what is returned); None: all.

    Returns:
        One record a metric, with the circuits in the order given.

    Raises:
        TaskError: a metric is NaN or infinite on some prompts.
    """
    chosen = [problem.outcome] if outcomes is None else list(outcomes)
    every = problem.batches() if batches is None else batches
    one = 2 if places is None else 3  # dimensions of a circuit
    total = len(every) * sum(1 if edges.ndim == one else len(edges) for edges in circuits)
    found: list[list[FloatArray]] = []  # [batch][metric] -> [2 + C, prompt]
    done = 0
    for first, patching in every.after(0):
        own = None if places is None else places[first : first + len(patching.prompts)]
        measures = [bind(outcome, patching) for outcome in chosen]
        rows = measures[0].rows if len(measures) == 1 else None
        at_once = min(CIRCUITS_AT_ONCE, problem.circuits_at_once(len(patching.prompts)))
        runs = [patching.clean_logits(rows)[None], patching.corrupted_logits(rows)[None]]
        pieces = [_values(measures, logits) for logits in runs]  # [piece][metric] -> [C, prompt]
        for i, edges in enumerate(circuits):
            neurons = None if inside is None else inside(patching, i)
            stack = edges if edges.ndim > one else edges[None]
            for start in range(0, len(stack), at_once):
                together = stack[start : start + at_once]
                with torch.no_grad():
                    logits = patching.logits(together, rows=rows, places=own, neurons=neurons)
                    pieces.append(_values(measures, logits))
                done += len(together)
                problem.progress(done, total, "running circuits")
        found.append([np.concatenate(column) for column in zip(*pieces, strict=True)])
    all_prompts = every.together([torch.from_numpy(np.stack(metrics)) for metrics in found])
    values: list[FloatArray] = list(all_prompts.numpy())
    for outcome, v in zip(chosen, values, strict=True):
        names = ("for the full model", "for the full model on the corrupted prompts", "for a circuit")
        for measured, where in zip((v[0], v[1], v[2:]), names, strict=True):
            refuse_non_finite(measured, outcome, where)
    return [Measured(full=v[0], corrupted=v[1], circuits=v[2:]) for v in values]


def _values(measures: Sequence[Measure], logits: Tensor) -> list[FloatArray]:
    """Each metric `[C, prompt]`, of logits that have the rows of the only metric, or all rows if there are more."""
    alone = len(measures) == 1
    read = [logits if alone or measure.rows is None else logits[..., measure.rows] for measure in measures]
    return [m.value(x).double().cpu().numpy() for m, x in zip(measures, read, strict=True)]


def measure_circuits(
    problem: Problem, circuits: Sequence[BoolArray], *, batches: Batches | None = None
) -> tuple[float, list[float]]:
    """Mean metric over the prompts of the full model and of each circuit; arguments as for `measure_prompts`."""
    (measured,) = measure_prompts(problem, circuits, batches=batches)
    return float(measured.full.mean()), measured.circuits.mean(axis=1).tolist()
