"""Reading and writing files so that a failure leaves things as they were and says what is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pydantic

from acdc.errors import AcdcError


def write_atomically(path: str | Path, content: str | bytes) -> Path:
    """Write a file whole or not at all: to a temporary sibling first, then renamed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        raise AcdcError(f"cannot write {str(path)!r}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read(path: str | Path) -> bytes:
    """The content of a file."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise AcdcError(f"cannot read {str(path)!r}: {error.strerror or error}") from None


def parse_json(content: str | bytes, what: str, *, constants: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        what: names the text in the message of an error.
        constants: allow NaN and infinity, which are not JSON but which Python writes.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(content, parse_constant=None if constants else refuse)
    except (ValueError, RecursionError) as error:
        raise AcdcError(f"{what} is not valid JSON: {error}") from None


def complaints(error: pydantic.ValidationError, *, most: int = 5) -> str:
    """What a schema found wrong, one phrase a field: where it is, what is expected and what was given."""
    found = []
    for item in error.errors(include_url=False)[:most]:
        where = ".".join(str(part) for part in item["loc"]) or "the whole"
        given = "" if item["type"] in ("missing", "extra_forbidden") else f", got {item['input']!r:.60}"
        found.append(f"{where}: {item['msg'].lower()}{given}")
    rest = error.error_count() - len(found)
    return "; ".join(found) + (f"; and {rest} more" if rest else "")
