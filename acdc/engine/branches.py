"""Which models can take several answers of several tokens side by side, as branches of one prompt.

What parts branches is a mask of attention and places of their own (`acdc.tasks.branches`), so nothing else may tell a
token what stands before it.
"""

from __future__ import annotations

import torch

from acdc.errors import UnsupportedModelError
from acdc.model import rotary
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts


def refuse_branches(model: Model, prompts: Prompts) -> None:
    """Refuse prompts with branches that the model would not keep apart.

    Raises:
        UnsupportedModelError: with the reason.
    """
    if not prompts.branched:
        return
    why = ""
    if any(layer.mixer is not None for layer in model.decomposition.layers):
        why = "has layers that read tokens one after the other"
    elif not all(attention.causal for attention in model.decomposition.attentions):
        why = "has attention that looks ahead"
    elif _rotates_by_length(model, prompts.to(model.device)):
        why = "rotates a prompt by its length, which differs from answer to answer"
    if why:
        raise UnsupportedModelError(
            f"{model.name} {why}, so it cannot take several answers of several tokens side by side; give answers of "
            "one token, or one answer a prompt and no wrong one"
        )


def _rotates_by_length(model: Model, prompts: Prompts) -> bool:
    """Whether rotary tables would be others for a prompt with one of its answers than with all of them."""
    assert prompts.branch is not None
    assert prompts.position_ids is not None
    alone = torch.cat(
        [
            prompts.mask & ((prompts.branch == 0) | (prompts.branch == branch))
            for branch in range(1, int(prompts.branch.max()) + 1)
        ]
    )
    places = prompts.position_ids.repeat(len(alone) // len(prompts), 1)
    return len(rotary.groups(model.decomposition, alone, places)) > 1
