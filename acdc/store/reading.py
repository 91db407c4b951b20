"""Reading what others wrote.

Every file that a user gives is read here, by one rule: it is a regular file (a pipe would never answer, a device
never end), it is no larger than it may be, and text is what its encoding says. JSON is read strictly: what two
programs could understand in two ways (a key that occurs twice, a number that no float holds) is refused.
"""

from __future__ import annotations

import collections
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from acdc.errors import AcdcError

RecordType = TypeVar("RecordType", bound=pydantic.BaseModel)

LARGEST = 256 * 2**20
"""Bytes of the largest file that is read whole, unless the caller knows better."""

DEEPEST = 100
"""Objects and lists inside one another in the deepest JSON that is read."""

MOST_DIGITS = 1000
"""Of the longest whole number in JSON that is read."""

_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


# ---- files ------------------------------------------------------------------------------------------------------


def read(path: str | Path, *, largest: int = LARGEST) -> bytes:
    """The content of a regular file.

    Args:
        largest: bytes that it may have.

    Raises:
        AcdcError: it cannot be read, is no regular file, or is larger.
    """
    check_file(path, largest=largest)
    try:
        # Without O_NONBLOCK, opening a pipe that has taken the file's place since would wait for ever.
        flags = (
            os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        )
        with open(os.open(path, flags), "rb") as file:
            _check_status(path, os.fstat(file.fileno()), largest)
            content = file.read(largest + 1) or b""
    except OSError as error:
        raise AcdcError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    if len(content) > largest:  # files that grow, or that do not say how large they are
        raise _too_large(path, f"more than {largest:,}", largest)
    return content


def check_file(path: str | Path, *, largest: int | None = None) -> int:
    """Bytes of a regular file, for readers that open it themselves.

    Raises:
        AcdcError: there is none, it is no regular file, or it is larger than it may be.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise AcdcError(f"cannot read {str(path)!r}: {reason}") from None
    return _check_status(path, status, largest)


def _check_status(path: str | Path, status: os.stat_result, largest: int | None) -> int:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS.items() if test(status.st_mode)), "something else")
        raise AcdcError(f"cannot read {str(path)!r}: expected a file, got {kind}")
    if largest is not None and status.st_size > largest:
        raise _too_large(path, f"{status.st_size:,}", largest)
    return status.st_size


def _too_large(path: str | Path, size: str, largest: int) -> AcdcError:
    return AcdcError(f"cannot read {str(path)!r}: it has {size} bytes, and at most {largest:,} are read")


def decode(content: bytes, what: str) -> str:
    """The text of a file: UTF-8, with or without a byte order mark."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise AcdcError(f"{what} is not UTF-8 text: byte {byte:#04x} at position {error.start:,}") from None


def read_text(path: str | Path, *, largest: int = LARGEST) -> str:
    """The text of a regular file in UTF-8; errors as for `read`."""
    return decode(read(path, largest=largest), repr(str(path)))


def spreadsheet_cell(value: Any) -> Any:
    """A value for a cell of a table: a text that a spreadsheet would take for a formula gets a quote before it."""
    formula = isinstance(value, str) and value.lstrip(" \t\r\n")[:1] in ("=", "+", "-", "@")
    return f"'{value}" if formula else value


# ---- JSON -------------------------------------------------------------------------------------------------------


def strict_json(text: str, *, constants: bool = False) -> Any:
    """The value of a JSON text that can be understood in one way only.

    Args:
        constants: allow NaN and infinity, which are not JSON but which Python writes.

    Raises:
        ValueError: it is not JSON (`json.JSONDecodeError` says where), a key occurs twice in an object, a number is
            too large, a text holds half a surrogate pair, or lists and objects are nested too deeply.
    """
    _check_depth(text)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=_number,
            parse_int=_whole_number,
            parse_constant=None if constants else _no_constant,
        )
    except RecursionError:
        raise ValueError("its lists and objects are nested too deeply") from None
    if "\\u" in text or not _is_unicode(text):
        _check_texts(value)
    return value


def parse_json(content: str | bytes, what: str, *, constants: bool = False) -> Any:
    """The value of a JSON text, as `strict_json` reads it.

    Args:
        what: names the text in the message of an error.
    """
    text = content if isinstance(content, str) else decode(content, what)
    try:
        return strict_json(text, constants=constants)
    except ValueError as error:
        raise AcdcError(f"{what} is not valid JSON: {error}") from None


def read_json(path: str | Path, *, largest: int = LARGEST) -> Any:
    """The value of a JSON file; errors as for `read` and `strict_json`."""
    return parse_json(read(path, largest=largest), repr(str(path)))


def read_record(path: str | Path, schema: type[RecordType], *, largest: int = LARGEST) -> RecordType:
    """A JSON file as a record of its schema, whose types are taken strictly: no number is a text, no truth a number.

    Raises:
        AcdcError: it cannot be read, is not JSON, or does not fit the schema.
    """
    text = read_text(path, largest=largest)
    parse_json(text, repr(str(path)))
    try:
        return schema.model_validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise AcdcError(f"{str(path)!r}: {complaints(error)}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = collections.Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r:.60} occurs twice in one object")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.30} is too large")
    return value


def _whole_number(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"the number {text:.30}… has {len(text):,} digits, and at most {MOST_DIGITS:,} are read")
    return int(text)


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


_NOT_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[^\[\]{}"]+', re.DOTALL)


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= DEEPEST:
        return
    depth = 0
    for bracket in _NOT_BRACKETS.sub("", text):
        depth += 1 if bracket in "[{" else -1
        if depth > DEEPEST:
            raise ValueError(f"lists and objects are nested more than {DEEPEST} deep")


def _check_texts(value: Any) -> None:
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left += item.keys()
            left += item.values()
        elif isinstance(item, list):
            left += item
        elif isinstance(item, str) and not _is_unicode(item):
            raise ValueError(f"the text {item!r:.60} holds half of a surrogate pair, which is no character")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def complaints(error: pydantic.ValidationError, *, most: int = 5) -> str:
    """What a schema found wrong, one phrase a field: where it is, what is expected and what was given."""
    found = []
    for item in error.errors(include_url=False)[:most]:
        where = ".".join(str(part) for part in item["loc"]) or "the whole"
        given = "" if item["type"] in ("missing", "extra_forbidden") else f", got {item['input']!r:.60}"
        found.append(f"{where}: {item['msg'].lower()}{given}")
    rest = error.error_count() - len(found)
    return "; ".join(found) + (f"; and {rest} more" if rest else "")
