"""Counting passes of the model: what a method costs, whatever the machine.

A pass is one run of one circuit (or of the full model) on one prompt. A run of what lies downstream of a change
counts as a whole one, and a batch of circuits as so many, so that the counts are an upper bound on full passes.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass
class Passes:
    """How many passes were made, in prompts."""

    forward: int = 0
    backward: int = 0


_counting: contextvars.ContextVar[Passes | None] = contextvars.ContextVar("passes", default=None)


@contextlib.contextmanager
def count_passes() -> Iterator[Passes]:
    """Count the passes made inside the block."""
    passes = Passes()
    token = _counting.set(passes)
    try:
        yield passes
    finally:
        _counting.reset(token)


def count(*, forward: int = 0, backward: int = 0) -> None:
    """Called by what runs the model: so many prompts times circuits."""
    passes = _counting.get()
    if passes is not None:
        passes.forward += forward
        passes.backward += backward
