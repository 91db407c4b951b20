"""Prompts that a circuit has not been found on: drawn anew where the task can draw, else those that were held out."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any, NamedTuple

from acdc.errors import TaskError
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts
from acdc.tasks.repeats import without
from acdc.tasks.task import Dataset, Task

FAR = 7_919_000
"""Added to a task's seed for prompts of another draw."""
FEWEST = 16
"""Prompts below which an audit tells nothing."""


class Fresh(NamedTuple):
    """Prompts to judge a circuit on.

    Attributes:
        where: what they are, in words.
        unseen: whether the circuit was not found on them.
    """

    prompts: Prompts
    where: str
    unseen: bool


def fresh_prompts(
    task: object, model: Model, dataset: Dataset, size: int, *, seed: int = 0, **settings: Any
) -> Fresh:
    """As many prompts as can be had that were not in discovery.

    Args:
        task: a recipe with a seed and a size draws new ones; from a dataset or bare prompts the held-out ones are
            taken, or if these are too few those of discovery.
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
                    return Fresh(drawn, "fresh prompts", unseen=True)
            size //= 2
    found, held_out = dataset.discovery, dataset.held_out
    if held_out is not None and len(held_out) >= min(FEWEST, len(found)):
        return Fresh(held_out, "held-out prompts", unseen=True)
    how = _more(len(found), 0 if held_out is None else len(held_out))
    return Fresh(found, f"prompts it was found on: {how}", unseen=False)


def _more(n_found: int, n_held_out: int) -> str:
    """How to have enough held-out prompts the next time."""
    share = math.ceil(20 * FEWEST / (n_found + n_held_out)) / 20
    split = f"--split {share:g}" if share <= 0.5 else f"more prompts and --split, of which {FEWEST} are held out"
    were = "none" if not n_held_out else f"only {n_held_out}"
    return f"{were} held out, where {FEWEST} tell something; discover with {split}, or with --held-out FILE"


def _fields(record: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(record)}
