"""Prompt pairs as text become prompt pairs as token ids, and every pair is checked; nothing else calls a tokenizer.

An answer's tokens are what tokenising `prompt + answer` appends to the prompt's tokens. That is right for every kind
of tokenizer, whether it merges the leading space into the word, marks it apart, or drops it; and if the answer
changes the tokens before it, it does not follow the prompt. Most metrics read an answer of one token.

A prompt starts once: what the tokenizer puts at the start by default (BOS, or nothing) is not put before a text that
brings it itself, as text from a chat template does, nor before a chat, whose template decides.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from acdc.errors import TaskError
from acdc.tasks.chat import Chat, check_template, render
from acdc.tasks.spans import Located, Span, Text, cuts, located

SAME_ANSWER = "the corrupted prompt asks for the same word: no other row with as many tokens asks for another"
UNKNOWN = "the tokenizer does not know part of the prompts"
OWN_START = "the prompts bring the BOS of the tokenizer themselves, so it is not put before them a second time"
STARTS_TWICE = "the prompts start with BOS twice"
SPACED = "answers start with a space, but the prompts end with white space: the model may never write that"
ONE_SPACED = (
    "one prompt of a pair starts with a space and the other does not, so their tokens may not correspond; in CSV a "
    "space after a comma is part of the text"
)


@runtime_checkable
class ModelLike(Protocol):
    """What a task needs to know of a model; `acdc.model.Model` has it."""

    @property
    def name(self) -> str: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def vocabulary_size(self) -> int: ...
    @property
    def context_length(self) -> int | None: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def device(self) -> torch.device: ...


Answer = int | tuple[int, ...]
"""The token of an answer, or its tokens where it has several."""


@dataclasses.dataclass(frozen=True)
class TextPair:
    """A clean and a corrupted prompt as text or chat, answers and wrong answers as text or token ids, and named parts.

    `corrupted` is None where it is to be the clean prompt of another pair with as many tokens (`with_corrupted`).
    """

    clean: str | Chat
    corrupted: str | Chat | None
    answers: tuple[str | Answer, ...] = ()
    wrong: tuple[str | Answer, ...] = ()
    spans: tuple[Span, ...] = ()


@dataclasses.dataclass(frozen=True)
class TokenPair:
    """The same as token ids."""

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answers: tuple[Answer, ...] = ()
    wrong: tuple[Answer, ...] = ()
    spans: Located = ()

    @property
    def has_texts(self) -> bool:
        """Whether some answer has several tokens."""
        return any(isinstance(answer, tuple) for answer in (*self.answers, *self.wrong))


def text_of(answer: Answer) -> tuple[int, ...]:
    """An answer's tokens."""
    return answer if isinstance(answer, tuple) else (answer,)


@dataclasses.dataclass(frozen=True)
class Checked:
    """A pair as token ids, what is wrong with it, and what to know of it, in words that fit other pairs too."""

    pair: TokenPair
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


class _Text(NamedTuple):
    """A text to encode: with what the tokenizer puts at the start, or as it stands."""

    text: str
    whole: bool = False

    def then(self, more: str) -> _Text:
        return _Text(self.text + more, self.whole)


class Encoder:
    """A tokenizer that adds what it adds at the start by default (BOS or nothing), once, and never an end."""

    def __init__(self, model: ModelLike) -> None:
        if model.tokenizer is None:
            raise TaskError(
                f"{model.name} has no tokenizer, so it takes no text: use a task made of token ids "
                "(induction, or a file with clean_tokens, corrupted_tokens, answer_tokens, wrong_tokens)"
            )
        self._tokenizer = model.tokenizer
        self.model_name = model.name
        self.prefix = self._default_prefix()
        self._unknown = getattr(model.tokenizer, "unk_token_id", None)
        added = getattr(model.tokenizer, "added_tokens_decoder", {})
        self._special = {
            *getattr(model.tokenizer, "all_special_ids", ()),
            *(token for token, entry in added.items() if entry.special),
        }

    def _default_prefix(self) -> tuple[int, ...]:
        for text in ("a", "the", "0", "."):
            plain = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            if plain:
                break
        default = self._tokenizer(text)["input_ids"]
        starts = (i for i in range(len(default)) if default[i : i + len(plain)] == plain)
        return tuple(default[: next(starts, 0)])

    def encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of each text, started as by default."""
        return [row if self.has_own_start(row) else self.prefix + row for row in self.bare(texts)]

    def bare(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of each text as it stands, with nothing put before it."""
        if not texts:
            return []
        encoded = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [tuple(row) for row in encoded["input_ids"]]

    def has_own_start(self, row: Sequence[int]) -> bool:
        """Whether the tokens begin with one of those put at the start by default.

        White space and other special tokens may stand before it: templates often begin with a line break.
        """
        if not self.prefix:
            return False
        head = itertools.takewhile(lambda token: token in self._special or self.is_space(token), row)
        return any(token in self.prefix for token in head)

    def render(self, chat: Chat) -> tuple[str, tuple[str, ...]]:
        """The text of a chat, and remarks; see `acdc.tasks.chat`."""
        check_template(self._tokenizer, self.model_name)
        return render(chat, self._tokenizer)

    def appended(self, prompt: str, continuations: Sequence[str]) -> list[tuple[int, ...] | None]:
        """The tokens each continuation appends to the prompt's; None if it changes the prompt's tokens."""
        before, *both = self.encode([prompt, *(prompt + x for x in continuations)])
        return [row[len(before) :] if row[: len(before)] == before else None for row in both]

    def is_unknown(self, ids: Sequence[int]) -> bool:
        """Whether the tokenizer's unknown token is among them."""
        return self._unknown is not None and self._unknown in ids

    def is_space(self, token: int) -> bool:
        """Whether a token is white space and nothing else."""
        raw = str(self._tokenizer.convert_ids_to_tokens(token))
        return not raw.strip("Ġ▁ \t\n") or str(self._tokenizer.decode([token])).isspace()

    def text(self, token: int) -> str:
        """A token as it reads in the middle of a text, with its leading space."""
        decoded: str = self._tokenizer.decode([token])
        raw = str(self._tokenizer.convert_ids_to_tokens(token))
        return " " + decoded if raw.startswith("▁") and not decoded.startswith(" ") else decoded

    def words(self, words: Sequence[str], *, what: str, at_least: int = 2) -> list[str]:
        """The words that are one token (apart from a space) in the middle of a text, no two the same token.

        Raises:
            TaskError: fewer than `at_least` are.
        """
        found: dict[int, str] = {}
        for word, ids in zip(words, self.appended("the", [" " + word for word in words]), strict=True):
            token = [i for i in ids or () if not self.is_space(i)]
            if ids and len(token) == 1 and ids[-1] == token[0] and not self.is_unknown(token):
                found.setdefault(token[0], word)
        if len(found) < at_least:
            raise TaskError(
                f"only {len(found)} of {len(words)} {what} are single tokens of this tokenizer, expected at least "
                f"{at_least}: use a file with prompts of your own"
            )
        return list(found.values())


def tokenise(
    pairs: Sequence[TextPair],
    encoder: Encoder,
    *,
    move_space: bool = False,
    texts: bool = False,
    advice: str = "",
) -> list[Checked]:
    """Token ids of each pair, with what is wrong with it.

    Args:
        move_space: if every answer of a pair starts with the same token and that is white space, let it be the last
            token of the prompt, as for tokenizers that do not merge the leading space into a number or a word.
        texts: let an answer have several tokens.
        advice: what to do about one that has, said with the problem.

    Raises:
        TaskError: a prompt is a chat, and the tokenizer has no chat template.
    """
    written = [_written(pair, encoder) for pair in pairs]
    every: dict[_Text, None] = {}
    for pair, found in zip(pairs, written, strict=True):
        if not found.problems:
            continued = (found.clean.then(x) for x in (*pair.answers, *pair.wrong) if isinstance(x, str))
            every.update(dict.fromkeys((found.clean, found.corrupted, *continued)))
    bare = dict(zip(every, encoder.bare([text.text for text in every]), strict=True))
    own = {text for text, row in bare.items() if not text.whole and encoder.has_own_start(row)}
    ids = {text: row if text.whole or text in own else encoder.prefix + row for text, row in bare.items()}
    both = [
        (pair.spans, found.clean.text, found.corrupted.text) for pair, found in zip(pairs, written, strict=True)
    ]
    starts = list(dict.fromkeys(cut for parts in both for cut in cuts(*parts)))
    started = dict(zip(starts, encoder.bare(starts), strict=True))
    rows = []
    for pair, found in zip(pairs, written, strict=True):
        if found.problems:
            rows.append(Checked(TokenPair((), ()), found.problems))
            continue
        remarks = (*found.remarks, *((OWN_START,) if own & {found.clean, found.corrupted} else ()))
        row = _tokenise(pair, found._replace(remarks=remarks), ids, encoder, move_space, texts, advice)
        clean, corrupted = (_prompt(text, bare, ids, row.pair) for text in (found.clean, found.corrupted))
        spans, faults, more = located(pair.spans, clean, corrupted, started)
        whole = dataclasses.replace(row.pair, spans=spans)
        rows.append(Checked(whole, (*row.problems, *faults), (*row.remarks, *more)))
    return rows


def with_corrupted(pairs: Sequence[TextPair], encoder: Encoder) -> tuple[list[TextPair], set[int]]:
    """The pairs, with the next other pair's clean prompt of as many tokens where there is no corrupted one.

    If there is one that asks for another word it is that. It stays None where no pair has one.

    Returns:
        The pairs, and which of them were given a prompt that asks for the same word.
    """
    found, alike = list(pairs), set[int]()
    if all(pair.corrupted is not None for pair in pairs):
        return found, alike
    ids = encoder.encode([pair.clean if isinstance(pair.clean, str) else "" for pair in pairs])
    asked = [
        pair.answers[0].split()[:1] if pair.answers and isinstance(pair.answers[0], str) else [] for pair in pairs
    ]
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(ids):
        by_length.setdefault(len(row), []).append(i)
    for same in by_length.values():
        several = any(asked[i] != asked[same[0]] for i in same)
        for place, i in enumerate(same):
            if pairs[i].corrupted is not None:
                continue
            others = (*same[place + 1 :], *same[:place])
            j = next((j for j in others if several and asked[j] != asked[i] and ids[j] != ids[i]), None)
            if j is None:
                j = next((j for j in others if ids[j] != ids[i]), None)
                alike |= set() if j is None else {i}
            if j is not None:
                found[i] = dataclasses.replace(pairs[i], corrupted=pairs[j].clean)
    return found, alike


def _prompt(
    text: _Text, bare: dict[_Text, tuple[int, ...]], ids: dict[_Text, tuple[int, ...]], pair: TokenPair
) -> Text:
    """A prompt whose spans are to be found; a space that was moved to its end belongs to it."""
    tokens, before = bare[text], len(ids[text]) - len(bare[text])
    moved = pair.clean[len(ids[text]) :] if len(pair.clean) == len(ids[text]) + 1 else ()
    return Text(text.text, tokens + moved, before)


class _Written(NamedTuple):
    """Both prompts of a pair as texts; why a chat is none, and remarks."""

    clean: _Text
    corrupted: _Text
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def _written(pair: TextPair, encoder: Encoder) -> _Written:
    texts, found, remarks = [], [], dict[str, None]()
    for name, prompt in (("clean", pair.clean), ("corrupted", pair.corrupted)):
        if prompt is None:
            found.append("no other row with as many tokens has another prompt to take for the corrupted one")
            prompt = ""
        if isinstance(prompt, str):
            texts.append(_Text(prompt))
            continue
        try:
            text, more = encoder.render(prompt)
        except ValueError as error:
            found.append(f"{name}: {error}")
            text, more = "", ()
        texts.append(_Text(text, whole=True))
        remarks |= dict.fromkeys(more)
    return _Written(texts[0], texts[1], tuple(found), tuple(remarks))


def _tokenise(
    pair: TextPair,
    written: _Written,
    ids: dict[_Text, tuple[int, ...]],
    encoder: Encoder,
    move_space: bool,
    texts: bool,
    advice: str,
) -> Checked:
    prompt = written.clean
    clean, corrupted = ids[prompt], ids[written.corrupted]
    given = (*pair.answers, *pair.wrong)
    whole = {text: ids[prompt.then(text)] for text in given if isinstance(text, str)}
    n = len(clean)
    if move_space and whole and all(row[:n] == clean and len(row) > n + 1 for row in whole.values()):
        space = {row[n] for row in whole.values()}
        if len(space) == 1 and encoder.is_space(next(iter(space))):
            clean, corrupted, n = (*clean, *space), (*corrupted, *space), n + 1
    found: list[str] = []
    tokens: list[Answer] = []
    for answer in given:
        if isinstance(answer, str):
            fault = _not_next(answer, whole[answer], clean, prompt, encoder, texts, advice)
            found += [fault] if fault else []
            added = whole[answer][n:]
            tokens.append(-1 if fault else added[0] if len(added) == 1 else added)
        else:
            tokens.append(answer)
    k = len(pair.answers)
    answers, wrong = (tuple(dict.fromkeys(part)) for part in (tokens[:k], tokens[k:]))
    remarks = list(written.remarks)
    if encoder.is_unknown((*clean[len(encoder.prefix) :], *corrupted[len(encoder.prefix) :])):
        remarks.append(UNKNOWN)
    if prompt.text[:1].isspace() != written.corrupted.text[:1].isspace():
        remarks.append(ONE_SPACED)
    if prompt.text[-1:].isspace() and any(text[:1].isspace() for text in whole):
        remarks.append(SPACED)
    return Checked(TokenPair(clean, corrupted, answers, wrong), tuple(found), tuple(remarks))


def _not_next(
    answer: str,
    row: tuple[int, ...],
    clean: tuple[int, ...],
    prompt: _Text,
    encoder: Encoder,
    texts: bool,
    advice: str,
) -> str | None:
    """Why an answer, `row` with the clean prompt before it, is not the one next token, or as a text the next ones."""
    n, spaced = len(clean), answer[:1].isspace()
    added = row[n:]
    if row[:n] != clean:
        if prompt.text[-1:].isspace():
            hint = "start the answer without one" if spaced or prompt.whole else "end the prompt without one"
        else:
            hint = "start the answer with one"
        return (
            f"answer {answer!r:.60} merges with the end of the prompt {prompt.text[-12:]!r}, so it is not the next "
            f"token; if a space should part them, {hint}"
        )
    if len(added) != 1 and not (texts and added):
        pieces = " + ".join(repr(encoder.text(token)) for token in added) or "nothing"
        hint = advice
        if len(added) == 2 and encoder.is_space(added[0]):
            hint = "; leave out the space at its start" if prompt.whole else "; end the prompt with that space"
        return f"answer {answer!r:.60} is {len(added)} tokens ({pieces}), expected one{hint}"
    return f"answer {answer!r:.60} is unknown to the tokenizer" if encoder.is_unknown(added) else None


def misaligned(pair: TokenPair) -> str | None:
    """What keeps clean and corrupted from being a pair, in any model."""
    if not pair.clean or not pair.corrupted:
        return "a prompt has no tokens"
    if len(pair.clean) != len(pair.corrupted):
        return (
            f"clean is {len(pair.clean)} tokens and corrupted {len(pair.corrupted)}; expected equally many, "
            "position by position"
        )
    return "the corrupted prompt equals the clean one" if pair.clean == pair.corrupted else None


def check(row: Checked, model: ModelLike) -> Checked:
    """A pair with, added to its problems and remarks, those of its token ids in this model."""
    pair, found, remarks = row.pair, list(row.problems), list(row.remarks)
    if not pair.clean and found:  # it never became tokens
        return row
    answers = [text_of(answer) for answer in (*pair.answers, *pair.wrong)]
    longest = max(len(pair.clean), len(pair.corrupted)) + max((len(text) - 1 for text in answers), default=0)
    if fault := misaligned(pair):
        found.append(fault)
    if model.context_length is not None and longest > model.context_length:
        whole = " with the longest answer" * any(len(text) > 1 for text in answers)
        found.append(f"{longest} tokens{whole}, more than the model's context of {model.context_length}")
    outputs = model.vocabulary_size
    inputs = getattr(model, "input_vocabulary_size", outputs)
    every = {token for text in answers for token in text}
    for ids, size in (({*pair.clean, *pair.corrupted}, inputs), (every - {-1}, outputs)):
        outside = sorted(i for i in ids if not 0 <= i < size)
        if outside:
            found.append(f"token id {outside[0]} is outside of the model's vocabulary of {size}")
            break
    both = (set(pair.answers) & set(pair.wrong)) - {-1}
    if both:
        shown = " ".join(map(str, min(map(text_of, both))))
        found.append(
            f"token{'s' * (' ' in shown)} {shown} {'are' if ' ' in shown else 'is'} both an answer and a wrong answer"
        )
    if starts_twice(pair.clean, model) or starts_twice(pair.corrupted, model):
        remarks.append(STARTS_TWICE)
    return dataclasses.replace(row, problems=tuple(found), remarks=tuple(remarks))


def starts_twice(row: Sequence[int], model: ModelLike) -> bool:
    """Whether token ids begin with two BOS tokens of the model."""
    bos = {model.bos_token_id, getattr(model.tokenizer, "bos_token_id", None)} - {None}
    return len(row) > 1 and row[0] == row[1] and row[0] in bos
