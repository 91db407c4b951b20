"""Prompt pairs as tensors: clean and corrupted tokens, the positions that are read, and the answers there.

Whatever they are made of, `Prompts` hold int64 and bool tensors that autograd can use, so nobody has to ask again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from acdc.errors import TaskError, unknown
from acdc.shown import counted
from acdc.tasks.branches import layout, text_problems
from acdc.tasks.spans import row_problems, span_masks
from acdc.tasks.token_rows import answer_rows, mask_rows, prompt_rows

Padding = Literal["left", "right"]

_LONGEST = 600  # characters of a problem


@dataclasses.dataclass(frozen=True, repr=False)
class Prompts:
    """Aligned, padded pairs of clean and corrupted prompts.

    Attributes:
        clean: `[prompt, position]` int64 token ids.
        corrupted: the same shape.
        mask: `[prompt, position]` bool, True at real tokens of the clean prompt; padding on either side.
        positions: `[prompt, read]` int64, the positions whose output the metric reads; -1 pads. For a next-token
            task this is the last real token.
        answers: `[prompt, read, answer]` int64 token ids, -1 pads; None if the task has none.
        wrong: the same for the wrong answers.
        position_ids: `[prompt, position]` int64; None counts real tokens from 0.
        corrupted_mask, corrupted_position_ids: for the corrupted prompts; None: as for the clean ones.
        branch: `[prompt, position]` int64; None unless answers are texts of several tokens (`from_continuations`). Each
            prompt then goes on as all of them at once: a token of branch b sees those of branches b and 0, which is
            the prompt itself. Along the last axis of `answers` and of `wrong` stand whole answers: at each read
            position the token that an answer has next, -1 where it has none.
        spans: by name, `[prompt, position]` bool: positions that have a meaning, like those of the indirect object;
            the same in the corrupted prompt.
    """

    clean: Int64[Tensor, "prompt position"]
    corrupted: Int64[Tensor, "prompt position"]
    mask: Bool[Tensor, "prompt position"]
    positions: Int64[Tensor, "prompt read"]
    answers: Int64[Tensor, "prompt read answer"] | None = None
    wrong: Int64[Tensor, "prompt read wrong"] | None = None
    position_ids: Int64[Tensor, "prompt position"] | None = None
    corrupted_mask: Bool[Tensor, "prompt position"] | None = None
    corrupted_position_ids: Int64[Tensor, "prompt position"] | None = None
    branch: Int64[Tensor, "prompt position"] | None = None
    spans: Mapping[str, Bool[Tensor, "prompt position"]] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Prompts({self})"

    def __str__(self) -> str:
        shortest, longest = self.lengths if len(self) else (0, 0)
        span = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
        return f"{counted(len(self), 'pair')} of {span} token{'s' * (longest != 1)}"

    @classmethod
    def from_tokens(
        cls,
        clean: Any,
        corrupted: Any,
        answers: Any = None,
        wrong: Any = None,
        mask: Any = None,
        *,
        padding: Padding = "right",
        pad_id: int = 0,
        spans: Sequence[Mapping[str, Sequence[int]]] | None = None,
    ) -> Prompts:
        """Next-token prompts from token ids, read at the last real token.

        Args:
            clean, corrupted: whole numbers, a row a prompt: a tensor or array `[prompt, position]`, lists (of
                tensors, of arrays, of numbers), or a tokenizer's output, whose `attention_mask` is used. Rows of
                unequal lengths are padded and masked.
            answers, wrong: a token id or several for each prompt, as tensor, array or lists; -1 pads.
            mask: `[prompt, position]`, True or 1 at real tokens, for tokens that are padded already.
            padding: the side on which rows of unequal lengths are filled up.
            pad_id: the token they are filled up with.
            spans: for each prompt, positions by name, counted in its real tokens from 0: `{"subject": [1, 2]}`.

        Raises:
            TaskError: something else was given, or clean and corrupted do not match; names every such prompt.
        """
        check_padding(padding)
        if not isinstance(pad_id, int) or isinstance(pad_id, bool) or not 0 <= pad_id < 2**63:
            raise TaskError(f"expected pad_id as a token id, a whole number from 0, got {pad_id!r:.60}")
        rows, real, found = prompt_rows(clean, "clean")
        other, other_real, more = prompt_rows(corrupted, "corrupted")
        if found := found + more:
            raise problems("prompts", found)
        if len(rows) != len(other):
            raise TaskError(f"expected as many corrupted as clean prompts, got {len(other)} and {len(rows)}")
        if not rows:
            raise TaskError("prompts: there are none")
        if mask is not None:
            given, found = mask_rows(mask)
            if found:
                raise problems("prompts", found)
            if any(own is not None and own != given for own in (real, other_real)):
                raise TaskError("mask differs from the attention_mask that came with the tokens: give one of them")
            real = other_real = given
        real, other_real = _masks(rows, real, "clean"), _masks(other, other_real, "corrupted")
        found = [
            f"prompt {i}: {fault}"
            for i, pair in enumerate(zip(rows, other, real, other_real, strict=True), start=1)
            if (fault := _unpaired(*pair))
        ]
        numbers: dict[str, list[list[int]] | None] = {"answers": None, "wrong": None}
        for name, ids in (("answers", answers), ("wrong", wrong)):
            if ids is not None:
                numbers[name], more = answer_rows(ids, name)
                found += more
        if spans is not None:
            found += row_problems(spans, [sum(row) for row in real])
        if found:
            raise problems("prompts", found)
        for name, ids in numbers.items():
            if ids is not None and len(ids) != len(rows):
                raise TaskError(
                    f"expected {name} for {len(rows)} prompts, a token id or a list each, got {len(ids)}"
                )
        rows, other = (
            [[token if token >= 0 else pad_id for token in row] for row in part] for part in (rows, other)
        )
        shown = _pad(real, padding, False)
        last = shown.shape[1] - 1 - shown.flip(1).int().argmax(dim=1)
        return cls(
            clean=_pad(rows, padding, pad_id),
            corrupted=_pad(other, padding, pad_id),
            mask=shown,
            positions=last[:, None],
            answers=_answers(numbers["answers"]),
            wrong=_answers(numbers["wrong"]),
            spans=span_masks(spans or (), shown),
        )

    @classmethod
    def from_continuations(
        cls,
        clean: Any,
        corrupted: Any,
        answers: Sequence[Sequence[Sequence[int]]],
        wrong: Sequence[Sequence[Sequence[int]]] | None = None,
        *,
        padding: Padding = "right",
        pad_id: int = 0,
        spans: Sequence[Mapping[str, Sequence[int]]] | None = None,
    ) -> Prompts:
        """Prompts whose answers are texts of one or more tokens, each read with the tokens before it given.

        Args:
            clean, corrupted: as for `from_tokens`.
            answers, wrong: for each prompt a list of answers, each a list of token ids.
            padding, pad_id, spans: as for `from_tokens`.

        Raises:
            TaskError: as `from_tokens`, or an answer is empty.
        """
        plain = cls.from_tokens(clean, corrupted, pad_id=pad_id, spans=spans)
        texts = {"answers": answers} if wrong is None else {"answers": answers, "wrong": wrong}
        if found := [text for name, every in texts.items() for text in text_problems(every, len(plain), name)]:
            raise problems("prompts", found)
        rows = [
            (plain.clean[i, real].tolist(), plain.corrupted[i, real].tolist()) for i, real in enumerate(plain.mask)
        ]
        fields: dict[str, Any] = layout(rows, texts, padding=check_padding(padding), pad_id=pad_id)
        return cls(**fields, spans=span_masks(spans or (), fields["mask"])).to(plain.clean.device)

    @property
    def branched(self) -> bool:
        """Whether some prompt goes on as several texts at once."""
        return self.branch is not None and int(self.branch.max()) > 1

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt, with as much of its longest answer as is read."""
        if self.branched and self.position_ids is not None:
            return int(self.position_ids.where(self.mask, 0).max()) + 1
        return int(self.mask.sum(1).max())

    @property
    def own(self) -> Bool[Tensor, "prompt position"]:
        """Real tokens of the prompts themselves, without those of answers."""
        return self.mask if self.branch is None else self.mask & (self.branch == 0)

    @property
    def same_places(self) -> bool:
        """Whether the corrupted prompts have their tokens at the places where the clean ones have theirs."""
        masks = self.corrupted_mask is None or torch.equal(self.corrupted_mask, self.mask)
        theirs, ours = self.corrupted_position_ids, self.position_ids
        return masks and (theirs is None or (ours is not None and torch.equal(theirs, ours)))

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of the shortest and of the longest prompt, without answers."""
        counts = self.own.sum(1)
        return int(counts.min()), int(counts.max())

    @property
    def compared(self) -> Bool[Tensor, "prompt read"]:
        """The read positions at which outputs are compared with the full model's: all that there are.

        Of answers of several tokens, the prompt's end and the tokens of right answers: what the model says within a
        wrong one is read for that answer's probability and is no part of the behaviour.
        """
        there = self.positions >= 0
        if self.branch is None:
            return there
        right = self.branch_read() == 0
        if self.answers is not None:
            right = right | (self.answers >= 0).any(-1)
        return there & right

    def branch_read(self) -> Tensor:
        """`[prompt, read]`: the branch that each read position is in; 0 is the prompt, and padding."""
        assert self.branch is not None
        return self.branch.gather(1, self.positions.clamp(min=0)).masked_fill(self.positions < 0, 0)

    def one_branch(self, branch: int) -> Prompts:
        """The prompts as they go on in one branch alone, closed up and padded on the right.

        Read positions of other branches are -1; those of the prompt itself are kept.
        """
        assert self.branch is not None
        own = (self.branch == 0) | (self.branch == branch)
        kept = self.mask & own  # [B, T]
        order = (~kept).int().argsort(dim=1, stable=True)[:, : int(kept.sum(1).max())]
        place = (kept.long().cumsum(1) - 1).clamp(min=0)  # where each token goes
        at = self.positions.clamp(min=0)
        read = torch.where((self.positions >= 0) & own.gather(1, at), place.gather(1, at), -1)
        return Prompts(
            clean=self.clean.gather(1, order),
            corrupted=self.corrupted.gather(1, order),
            mask=kept.gather(1, order),
            positions=read,
        )

    def __len__(self) -> int:
        return self.clean.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Prompts:
        """The selected prompts."""
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Prompts:
        return self._map(lambda tensor: tensor.to(device))

    def swapped(self) -> Prompts:
        """Clean and corrupted exchanged (answers stay those of the clean prompts)."""
        mask = self.mask if self.corrupted_mask is None else self.corrupted_mask
        corrupted_mask = None if self.corrupted_mask is None else self.mask
        own, position_ids = self.corrupted_position_ids, self.position_ids
        if own is not None and position_ids is None:  # None would now stand for the corrupted prompts' own
            position_ids = (self.mask.long().cumsum(-1) - 1).clamp(min=0)
        return dataclasses.replace(
            self,
            clean=self.corrupted,
            corrupted=self.clean,
            mask=mask,
            corrupted_mask=corrupted_mask,
            position_ids=position_ids if own is None else own,
            corrupted_position_ids=position_ids,
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> Prompts:
        changes: dict[str, Any] = {
            field.name: function(value)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        spans = {name: function(where) for name, where in self.spans.items()}
        return dataclasses.replace(self, **changes, spans=spans)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and field.name != "spans":
                object.__setattr__(self, field.name, _usable(value, field.name))
        object.__setattr__(self, "spans", {name: _usable(x, f"{name} mask") for name, x in self.spans.items()})
        if self.clean.dim() != 2 or not len(self.clean):
            raise TaskError(
                f"expected clean tokens [prompt, position] with at least one prompt, got {list(self.clean.shape)}"
            )
        for name in ("corrupted", "mask", "position_ids", "corrupted_mask", "corrupted_position_ids", "branch"):
            value = getattr(self, name)
            if value is not None and value.shape != self.clean.shape:
                raise TaskError(
                    f"expected {name} of shape {list(self.clean.shape)} like clean, got {list(value.shape)}"
                )
        found = list(_span_problems(self.spans, self.mask))
        if found:
            raise problems("spans", found)
        if self.positions.dim() != 2 or len(self.positions) != len(self.clean):
            raise TaskError(f"expected positions [{len(self.clean)}, read], got {list(self.positions.shape)}")
        unread = (self.positions < 0).all(1).nonzero().flatten().tolist()
        if unread:
            raise TaskError(f"expected a position to read in every prompt, got none in prompt {unread[0] + 1}")
        for name in ("answers", "wrong"):
            value = getattr(self, name)
            if value is not None and (value.dim() != 3 or value.shape[:2] != self.positions.shape):
                expected = f"[{', '.join(map(str, self.positions.shape))}, answer]"
                raise TaskError(f"expected {name} {expected}, got {list(value.shape)}")


def problems(what: str, found: Sequence[str], *, shown: int = 20) -> TaskError:
    """One error for all problems of a set of prompts: in one line if there is one, else a line each.

    Of more than `shown`, the first of every kind come before others of a kind that is shown already. Long ones are cut:
    what a file holds may be of any length.
    """
    found = [text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…" for text in found]
    if len(found) == 1:
        return TaskError(f"{what}: {found[0]}")
    kinds: dict[str, int] = {}
    for i, text in enumerate(found):
        kinds.setdefault(re.sub(r"'.*?'|\d+", "", text), i)
    first = list(dict.fromkeys([*kinds.values(), *range(len(found))]))
    more = [f"  … and {len(found) - shown} more"] if len(found) > shown else []
    listed = (f"  {found[i]}" for i in sorted(first[:shown]))
    return TaskError("\n".join([f"{what}: {len(found)} problems", *listed, *more]))


def check_padding(padding: str) -> Padding:
    """The padding side of that name."""
    for known in get_args(Padding):
        if padding == known:
            return known
    raise unknown("padding", padding, get_args(Padding))


def _usable(value: Any, name: str) -> Tensor:
    """A tensor as int64 (`mask`s: bool) that was made outside of inference mode."""
    if not isinstance(value, Tensor):
        raise TaskError(
            f"expected {name} as a tensor, got {type(value).__name__}; Prompts.from_tokens takes lists and arrays"
        )
    dtype = torch.bool if name.endswith("mask") else torch.int64
    kind = "true or false" if dtype == torch.bool else "whole numbers"
    fits = not (value.is_floating_point() or value.is_complex() or value.is_quantized or value.is_meta)
    if not fits or value.layout != torch.strided or (value.dtype == torch.bool) != (dtype == torch.bool):
        hint = "; .bool() makes it one" if fits and dtype == torch.bool else ""
        raise TaskError(f"expected {name} as a tensor of {kind}, got {value.dtype} on {value.device}{hint}")
    with torch.inference_mode(False):
        return value.clone().to(dtype) if value.is_inference() else value.to(dtype)


def _span_problems(spans: Mapping[str, Tensor], mask: Tensor) -> Iterator[str]:
    """What is wrong with the positions of each name, prompt by prompt."""
    taken = torch.zeros_like(mask)
    for name, where in spans.items():
        if where.shape != mask.shape:
            yield f"expected {name!r} of shape {list(mask.shape)} like clean, got {list(where.shape)}"
            continue
        for what, bad in (("lies outside of the prompt", where & ~mask), ("overlaps another span", where & taken)):
            yield from (f"prompt {i + 1}: {name!r} {what}" for i in bad.any(1).nonzero().flatten().tolist())
        taken = taken | where


def _masks(rows: list[list[int]], real: list[list[bool]] | None, name: str) -> list[list[bool]]:
    """Real tokens of each row, as long as the row."""
    if real is None:
        return [[True] * len(row) for row in rows]
    if len(real) != len(rows):
        raise TaskError(f"expected a mask for each of {len(rows)} {name} prompts, got {len(real)}")
    found = [
        f"prompt {i}: expected a mask of {len(row)} positions like {name}, got {len(mask)}"
        for i, (row, mask) in enumerate(zip(rows, real, strict=True), start=1)
        if len(row) != len(mask)
    ]
    if found:
        raise problems("prompts", found)
    return real


def _unpaired(clean: list[int], corrupted: list[int], real: list[bool], other: list[bool]) -> str | None:
    """What keeps two rows of tokens, True at real ones, from being a pair."""
    if sum(real) != sum(other):
        return f"clean has {sum(real)} tokens, corrupted {sum(other)}"
    if not any(real):
        return "it has no tokens" if not real else "its mask has no real token"
    if real != other:
        return "clean and corrupted are padded at different positions"
    for name, row in (("clean", clean), ("corrupted", corrupted)):
        for i, (token, shown) in enumerate(zip(row, real, strict=True)):
            if token < 0 and shown:
                return (
                    f"token id {token} in {name}, position {i + 1}; they count from 0 (if it is padding, "
                    "leave it out or give a mask)"
                )
    return None


def _pad(rows: Sequence[Sequence[int]], padding: Padding, fill: int) -> Tensor:
    """`[prompt, position]` of rows of unequal lengths."""
    width = max(map(len, rows))
    full = ([fill] * (width - len(row)) for row in rows)
    return torch.tensor(
        [[*f, *row] if padding == "left" else [*row, *f] for f, row in zip(full, rows, strict=True)]
    )


def _answers(rows: list[list[int]] | None) -> Tensor | None:
    """`[prompt, 1, answer]`, filled up with -1; None if no prompt has any."""
    return None if rows is None or not any(rows) else _pad(rows, "right", -1)[:, None]
