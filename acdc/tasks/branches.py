"""Answers of several tokens: prompts that go on as every answer at once, each read with its own tokens given.

The tokens of all answers but their last stand behind the prompt, answer after answer, each a *branch*: it sees the
prompt and itself, and is placed as if it followed the prompt alone (`Prompts.branch`). One run then gives what a run an
answer would, a prompt stays one row, and all that counts prompts counts right. A model that reads tokens one after the
other, whatever they may see, cannot take several branches; one it can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Tokens = Sequence[int]
Texts = Sequence[Sequence[Tokens]]
"""`[prompt][answer][token]`."""


def layout(
    rows: Sequence[tuple[Tokens, Tokens]], texts: Mapping[str, Texts], *, padding: str, pad_id: int
) -> dict[str, Tensor | None]:
    """The fields of `Prompts` for pairs of clean and corrupted tokens with their answers and wrong answers.

    Args:
        rows: a pair each; texts: "answers" and perhaps "wrong", without faults (`text_problems`).
    """
    laid = [
        _Row(clean, corrupted, {name: every[i] for name, every in texts.items()})
        for i, (clean, corrupted) in enumerate(rows)
    ]
    width, reads = max(len(row.clean) for row in laid), max(len(row.read) for row in laid)

    def padded(name: str, fill: int = 0) -> Tensor:
        return torch.tensor([_padded(getattr(row, name), width, padding, fill) for row in laid])

    shift = [width - len(row.clean) if padding == "left" else 0 for row in laid]
    read = [[place + by for place in row.read] for row, by in zip(laid, shift, strict=True)]
    found: dict[str, Tensor | None] = {
        "clean": padded("clean", pad_id),
        "corrupted": padded("corrupted", pad_id),
        "mask": torch.tensor([_padded([True] * len(row.clean), width, padding, False) for row in laid]),
        "positions": torch.tensor([_padded(row, reads, "right", -1) for row in read]),
        "branch": (branch := padded("branch")),
    }
    if int(branch.max()) > 1:
        found["position_ids"] = padded("place")
    for name, every in texts.items():
        most = max(1, *map(len, every))
        found[name] = torch.tensor([row.tokens(name, reads, most) for row in laid]) if any(every) else None
    return found


def text_problems(given: Texts, n: int, name: str) -> list[str]:
    """What is wrong with the answers of `n` prompts."""
    if len(given) != n:
        return [f"expected {name} for {n} prompts, a list of texts each, got {len(given)}"]
    found = []
    for i, texts in enumerate(given, start=1):
        listed = isinstance(texts, (list, tuple)) and all(isinstance(text, (list, tuple)) for text in texts)
        if not listed or not all(text and all(type(x) is int and x >= 0 for x in text) for text in texts):
            found.append(
                f"prompt {i}: expected {name} as lists of token ids from 0, one an answer, got {texts!r:.60}"
            )
    return found


class _Row:
    """One prompt with all its answers behind it.

    Attributes:
        clean, corrupted: token ids; branch, place: of each token.
        read: the prompt's last token, and all that stand behind it.
    """

    def __init__(self, clean: Tokens, corrupted: Tokens, texts: Mapping[str, Sequence[Tokens]]) -> None:
        self.clean, self.corrupted, n = [*clean], [*corrupted], len(clean)
        self.branch, self.place, self.read = [0] * n, list(range(n)), [n - 1]
        self._next: dict[str, list[list[tuple[int, int]]]] = {}  # of each answer: (index into read, next token)
        for name, several in texts.items():
            self._next[name] = [self._go_on(text) for text in several]

    def _go_on(self, text: Tokens) -> list[tuple[int, int]]:
        found, n = [(0, text[0])], self.read[0] + 1
        number = max(self.branch) + 1
        for j, token in enumerate(text[:-1]):
            self.read.append(len(self.clean))
            self.clean.append(token)
            self.corrupted.append(token)
            self.branch.append(number)
            self.place.append(n + j)
            found.append((len(self.read) - 1, text[j + 1]))
        return found

    def tokens(self, name: str, reads: int, most: int) -> list[list[int]]:
        """`[read, answer]`: the token that each answer has next, -1 where it has none."""
        found = [[-1] * most for _ in range(reads)]
        for a, steps in enumerate(self._next[name]):
            for place, token in steps:
                found[place][a] = token
        return found


def _padded(row: Sequence[int], width: int, padding: str, fill: int) -> list[int]:
    rest = [fill] * (width - len(row))
    return [*rest, *row] if padding == "left" else [*row, *rest]
