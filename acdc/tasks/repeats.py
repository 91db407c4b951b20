"""Prompts that are there more than once: each counts once, or intervals and splits would take one prompt for many."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from acdc.errors import TaskError
from acdc.shown import are, counted
from acdc.tasks.prompts import Prompts

T = TypeVar("T")


def first_of_each(items: Sequence[T], key: Callable[[T], Hashable], name: str) -> tuple[list[T], tuple[str, ...]]:
    """The items without those whose key occurred before, and what to warn of: nothing, or how many were left out."""
    first: dict[Hashable, T] = {}
    for item in items:
        first.setdefault(key(item), item)
    if not (n := len(items) - len(first)):
        return list(items), ()
    of = counted(n, "prompt", of=len(items))
    return list(first.values()), (f"{name}: {of} {are(n)} left out, having occurred before with the same answers",)


def repeats(prompts: Prompts) -> tuple[str, ...]:
    """What to warn of where some prompts are exact repeats of others."""
    parts = [value for value in vars(prompts).values() if isinstance(value, Tensor)]
    rows = torch.cat([part.flatten(1).long().cpu() for part in parts], dim=1).unique(dim=0)
    if not (n := len(prompts) - len(rows)):
        return ()
    of = counted(n, "prompt", of=len(prompts))
    return (f"{of} repeat{'s' * (n == 1)} others, and intervals take each for a new one: leave them out",)


def tokens_run(prompts: Prompts, ablation: str) -> list[tuple[tuple[tuple[int, int], ...], ...]]:
    """The own tokens of each prompt that are run, and where: what tells two apart, whatever is asked of them.

    The corrupted ones are among them where removed edges are resampled; under any other ablation nothing reads them.
    """
    sides = [_run(prompts.clean, prompts.own, prompts.position_ids)]
    if reads_corrupted(ablation):
        mask = prompts.own if prompts.corrupted_mask is None else prompts.corrupted_mask
        ids = prompts.position_ids if prompts.corrupted_position_ids is None else prompts.corrupted_position_ids
        sides.append(_run(prompts.corrupted, mask, ids))
    return list(zip(*sides, strict=True))


def reads_corrupted(ablation: str) -> bool:
    """Whether the corrupted prompts are what removed edges carry."""
    return ablation == "resample"


def _run(tokens: Tensor, mask: Tensor, position_ids: Tensor | None) -> list[tuple[tuple[int, int], ...]]:
    """The real tokens of each prompt, with the position id of each."""
    ids = mask.long().cumsum(-1) - 1 if position_ids is None else position_ids
    rows = zip(mask.tolist(), tokens.tolist(), ids.tolist(), strict=True)
    return [tuple((token, place) for real, token, place in zip(*row, strict=True) if real) for row in rows]


def among(prompts: Prompts, others: Prompts, ablation: str) -> list[bool]:
    """Which of the prompts are among others, by the tokens that are run under an ablation."""
    known = set(tokens_run(others, ablation))
    return [row in known for row in tokens_run(prompts, ablation)]


def new_ones(prompts: Prompts, others: Prompts, ablation: str) -> Prompts | None:
    """The prompts that are not among others; None if every one is."""
    new = [i for i, seen in enumerate(among(prompts, others, ablation)) if not seen]
    return prompts[torch.tensor(new, device=prompts.clean.device)] if new else None


def without(prompts: Prompts, others: Prompts, ablation: str) -> Prompts:
    """The prompts that are not among others.

    Raises:
        TaskError: every one is.
    """
    if (new := new_ones(prompts, others, ablation)) is None:
        raise TaskError("every prompt to judge it on is among those that it was found on: give others")
    return new
