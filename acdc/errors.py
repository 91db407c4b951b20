"""The one exception a caller has to catch, and the helper that names near misses."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AcdcError(Exception):
    """Something the user gave cannot be used; the message says what was given, expected, and what to do."""


class UnsupportedModelError(AcdcError):
    """The model's architecture, or this checkpoint of it, is not one acdc can decompose exactly."""


class TaskError(AcdcError):
    """The prompts, answers or metric of a task cannot be used with this model."""


def unknown(kind: str, given: str, known: Iterable[str]) -> AcdcError:
    """An error for a name that is not in a registry, with the closest names that are."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return AcdcError(f"unknown {kind} {given!r}: {hint}")
