"""A user's own task: a JSONL file with a prompt pair a line, as text or as token ids.

    {"clean": "When Mary and John …, John gave a drink to", "corrupted": "…", "answers": " Mary", "wrong_answers": " John"}
    {"clean_tokens": [5, 9, 5], "corrupted_tokens": [9, 5, 5], "answer_tokens": 9, "wrong_tokens": [5, 7]}

Answers are one or a list; a file without them is good for metrics that compare with the full model, such as KL. The
file is read when the task is loaded, and everything wrong with it is said at once, by line number.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import difflib
import json
import random
from pathlib import Path
from typing import Annotated, Any

import pydantic

from acdc.errors import AcdcError, TaskError
from acdc.io.files import read_text, strict_json
from acdc.metrics import Outcome
from acdc.tasks.prompts import Padding, Prompts, problems
from acdc.tasks.task import Ablation, Dataset, resolve_metric, to_prompts, token_texts
from acdc.tasks.tokenise import Checked, Encoder, ModelLike, TextPair, TokenPair, check, misaligned, tokenise

Text = Annotated[str, pydantic.Field(min_length=1)]
TokenId = Annotated[int, pydantic.Field(ge=0)]
TokenIds = Annotated[tuple[TokenId, ...], pydantic.Field(min_length=1, strict=False)]


class TextLine(pydantic.BaseModel, frozen=True, extra="forbid", strict=True):
    """A line with a pair as text."""

    clean: Text
    corrupted: Text
    answers: Text | Annotated[tuple[Text, ...], pydantic.Field(strict=False)] = ()
    wrong_answers: Text | Annotated[tuple[Text, ...], pydantic.Field(strict=False)] = ()

    def pair(self) -> TextPair:
        return TextPair(self.clean, self.corrupted, _several(self.answers), _several(self.wrong_answers))


class TokenLine(pydantic.BaseModel, frozen=True, extra="forbid", strict=True):
    """A line with a pair as token ids."""

    clean_tokens: TokenIds
    corrupted_tokens: TokenIds
    answer_tokens: TokenId | Annotated[tuple[TokenId, ...], pydantic.Field(strict=False)] = ()
    wrong_tokens: TokenId | Annotated[tuple[TokenId, ...], pydantic.Field(strict=False)] = ()

    def pair(self) -> TokenPair:
        answers, wrong = _several(self.answer_tokens), _several(self.wrong_tokens)
        return TokenPair(self.clean_tokens, self.corrupted_tokens, answers, wrong)


def _several(value: Any) -> tuple[Any, ...]:
    """The different values of one or a list of them."""
    return tuple(dict.fromkeys(value)) if isinstance(value, tuple) else (value,)


@dataclasses.dataclass(frozen=True)
class Line:
    """A pair and where it stands, like "line 3"."""

    label: str
    pair: TextPair | TokenPair


@dataclasses.dataclass(frozen=True)
class FileTask:
    """The task in a user's file; make one with `acdc.tasks.load`."""

    name: str
    outcome: Outcome
    lines: tuple[Line, ...]
    held_out: tuple[Line, ...] = ()
    held_out_name: str = ""
    ablation: Ablation = "resample"
    seed: int = 0
    padding: Padding = "right"

    @property
    def metric(self) -> str:
        return self.outcome.name

    @property
    def description(self) -> str:
        return f"{len(self.lines)} prompt pairs of {self.name}"

    def prepare(self, model: ModelLike) -> Dataset:
        discovery, warnings = _prepare(self.lines, self.name, model, self.padding)
        held_out = None
        if self.held_out:
            held_out, more = _prepare(self.held_out, self.held_out_name, model, self.padding)
            warnings += more
        return Dataset(
            name=self.name,
            discovery=discovery,
            held_out=held_out,
            metric=self.outcome,
            ablation=self.ablation,
            seed=self.seed,
            warnings=(*warnings, *_shared(self.lines, self.held_out)),
            tokens=token_texts(discovery, model),
        )


def load_file(
    path: Path,
    *,
    metric: Any = None,
    size: int | None = None,
    seed: int = 0,
    held_out: Path | None = None,
    split: float | None = None,
    ablation: Ablation = "resample",
    padding: Padding = "right",
) -> FileTask:
    """The task in a file; see `acdc.tasks.load`."""
    if held_out is not None and split is not None:
        raise TaskError("held_out and split both give held-out prompts: choose one")
    if split is not None and not 0 < split < 1:
        raise TaskError(f"expected split between 0 and 1, the fraction of prompts to hold out, got {split}")
    lines = read_lines(path)
    other = read_lines(held_out) if held_out is not None else ()
    if split is not None:
        lines, other = _split(lines, split, seed, path.name)
    if size is not None and size < len(lines):
        chosen = sorted(random.Random(f"size/{seed}").sample(range(len(lines)), size))
        lines = tuple(lines[i] for i in chosen)
    outcome = resolve_metric(metric if metric is not None else _default_metric(lines))
    for name, part in ((path.name, lines), (held_out.name if held_out else path.name, other)):
        _check_answers(part, outcome, name)
    return FileTask(
        name=path.name,
        outcome=outcome,
        lines=lines,
        held_out=other,
        held_out_name=held_out.name if held_out else path.name,
        ablation=ablation,
        seed=seed,
        padding=padding,
    )


def read_lines(path: Path) -> tuple[Line, ...]:
    """The pairs in a file.

    Raises:
        TaskError: the file cannot be read or has no pairs, or lines of it are bad: names all of them.
    """
    try:
        rows = read_text(path).split("\n")
    except AcdcError as error:
        raise TaskError(str(error)) from None
    lines, found = [], []
    for number, row in enumerate(rows, start=1):
        if not row.strip():
            continue
        try:
            lines.append(Line(f"line {number}", _parse(row)))
        except ValueError as error:
            found.append(f"line {number}: {error}")
    if found:
        raise problems(str(path), found)
    if not lines:
        raise TaskError(f"{path} has no prompts: expected a JSON object a line, with clean and corrupted")
    return tuple(lines)


def _parse(row: str) -> TextPair | TokenPair:
    """The pair in one line; `ValueError` says all that is wrong with it."""
    try:
        value = strict_json(row)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (column {error.colno})") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    form = TokenLine if any(key.endswith("_tokens") for key in value) else TextLine
    try:
        pair = form.model_validate(value).pair()
    except pydantic.ValidationError as error:
        keys = list(form.model_fields)
        said: dict[str, str] = {}  # one explanation a key
        for detail in error.errors():
            said.setdefault(str(detail["loc"][0]), _explain(dict(detail), keys))
        raise ValueError("; ".join(said.values())) from None
    if isinstance(pair, TokenPair) and (fault := misaligned(pair)):
        raise ValueError(fault)
    return pair


def _explain(detail: dict[str, Any], keys: list[str]) -> str:
    key, kind = str(detail["loc"][0]), detail["type"]
    if kind == "missing":
        return f"{key!r} is missing"
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
        return f"unknown key {key!r}, " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(keys)}")
    if kind in ("string_too_short", "too_short"):
        return f"{key!r} is empty"
    if key.endswith("_tokens"):
        one = (
            "token ids (whole numbers from 0)"
            if key in keys[:2]
            else "a token id (a whole number from 0) or a list of them"
        )
        return f"{key!r}: expected {one}"
    return f"{key!r}: expected " + ("a string" if key in keys[:2] else "a string or a list of strings")


def _split(
    lines: tuple[Line, ...], share: float, seed: int, name: str
) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
    """Discovery and held-out lines, each in the file's order; equal clean prompts stay on one side."""
    groups: dict[Any, list[int]] = {}
    for i, line in enumerate(lines):
        groups.setdefault(line.pair.clean, []).append(i)
    shuffled = list(groups.values())
    random.Random(f"split/{seed}").shuffle(shuffled)
    wanted, held = max(1, round(share * len(lines))), set[int]()
    for group in shuffled[:-1]:
        if len(held) < wanted:
            held.update(group)
    if not held:
        raise TaskError(f"{name}: split={share} of {len(shuffled)} different clean prompt leaves one side empty")
    parts = [tuple(line for i, line in enumerate(lines) if (i in held) == side) for side in (False, True)]
    return parts[0], parts[1]


def _default_metric(lines: tuple[Line, ...]) -> str:
    if any(line.pair.wrong for line in lines):
        return "logit-difference"
    return "probability" if any(line.pair.answers for line in lines) else "kl"


def _check_answers(lines: tuple[Line, ...], outcome: Outcome, name: str) -> None:
    found = []
    for line in lines:
        if outcome.needs_answers and not line.pair.answers:
            found.append(f"{line.label} has no answers, which metric {outcome.name!r} needs")
        if outcome.needs_wrong and not line.pair.wrong:
            found.append(f"{line.label} has no wrong answers, which metric {outcome.name!r} needs")
    if found:
        raise problems(name, found)


def _prepare(
    lines: tuple[Line, ...], name: str, model: ModelLike, padding: Padding
) -> tuple[Prompts, tuple[str, ...]]:
    """Prompts of the lines and warnings about them."""
    texts = [line.pair for line in lines if isinstance(line.pair, TextPair)]
    encoded = iter(tokenise(texts, Encoder(model)) if texts else ())
    rows = [Checked(line.pair) if isinstance(line.pair, TokenPair) else next(encoded) for line in lines]
    rows = [check(row, model) for row in rows]
    found = [f"{line.label}: {x}" for line, row in zip(lines, rows, strict=True) for x in row.problems]
    if found:
        raise problems(name, found)
    unknown = [line.label for line, row in zip(lines, rows, strict=True) if row.has_unknown]
    warnings = (f"{name}: the tokenizer does not know part of the prompts ({_list(unknown)})",) if unknown else ()
    return to_prompts([row.pair for row in rows], model, padding=padding), warnings


def _shared(lines: tuple[Line, ...], held_out: tuple[Line, ...]) -> tuple[str, ...]:
    known = {line.pair.clean for line in lines}
    shared = [line.label for line in held_out if line.pair.clean in known]
    if not shared:
        return ()
    return (f"{len(shared)} held-out prompts are discovery prompts too ({_list(shared)})",)


def _list(labels: list[str], shown: int = 5) -> str:
    return ", ".join(labels[:shown]) + (f" and {len(labels) - shown} more" if len(labels) > shown else "")
