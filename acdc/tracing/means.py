"""What values are replaced by where it is not the other prompt's: zeros, or means over the prompts at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from acdc.engine.plain_run import full_context, plain_run
from acdc.engine.problem import Problem
from acdc.engine.references import References, token_places
from acdc.errors import AcdcError
from acdc.tasks.prompts import Prompts
from acdc.tracing import sites
from acdc.tracing.sites import Site

Means = Callable[[int, Site, Prompts], Tensor]
"""`(layer, site, prompts)` to what the site's values are replaced by, `[component, 1, B, T, X]`."""


@torch.no_grad()
def means_of(problem: Problem, chosen: Sequence[Site], ablation: str) -> Means | None:
    """What values are replaced by under an ablation; None for resampling, where it is the other prompt's.

    A mean is over the real tokens of all clean prompts; by position, over the i-th tokens of the prompts that have one.

    Raises:
        AcdcError: a mean of patterns of unequal lengths.
    """
    if ablation == "resample":
        return None
    if ablation == "zero":
        return lambda layer, site, prompts: problem.model.decomposition.unembedding.new_zeros(())
    mask = problem.prompts.mask
    for site in chosen:
        if site.name == "pattern" and (ablation == "mean" or not bool((mask == mask[:1]).all())):
            raise AcdcError(
                "a mean attention pattern needs prompts of one length, position by position: use mean-position, or zero"
            )
    per_position = ablation == "mean-position"
    sums: dict[tuple[int, str], Tensor] = {}
    count: Tensor | float = 0.0
    for _, some in problem.batches().slices():
        prompts = some.to(problem.model.device)
        _, run = plain_run(problem.model, prompts)
        context = full_context(problem.model, prompts)
        dtype = torch.promote_types(problem.model.dtype, torch.float32)
        taken = prompts.mask[..., None].to(dtype)  # [B, T, place]: which token is of which place
        if per_position:  # a place may be taken once in every branch
            taken = taken * F.one_hot(token_places(prompts), prompts.mask.shape[1])
        for index, layer in enumerate(problem.model.decomposition.layers):
            for site in chosen:
                if sites.components(layer, site):
                    x = sites.values(problem.model, context, run, index, site).to(dtype)
                    total = torch.einsum("hcbtx,btp->hcpx", x, taken)[..., None, :, :]
                    sums[index, site.name] = sums.get((index, site.name), 0.0) + total
        count = count + taken.sum((0, 1))[:, None]
    assert isinstance(count, Tensor)
    number = count.clamp(min=1)
    dtype = problem.model.dtype
    return lambda layer, site, prompts: (
        References(((sums[layer, site.name] / number).to(dtype),), ()).of(prompts).inputs[0]
    )
