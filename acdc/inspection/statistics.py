"""Statistics of heads, from plain runs: attention on the keys that a rule names, likeness of patterns, copying."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from acdc.graph import FloatArray
from acdc.inspection.attention import pattern_of
from acdc.model import forward
from acdc.model.architecture import Attention
from acdc.model.forward import Context
from acdc.model.model import Model
from acdc.model.trace import Trace
from acdc.tasks.prompts import Prompts


def rules_of(prompts: Prompts, *, causal: bool) -> dict[str, Tensor]:
    """`[B, query, key]` bool, the keys that a rule names for each query; none where it does not apply.

    Args:
        causal: whether queries see earlier keys alone: a token that recurs later is then no duplicate to them.
    """
    tokens, mask = prompts.clean, prompts.own
    number = mask.long().cumsum(1) - 1
    distance = number[:, :, None] - number[:, None, :]
    both = mask[:, :, None] & mask[:, None, :]
    same = (tokens[:, :, None] == tokens[:, None, :]) & both
    after = torch.zeros_like(same)
    after[:, :, 1:] = same[:, :, :-1]  # what followed
    later = number[:, :, None] > 1  # of the first two queries every rule says the same
    return {
        "previous token": (distance == 1) & both & later,
        "self": (distance == 0) & both & later,
        "sink": (number[:, None, :] == 0) & both & later,
        "duplicate token": same & ((distance > 0) if causal else (distance != 0)),
        "induction": after & both & (distance > 0),
    }


def on_answers(prompts: Prompts, ids: Tensor) -> tuple[Tensor, Tensor]:
    """`[B, query, key]` bool, tokens that are what is asked for where the metric reads; `[B, query]`, where that is.

    Args:
        ids: `[B, read, answer]`, -1 pads.
    """
    asked = (prompts.positions >= 0) & (ids >= 0).any(-1)  # [B, read]
    same = (prompts.clean[:, None, :, None] == ids[:, :, None, :]).any(-1) & prompts.own[:, None]  # [B, read, key]
    row, read = asked.nonzero(as_tuple=True)
    at = prompts.positions[row, read]
    keys = torch.zeros_like(prompts.own)[:, None].repeat(1, prompts.own.shape[1], 1)
    keys[row, at] = same[row, read]
    queries = torch.zeros_like(prompts.own)
    queries[row, at] = True
    return keys, queries


def add_attention(
    total: FloatArray, weights: Tensor, keys: Tensor, mask: Tensor, *, at_least: float | None = None
) -> None:
    """Add attention on keys, summed over the queries that have any, and the number of these: `[head, 2]`.

    Args:
        at_least: count the queries that have so much on them instead.
    """
    queries = keys.any(-1) & mask  # [B, query]
    on = (weights * keys).sum(-1)[:, queries]
    if at_least is not None:
        on = on >= at_least
    total[:, 0] += on.double().sum(1).cpu().numpy()
    total[:, 1] += int(queries.sum())


def all_weights(model: Model, context: Context, trace: Trace) -> Tensor:
    """Attention of all heads, `[head, B, query, key]`, 0 at padding."""
    real = context.mask[:, :, None] & context.mask[:, None, :]
    found = []
    for index, layer in enumerate(model.decomposition.layers):
        if layer.mixer is None:
            found.append(pattern_of(layer.attention, trace, index, context) * real)
    return torch.cat(found)


def aligned(weights: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Patterns with each prompt's real tokens first, and the queries that are compared: past the first two.

    Args:
        weights: `[head, B, query, key]`; mask: `[B, T]`.

    Returns:
        `[head, B, query, key]` and `[B, query]` bool.
    """
    order = (~mask).int().argsort(dim=1, stable=True)
    rows = torch.arange(len(mask), device=mask.device)[:, None]
    real = mask[rows, order]
    own = weights.gather(2, order[None, :, :, None].expand_as(weights))
    own = own.gather(3, order[None, :, None, :].expand_as(own))
    return own, real & (torch.arange(mask.shape[1], device=mask.device) > 1)


class Likeness:
    """How alike patterns are on all prompts: 1 less half the L1 distance of a row from the mean row, averaged.

    All prompts are added once, and once more when the mean is known.
    """

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._count: Tensor | float = 0.0
        self._apart: Tensor | float = 0.0
        self._number = 0.0

    def add(self, weights: Tensor, mask: Tensor) -> None:
        """Towards the mean."""
        own, queries = aligned(weights, mask)
        self._sum = self._sum + (own * queries[None, :, :, None]).sum(1).double()
        self._count = self._count + queries.sum(0).double()

    def compare(self, weights: Tensor, mask: Tensor) -> None:
        """With the mean, where more than one prompt has the query."""
        assert isinstance(self._count, Tensor)
        own, queries = aligned(weights, mask)
        mean = self._sum / self._count.clamp(min=1)[None, :, None]
        queries = queries & (self._count > 1)
        self._apart = self._apart + ((own - mean[:, None]).abs().sum(-1) * queries).sum((1, 2)).double()
        self._number += int(queries.sum())

    def score(self, n: int) -> FloatArray:
        """`[head]`, of so many; NaN where nothing was compared."""
        if not self._number or not isinstance(self._apart, Tensor):
            return np.full(n, np.nan)
        return np.asarray((1 - 0.5 * self._apart / self._number).cpu().numpy())


def copying(model: Model, prompts: Prompts, trace: Trace, tokens: Tensor) -> FloatArray:
    """Ranks, from −1 to 1, of tokens' own logits among those of some tokens: sum and number `[head, 2]`.

    Args:
        tokens: sorted ids.
    """
    decomposition = model.decomposition
    rows = decomposition.unembedding[tokens].to(torch.promote_types(model.dtype, torch.float32))
    norm = decomposition.final_norm
    if norm is not None:
        rows = rows * norm.gain.to(rows.dtype)
        rows = rows - rows.mean(-1, keepdim=True) if norm.centred else rows
    rows = rows - rows.mean(0)
    own = torch.searchsorted(tokens, prompts.clean.clamp(max=int(tokens.max())))  # [B, T]
    real = prompts.own & (tokens[own] == prompts.clean)
    found = []
    for index, layer in enumerate(decomposition.layers):
        if layer.mixer is not None:
            continue
        attention: Attention = layer.attention
        v = forward.per_head(attention, trace.v[index])
        if v.shape[-1] != attention.w_o.shape[1]:
            found.append(np.zeros((attention.n_heads, 2)))
            continue
        logits = (forward.write(attention, v)[:, 0].to(rows.dtype) @ rows.T)[:, real]  # [head, n, token]
        mine = logits.gather(-1, own[real][None, :, None].expand(len(logits), -1, 1))
        below = (logits < mine).double().sum(-1) / max(1, len(tokens) - 1)
        rank = (2 * below - 1).sum(1)
        found.append(np.stack([rank.cpu().numpy(), np.full(len(rank), int(real.sum()), dtype=float)], 1))
    return np.concatenate(found)
