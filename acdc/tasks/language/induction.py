"""Induction: the second copy of a random sequence is predicted from the first. Needs no tokenizer.

    clean      … a b c d e f   a b c d → e          corrupted  … c f d b a e   a b c d → b

The corrupted first copy is a permutation of the clean one in which another token follows the last one of the prompt
(d), so that both what stands before each token and what is copied differ. Prompts are all of one length while the
length of the sequence varies, so that no fixed distance gives the answer away.

Spans: end (the last token), previous (where it stood before), answer (what follows there).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Annotated

from acdc.errors import TaskError
from acdc.tasks.tokenise import Encoder, ModelLike, TokenPair

DEFAULT_LENGTH = 24


def pairs(
    model: ModelLike,
    rng: random.Random,
    *,
    length: Annotated[
        int, "tokens of a prompt, beside those that the tokenizer starts with; 24, or what fits a short context"
    ] = DEFAULT_LENGTH,
) -> Iterator[TokenPair]:
    """Random repeated sequences; a prompt has `length` tokens after those the tokenizer starts with."""
    start = _start(model)
    ids = _ordinary_tokens(model, start)
    room = length if model.context_length is None else model.context_length - len(start)
    if length > max(room, DEFAULT_LENGTH):
        raise TaskError(f"induction: prompts of {length} tokens do not fit the model's context: at most {room} do")
    length = min(length, room)
    if length < 8:
        raise TaskError(f"induction: expected prompts of at least 8 tokens, got {length} (context of the model?)")
    if len(ids) < length:
        raise TaskError(f"induction: {model.name} has {len(ids)} ordinary tokens, and {length} are needed")
    while True:
        n = rng.randint(length // 4 + 1, length // 2)  # tokens in the sequence
        k = rng.randint(max(1, length // 8), n - 1)  # tokens of the second copy that are shown
        tokens = rng.sample(ids, length - k)
        filler, block = tokens[:-n], tokens[-n:]
        last, answer = block[k - 1], block[k]
        broken = rng.sample(block, n)
        at = broken.index(last)
        if at == n - 1 or broken[at + 1] == answer:
            continue
        second, first = block[:k], len(start) + len(filler)
        yield TokenPair(
            clean=(*start, *filler, *block, *second),
            corrupted=(*start, *filler, *broken, *second),
            answers=(answer,),
            wrong=(broken[at + 1],),
            spans=(("previous", (first + k - 1,)), ("answer", (first + k,)), ("end", (length + len(start) - 1,))),
        )


def _start(model: ModelLike) -> tuple[int, ...]:
    if model.tokenizer is not None:
        return Encoder(model).prefix
    return () if model.bos_token_id is None else (model.bos_token_id,)


def _ordinary_tokens(model: ModelLike, start: tuple[int, ...]) -> list[int]:
    """Token ids that the tokenizer uses and that are not special."""
    if model.tokenizer is None:
        return [i for i in range(model.vocabulary_size) if i not in start]
    special = {*model.tokenizer.all_special_ids, *start}
    return [i for i in range(min(model.vocabulary_size, len(model.tokenizer))) if i not in special]
