"""A metric bound to prompts: which vocabulary rows to compute, and what to compare them with."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from acdc.errors import TaskError
from acdc.metrics import Outcome, Targets
from acdc.patching import Patching


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
        return self.outcome.distance(logits, self.targets)


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
    return Measure(outcome, rows, targets)


def _locate(ids: Tensor | None, rows: Tensor) -> Tensor | None:
    """Index of each id among the sorted rows; -1 stays."""
    if ids is None:
        return None
    return torch.where(ids >= 0, torch.searchsorted(rows, ids.clamp(min=0)), ids)
