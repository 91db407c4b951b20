"""Outcome metrics: what the model's output is worth, as one number per prompt.

An `Outcome` says which vocabulary rows it reads (only those are computed), whether more is better, and whether it
is a *performance* (logit difference, probability, …) or already a *distance from the full model* (KL, L2, …). A
search wants a distance: `distance` gives one for every metric; for a performance, `|metric − metric of the full
model|`.

Logits are `[..., prompt, position, row]`: the read positions only, and only the rows in `Targets.rows`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from acdc.registry import Registry


@dataclasses.dataclass(frozen=True)
class Targets:
    """What an outcome metric compares logits with.

    Attributes:
        position_mask: `[prompt, position]` bool, the read positions that exist in each prompt.
        answers: `[prompt, position, answer]` int, index into the computed rows; -1 pads.
        wrong: the same for the wrong answers.
        full: `[prompt, position, row]` logits of the full model on the clean prompts; needed by distances.
        corrupted: the same on the corrupted prompts; needed by `projection`.
    """

    position_mask: Bool[Tensor, "prompt read"]
    answers: Int64[Tensor, "prompt read answer"] | None = None
    wrong: Int64[Tensor, "prompt read wrong"] | None = None
    full: Float[Tensor, "prompt read row"] | None = None
    corrupted: Float[Tensor, "prompt read row"] | None = None

    @cached_property
    def full_log_probabilities(self) -> Tensor:
        """`[prompt, position, row]` of the full model."""
        assert self.full is not None
        return self.full.log_softmax(-1)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One outcome metric.

    Attributes:
        name: as spelled on the command line.
        function: `(logits [..., prompt, position, row], targets) -> [..., prompt, position]`.
        rows: "answers" if only the answers' and wrong answers' logits are read, "vocabulary" if all are.
        higher_is_better: whether more of it means the behaviour is done better.
        is_distance: whether it measures the distance from the full model (0 for the full model itself).
        needs_answers, needs_wrong: whether `Targets.answers` / `wrong` must be there.
        description: one line for the list of metrics.
    """

    name: str
    function: Callable[[Tensor, Targets], Tensor]
    rows: Literal["answers", "vocabulary"]
    higher_is_better: bool
    is_distance: bool
    needs_answers: bool
    needs_wrong: bool
    description: str
    differentiable: bool = True

    def __call__(self, logits: Tensor, targets: Targets) -> Tensor:
        """Metric per prompt: `[..., prompt]`, the mean over the prompt's read positions."""
        values = self.function(logits, targets)
        mask = targets.position_mask.to(values.dtype)
        return (values * mask).sum(-1) / mask.sum(-1)

    def distance(self, logits: Tensor, targets: Targets, full: Tensor | None = None) -> Tensor:
        """Distance from the full model per prompt: `[..., prompt]`, 0 for the full model itself.

        The metric itself if it is a distance, else the absolute difference from the full model's value.

        Args:
            full: the full model's value per prompt `[prompt]`, where it is known already.
        """
        values = self(logits, targets)
        if self.is_distance:
            return values
        if full is None:
            full = self(_full(targets), targets)
        return (values - full).abs()


def _gather(logits: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits at the ids `[..., prompt, position, id]` and the mask of those that exist."""
    assert ids is not None
    index = ids.clamp(min=0).expand(*logits.shape[:-1], ids.shape[-1])
    return logits.gather(-1, index), ids >= 0


def _mean_logit(logits: Tensor, ids: Tensor | None) -> Tensor:
    values, exists = _gather(logits, ids)
    return (values * exists).sum(-1) / exists.sum(-1).clamp(min=1)


def _probability_of(logits: Tensor, ids: Tensor | None) -> Tensor:
    values, exists = _gather(logits.softmax(-1), ids)
    return (values * exists).sum(-1)


def _logit_difference(logits: Tensor, targets: Targets) -> Tensor:
    return _mean_logit(logits, targets.answers) - _mean_logit(logits, targets.wrong)


def _logit_margin(logits: Tensor, targets: Targets) -> Tensor:
    values, exists = _gather(logits, targets.wrong)
    best = values.masked_fill(~exists, -torch.inf).amax(-1)
    return _mean_logit(logits, targets.answers) - best.where(exists.any(-1), 0)  # positions not read have none


def _probability(logits: Tensor, targets: Targets) -> Tensor:
    return _probability_of(logits, targets.answers)


def _probability_difference(logits: Tensor, targets: Targets) -> Tensor:
    return _probability_of(logits, targets.answers) - _probability_of(logits, targets.wrong)


def _accuracy(logits: Tensor, targets: Targets) -> Tensor:
    assert targets.answers is not None
    best = logits.argmax(-1, keepdim=True)
    return (best == targets.answers).any(-1).to(logits.dtype)


def _full(targets: Targets) -> Tensor:
    assert targets.full is not None
    return targets.full


def _exact_match(logits: Tensor, targets: Targets) -> Tensor:
    return (logits.argmax(-1) == _full(targets).argmax(-1)).to(logits.dtype)


def _kl(logits: Tensor, targets: Targets) -> Tensor:
    target = targets.full_log_probabilities
    return (target.exp() * (target - logits.log_softmax(-1))).sum(-1)


def _jensen_shannon(logits: Tensor, targets: Targets) -> Tensor:
    p, q = targets.full_log_probabilities, logits.log_softmax(-1)
    to_middle = math.log(2) + F.logsigmoid(p - q), math.log(2) + F.logsigmoid(q - p)  # p − m and q − m, 0 if p = q
    return 0.5 * ((p.exp() * to_middle[0]).sum(-1) + (q.exp() * to_middle[1]).sum(-1))


def _l2(logits: Tensor, targets: Targets) -> Tensor:
    return (logits - _full(targets)).square().sum(-1)


def _projection(logits: Tensor, targets: Targets) -> Tensor:
    assert targets.corrupted is not None
    direction = _full(targets) - targets.corrupted
    length = direction.square().sum(-1).clamp(min=torch.finfo(logits.dtype).tiny)
    return ((logits - targets.corrupted) * direction).sum(-1) / length


OUTCOMES: Registry[Outcome] = Registry(
    "acdc.metrics",
    "an Outcome",
    {
        outcome.name: outcome
        for outcome in (
            Outcome(
                "logit-difference", _logit_difference, "answers", True, False, True, True,
                "mean logit of the answers minus mean logit of the wrong answers",
            ),
            Outcome(
                "logit-margin", _logit_margin, "answers", True, False, True, True,
                "mean logit of the answers minus that of the best wrong answer",
            ),
            Outcome(
                "probability", _probability, "vocabulary", True, False, True, False,
                "summed probability of the answers",
            ),
            Outcome(
                "probability-difference", _probability_difference, "vocabulary", True, False, True, True,
                "summed probability of the answers minus that of the wrong answers",
            ),
            Outcome(
                "accuracy", _accuracy, "vocabulary", True, False, True, False,
                "1 if the most likely token is an answer", differentiable=False,
            ),
            Outcome(
                "exact-match", _exact_match, "vocabulary", True, False, False, False,
                "1 if the most likely token is the full model's", differentiable=False,
            ),
            Outcome(
                "projection", _projection, "vocabulary", True, False, False, False,
                "output projected on the line from the corrupted (0) to the clean output (1)",
            ),
            Outcome(
                "kl", _kl, "vocabulary", False, True, False, False,
                "KL divergence from the full model's distribution, in nats",
            ),
            Outcome(
                "jensen-shannon", _jensen_shannon, "vocabulary", False, True, False, False,
                "Jensen–Shannon divergence from the full model's distribution, in nats",
            ),
            Outcome(
                "l2", _l2, "vocabulary", False, True, False, False,
                "squared Euclidean distance from the full model's outputs (numerical outputs)",
            ),
        )
    },
    fits=lambda given: isinstance(given, Outcome),
    name=lambda outcome: outcome.name,
)  # fmt: skip
"""The outcome metrics by name, and those of other packages."""
