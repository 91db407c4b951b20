"""Rotary tables that depend on each prompt alone.

Some rotary embeddings choose their frequencies by the longest position of a call (longrope, dynamic NTK), and some
go on from what an earlier call has left, so that a prompt's numbers would depend on its neighbours in a batch and on
what ran before. Here every prompt gets what a model fresh from loading gives it alone: prompts are put in groups
that agree, and the embedding is made to forget before each call. How it chooses need not be known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from acdc.model.architecture import Decomposition


def tables(model: Decomposition, mask: Tensor, position_ids: Tensor) -> Mapping[str, tuple[Tensor, Tensor]]:
    """(cos, sin) by key, each `[B, T, rotary]`; none if the model has no rotary embedding.

    Args:
        mask: `[B, T]` bool, real tokens; position_ids: `[B, T]`.
    """
    if model.rotary is None:
        return {}
    parts = [(rows, _fresh(model, ids)) for rows, ids in groups(model, mask, position_ids)]
    if len(parts) == 1:
        return parts[0][1]
    rows = [index for index, _ in parts]
    return {
        key: (together(rows, [part[key][0] for _, part in parts]), together(rows, [part[key][1] for _, part in parts]))
        for key in parts[0][1]
    }  # fmt: skip


def groups(model: Decomposition, mask: Tensor, position_ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Prompts whose rotation in one call is that of each alone: their rows `[b]` and position ids `[b, T]`.

    Only what stands at padding differs from the position ids given: it must not choose the frequencies.
    """
    every = torch.arange(len(mask), device=mask.device)
    if model.rotary is None:
        return [(every, position_ids)]
    longest = position_ids.where(mask, 0).amax(dim=1)  # [B]
    position_ids = torch.minimum(position_ids, longest[:, None])
    shortest = longest == longest.min()
    if bool(shortest.all()):
        return [(every, position_ids)]
    with_others, alone = _fresh(model, position_ids), _fresh(model, position_ids[shortest])
    if all(torch.equal(a[shortest], b) for key in alone for a, b in zip(with_others[key], alone[key], strict=True)):
        return [
            (every, position_ids)
        ]  # what the shortest and the longest have in common, those in between have too
    rows = [(longest == length).nonzero().flatten() for length in longest.unique()]
    return [(index, position_ids[index]) for index in rows]


def together(rows: Sequence[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """The parts `[b, ...]` of a batch in the order of their rows `[b]`: `[B, ...]`."""
    return torch.cat(list(parts))[torch.cat(list(rows)).argsort()]


def forget(model: Decomposition) -> None:
    """Undo what longer calls have left in the rotary embedding: a call for one first token does."""
    if model.rotary is not None:
        one = model.unembedding[:1, None]
        model.rotary(one, torch.zeros(1, 1, dtype=torch.long, device=one.device))


def _fresh(model: Decomposition, position_ids: Tensor) -> Mapping[str, tuple[Tensor, Tensor]]:
    forget(model)
    assert model.rotary is not None
    return model.rotary(model.unembedding[:1, None], position_ids)
