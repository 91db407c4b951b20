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
        texts: whether answers are texts over the read positions: `answers[p, i, a]` is the token that answer a has next
            at position i, the tokens before it given. Otherwise each position has answers of its own, of one token.
    """

    position_mask: Bool[Tensor, "prompt read"]
    answers: Int64[Tensor, "prompt read answer"] | None = None
    wrong: Int64[Tensor, "prompt read wrong"] | None = None
    full: Float[Tensor, "prompt read row"] | None = None
    corrupted: Float[Tensor, "prompt read row"] | None = None
    texts: bool = False

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
        differentiable: whether it has a gradient.
        takes_texts: whether it takes answers of several tokens (`Targets.texts`).
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
    takes_texts: bool = False

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


def _log_probabilities(
    logits: Tensor, targets: Targets, ids: Tensor | None, *, by_token: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer `[..., prompt, position, answer]`, and which there are.

    That of a text is the sum over its tokens, or their mean, and stands at every position of its prompt.
    """
    values, exists = _gather(logits.log_softmax(-1), ids)
    if not targets.texts:
        return values, exists
    total = (values * exists).sum(-2, keepdim=True)
    if by_token:
        total = total / exists.sum(-2, keepdim=True).clamp(min=1)
    return total.expand_as(values), exists.any(-2, keepdim=True).expand_as(exists)


def text_log_probabilities(logits: Tensor, ids: Tensor | None) -> Tensor:
    """Log-probability of answers that are texts, `[..., prompt, answer]`, -inf where there is none.

    Args:
        logits: `[..., prompt, position, row]`; ids: `[prompt, position, answer]`, as in `Targets` with `texts`.
    """
    values, exists = _gather(logits.log_softmax(-1), ids)
    return (values * exists).sum(-2).masked_fill(~exists.any(-2), -torch.inf)


def _log_probability(logits: Tensor, targets: Targets, *, by_token: bool = False) -> Tensor:
    values, exists = _log_probabilities(logits, targets, targets.answers, by_token=by_token)
    lowest = torch.finfo(values.dtype).min  # a position that is not read has no answer, and no infinity
    return values.masked_fill(~exists, lowest).logsumexp(-1).where(exists.any(-1), 0)


def _log_probability_difference(logits: Tensor, targets: Targets, *, by_token: bool = False) -> Tensor:
    means = []
    for ids in (targets.answers, targets.wrong):
        values, exists = _log_probabilities(logits, targets, ids, by_token=by_token)
        means.append((values * exists).sum(-1) / exists.sum(-1).clamp(min=1))
    return means[0] - means[1]


def _log_probability_by_token(logits: Tensor, targets: Targets) -> Tensor:
    return _log_probability(logits, targets, by_token=True)


def _log_probability_difference_by_token(logits: Tensor, targets: Targets) -> Tensor:
    return _log_probability_difference(logits, targets, by_token=True)


def _probability_of(logits: Tensor, ids: Tensor | None, targets: Targets) -> Tensor:
    if targets.texts:
        values, exists = _log_probabilities(logits, targets, ids)
        return (values.exp() * exists).sum(-1)
    values, exists = _gather(logits.softmax(-1), ids)
    return (values * exists).sum(-1)


def _logit_difference(logits: Tensor, targets: Targets) -> Tensor:
    return _mean_logit(logits, targets.answers) - _mean_logit(logits, targets.wrong)


def _logit_margin(logits: Tensor, targets: Targets) -> Tensor:
    values, exists = _gather(logits, targets.wrong)
    best = values.masked_fill(~exists, -torch.inf).amax(-1)
    return _mean_logit(logits, targets.answers) - best.where(exists.any(-1), 0)  # positions not read have none


def _probability(logits: Tensor, targets: Targets) -> Tensor:
    return _probability_of(logits, targets.answers, targets)


def _probability_difference(logits: Tensor, targets: Targets) -> Tensor:
    return _probability_of(logits, targets.answers, targets) - _probability_of(logits, targets.wrong, targets)


def _accuracy(logits: Tensor, targets: Targets) -> Tensor:
    assert targets.answers is not None
    best = logits.argmax(-1, keepdim=True)
    if targets.texts:
        missed = ((best != targets.answers) & (targets.answers >= 0)).any(-2, keepdim=True)
        exists = (targets.answers >= 0).any(-2, keepdim=True)
        return (~missed & exists).any(-1).expand(best.shape[:-1]).to(logits.dtype)
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
                "summed probability of the answers", takes_texts=True,
            ),
            Outcome(
                "probability-difference", _probability_difference, "vocabulary", True, False, True, True,
                "summed probability of the answers minus that of the wrong answers", takes_texts=True,
            ),
            Outcome(
                "log-probability", _log_probability, "vocabulary", True, False, True, False,
                "log of the answers' summed probability, in nats; of answers of several tokens too", takes_texts=True,
            ),
            Outcome(
                "log-probability-by-token", _log_probability_by_token, "vocabulary", True, False, True, False,
                "the same of the mean over an answer's tokens", takes_texts=True,
            ),
            Outcome(
                "log-probability-difference", _log_probability_difference, "vocabulary", True, False, True, True,
                "mean log-probability of the answers minus that of the wrong answers, of one token or several",
                takes_texts=True,
            ),
            Outcome(
                "log-probability-difference-by-token", _log_probability_difference_by_token, "vocabulary", True, False,
                True, True, "the same of means over an answer's tokens", takes_texts=True,
            ),
            Outcome(
                "accuracy", _accuracy, "vocabulary", True, False, True, False,
                "1 if the most likely token is an answer", differentiable=False, takes_texts=True,
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
