"""The one form that a prompt pair has in a file of any format: a record of named fields.

    {"clean": "When Mary and John …, John gave a drink to", "corrupted": "…", "answers": " Mary", "wrong_answers": " John"}
    {"clean": [{"role": "user", "content": "…"}], "corrupted": [{"role": "user", "content": "…"}], "answers": "Yes"}
    {"clean_tokens": [5, 9, 5], "corrupted_tokens": [9, 5, 5], "answer_tokens": 9, "wrong_tokens": [5, 7]}

    {"clean": "…", "corrupted": "…", "answers": " Mary", "spans": {"IO": [1], "S2": "John"}}

Prompts are texts, chats or token ids; answers are one or several, texts or token ids, or are left out. An answer of
several tokens is a text like any other, or a list of token ids within the list of answers. Fields may have
the names they have in the field's other tools. Spans name positions (`acdc.tasks.spans`): numbers count the prompt's
tokens as it is written, without what the tokenizer puts before it; a text is one that occurs once in the clean prompt. Everything that is wrong with a record is said at once.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from acdc.errors import near_misses
from acdc.tasks.chat import ROLES, Chat, Message
from acdc.tasks.spans import REST, Span, Text, located
from acdc.tasks.tokenise import Answer, TextPair, TokenPair, misaligned

ALIASES = {
    "correct_idx": "answer_tokens",  # EAP, EAP-IG and MIB
    "incorrect_idx": "wrong_tokens",
    "corrupt": "corrupted",  # auto-circuit
    "clean_prefix": "clean",  # feature-circuits
    "patch_prefix": "corrupted",
    "clean_answer": "answers",
    "patch_answer": "wrong_answers",
}
"""Names of fields in the files of other tools, and ours."""

PASSED_OVER = ("corrupted_hard", "case")
"""Fields of those files that say nothing of a pair: EAP's second corruption, feature-circuits' name of the case."""

ANOTHER = object()
"""In place of a corrupted prompt: that of another row with as many tokens is to be taken."""

REGIONS = object()
"""The key of spans in a record that another tool's was made into."""

ANSWERS = ("answers", "wrong_answers", "answer_tokens", "wrong_tokens")

_PROMPTS = ("clean", "corrupted")
_TOKENS = ("clean_tokens", "corrupted_tokens")


def pair_of(record: Any) -> TextPair | TokenPair:
    """The pair in a record; `ValueError` says all that is wrong with it."""
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {_kind(record)}")
    regions: tuple[Span, ...] = record.get(REGIONS, ())
    record = {key: value for key, value in record.items() if key is not REGIONS}
    found = list(itertools.islice(field_problems(record), 20))  # of a million unknown keys, enough
    values: dict[str, Any] = {}
    for key, value in record.items():
        name = ALIASES.get(key, key)
        if name not in FIELDS:
            continue
        if value is ANOTHER:
            values[name] = None
            continue
        try:
            values[name] = FIELDS[name](value)
        except ValueError as error:
            values[name] = None
            found.append(f"{key!r}{error}")
    prompts = _TOKENS if any(name in values for name in _TOKENS) else _PROMPTS
    found = [f"{name!r} is missing" for name in prompts if name not in values] + found
    if prompts == _TOKENS and (texts := [name for name in values if name in ("answers", "wrong_answers")]):
        found.append(f"{texts[0]!r} is text, but the prompts are token ids: give answer_tokens and wrong_tokens")
    others = values.get("corrupted_spans")
    spans = [*(values.get("spans") or ()), *(values.get("word_idxs") or ()), *regions]
    if others is not None:
        there = {span.name: span.where for span in others}
        found += [
            f"span {span.name!r:.60} has no counterpart in 'corrupted_spans'"
            for span in spans
            if span.name not in there
        ]
        spans = [dataclasses.replace(span, other=there.get(span.name)) for span in spans]
    if found:
        raise ValueError("; ".join(found))
    answers, wrong = (
        values.get(text, values.get(tokens, ()))
        for text, tokens in (("answers", "answer_tokens"), ("wrong_answers", "wrong_tokens"))
    )
    if prompts == _PROMPTS:
        return TextPair(values["clean"], values["corrupted"], answers, wrong, tuple(spans))
    if texts := [span.name for span in spans if isinstance(span.where, str) or isinstance(span.other, str)]:
        raise ValueError(
            f"span {texts[0]!r:.60} is text, but the prompts are token ids: give positions, like [3, 4]"
        )
    clean, corrupted = (Text("", values[name], 0) for name in _TOKENS)
    where, found, _ = located(spans, clean, corrupted, {})
    if found:
        raise ValueError("; ".join(found))
    pair = TokenPair(clean.tokens, corrupted.tokens, answers, wrong, where)
    if fault := misaligned(pair):
        raise ValueError(fault)
    return pair


def field_problems(fields: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the names of a record's fields, or of a table's columns."""
    names: dict[str, str] = {}
    for key in fields:
        name = ALIASES.get(key, key)
        if name in FIELDS:
            if name in names:
                yield f"{names[name]!r} and {key!r} are the same field"
            names[name] = key
        elif key not in PASSED_OVER:
            near = near_misses(key, [*FIELDS, *ALIASES])
            yield f"unknown key {key!r:.60}, " + (
                f"did you mean {near[0]!r}?" if near else f"known: {', '.join(FIELDS)}"
            )
    for one, other in (
        ("clean", "clean_tokens"),
        ("corrupted", "corrupted_tokens"),
        ("answers", "answer_tokens"),
        ("wrong_answers", "wrong_tokens"),
    ):
        if one in names and other in names:
            yield f"give {names[one]!r} or {names[other]!r}, not both"
    if names.get("answer_tokens") == "correct_idx" and "wrong_tokens" not in names:
        yield (
            "'correct_idx' without 'incorrect_idx' is a year in the files of greater-than, not a token id: use the "
            "task greater-than or --task-format eap-greater-than, or call a column of token ids 'answer_tokens'"
        )


# ---- the fields: each function gives the value, or a `ValueError` that goes on after the field's name ------------


def _prompt(value: Any) -> str | Chat:
    if isinstance(value, list):
        if value and all(type(x) is int for x in value):
            raise ValueError(
                ": expected text or messages, got token ids: call it 'clean_tokens' or 'corrupted_tokens'"
            )
        return _chat(value)
    return _text(value, "a string or a list of messages")


def _chat(messages: list[Any]) -> Chat:
    if not messages:
        raise ValueError(" is empty")
    found, chat = [], []
    for i, message in enumerate(messages, start=1):
        try:
            chat.append(_message(message))
        except ValueError as error:
            found.append(f"message {i}: {error}")
    if found:
        raise ValueError(": " + ", ".join(found))
    return tuple(chat)


def _message(value: Any) -> Message:
    if not isinstance(value, dict) or not {"role", "content"} <= value.keys():
        given = f"one with {', '.join(map(repr, value))}" if isinstance(value, dict) else _kind(value)
        raise ValueError(f"expected an object with 'role' and 'content', got {given:.80}")
    if more := value.keys() - {"role", "content"}:
        raise ValueError(f"unknown key {min(more)!r:.60}, known: role, content")
    role, content = value["role"], value["content"]
    if role not in ROLES:
        near = near_misses(role, ROLES)
        raise ValueError(
            f"unknown role {role!r:.60}, "
            + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(ROLES)}")
        )
    if not isinstance(content, str):
        raise ValueError(f"expected 'content' as a string, got {_kind(content)}")
    return Message(role, content)


def _text(value: Any, expected: str = "a string") -> str:
    if not isinstance(value, str):
        raise ValueError(f": expected {expected}, got {_kind(value)}")
    if not value:
        raise ValueError(" is empty")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    expected = "a string or a list of strings"
    several = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(_text(text, expected) for text in several))


def _token_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(x) is int and x >= 0 for x in value):
        raise ValueError(f": expected token ids (whole numbers from 0){_odd(value)}")
    if not value:
        raise ValueError(" is empty")
    return tuple(value)


def _answer_ids(value: Any) -> tuple[Answer, ...]:
    several = value if isinstance(value, list) else [value]
    found: list[Answer] = []
    for one in several:
        text = one if isinstance(one, list) and one else [one]
        if not all(type(x) is int and x >= 0 for x in text):
            odd = _odd(one if isinstance(one, list) else value)
            raise ValueError(f": expected a token id (a whole number from 0) or a list of them{odd}")
        found.append(text[0] if len(text) == 1 else tuple(text))
    return tuple(dict.fromkeys(found))


def _spans(value: Any) -> list[Span]:
    return list(_named(value, asked=True))


def _word_indices(value: Any) -> list[Span]:
    return list(_named(value, asked=False))


def _named(value: Any, *, asked: bool) -> Iterator[Span]:
    """Spans by name: a token's number, a list of them, or (where they are asked for) the text."""
    if not isinstance(value, dict):
        raise ValueError(f': expected an object like {{"IO": [3, 4]}}, got {_kind(value)}')
    for name, where in value.items():
        numbers = where if isinstance(where, list) else [where]
        if isinstance(where, str) and where.strip() and asked:
            yield Span(name, where, asked=True)
        elif numbers and all(type(x) is int and x >= 0 for x in numbers):
            yield Span(name, tuple(numbers), asked=asked)
        else:
            expected = "token numbers from 0, like [3, 4], or a text" if asked else "the number of a token from 0"
            raise ValueError(f": expected {name!r:.60} as {expected}{_odd(where)}")
        if not name.strip() or "," in name or name == REST:
            raise ValueError(f': {name!r:.60} is no name for a span ("rest" is what is in none, commas part names)')


FIELDS: dict[str, Callable[[Any], Any]] = {
    "clean": _prompt,
    "corrupted": _prompt,
    "answers": _texts,
    "wrong_answers": _texts,
    "clean_tokens": _token_ids,
    "corrupted_tokens": _token_ids,
    "answer_tokens": _answer_ids,
    "wrong_tokens": _answer_ids,
    "spans": _spans,
    "corrupted_spans": _spans,
    "word_idxs": _word_indices,
}
"""Every field, and what reads its value."""


def _odd(value: Any) -> str:
    """ ", got …": the first value that is no token id, or the one value that is no list."""
    several = value if isinstance(value, list) else [value]
    odd = next((x for x in several if type(x) is not int or x < 0), value)
    shown = repr(odd) if isinstance(odd, (str, int, float)) and not isinstance(odd, bool) else _kind(odd)
    return f", got {shown:.60}"


def _kind(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
