"""What removed edges carry: the reference output of every source, by kind of ablation.

A mean by position is a mean over the prompts' i-th tokens, each counted from the prompt's own first real token, so
that it does not depend on how prompts of unequal lengths are padded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from acdc.engine.plain_run import embedded, plain_run
from acdc.engine.ranks import ALONE, Ranks
from acdc.engine.stages import stages_of
from acdc.graph import Graph
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts

ABLATIONS = {
    "resample": "removed edges carry the corrupted prompt's activation",
    "zero": "removed edges carry zero",
    "mean": "removed edges carry the mean over the clean prompts and their positions",
    "mean-position": "removed edges carry the mean over the clean prompts' first tokens, second tokens, and so on",
    "optimal": "removed edges carry the constant that does least harm when their source alone is replaced by it",
}
NOT_LEARNED = tuple(kind for kind in ABLATIONS if kind != "optimal")
"""Those whose values are computed, with nothing to fit."""


@dataclasses.dataclass(frozen=True)
class References:
    """The reference output of every source.

    Attributes:
        inputs: one per input source, `[1, B or 1, T or 1, D]`.
        outputs: compact ones of each stage, `[component, 1, B or 1, T or 1, X]`.

    Where there is one for all prompts (B is 1) but T positions, i is each prompt's i-th real token.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def of(self, prompts: Prompts) -> References:
        """With full prompt and position axes `[B, T]`: views where possible."""
        B, T = prompts.mask.shape
        token = None if _padded_right(prompts.mask) and not prompts.branched else token_places(prompts)  # [B, T]

        def full(x: Tensor) -> Tensor:
            if token is not None and x.shape[-2] > 1:
                return x[..., 0, :, :][..., token, :]
            return x.expand(*x.shape[:-3], B, T, x.shape[-1])

        return References(tuple(map(full, self.inputs)), tuple(map(full, self.outputs)))


def token_places(prompts: Prompts) -> Tensor:
    """`[B, T]`: which of its prompt's tokens each is, counted from 0; those of a branch go on from the prompt."""
    if prompts.branched and prompts.position_ids is not None:
        return prompts.position_ids
    return (prompts.mask.long().cumsum(-1) - 1).clamp(min=0)


def _padded_right(mask: Tensor) -> bool:
    """Whether every prompt's real tokens come first, so that its i-th token is at position i."""
    return bool((mask[:, 1:] <= mask[:, :-1]).all())


def mean_references(
    model: Model,
    graph: Graph,
    prompts: Prompts,
    *,
    per_position: bool,
    batch_size: int | None = None,
    ranks: Ranks = ALONE,
) -> References:
    """Mean of every source's output over the clean prompts' real tokens: over all, or over the i-th of each prompt.

    Args:
        ranks: processes that share the batches.
    """
    stages = stages_of(model, graph)

    def outputs(batch: Prompts) -> list[Tensor]:
        inputs, _ = embedded(model, graph, batch)
        _, trace = plain_run(model, batch)
        return [*inputs, *(stage.output(trace) for stage in stages)]

    means = means_over(
        outputs, prompts, per_position=per_position, batch_size=batch_size, device=model.device, dtype=model.dtype,
        ranks=ranks,
    )  # fmt: skip
    return References(tuple(means[: graph.n_inputs]), tuple(means[graph.n_inputs :]))


@torch.no_grad()
def means_over(
    values: Callable[[Prompts], Sequence[Tensor]],
    prompts: Prompts,
    *,
    per_position: bool,
    batch_size: int | None,
    device: torch.device,
    dtype: torch.dtype,
    ranks: Ranks = ALONE,
) -> list[Tensor]:
    """Means over the real tokens of prompts: over all, or over the i-th of each prompt.

    Tokens of answers are no part of a prompt. At places that no prompt reaches, the mean is that of right answers, and
    where these end too, of wrong ones.

    Args:
        values: of a batch of the prompts on the device, `[..., B, T, X]` each.
        dtype: of the means; sums are in float32 or better.
        ranks: processes that share the batches.

    Returns:
        `[..., 1, 1, X]` each, or `[..., 1, T, X]` by position.
    """
    sums: list[Tensor] | None = None
    axes = (-3,) if per_position else (-3, -2)
    count: Tensor | float = 0.0
    wide, size = torch.promote_types(dtype, torch.float32), batch_size or len(prompts)
    for i in ranks.share(-(-len(prompts) // size)):
        batch = prompts[i * size : (i + 1) * size].to(device)
        outputs = list(values(batch))
        if per_position and batch.branch is not None:  # a place may be taken once in every branch
            width = batch.mask.shape[1]
            place = token_places(batch) + width * _owners(batch)  # places of answers stand behind those of prompts
            taken = (F.one_hot(place, 3 * width) * batch.mask[..., None]).to(wide)  # [B, T, place]
            outputs = [torch.einsum("...btx,btp->...bpx", x.to(wide), taken) for x in outputs]
            weight = taken.sum(1)[..., None]
            terms = [x.sum(-3, keepdim=True) for x in outputs]
        else:
            real = batch.own
            if per_position and not _padded_right(real):
                order = (~real).int().argsort(dim=1, stable=True)  # [B, T]: real tokens first
                prompt = torch.arange(len(order), device=order.device)[:, None]
                outputs, real = [x[..., prompt, order, :] for x in outputs], real.gather(1, order)
            weight = real[..., None].to(wide)
            terms = [(x * weight).sum(axes, keepdim=True) for x in outputs]
        sums = terms if sums is None else [a + b for a, b in zip(sums, terms, strict=True)]
        count = count + weight.sum((0,) if per_position else (0, 1), keepdim=True)
    assert sums is not None
    assert isinstance(count, Tensor)
    total, *sums = _summed([count, *sums], ranks)
    if per_position and prompts.branch is not None:
        by_owner = [x.chunk(3, dim=-2) for x in (total, *sums)]
        own, right = (count > 0 for count in by_owner[0][:2])
        total, *sums = [torch.where(own, a, torch.where(right, b, c)) for a, b, c in by_owner]
    return [(x / total.clamp(min=1)).to(dtype) for x in sums]


def _owners(prompts: Prompts) -> Tensor:
    """`[B, T]`: 0 at the prompt's own tokens, 1 at those of right answers, 2 at those of wrong ones."""
    assert prompts.branch is not None
    compared = torch.zeros_like(prompts.branch).scatter_add(
        1, prompts.positions.clamp(min=0), prompts.compared.long()
    )
    return torch.where(prompts.branch == 0, 0, torch.where(compared > 0, 1, 2))


def _summed(parts: list[Tensor], ranks: Ranks) -> list[Tensor]:
    """Each tensor's sum over all processes."""
    if ranks.count == 1:
        return parts
    flat = torch.from_numpy(ranks.summed(torch.cat([x.double().flatten() for x in parts]).cpu().numpy()))
    pieces = flat.to(parts[0].device).split([x.numel() for x in parts])
    return [new.view_as(x).to(x.dtype) for new, x in zip(pieces, parts, strict=True)]


def zero_references(model: Model, graph: Graph) -> References:
    zero = model.decomposition.unembedding.new_zeros(1, 1, 1, model.d_model)
    return References((zero,) * graph.n_inputs, tuple(stage.zeros() for stage in stages_of(model, graph)))
