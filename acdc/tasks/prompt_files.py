"""Files of prompt pairs: each format is a reader that gives records, and all records have one form (`records`).

Read are JSON lines (a record a line), a JSON array of records, an object with such an array as "prompts" (that is
auto-circuit's), and CSV with a header. What a file holds decides, not what it is called, and so it is for the formats
of other tools (`peer_formats`); everything wrong with it is said at once.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from acdc.errors import AcdcError, TaskError
from acdc.store.reading import read_text, strict_json
from acdc.tasks.peer_formats import COUNTERPART, TaskFormat, task_format
from acdc.tasks.prompts import problems
from acdc.tasks.records import ALIASES, FIELDS, field_problems, pair_of
from acdc.tasks.tokenise import TextPair, TokenPair

SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".txt")
"""Endings by which a name is known to mean a file."""

FORMATS = "JSON lines (an object a line), a JSON array of objects, or CSV with a header"

_LINE_END = r"\r\n|\r|\n"
_ROW_NUMBERS = ("", "Unnamed: 0")  # what pandas calls the column of its index
_BESIDE_PROMPTS = ("seq_labels", "word_idxs")  # auto-circuit's labels of positions, and names of some

Records = Iterator[tuple[str, Any]]
"""Records and where they stand, like "line 3"; a `ValueError` stands for one that cannot be read."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A pair and where it stands, like "line 3"."""

    label: str
    pair: TextPair | TokenPair


def read_lines(path: Path, format: str | None = None) -> tuple[tuple[Line, ...], list[str], TaskFormat]:
    """The pairs in a file, what is wrong with the others, and the format they are in.

    Args:
        format: a name of `acdc.tasks.peer_formats.FORMATS`; None: that of the first record that is in one.

    Raises:
        TaskError: the file cannot be read, is of no format that is read, or has no pairs.
    """
    try:
        text = read_text(path)
    except AcdcError as error:
        raise TaskError(str(error)) from None
    lines: list[Line] = []
    found: list[str] = []
    known: TaskFormat | None = None if format is None else task_format(format, None)
    beside: list[Any] | None = None
    records = list(_records(text, path, known))
    known = known or _format_of(record for _, record in records)
    for number, (label, record) in enumerate(records):
        try:
            if isinstance(record, ValueError):
                raise record
            if known.read is not None and not isinstance(record, dict):
                raise ValueError(f"expected a JSON object, got {type(record).__name__}")
            if known.beside is not None:
                beside = _beside(path, known) if beside is None else beside
                record = record | {COUNTERPART: beside[number] if number < len(beside) else None}
            lines.append(Line(label, pair_of(record if known.read is None else known.read(record))))
        except ValueError as error:
            found.append(f"{label}: {error}")
    if not lines and not found:
        raise TaskError(f"{path} has no prompts: expected {FORMATS}, with clean and corrupted")
    return tuple(lines), found, known


def _format_of(records: Iterable[Any]) -> TaskFormat:
    """The format of the first record that is in one: of another tool, or whole in ours."""
    ours = task_format("acdc", None)
    for record in records:
        known = task_format(None, record)
        if known is not ours or (isinstance(record, dict) and not any(field_problems(record))):
            return known
    return ours


def _beside(path: Path, known: TaskFormat) -> list[Any]:
    """The records of the file of corrupted prompts, in its order."""
    assert known.beside is not None
    try:
        other = known.beside(path)
        return [record for _, record in _records(read_text(other), other, known)]
    except (AcdcError, ValueError) as error:
        raise TaskError(str(error)) from None


def check_lines(found: Mapping[str, list[str]]) -> None:
    """Raise one `TaskError` for all that is wrong with the lines of some files."""
    bad = [problems(name, texts) for name, texts in found.items() if texts]
    if bad:
        raise TaskError("\n".join(map(str, bad)))


def _records(text: str, path: Path, known: TaskFormat | None) -> Records:
    """The records of a text, by the format it is in."""
    start = text.strip()
    if not start:
        return iter(())
    rows = [row for row in re.split(r"[\r\n]+", start) if row.strip()]
    spread = not _is_json(rows[0])
    if start[0] == "[" and (spread or len(rows) == 1):
        return _json_array(text)
    if start[0] == "{" and _is_json(start) and (spread or '"prompts"' in start):
        return _json_object(text)
    if start[0] == "{" and sum(row.lstrip()[0] == "{" for row in rows) * 2 < len(rows):
        return iter([("the file", _why(text, "an object"))])
    suffix = path.suffix.lower()
    if start[0] in "{[":
        return _json_lines(text)
    names = {name.strip(' "') for name in rows[0].split(",")}
    if suffix == ".csv" or names & {*FIELDS, *ALIASES}:
        return _csv(text, known)
    if suffix in (".jsonl", ".json", ".ndjson") or any(row.lstrip()[0] == "{" for row in rows):
        return _json_lines(text)
    tabs = "; columns are parted by commas, not by tabs" if "\t" in rows[0] else ""
    raise TaskError(f"cannot tell the format of {path}: expected {FORMATS}, got {rows[0][:60]!r}{tabs}")


# ---- JSON -------------------------------------------------------------------------------------------------------


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _why(text: str, what: str) -> ValueError:
    """Why a text is not a JSON value of that kind."""
    try:
        strict_json(text)
    except json.JSONDecodeError as error:
        comma = re.search(r",\s*$", text[: error.pos]) and text[error.pos : error.pos + 1] in ("]", "}")
        hint = "; leave out the comma before it" if comma else ""
        return ValueError(f"not {what} in JSON: {error.msg} (line {error.lineno}, column {error.colno}){hint}")
    except ValueError as error:
        return ValueError(str(error))
    return ValueError(f"expected {what} in JSON")


def _json_lines(text: str) -> Records:
    for number, row in enumerate(re.split(_LINE_END, text), start=1):
        if not row.strip():
            continue
        label = f"line {number}"
        try:
            yield label, strict_json(row)
        except json.JSONDecodeError as error:
            comma = row.rstrip().endswith(",") and _is_json(row.rstrip()[:-1])
            hint = "; leave out the comma at its end" if comma else ""
            yield label, ValueError(f"not JSON: {error.msg} (column {error.colno}){hint}")
        except ValueError as error:
            yield label, error


def _json_array(text: str) -> Records:
    try:
        records = strict_json(text)
    except ValueError:
        yield "the file", _why(text, "an array of objects")
        return
    for i, record in enumerate(records, start=1):
        yield f"record {i}", record


def _json_object(text: str) -> Records:
    """The records of an object with "prompts", or the one record that the object is."""
    try:
        whole = strict_json(text)
    except ValueError:
        yield "the file", _why(text, "an object")
        return
    if "prompts" not in whole:
        yield f"line {len(re.findall(_LINE_END, text[: text.index('{')])) + 1}", whole
        return
    if more := [key for key in whole if key not in ("prompts", *_BESIDE_PROMPTS)]:
        yield "the file", ValueError(f"unknown key {more[0]!r:.60} beside 'prompts'")
    if not isinstance(whole["prompts"], list):
        yield "the file", ValueError("expected 'prompts' as a list of objects")
        return
    named = {"word_idxs": whole["word_idxs"]} if "word_idxs" in whole else {}  # of all prompts
    for i, record in enumerate(whole["prompts"], start=1):
        yield f"prompt {i}", named | record if isinstance(record, dict) else record


# ---- CSV --------------------------------------------------------------------------------------------------------


def _csv(text: str, known: TaskFormat | None) -> Records:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        label = f"line {reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield label, ValueError(f"not CSV: {error}")
            continue
        if row is None:
            return
        if not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = [name.strip() for name in row]
            known = known or task_format(None, dict.fromkeys(header))
            if known.read is None and (bad := _header_problems(header)):
                yield label, ValueError("; ".join(bad))
                return
        elif len(row) != len(header):
            yield label, ValueError(f"expected {len(header)} cells like the header, got {len(row)}")
        else:
            yield label, _record(header, row)


def _header_problems(header: list[str]) -> list[str]:
    """What is wrong with the names of the columns."""
    twice = [f"two columns are called {name!r:.60}" for name, n in collections.Counter(header).items() if n > 1]
    named = [name for name in header if name not in _ROW_NUMBERS]
    found = [*twice, *itertools.islice(field_problems(dict.fromkeys(named)), 20)]
    ours = {ALIASES.get(name, name) for name in named}
    found += [f"no column {x!r}" for x in ("clean", "corrupted") if not ours & {x, f"{x}_tokens"}]
    if len(header) == 1 and (mark := re.search(r"[;\t|]", header[0])):
        found = [f"expected columns parted by commas, got {mark.group()!r}"]
    return found


def _chat(cell: str) -> Any:
    """A chat that is written in JSON; any other text in brackets is a text."""
    try:
        value = strict_json(cell)
    except ValueError:
        return cell
    return value if value and all(isinstance(turn, dict) and "role" in turn for turn in value) else cell


def _record(header: list[str], row: list[str]) -> dict[str, Any] | ValueError:
    record: dict[str, Any] = {}
    for name, cell in zip(header, row, strict=True):
        field = ALIASES.get(name, name)
        if name in _ROW_NUMBERS or (not cell and ("answer" in field or name == "wrong_tokens")):
            continue
        record[name] = cell
        listed = cell.strip().startswith("[") and cell.strip().endswith("]")
        if field in ("spans", "corrupted_spans"):
            try:
                record[name] = strict_json(cell or "{}")
            except ValueError:
                return ValueError(f"{name!r}: expected a cell with an object in JSON, got {cell!r:.40}")
            continue
        if field.endswith("_tokens") and re.fullmatch(r"\s*[0-9]{1,20}\s*", cell):
            record[name] = int(cell)
        elif field in ("clean", "corrupted"):
            record[name] = _chat(cell) if listed else cell
        elif listed:
            try:
                record[name] = strict_json(cell)
            except ValueError:
                return ValueError(f"{name!r}: expected a cell in brackets to be a list in JSON, got {cell!r:.40}")
    return record
