"""From effects on single prompts to scores: how what an edge does on each prompt becomes one number.

The mean over prompts keeps its sign, and lets prompts cancel: an edge that helps on one half of them and hinders on
the other scores nothing, though a circuit without it is wrong on all. A circuit's distance from the model is a mean of
distances, in which nothing cancels. So rankings go by the mean over prompts of the absolute effect unless told
otherwise, while the signed mean stays for the sign, and for those who rank by it. All of them come from sums that
are added up batch by batch.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import Tensor

from acdc.graph import FloatArray


@dataclasses.dataclass(frozen=True, eq=False)
class Estimates:
    """What a ranking gives, `[n_destinations, n_sources]` each.

    Attributes:
        values: mean over the prompts, with its sign.
        absolute: mean over the prompts of the absolute effect; rms: root of the mean square. None where a method has no
            effect on single prompts.
    """

    values: FloatArray
    absolute: FloatArray | None = None
    rms: FloatArray | None = None


def sums(effects: Tensor) -> FloatArray:
    """Sums over the prompts of effects `[..., prompt]`, of their absolute values and of their squares: `[3, ...]`."""
    effects = effects.detach().double()
    parts = (effects.sum(-1), effects.abs().sum(-1), effects.square().sum(-1))
    return np.stack([part.cpu().numpy() for part in parts])


def estimates(total: FloatArray, prompts: int) -> Estimates:
    """The three means of `sums` `[3, n_destinations, n_sources]` over so many prompts."""
    signed, absolute, square = total / prompts
    return Estimates(signed, absolute, np.sqrt(square))
