"""Where in a prompt a value is replaced: single positions, named spans, or everywhere.

A place is a mask over the positions of every prompt, so one position, several, and positions that differ from prompt
to prompt are all the same to who runs them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from acdc.errors import AcdcError, TaskError, unknown
from acdc.tasks.prompts import Prompts, problems
from acdc.tasks.spans import REST

By = Literal["position", "span", "all"]


@dataclasses.dataclass(frozen=True)
class Place:
    """Positions that are replaced together.

    Attributes:
        label: what it is called on an axis.
        mask: `[prompt, position]`; a prompt without any has no such place.
    """

    label: str
    mask: Bool[Tensor, "prompt position"]


def places_of(
    prompts: Prompts,
    by: str,
    *,
    tokens: Sequence[Sequence[str]] | None = None,
    spans: Collection[str] | None = None,
) -> list[Place]:
    """The places of some prompts.

    Args:
        by: "position": each real token, counted from the start where all prompts are of one length and from the end
            (-1 is the last) where they are not; "span": each span that the prompts name, and the rest; "all": all
            positions together.
        tokens: `[prompt][position]` texts, for labels.
        spans: these spans only.

    Raises:
        AcdcError: another `by`; prompts that name no spans; a name that they lack, with the prompts that do; clean and
            corrupted prompts that are not aligned.
    """
    if by not in get_args(By):
        raise unknown("kind of place", str(by), get_args(By))
    if spans is not None and by != "span":
        raise AcdcError(f"spans were named, and the places are by {by}: ask for them by span")
    if prompts.corrupted_mask is not None and not torch.equal(prompts.corrupted_mask, prompts.mask):
        raise TaskError(
            "clean and corrupted prompts are padded at different positions, so that none correspond: take pairs of one "
            "length (of a compiled program, distribution=fixed)"
        )
    if by == "all":
        return [Place("all", prompts.mask)]
    prompts = dataclasses.replace(prompts, mask=prompts.own)  # the tokens of answers are not replaced
    return _by_span(prompts, spans) if by == "span" else _by_position(prompts, tokens)


def _by_position(prompts: Prompts, tokens: Sequence[Sequence[str]] | None) -> list[Place]:
    mask, lengths = prompts.mask, prompts.mask.sum(1)
    longest = int(lengths.max())
    aligned = bool((lengths == longest).all())
    numbers = mask.long().cumsum(1) - 1  # [prompt, position], of real tokens from 0
    if not aligned:
        numbers = numbers - lengths[:, None]
    example = None if tokens is None else tokens[int(lengths.argmax())]
    found = []
    for i in range(longest):
        number = i if aligned else i - longest
        here = mask & (numbers == number)
        row = int(lengths.argmax())
        text = "" if example is None else f" {example[int(here[row].int().argmax())]}"
        found.append(Place(f"{number}{text}", here))
    return found


def _by_span(prompts: Prompts, names: Collection[str] | None) -> list[Place]:
    known = prompts.spans
    if not known:
        raise TaskError(
            'the prompts name no spans: give lines of a file "spans", like {"subject": [1, 2]}, or go by position'
        )
    for name in names or ():
        if name not in (*known, REST):
            raise unknown("span", name, (*known, REST))
    chosen = list(known) if names is None else [name for name in names if name != REST]
    lacking = [
        f"prompt {i + 1} has no {name!r}"
        for name in chosen
        for i in (~known[name].any(1)).nonzero().flatten().tolist()
    ]
    if lacking:
        raise problems("spans", lacking)
    first = {name: float(known[name].int().argmax(1).float().mean()) for name in chosen}
    found = [Place(name, known[name]) for name in sorted(chosen, key=lambda name: first[name])]
    rest = prompts.mask & ~torch.stack(list(known.values())).any(0)
    if (names is None or REST in names) and bool(rest.any()):
        found.append(Place(REST, rest))
    return found
