"""Tiny tokenizers of every style that causal models use, trained on the built-in tasks' own prompts."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from acdc.tasks.language.sva import NOUNS
from acdc.tasks.registry import GENERATORS
from acdc.tasks.tokenise import TextPair

SPECIAL = ["<unk>", "<s>", "<pad>"]


@dataclasses.dataclass(frozen=True)
class StandIn:
    """What a task needs to know of a model."""

    tokenizer: Any = None
    name: str = "stand-in"
    vocabulary_size: int = 50
    context_length: int | None = 128
    bos_token_id: int | None = None
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))


def wrap(tokenizer: Tokenizer, *, bos: bool) -> PreTrainedTokenizerFast:
    """A `transformers` tokenizer that starts prompts with BOS, or not."""
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", pad_token="<pad>"
    )


def stand_in(tokenizer: PreTrainedTokenizerFast, **settings: Any) -> StandIn:
    return StandIn(tokenizer=tokenizer, vocabulary_size=len(tokenizer), **settings)


# ---- the styles -------------------------------------------------------------------------------------------------

_NUMBERS = [f"the {n}" for n in range(100)] * 3 + [f"x{n:02}" for n in range(100)] * 3
_CENTURIES = [f"the {n}" for n in range(11, 18)] * 90
_TWO_DIGITS = pre_tokenizers.Split(Regex(r"\d{1,2}"), behavior="isolated")


def _prompts() -> list[str]:
    """Prompts of all tasks, drawn for a tokenizer that accepts any word."""
    text: list[str] = []
    every = _EveryWord()
    for generator in GENERATORS.values():
        if generator.name != "induction":
            for pair in itertools.islice(generator.pairs(StandIn(every), random.Random(0)), 300):
                assert isinstance(pair, TextPair)
                text += [pair.clean + pair.answers[0], pair.corrupted + pair.wrong[0]]
    return [*text, *(f"the {noun} the {noun}s are is were was have has" for noun in NOUNS)]


class _EveryWord:
    """A tokenizer for which every word, and every two digits, is a token."""

    unk_token_id = None

    def __init__(self) -> None:
        self.words: dict[str, int] = {}

    def __call__(self, text: str | list[str], **_: Any) -> dict[str, Any]:
        rows = [re.findall(r"\d{1,2}|[^\W\d]+|\S", row) for row in ([text] if isinstance(text, str) else text)]
        ids = [[self.words.setdefault(word, len(self.words)) for word in row] for row in rows]
        return {"input_ids": ids[0] if isinstance(text, str) else ids}

    def convert_ids_to_tokens(self, token: int) -> str:
        return list(self.words)[token]

    def decode(self, tokens: list[int]) -> str:
        return "".join(list(self.words)[token] for token in tokens)


def _byte_level(split: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    words = [re.sub(r"\d", "", row) for row in _prompts()]  # so that whole years don't become tokens
    tokenizer.train_from_iterator(words + _NUMBERS + _CENTURIES, trainer)
    return tokenizer


def byte_bpe() -> Tokenizer:
    """GPT-2's: the space before a word is part of it, numbers in pieces of two digits."""
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def byte_bpe_digits() -> Tokenizer:
    """Qwen's: the space before a number, and every digit, is a token of its own."""
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    isolated = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _byte_level(pre_tokenizers.Sequence([isolated, byte_level]))


def unigram() -> Tokenizer:
    """SentencePiece's, as in Llama 2 and Gemma: ▁ before every word, and every digit a token."""
    text = _prompts()
    words = sorted({word for row in text for word in re.findall(r"[^\W\d]+", row)})
    characters = sorted({character for row in text for character in row} - {" "})
    pieces = [(f"▁{word}", -6.0) for word in words if len(word) > 1] + [
        (word, -8.0) for word in words if len(word) > 1
    ]
    vocabulary = [(token, 0.0) for token in SPECIAL] + [("▁", -9.0)] + pieces
    tokenizer = Tokenizer(models.Unigram(vocabulary + [(character, -12.0) for character in characters], unk_id=0))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), digits])
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _words(split: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, _TWO_DIGITS])
    trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(_prompts() + _NUMBERS, trainer)
    return tokenizer


def word_level() -> Tokenizer:
    """Words and punctuation, spaces dropped, numbers in pieces of two digits."""
    return _words(pre_tokenizers.Whitespace())


def word_level_spaces() -> Tokenizer:
    """The same, and every white space is a token of its own."""
    return _words(pre_tokenizers.Split(Regex(r"\s|\w+|[^\w\s]+"), behavior="isolated"))


STYLES: dict[str, Callable[[], Tokenizer]] = {
    "byte-bpe": byte_bpe,
    "byte-bpe-digits": byte_bpe_digits,
    "unigram": unigram,
    "word-level": word_level,
    "word-level-spaces": word_level_spaces,
}
