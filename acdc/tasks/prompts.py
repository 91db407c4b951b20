"""Prompt pairs as tensors: clean and corrupted tokens, the positions that are read, and the answers there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from acdc.errors import TaskError

Rows = Tensor | Sequence[Sequence[int]]
"""Token ids, a row a prompt; rows may differ in length if they are lists."""

Padding = Literal["left", "right"]


@dataclasses.dataclass(frozen=True)
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
    """

    clean: Tensor
    corrupted: Tensor
    mask: Tensor
    positions: Tensor
    answers: Tensor | None = None
    wrong: Tensor | None = None
    position_ids: Tensor | None = None
    corrupted_mask: Tensor | None = None
    corrupted_position_ids: Tensor | None = None

    @classmethod
    def from_tokens(
        cls,
        clean: Rows,
        corrupted: Rows,
        answers: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
        wrong: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
        mask: Tensor | Sequence[Sequence[bool]] | None = None,
        *,
        padding: Padding = "right",
        pad_id: int = 0,
    ) -> Prompts:
        """Next-token prompts from token ids, read at the last real token.

        Args:
            clean, corrupted: `[prompt, position]`; lists of unequal lengths are padded and masked.
            answers, wrong: `[prompt]` or `[prompt, answer]`; lists may differ in length, -1 pads.
            mask: `[prompt, position]`, True at real tokens, for tokens that are padded already.
            padding: the side on which lists of unequal lengths are filled up.
            pad_id: the token they are filled up with.

        Raises:
            TaskError: shapes or lengths of clean and corrupted do not match.
        """
        rows, other = _as_lists(clean, "clean"), _as_lists(corrupted, "corrupted")
        if len(rows) != len(other):
            raise TaskError(f"expected as many corrupted as clean prompts, got {len(other)} and {len(rows)}")
        unequal = [
            f"prompt {i + 1}: clean has {len(a)} tokens, corrupted {len(b)}"
            for i, (a, b) in enumerate(zip(rows, other, strict=True))
            if len(a) != len(b)
        ]
        if unequal:
            raise problems("prompts", unequal)
        empty = [f"prompt {i + 1} has no tokens" for i, row in enumerate(rows) if not row]
        if empty or not rows:
            raise problems("prompts", empty or ["there are none"])
        clean_ids, real = _pad(rows, padding, pad_id)
        corrupted_ids, _ = _pad(other, padding, pad_id)
        if mask is not None:
            real = torch.as_tensor(mask).bool().cpu()
            if real.shape != clean_ids.shape or not bool(real.any(dim=1).all()):
                raise TaskError(
                    f"expected mask {list(clean_ids.shape)} with a real token in every row, got {list(real.shape)}"
                )
        last = real.shape[1] - 1 - real.flip(1).int().argmax(dim=1)
        return cls(
            clean=clean_ids,
            corrupted=corrupted_ids,
            mask=real,
            positions=last[:, None],
            answers=_answers(answers, "answers"),
            wrong=_answers(wrong, "wrong"),
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
        changes = {
            field.name: function(value)
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return dataclasses.replace(self, **changes)

    def __post_init__(self) -> None:
        if self.clean.dim() != 2 or not len(self.clean):
            raise TaskError(
                f"expected clean tokens [prompt, position] with at least one prompt, got {list(self.clean.shape)}"
            )
        for name in ("corrupted", "mask", "position_ids", "corrupted_mask", "corrupted_position_ids"):
            value = getattr(self, name)
            if value is not None and value.shape != self.clean.shape:
                raise TaskError(
                    f"expected {name} of shape {list(self.clean.shape)} like clean, got {list(value.shape)}"
                )
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
    """One error for all problems of a set of prompts: in one line if there is one, else a line each."""
    if len(found) == 1:
        return TaskError(f"{what}: {found[0]}")
    more = [f"  … and {len(found) - shown} more"] if len(found) > shown else []
    return TaskError("\n".join([f"{what}: {len(found)} problems", *(f"  {x}" for x in found[:shown]), *more]))


def _as_lists(rows: Rows, name: str) -> list[list[int]]:
    if isinstance(rows, Tensor):
        if rows.dim() != 2 or rows.is_floating_point():
            raise TaskError(f"expected {name} token ids [prompt, position], got {rows.dtype} {list(rows.shape)}")
        return rows.tolist()
    return [list(row) for row in rows]


def _pad(rows: list[list[int]], padding: Padding, pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask `[prompt, position]` of rows of unequal lengths."""
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if padding == "left" else slice(0, len(row))
        tokens[i, where], mask[i, where] = torch.tensor(row, dtype=torch.long), True
    return tokens, mask


def _answers(ids: Tensor | Sequence[int] | Sequence[Sequence[int]] | None, name: str) -> Tensor | None:
    """`[prompt, 1, answer]`, filled up with -1; None if no prompt has any."""
    if ids is None:
        return None
    if not isinstance(ids, Tensor):
        rows = [[row] if isinstance(row, int) else list(row) for row in ids]
        if not any(rows):
            return None
        ids = _pad(rows, "right", -1)[0]
    if ids.dim() not in (1, 2) or ids.is_floating_point():
        raise TaskError(
            f"expected {name} [prompt] or [prompt, answer] of token ids, got {ids.dtype} {list(ids.shape)}"
        )
    return ids.reshape(len(ids), 1, -1).long()
