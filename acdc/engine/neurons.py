"""Circuits inside MLPs: hidden units that are kept compute, the others carry what they do on the reference.

A neuron is one hidden unit at all positions. A removed one carries its activation on the corrupted prompt (`resample`),
zero, or its mean over the clean prompts' tokens (by position or not). The MLP's last bias belongs to no neuron. So an
MLP without any neuron writes its reference under `resample`, and its last bias under `zero`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from acdc.engine.patching import Patching
from acdc.engine.plain_run import plain_run
from acdc.engine.problem import Problem
from acdc.engine.references import References, means_over
from acdc.errors import AcdcError
from acdc.graph import BoolArray
from acdc.model.architecture import Layer
from acdc.model.forward import Context
from acdc.model.hidden import Hidden, hidden_layers, mlp_with, read_by
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts

NO_CONSTANTS = "optimal ablation has constants for what nodes write, and none for neurons: use ablation 'mean'"

Kept = Mapping[int, BoolArray]
"""By layer, the hidden units that are kept: `[H]`, or `[C, H]` for C circuits. MLPs that it lacks are whole."""


@dataclasses.dataclass(frozen=True)
class Neurons:
    """Which hidden units are kept on one batch of prompts, and what the others carry.

    Attributes:
        hidden: the hidden layers, by layer.
        kept: `[C, H]` bool; references: `[B, W, H]`, or a number; by layer.
    """

    hidden: Mapping[int, Hidden]
    kept: Mapping[int, Tensor]
    references: Mapping[int, Tensor]

    @property
    def circuits(self) -> int:
        return max((len(kept) for kept in self.kept.values()), default=1)

    def mlp(self, layer: Layer, index: int, x: Tensor, context: Context, *, read: bool) -> Tensor:
        """What an MLP in `kept` writes, given its residual input `[C or 1, B, W or P, D]`."""
        kept, reference = self.kept[index], self.references[index]
        if read and reference.dim():
            reference = context.at_read(reference)
        if len(kept) > 1:
            x = x.expand(len(kept), *x.shape[1:])
        return mlp_with(
            layer, self.hidden[index], x, lambda own: torch.where(kept[:, None, None], own, reference.to(own.dtype))
        )


def hidden_values(
    model: Model, hidden: Sequence[Hidden], prompts: Prompts, *, corrupted: bool = False
) -> list[Tensor]:
    """Hidden units in a plain run, `[B, T, H]` of each layer."""
    with read_by([each.matrix for each in hidden]) as seen:
        plain_run(model, prompts, corrupted=corrupted)
    return [x.reshape(*prompts.mask.shape, each.width) for each, (_, x) in zip(hidden, seen, strict=True)]


class NeuronReferences:
    """What removed neurons carry on the prompts of a problem.

    Attributes:
        hidden: the hidden layer of every MLP.

    Raises:
        UnsupportedModelError: some MLP's cannot be found.
    """

    def __init__(self, problem: Problem) -> None:
        if problem.ablation == "optimal":
            raise AcdcError(NO_CONSTANTS)
        self.problem, self.hidden = problem, hidden_layers(problem.model)
        self._last: tuple[Prompts, list[Tensor]] | None = None

    @cached_property
    def _means(self) -> list[Tensor]:
        problem = self.problem
        return means_over(
            lambda prompts: [x[None] for x in hidden_values(problem.model, self.hidden, prompts)],
            problem.prompts,
            per_position=problem.ablation == "mean-position",
            batch_size=problem.batch_of("circuits"),
            device=problem.model.device,
            dtype=problem.model.dtype,
        )

    @torch.no_grad()
    def of(self, prompts: Prompts) -> list[Tensor]:
        """The reference of each layer's hidden units on a batch of these prompts: `[B, T, H]`, or 0."""
        if self._last is None or self._last[0] is not prompts:
            self._last = prompts, self._made(prompts)
        return self._last[1]

    def _made(self, prompts: Prompts) -> list[Tensor]:
        model, ablation = self.problem.model, self.problem.ablation
        if ablation == "resample":
            return hidden_values(model, self.hidden, prompts, corrupted=True)
        if ablation == "zero":
            return [model.decomposition.unembedding.new_zeros(())] * len(self.hidden)
        return [x[0] for x in References(tuple(self._means), ()).of(prompts).inputs]

    def keeping(self, patching: Patching, kept: Kept) -> Neurons:
        """Only these neurons, on one batch."""
        references, device = self.of(patching.prompts), patching.model.device
        own = {
            layer: torch.as_tensor(units, device=device).reshape(-1, units.shape[-1])
            for layer, units in kept.items()
        }
        return Neurons(
            {layer: self.hidden[layer] for layer in kept},
            own,
            {
                layer: x[:, patching.start :] if (x := references[layer]).dim() else x
                for layer in kept
            },
        )  # fmt: skip
