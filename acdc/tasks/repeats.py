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


def pairs(prompts: Prompts) -> list[tuple[int, ...]]:
    """Clean and corrupted tokens of each prompt, without padding: what tells two prompts apart, whatever is asked."""
    rows = []
    parts = zip(prompts.clean.tolist(), prompts.corrupted.tolist(), prompts.mask.tolist(), strict=True)
    for clean, corrupted, mask in parts:
        both = ([token for token, real in zip(row, mask, strict=True) if real] for row in (clean, corrupted))
        rows.append((*next(both), -1, *next(both)))
    return rows


def among(prompts: Prompts, others: Prompts) -> list[bool]:
    """Which of the prompts are among others, by their clean and corrupted tokens."""
    known = set(pairs(others))
    return [row in known for row in pairs(prompts)]


def new_ones(prompts: Prompts, others: Prompts) -> Prompts | None:
    """The prompts that are not among others; None if every one is."""
    new = [i for i, seen in enumerate(among(prompts, others)) if not seen]
    return prompts[torch.tensor(new, device=prompts.clean.device)] if new else None


def without(prompts: Prompts, others: Prompts) -> Prompts:
    """The prompts that are not among others.

    Raises:
        TaskError: every one is.
    """
    if (new := new_ones(prompts, others)) is None:
        raise TaskError("every prompt to judge it on is among those that it was found on: give others")
    return new
