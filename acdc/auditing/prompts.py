"""Prompts that a circuit has not been found on: drawn anew where the task can draw, else those that were held out."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import torch

from acdc.errors import TaskError
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts
from acdc.tasks.task import Dataset, Task

FAR = 7_919_000
"""Added to a task's seed for prompts of another draw."""
FEWEST = 16
"""Prompts below which an audit tells nothing."""


def fresh_prompts(
    task: object, model: Model, dataset: Dataset, size: int, *, seed: int = 0, **settings: Any
) -> tuple[Prompts, str]:
    """As many prompts as can be had that were not in discovery, and where they come from, in words.

    Args:
        task: a recipe with a seed and a size draws new ones; from a dataset or bare prompts the held-out ones are
            taken, or if there are none those of discovery.
        settings: of the recipe, to be changed.
    """
    if isinstance(task, Task) and dataclasses.is_dataclass(task) and {"seed", "size"} <= _fields(task):
        changed: dict[str, Any] = {"seed": task.seed + FAR + seed, **settings}
        if "witnesses" in _fields(task):
            changed["witnesses"] = False
        while size >= FEWEST:
            with contextlib.suppress(TaskError):  # too few different ones
                drawn = dataclasses.replace(task, **changed, size=size).prepare(model).discovery
                drawn = without(drawn, dataset.discovery)
                if len(drawn) >= FEWEST:
                    return drawn, "fresh prompts"
            size //= 2
    if dataset.held_out is not None:
        return dataset.held_out, "held-out prompts"
    return dataset.discovery, "prompts it was found on: give held-out ones (--split, --held-out)"


def _fields(record: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(record)}


def without(prompts: Prompts, others: Prompts) -> Prompts:
    """The prompts that are not among others, by their clean and corrupted tokens."""
    known = set(_rows(others))
    new = [i for i, row in enumerate(_rows(prompts)) if row not in known]
    if not new:
        raise TaskError("all prompts are known")
    return prompts[torch.tensor(new, device=prompts.clean.device)]


def _rows(prompts: Prompts) -> list[tuple[int, ...]]:
    rows = []
    parts = zip(prompts.clean.tolist(), prompts.corrupted.tolist(), prompts.mask.tolist(), strict=True)
    for clean, corrupted, mask in parts:
        rows.append((*(c for c, m in zip(clean, mask, strict=True) if m), -1, *corrupted[: sum(mask)]))
    return rows
