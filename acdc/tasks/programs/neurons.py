"""The true neurons of a Tracr model, derived from single replacements, with the code that derives its true edges.

A hidden unit of an MLP belongs to the truth exactly if giving it, at all positions, the values that it has on another
input (or zero) can change an output. What can be changed is looked for as for edges: on random pairs until as many
again show nothing new, and on pairs that make the program do what it rarely does. A unit that no output depends on in
any of them is no part of it; `keeping_alone` shows that the others are enough together.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from acdc.graph import BoolArray
from acdc.model.programs.tracr import TracrModel
from acdc.tasks.programs.derive import TOLERANCE, Runner, covering, read_positions
from acdc.tasks.programs.inputs import Pairs
from acdc.tasks.programs.rare_inputs import seen_to_act


@dataclasses.dataclass(frozen=True)
class TrueNeurons:
    """Neurons that matter, and inputs that show it.

    Attributes:
        kept: `[layer][hidden unit]`.
        witnesses: few pairs that together show each of them.
    """

    kept: tuple[BoolArray, ...]
    witnesses: Pairs


def true_neurons(
    model: TracrModel, *, ablation: str = "resample", distribution: str = "varied", seed: int = 0
) -> TrueNeurons:
    """Derive the truth for an ablation ("resample" or "zero") and a distribution of inputs."""
    rng = np.random.default_rng(seed)
    pairs, effects = seen_to_act(
        model, lambda some: neuron_effects(model, some, ablation=ablation), distribution=distribution, rng=rng
    )
    kept = effects.max(-1) > TOLERANCE
    chosen = covering(effects[kept])
    ends = np.cumsum(model.program.mlp_widths)[:-1]
    return TrueNeurons(tuple(np.split(kept, ends)), pairs[torch.tensor(chosen, dtype=torch.long)])


@torch.no_grad()
def neuron_effects(model: TracrModel, pairs: Pairs, *, ablation: str) -> npt.NDArray[np.float64]:
    """`[neuron, pair]`, the hidden units of all layers in a row: how far replacing each alone moves an output."""
    run = _Hidden(model, pairs)
    every = []
    for layer, (clean, reference) in enumerate(zip(run.clean, run.references(ablation), strict=True)):
        for unit in range(clean.shape[-1]):
            changed = clean.clone()
            changed[..., unit] = reference[..., unit]
            every.append(run.moved(layer, changed))
    return torch.stack(every).numpy()


@torch.no_grad()
def keeping_alone(
    model: TracrModel, pairs: Pairs, kept: tuple[BoolArray, ...], *, ablation: str
) -> npt.NDArray[np.float64]:
    """`[pair]`: how far outputs move if all neurons but these, `[layer][hidden unit]`, are replaced at once."""
    run = _Hidden(model, pairs)
    references = run.references(ablation)

    def replace(layer: int, own: Tensor) -> Tensor:
        return torch.where(torch.as_tensor(kept[layer]), own, references[layer])

    return run.distance(run.outputs(replace)).numpy()


class _Hidden:
    """Plain runs of pairs, in float64.

    Attributes:
        clean: hidden units of each layer, `[B, T, H]`; streams: the residual stream before each MLP.
    """

    def __init__(self, model: TracrModel, pairs: Pairs) -> None:
        self._run, self._pairs = Runner(model), pairs
        self._ignored = ~read_positions(model, pairs.clean_mask)
        self.clean, self.streams, self._outputs = self._plain(pairs.clean, pairs.clean_positions, pairs.clean_mask)

    def references(self, ablation: str) -> list[Tensor]:
        """What replaces the hidden units of each layer: those of the corrupted input, or zero."""
        pairs = self._pairs
        corrupted = self._plain(pairs.corrupted, pairs.corrupted_positions, pairs.corrupted_mask)[0]
        return [torch.zeros_like(x) for x in corrupted] if ablation == "zero" else corrupted

    def moved(self, layer: int, hidden: Tensor) -> Tensor:
        """`[B]`: how far an output moves when a layer's hidden units are these."""
        x = self.streams[layer] + self._run.mlp_output(layer, hidden)
        return self.distance(self._run.rest(x, self._pairs.clean_mask, layer + 1))

    def distance(self, outputs: Tensor) -> Tensor:
        """`[B]`: how far outputs `[B, T, O]` are from the model's own, at most."""
        return (outputs - self._outputs).abs().amax(-1).masked_fill(self._ignored, 0).amax(-1)

    def outputs(self, replace: object = None) -> Tensor:
        pairs = self._pairs
        return self._plain(pairs.clean, pairs.clean_positions, pairs.clean_mask, replace)[2]

    def _plain(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, replace: object = None
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        run, hidden, streams = self._run, list[Tensor](), list[Tensor]()
        x = torch.stack(run.inputs(tokens, positions)).sum(0)
        for layer in range(run.graph.n_layers):
            heads = [row.number for row in run.graph.layer_heads(layer).components]
            x = torch.stack([x, *(run.head(layer, h, x, x, x, mask) for h in heads)]).sum(0)
            streams.append(x)
            hidden.append(run.hidden(layer, x))
            if callable(replace):
                hidden[-1] = replace(layer, hidden[-1])
            x = x + run.mlp_output(layer, hidden[-1])
        return hidden, streams, run.logits(x)
