"""Spans: positions of a prompt that have a name, such as those of the subject, so that prompts can be compared by them.

A span says where it is in characters, in tokens, or by its text, as whoever names it knows; here each becomes positions
of tokens. In characters it is right where the text before it and up to its end are whole tokens, which is looked at.
"""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Tokens = tuple[int, ...]
Located = tuple[tuple[str, Tokens], ...]
"""Names and positions."""

REST = "rest"
"""The name of the positions that are in no span."""
LEFT_OUT = (
    "some named positions are left out: they lie outside of the prompt, are no whole tokens or others in the corrupted "
    "prompt, or have a name already"
)


class Characters(NamedTuple):
    """A range of characters."""

    start: int
    stop: int


Where = Characters | Tokens | str
"""A range of characters; numbers of tokens, counted in the prompt as written (-1 is the last); or the text."""


@dataclasses.dataclass(frozen=True)
class Span:
    """Where a named part of the clean prompt is.

    Attributes:
        other: where its counterpart in the corrupted prompt is; None: at the same positions.
        asked: whether somebody relies on it: then it is an error if it cannot be found, and else it is left out.
    """

    name: str
    where: Where
    other: Where | None = None
    asked: bool = False


END = Span("end", (-1,))
"""The last token, where it has no other name."""


def placed(template: str, names: Mapping[str, str], **fields: str) -> tuple[str, tuple[Span, ...]]:
    """A filled template, and spans of its fields, each with the space before it.

    Args:
        names: of spans, by field; of a field that occurs twice, the first.
    """
    text, found = "", dict[str, Span]()
    for literal, field, _, _ in string.Formatter().parse(template):
        text += literal
        if field is not None:
            start = len(text) - text.endswith(" ")
            text += fields[field]
            if field in names and names[field] not in found:
                found[names[field]] = Span(names[field], Characters(start, len(text)))
    return text, (*found.values(), END)


def next_word(text: str, span: Span, name: str) -> Span:
    """What follows a span of characters: the next word, or mark."""
    assert isinstance(span.where, Characters)
    match = re.compile(r"\s*(?:\w+|\S)").match(text, span.where.stop)
    assert match is not None
    return Span(name, Characters(*match.span()))


def cuts(spans: Iterable[Span], clean: str, corrupted: str) -> Iterator[str]:
    """The beginnings of both texts whose tokens have to be known."""
    for span in spans:
        for where, text in ((span.where, clean), (span.other, corrupted)):
            found = None if where is None else _characters(where, text)
            if isinstance(found, Characters):
                yield from (text[: found.start], text[: found.stop])


class Text(NamedTuple):
    """A prompt as text, its tokens without what is put before it, and how many those are."""

    text: str
    tokens: Tokens
    before: int


def located(
    spans: Sequence[Span], clean: Text, corrupted: Text, rows: Mapping[str, Tokens]
) -> tuple[Located, list[str], list[str]]:
    """Positions of each span, with what is wrong with those that are asked for, and remarks on others.

    Args:
        rows: tokens of the `cuts`.
    """
    found: dict[str, Tokens] = {}
    problems, remarks = [], list[str]()
    taken: set[int] = set()
    for span in spans:
        try:
            positions = _positions(span.where, clean, rows)
            if span.other is not None and positions != (other := _positions(span.other, corrupted, rows)):
                raise ValueError(
                    f" is at tokens {_listed(positions)} of clean and {_listed(other)} of corrupted, expected the same"
                )
            if taken & set(positions):
                raise ValueError(f" overlaps another span at token {min(taken & set(positions))}")
        except ValueError as error:
            if span.asked:
                problems.append(f"span {span.name!r:.60}{error}")
            elif span is not END:
                remarks.append(LEFT_OUT)
            continue
        taken |= set(positions)
        found[span.name] = tuple(clean.before + i for i in positions)
    return tuple(found.items()), problems, remarks


def _characters(where: Where, text: str) -> Where | ValueError:
    """A text as a range of characters, with the space before it, where it occurs once."""
    if not isinstance(where, str):
        return where
    times = text.count(where)
    if times != 1:
        number = "does not occur" if not times else f"occurs {times} times"
        return ValueError(f" {number} in the prompt: give token numbers, like [3] or [3, 4]")
    start = text.index(where)
    return Characters(start - (start > 0 and text[start - 1] == " "), start + len(where))


def _positions(where: Where, prompt: Text, rows: Mapping[str, Tokens]) -> Tokens:
    found = _characters(where, prompt.text)
    if isinstance(found, ValueError):
        raise found
    n = len(prompt.tokens)
    if not isinstance(found, Characters):
        assert not isinstance(found, str)
        if outside := [i for i in found if not -n <= i < n]:
            raise ValueError(f" lies outside of the prompt: token {outside[0]}, and there are {n}, counted from 0")
        return tuple(sorted({i % n for i in found}))
    start, stop = (rows[prompt.text[:cut]] for cut in found)
    whole = all(prompt.tokens[: len(part)] == part for part in (start, stop))
    if not whole or len(start) == len(stop):
        raise ValueError(f" is not whole tokens: {prompt.text[slice(*found)]!r:.60}")
    return tuple(range(len(start), len(stop)))


def _listed(positions: Tokens) -> str:
    return ", ".join(map(str, positions))


def row_problems(given: Sequence[Mapping[str, Sequence[int]]], lengths: Sequence[int]) -> list[str]:
    """What is wrong with positions by name, a mapping for each prompt of so many tokens."""
    if not isinstance(given, (list, tuple)) or len(given) != len(lengths):
        return [f"expected spans for {len(lengths)} prompts, a mapping from name to positions each"]
    found = []
    for i, (row, n) in enumerate(zip(given, lengths, strict=True), start=1):
        if not isinstance(row, Mapping):
            found.append(f"prompt {i}: expected spans as a mapping, got {type(row).__name__}")
            continue
        for name, positions in row.items():
            fits = isinstance(positions, (list, tuple)) and all(type(x) is int for x in positions)
            if not fits or not positions:
                found.append(f"prompt {i}: expected {name!r} as positions, like [3, 4], got {positions!r:.60}")
            elif outside := [x for x in positions if not 0 <= x < n]:
                found.append(f"prompt {i}: {name!r} lies outside of the prompt: token {outside[0]} of {n}")
    return found


def span_masks(given: Sequence[Mapping[str, Sequence[int]]], mask: Tensor) -> dict[str, Tensor]:
    """`[prompt, position]` bool by name, of positions counted in each prompt's real tokens."""
    names = dict.fromkeys(name for row in given for name in row)
    found = {name: torch.zeros_like(mask) for name in names}
    for i, row in enumerate(given):
        real = mask[i].nonzero().flatten()
        for name, positions in row.items():
            found[name][i, real[list(positions)]] = True
    return found
