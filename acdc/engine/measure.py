"""Measuring: a metric bound to prompts (which vocabulary rows to compute, and what to compare them with), and its
values for the full model and for circuits, prompt by prompt.

Prompts come in batches, and so do circuits, as many at once as memory has room for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from acdc.engine.batches import Batches
from acdc.engine.memory import tokens_at_once
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.errors import TaskError
from acdc.graph import BoolArray, FloatArray
from acdc.metrics import OUTCOMES, Outcome, Targets

MOST_PROMPTS = 10
"""Most prompts that an error names."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """An outcome metric on the prompts of one `Patching`.

    Attributes:
        rows: `[R]` vocabulary rows the metric reads; None: all of them.
    """

    outcome: Outcome
    rows: Tensor | None
    targets: Targets

    def value(self, logits: Tensor) -> Tensor:
        """Metric of logits `[..., B, P, R]` per prompt: `[..., B]`."""
        return self.outcome(logits, self.targets)

    def distance(self, logits: Tensor) -> Tensor:
        """Distance from the full model per prompt: `[..., B]`."""
        return self.outcome.distance(logits, self.targets, None if self.outcome.is_distance else self._full)

    def both(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """`value` and `distance`, computed once."""
        value = self.value(logits)
        return value, value if self.outcome.is_distance else (value - self._full).abs()

    @cached_property
    def _full(self) -> Tensor:
        """`[B]` of the full model."""
        assert self.targets.full is not None
        return self.value(self.targets.full)


def refuse_non_finite(values: Tensor | FloatArray, outcome: Outcome, where: str, *, first: int = 0) -> None:
    """Refuse a metric that is NaN or infinite on some prompts.

    Args:
        values: `[..., prompt]`.
        where: what was measured, as in "for the full model".
        first: number of prompts before these.

    Raises:
        TaskError: names the metric and the prompts, counted from 1.
    """
    finite = torch.isfinite(torch.as_tensor(values))
    if finite.all():
        return
    bad = (~finite).reshape(-1, finite.shape[-1]).any(0).nonzero().flatten().tolist()
    names = ", ".join(str(first + i + 1) for i in bad[:MOST_PROMPTS]) + ", …" * (len(bad) > MOST_PROMPTS)
    raise TaskError(
        f"metric {outcome.name!r} is NaN or infinite {where} on prompt{'s' * (len(bad) > 1)} {names}: expected a "
        "finite number for every prompt; leave these prompts out, choose another metric, or try float32"
    )


def bind(outcome: Outcome, patching: Patching) -> Measure:
    """Bind a metric to the prompts of a patching.

    Raises:
        TaskError: the metric needs answers or wrong answers that the prompts don't have, or the model's logits are
            not finite.
    """
    prompts = patching.prompts
    for name, needed, given in (
        ("answers", outcome.needs_answers, prompts.answers),
        ("wrong answers", outcome.needs_wrong, prompts.wrong),
    ):
        if needed and given is None:
            raise TaskError(f"metric {outcome.name!r} needs {name}, and these prompts have none; try kl")
    answers, wrong, rows = prompts.answers, prompts.wrong, None
    if outcome.rows == "answers":
        ids = [x for x in (answers, wrong) if x is not None]
        rows = torch.cat([x[x >= 0] for x in ids]).unique()
        answers, wrong = _locate(answers, rows), _locate(wrong, rows)
    clean, corrupted = patching.clean_logits(rows), patching.corrupted_logits(rows)
    if patching.direction == "denoise":
        clean, corrupted = corrupted, clean
    for name, logits in (("clean", clean), ("corrupted", corrupted)):
        if not bool(torch.isfinite(logits).all()):
            raise TaskError(
                f"the model's logits on the {name} prompts are not finite (NaN or infinite); try float32"
            )
    targets = Targets(prompts.positions >= 0, answers, wrong, full=clean, corrupted=corrupted)
    measure = Measure(outcome, rows, targets)
    if OUTCOMES.get(outcome.name) is not outcome and len(prompts) > 1:
        _refuse_company(measure, clean)
    return measure


@torch.no_grad()
def _refuse_company(measure: Measure, logits: Tensor) -> None:
    """Refuse a user's metric that gives a prompt another value alone than beside others, or another each time.

    Args:
        logits: `[B, P, R]`.
    """
    t, first = measure.targets, slice(0, 1)
    parts = (x if x is None else x[first] for x in (t.answers, t.wrong, t.full, t.corrupted))
    alone = dataclasses.replace(measure, targets=Targets(t.position_mask[first], *parts))
    here, there = measure.value(logits[None])[0, 0], alone.value(logits[None, first])[0, 0]
    if not torch.allclose(here, there, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise TaskError(
            f"metric {measure.outcome.name!r} is {float(here):.4g} for the first prompt beside others and "
            f"{float(there):.4g} alone: expected a value that depends on the prompt only, the same each time"
        )


def _locate(ids: Tensor | None, rows: Tensor) -> Tensor | None:
    """Index of each id among the sorted rows; -1 stays."""
    if ids is None:
        return None
    return torch.where(ids >= 0, torch.searchsorted(rows, ids.clamp(min=0)), ids)


class Measures:
    """A metric on prompts that come in batches: the metric bound to each, and means over all of them."""

    def __init__(self, outcome: Outcome, batches: Batches) -> None:
        self.outcome, self.batches = outcome, batches
        self._only: Measure | None = None

    @classmethod
    def of(cls, patching: Patching, measure: Measure) -> Measures:
        """Of a single batch and the metric that is bound to it."""
        prompts, tokens = patching.prompts, tokens_at_once(patching.model.device)
        found = cls(measure.outcome, Batches(prompts, len(prompts), lambda _: patching, tokens))
        found._only = measure
        return found

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Patching, Measure]]:
        for patching in self.batches:
            measure = self._only or bind(self.outcome, patching)
            if len(self) == 1:
                self._only = measure
            yield patching, measure

    @torch.no_grad()
    def distance(self, edges: BoolArray) -> float:
        """Mean over the prompts of a circuit's distance from the full model."""
        found = [m.distance(patching.logits(edges, rows=m.rows)) for patching, m in self]  # [1, B] each
        return float(torch.cat(found, dim=-1).mean())

    @torch.no_grad()
    def separation(self) -> float:
        """What separates the full model from the empty circuit, in the metric's units."""
        found = []
        for patching, measure in self:
            empty = patching.logits(np.zeros_like(patching.graph.valid), rows=measure.rows)[0]
            found.append(measure.value(empty) - measure.value(patching.clean_logits(measure.rows)))
        return abs(float(torch.cat(found, dim=-1).mean()))


# ---- circuits on all prompts of a problem -----------------------------------------------------------------------

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
    batches: Sequence[Patching] | None = None,
) -> list[Measured]:
    """Run circuits on all prompts of a problem, once for all metrics.

    Args:
        circuits: masks `[n_destinations, n_sources]`, each run alone, and stacks of them `[C, …]`, which are run
            together: each then takes the work of their union, but all take one call, which is good for small models
            and for circuits that are alike.
        outcomes: the metrics; None: the problem's.
        batches: the problem's batches, kept from before with their clean and corrupted runs; None: made anew.

    Returns:
        One record a metric, with the circuits in the order given.

    Raises:
        TaskError: a metric is NaN or infinite on some prompts.
    """
    chosen = [problem.outcome] if outcomes is None else list(outcomes)
    total = problem.n_batches * sum(1 if edges.ndim == 2 else len(edges) for edges in circuits)
    found: list[list[FloatArray]] = []  # [batch][metric] -> [2 + C, prompt]
    done = 0
    for patching in problem.batches() if batches is None else batches:
        measures = [bind(outcome, patching) for outcome in chosen]
        rows = measures[0].rows if len(measures) == 1 else None
        at_once = min(CIRCUITS_AT_ONCE, problem.circuits_at_once(len(patching.prompts)))
        runs = [patching.clean_logits(rows)[None], patching.corrupted_logits(rows)[None]]
        pieces = [_values(measures, logits) for logits in runs]  # [piece][metric] -> [C, prompt]
        for edges in circuits:
            stack = edges if edges.ndim == 3 else edges[None]
            for start in range(0, len(stack), at_once):
                together = stack[start : start + at_once]
                with torch.no_grad():
                    pieces.append(_values(measures, patching.logits(together, rows=rows)))
                done += len(together)
                problem.progress(done, total, "running circuits")
        found.append([np.concatenate(column) for column in zip(*pieces, strict=True)])
    values = [np.concatenate(column, axis=1) for column in zip(*found, strict=True)]
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
    problem: Problem, circuits: Sequence[BoolArray], *, batches: Sequence[Patching] | None = None
) -> tuple[float, list[float]]:
    """Mean metric over the prompts of the full model and of each circuit; arguments as for `measure_prompts`."""
    (measured,) = measure_prompts(problem, circuits, batches=batches)
    return float(measured.full.mean()), measured.circuits.mean(axis=1).tolist()
