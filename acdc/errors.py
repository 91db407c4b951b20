"""The one exception a caller has to catch, and the error that names near misses."""

from __future__ import annotations

import difflib
import numbers
import os
from collections.abc import Iterable, Mapping


class AcdcError(Exception):
    """Something the user gave cannot be used; the message says what was given, expected, and what to do."""


class UnsupportedModelError(AcdcError):
    """The model's architecture, or this checkpoint of it, is not one acdc can decompose exactly."""


class TaskError(AcdcError):
    """The prompts, answers or metric of a task cannot be used with this model."""


class WriteError(AcdcError):
    """A file cannot be written: a full disk, a folder that is gone or may not be written to."""


class EmptyCircuitError(AcdcError):
    """A search or a selection keeps no edge at all; the message says why, and what to change."""


class UnknownGraphError(AcdcError):
    """A file does not say which graph its edges belong to, and nobody else did."""


def check_type(what: str, given: object, kind: type | tuple[type, ...]) -> None:
    """Refuse an argument of another type.

    Raises:
        AcdcError: says what was expected, and the type that was given.
    """
    if not isinstance(given, kind):
        raise AcdcError(f"expected {what}, got {type(given).__name__}")


def check_path(given: object) -> None:
    """Refuse what is no path, and a path without any name.

    Raises:
        AcdcError: says what was expected and given.
    """
    if not isinstance(given, str | os.PathLike) or not os.fspath(given):
        raise AcdcError(f"expected a path, got {given!r:.60}")


def check_names(what: str, given: object) -> None:
    """Refuse what is no list of names; a single text would be taken letter by letter.

    Raises:
        AcdcError: says what was expected and given.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise AcdcError(f"expected {what} as a list of names, got {given!r:.60}")


def check_whole(what: str, given: object, *, least: int, most: int | None = None) -> None:
    """Refuse what is no whole number (True is none), or too small or too large a one.

    Raises:
        AcdcError: says what was expected and given.
    """
    if not isinstance(given, numbers.Integral) or isinstance(given, bool):
        raise AcdcError(f"expected {what} as a whole number of at least {least}, got {given!r:.60}")
    if given < least:
        raise AcdcError(f"expected {what} of at least {least}, got {given!r:.60}")
    if most is not None and int(given) > most:
        raise AcdcError(f"expected {what} of at most {most}, got {given!r:.60}")


def check_number(what: str, given: object) -> None:
    """Refuse what is no number (True is none).

    Raises:
        AcdcError: says what was expected and given.
    """
    if not isinstance(given, numbers.Real) or isinstance(given, bool):
        raise AcdcError(f"expected {what} as a number, got {given!r:.60}")


def refuse_renamed(given: Iterable[str], renamed: Mapping[str, str]) -> None:
    """Refuse a name of the last version.

    Raises:
        AcdcError: says what it is now.
    """
    for name in given:
        if name in renamed:
            raise AcdcError(f"{name} is now {renamed[name]}")


MOST_NAMES = 20
"""Most names that an error lists: a model's graph has hundreds."""


NEAR = 0.72
"""Least similarity (`difflib`'s ratio) of a name that may have been meant: a slip or two, and not another word."""


BESIDE = 0.1
"""How much less similar than the nearest another name may be, to be named beside it."""


def near_misses(given: object, known: Iterable[str]) -> list[str]:
    """The known names that may have been meant, nearest first, at most three; none if nothing is near.

    Near is what differs by a slip: a letter more, less or another, letters that changed places, capitals; or else what
    begins or ends with the given name as a word of its own (smollm2 for smollm2-135m-q4).
    """
    text = str(given)[:200].casefold()
    names = {name.casefold(): name for name in sorted(known, reverse=True)}
    if text in names:
        return [names[text]]
    near = difflib.get_close_matches(text, sorted(names), n=3, cutoff=NEAR)
    if near:
        best = difflib.SequenceMatcher(None, text, near[0]).ratio()
        near = [name for name in near if difflib.SequenceMatcher(None, text, name).ratio() > best - BESIDE]
    elif len(text) > 2:
        near = [name for name in sorted(names) if sorted(name) == sorted(text)]
        near += [name for name in sorted(names) if name.startswith(f"{text}-") or name.endswith(f"-{text}")]
    return [names[name] for name in near[:3]]


def unknown(kind: str, given: object, known: Iterable[str]) -> AcdcError:
    """An error for a name that is not in a registry, with the closest names that are."""
    names = sorted(known)
    near = near_misses(given, names)
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names[:MOST_NAMES])}{more}"
    return AcdcError(f"unknown {kind} {given!r:.200}: {hint}")
