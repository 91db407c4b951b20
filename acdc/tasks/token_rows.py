"""Token ids as people have them at hand (lists, arrays, tensors, a tokenizer's output) as rows of whole numbers.

Everything is first taken apart into Python's own numbers. Kind of container, dtype, device and inference mode are
gone then, every number can be checked, and what is wrong is named by its prompt.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from acdc.errors import TaskError

Number = TypeVar("Number", int, bool)

_LARGEST = 2**63 - 1
_PLAIN = {int, bool, float}


def prompt_rows(given: Any, name: str) -> tuple[list[list[int]], list[list[bool]] | None, list[str]]:
    """Token ids and real tokens (None: all), a row a prompt, and what is wrong with them.

    Args:
        given: rows of token ids; a tokenizer's output (`input_ids`, perhaps `attention_mask`), or a list of those.

    Raises:
        TaskError: it is not a collection of rows.
    """
    if isinstance(given, Mapping):
        ids, found = _rows(_entry(given, name), name, _token_id)
        if given.get("attention_mask") is None:
            return ids, None, found
        real, more = _rows(given["attention_mask"], f"{name}'s attention_mask", _flag)
        return ids, real, found + more
    rows = _items(given, name)
    if rows and all(isinstance(row, Mapping) for row in rows):
        ids, found = _rows([_entry(row, name) for row in rows], name, _token_id)
        masks = [row.get("attention_mask") for row in rows]
        if all(mask is None for mask in masks):
            return ids, None, found
        real, more = _rows(masks, f"{name}'s attention_mask", _flag)
        return ids, real, found + more
    ids, found = _rows(rows, name, _token_id)
    return ids, None, found


def mask_rows(given: Any) -> tuple[list[list[bool]], list[str]]:
    """True at real tokens, a row a prompt, and what is wrong with them."""
    return _rows(given, "mask", _flag)


def answer_rows(given: Any, name: str) -> tuple[list[list[int]], list[str]]:
    """Answers, a row a prompt, -1 where there is none; and what is wrong with them."""
    if isinstance(given, Mapping):
        raise TaskError(
            f"expected {name} as token ids, one or a list a prompt, got a {type(given).__name__}: a tokenizer's output "
            "may begin with BOS, so pick the answer's own token"
        )
    return _rows(given, name, _answer_id, single=True)


def _rows(
    given: Any, name: str, number: Callable[[Any], Number], *, single: bool = False
) -> tuple[list[list[Number]], list[str]]:
    rows: list[list[Number]] = []
    found = []
    for i, row in enumerate(_items(given, name), start=1):
        try:
            rows.append(_row(row, number, single))
        except (TypeError, ValueError) as error:
            rows.append([])
            found.append(f"prompt {i}: {name}: {error}")
    return rows, found


def _row(given: Any, number: Callable[[Any], Number], single: bool) -> list[Number]:
    value = _plain(given)
    if not isinstance(value, list):
        if single:
            return [number(value)]
        number(value)
        raise ValueError(f"expected a row, got the number {value}; put one prompt's row into a list")
    if len(value) == 1 and isinstance(value[0], list):  # a row of a batch of one
        value = value[0]
    if len(kinds := set(map(type, value))) == 1 and kinds <= _PLAIN:  # each different number is looked at once
        known = {x: number(x) for x in set(value)}
        return [known[x] for x in value]
    return [number(x) for x in value]


def _entry(given: Mapping[Any, Any], name: str) -> Any:
    if "input_ids" not in given:
        keys = ", ".join(map(repr, list(given)[:5]))
        raise TaskError(f"expected {name} as token ids or a tokenizer's output with 'input_ids', got keys {keys}")
    return given["input_ids"]


def _items(given: Any, name: str) -> list[Any]:
    """The parts of a collection of rows."""
    try:
        value = given if isinstance(given, list) else _plain(given, deep=False)
    except (TypeError, ValueError) as error:
        raise TaskError(f"{name}: {error}") from None
    if not isinstance(value, list):
        raise TaskError(f"expected {name} as a row a prompt, got the single value {value!r:.60}")
    return value


def _plain(value: Any, *, deep: bool = True, depth: int = 0) -> Any:
    """A number as it is, and a collection as lists of them; `TypeError` says what else was given."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return _listed(value)
    if isinstance(value, (str, bytes)):
        raise TypeError(f"expected token ids, got text {value!r:.40}: texts go into a file, or through a tokenizer")
    if value is None or isinstance(value, (int, float, complex)):
        return value
    if isinstance(value, (Mapping, set, frozenset)) or not isinstance(value, Iterable):
        raise TypeError(f"expected token ids, got a {type(value).__name__}")
    if depth > 3:
        raise TypeError("expected token ids, a row a prompt, got lists nested more deeply")
    items = list(value)
    if set(map(type, items)) <= _PLAIN:
        return items
    return [_plain(item, depth=depth + 1) for item in items] if deep else items


def _listed(value: Any) -> Any:
    """The numbers of a tensor or array."""
    try:
        return value.tolist()
    except (RuntimeError, NotImplementedError, TypeError) as error:
        kind = f"tensor {value.dtype} on {value.device}" if isinstance(value, Tensor) else f"array {value.dtype}"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TypeError(f"expected token ids, got a {kind}, which cannot be read: {reason[:100]}") from None


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(f"expected token ids, got {value}: is this a mask?")
    if isinstance(value, float):
        raise TypeError(f"expected token ids, got the decimal fraction {value}: convert them with .long()")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"expected token ids, got {value!r:.60}") from None


def _token_id(value: Any) -> int:
    # The sign is left to the caller, who knows what is padding.
    if abs(number := _whole(value)) > _LARGEST:
        raise ValueError(f"token id {number!s:.40} is too large")
    return number


def _answer_id(value: Any) -> int:
    if (number := _token_id(value)) < -1:
        raise ValueError(f"token id {number}; they count from 0, and -1 stands for no answer")
    return number


def _flag(value: Any) -> bool:
    if not isinstance(value, (bool, int, float)) or value not in (0, 1):
        raise ValueError(f"expected 1 at real tokens and 0 at padding, got {value!r:.60}")
    return bool(value)
