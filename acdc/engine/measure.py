"""A metric bound to prompts: which vocabulary rows to compute, what to compare them with, and its values.

`Measure` is of one batch, `Measures` of all batches of a search.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acdc.engine.batches import Batches
from acdc.engine.memory import tokens_at_once
from acdc.engine.patching import Patching
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
        return self.outcome.distance(logits, self.targets, None if self.outcome.is_distance else self.full)

    def both(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """`value` and `distance`, computed once."""
        value = self.value(logits)
        return value, value if self.outcome.is_distance else (value - self.full).abs()

    @cached_property
    def full(self) -> Tensor:
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
    targets = Targets(
        prompts.compared, answers, wrong, full=clean, corrupted=corrupted, texts=prompts.branch is not None
    )
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
    parts: dict[str, Any] = {
        name: None if (x := getattr(t, name)) is None else x[first]
        for name in ("position_mask", "answers", "wrong", "full", "corrupted")
    }
    alone = dataclasses.replace(measure, targets=dataclasses.replace(t, **parts))
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
    """A metric on prompts that come in batches: the metric bound to each, and means over all prompts.

    Where processes share the batches, these are the ones of this process, and means are of the prompts of all.
    """

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
        return self.distances([edges])[0]

    @torch.no_grad()
    def distances(self, circuits: Sequence[BoolArray]) -> list[float]:
        """The same of several circuits, each run alone."""
        found = []  # [C, B] each
        for patching, measure in self:
            logits = (patching.logits(edges, rows=measure.rows) for edges in circuits)
            found.append(torch.cat([measure.distance(each) for each in logits]))
        return [float(each.mean()) for each in self.batches.together(found)]

    @torch.no_grad()
    def separation(self) -> float:
        """What separates the full model from the empty circuit, in the metric's units."""
        found = []
        for patching, measure in self:
            empty = patching.logits(np.zeros_like(patching.graph.valid), rows=measure.rows)[0]
            found.append(measure.value(empty) - measure.value(patching.clean_logits(measure.rows)))
        return abs(float(self.batches.together(found).mean()))
