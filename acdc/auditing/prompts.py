"""Prompts that a circuit has not been found on: drawn anew where the task can draw, else those that were held out."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any, NamedTuple

from acdc.errors import TaskError
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts
from acdc.tasks.repeats import new_ones, without
from acdc.tasks.task import Dataset, OtherPrompts, Task
from acdc.tasks.tokenise import ModelLike

FAR = 7_919_000
"""Added to a task's seed for prompts of another draw."""
FEWEST = 16
"""Prompts below which an audit tells nothing."""
NOT_KNOWN = "prompts of which it is not known whether it was found on them"


class Fresh(NamedTuple):
    """Prompts to judge a circuit on.

    Attributes:
        where: what they are, in words.
        unseen: whether the circuit was not found on them.
    """

    prompts: Prompts
    where: str
    unseen: bool


@dataclasses.dataclass(frozen=True)
class Beside(OtherPrompts):
    """A task's prompts beside those that a circuit was found on: what is among these is known, and the rest is new.

    Attributes:
        known: those that it was found on; None if they cannot be had, so that nobody knows which are new.
    """

    known: Prompts | None

    def prepare(self, model: ModelLike) -> Dataset:
        """The known prompts as those of discovery, and the new ones as held out."""
        data = self.task.prepare(model)
        if self.known is None:
            return data
        given = data.discovery if data.held_out is None else data.held_out
        new = new_ones(given, self.known, data.ablation)
        return dataclasses.replace(data, discovery=self.known, held_out=new, tokens=None)


def draws(task: object) -> bool:
    """Whether new prompts of a task can be drawn at will: it is a recipe with a seed and a size."""
    return isinstance(task, Task) and dataclasses.is_dataclass(task) and {"seed", "size"} <= _fields(task)


def fresh_prompts(task: Any, model: Model, dataset: Dataset, size: int, *, seed: int = 0, **settings: Any) -> Fresh:
    """As many prompts as can be had that were not in discovery.

    Args:
        task: a recipe with a seed and a size draws new ones; from a dataset or bare prompts the held-out ones are
            taken, or if these are too few those of discovery; so from a task `Beside` what a circuit was found on.
        settings: of the recipe, to be changed.
    """
    if draws(task):
        changed: dict[str, Any] = {"seed": task.seed + FAR + seed, **settings}
        if "witnesses" in _fields(task):
            changed["witnesses"] = False
        while size >= FEWEST:
            with contextlib.suppress(TaskError):  # too few different ones
                drawn = dataclasses.replace(task, **changed, size=size).prepare(model).discovery
                drawn = without(drawn, dataset.discovery, dataset.ablation)
                if len(drawn) >= FEWEST:
                    return Fresh(drawn, "fresh prompts", unseen=True)
            size //= 2
    found, held_out = dataset.discovery, dataset.held_out
    if isinstance(task, Beside) and task.known is None:
        return Fresh(held_out or found, NOT_KNOWN, unseen=False)
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
