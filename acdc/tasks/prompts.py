"""Prompt pairs as tensors: clean and corrupted tokens, the positions that are read, and the answers there."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from acdc.errors import TaskError


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
        return dataclasses.replace(
            self,
            clean=self.corrupted,
            corrupted=self.clean,
            mask=mask,
            corrupted_mask=corrupted_mask,
            position_ids=self.corrupted_position_ids
            if self.corrupted_position_ids is not None
            else self.position_ids,
            corrupted_position_ids=self.position_ids,
        )

    def _map(self, function) -> Prompts:  # type: ignore[no-untyped-def]
        changes = {
            field.name: function(value)
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return dataclasses.replace(self, **changes)

    def __post_init__(self) -> None:
        if self.clean.dim() != 2 or not len(self.clean):
            raise TaskError(f"expected clean tokens [prompt, position] with at least one prompt, got {list(self.clean.shape)}")
        for name in ("corrupted", "mask", "position_ids", "corrupted_mask", "corrupted_position_ids"):
            value = getattr(self, name)
            if value is not None and value.shape != self.clean.shape:
                raise TaskError(f"expected {name} of shape {list(self.clean.shape)} like clean, got {list(value.shape)}")
        if self.positions.dim() != 2 or len(self.positions) != len(self.clean):
            raise TaskError(f"expected positions [{len(self.clean)}, read], got {list(self.positions.shape)}")
        for name in ("answers", "wrong"):
            value = getattr(self, name)
            if value is not None and (value.dim() != 3 or value.shape[:2] != self.positions.shape):
                raise TaskError(f"expected {name} {[*self.positions.shape, 'answer']}, got {list(value.shape)}")
