"""What values are replaced by where it is not the other prompt's: zeros, or means over the prompts at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from acdc.engine.plain_run import full_context, plain_run
from acdc.engine.problem import Problem
from acdc.engine.references import References, means_over
from acdc.errors import AcdcError
from acdc.tasks.prompts import Prompts
from acdc.tracing import sites
from acdc.tracing.sites import Site

Means = Callable[[int, Site, Prompts], Tensor]
"""`(layer, site, prompts)` to what the site's values are replaced by, `[component, 1, B, T, X]`."""


def means_of(problem: Problem, chosen: Sequence[Site], ablation: str, *, batch_size: int) -> Means | None:
    """What values are replaced by under an ablation; None for resampling, where it is the other prompt's.

    A mean is over the own tokens of all clean prompts; by position, over the i-th tokens of the prompts that have one
    (`acdc.engine.references.means_over`).

    Args:
        batch_size: prompts whose values at all sites are there at once.

    Raises:
        AcdcError: a mean of patterns of unequal lengths, or of answers of several tokens.
    """
    if ablation == "resample":
        return None
    model, prompts = problem.model, problem.prompts
    if ablation == "zero":
        return lambda layer, site, prompts: model.decomposition.unembedding.new_zeros(())
    if any(site.name == "pattern" for site in chosen):
        _refuse_patterns(prompts, ablation)
    layers = model.decomposition.layers
    keys = [(i, site) for i, layer in enumerate(layers) for site in chosen if sites.components(layer, site)]

    def values(some: Prompts) -> list[Tensor]:
        _, run = plain_run(model, some)
        context = full_context(model, some)
        return [sites.values(model, context, run, index, site) for index, site in keys]

    found = means_over(
        values, prompts, per_position=ablation == "mean-position", batch_size=batch_size, device=model.device,
        dtype=model.dtype,
    )  # fmt: skip
    means = {(index, site.name): mean for (index, site), mean in zip(keys, found, strict=True)}
    return lambda layer, site, prompts: References((means[layer, site.name],), ()).of(prompts).inputs[0]


def _refuse_patterns(prompts: Prompts, ablation: str) -> None:
    """Refuse a mean of attention patterns whose queries or keys are not the same tokens in every prompt."""
    why = "a mean attention pattern needs prompts of one length"
    if ablation == "mean":
        raise AcdcError(f"{why}, position by position: use mean-position, or zero")
    if prompts.branched:
        raise AcdcError(f"{why} and answers of one token, and some here have several: use zero, or resample")
    if not bool((prompts.mask == prompts.mask[:1]).all()):
        raise AcdcError(f"{why}, and these have several: use zero, or resample")
