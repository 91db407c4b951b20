"""Circuits inside nodes: hidden units and dimensions of heads that are kept compute, the others carry a reference.

A neuron is one hidden unit of an MLP at all positions; a dimension is one number of a head's attention result, before
any norm of it, at all positions. A removed one carries what it does on the corrupted prompt (`resample`), zero, or its
mean over the clean prompts' tokens (by position or not). A node's last bias belongs to none of them. So an MLP without
any neuron writes its reference under `resample`, and its last bias under `zero`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from acdc.engine.patching import Patching
from acdc.engine.plain_run import plain_run
from acdc.engine.problem import Problem
from acdc.engine.references import References, means_over
from acdc.errors import AcdcError, unknown
from acdc.graph import BoolArray, Graph, IntArray
from acdc.model.architecture import Layer
from acdc.model.forward import Context
from acdc.model.hidden import Hidden, hidden_layers, mlp_with, read_by
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts

Kept = Mapping[str, BoolArray]
"""By node, the units that are kept: `[X]`, or `[C, X]` for C circuits. Nodes that it lacks are whole."""
Inside = Literal["mlps", "heads", "both"]
"""Whose units are switched."""
NO_CONSTANTS = "optimal ablation has constants for what nodes write, and none for neurons: use ablation 'mean'"


@dataclasses.dataclass(frozen=True)
class Inner:
    """Nodes of one kind in one layer, whose units are switched: its heads, or its MLP.

    Attributes:
        names: of the nodes; layer: theirs; width: units of each, X.
        hidden: of an MLP; None: heads.
    """

    names: tuple[str, ...]
    layer: int
    width: int
    hidden: Hidden | None = None


def inner_of(model: Model, graph: Graph, inside: Inside, nodes: Collection[str] | None = None) -> tuple[Inner, ...]:
    """Nodes whose units are switched: MLPs, then heads.

    Args:
        nodes: layers without any of these are left away; None: all are there.

    Raises:
        AcdcError: another `inside`.
        UnsupportedModelError: the hidden layer of some MLP cannot be found; says which, and why.
    """
    if inside not in get_args(Inside):
        raise unknown("choice of nodes to look inside of", str(inside), get_args(Inside))
    mlps = hidden_layers(model) if inside != "heads" else ()
    found = [Inner((own.mlp,), own.layer, own.width, own) for own in mlps]
    for layer, block in enumerate(model.decomposition.layers if inside != "mlps" else ()):
        if block.mixer is None:
            names = tuple(head.name for head in graph.layer_heads(layer).components)
            found.append(Inner(names, layer, block.attention.w_o.shape[1]))
    return tuple(each for each in found if nodes is None or not set(nodes).isdisjoint(each.names))


def inner_values(
    model: Model, inner: Sequence[Inner], prompts: Prompts, *, corrupted: bool = False
) -> list[Tensor]:
    """Units in a plain run, `[node, B, T, X]` of each."""
    mlps = [each.hidden for each in inner if each.hidden is not None]
    with read_by([hidden.matrix for hidden in mlps]) as seen:
        _, trace = plain_run(model, prompts, corrupted=corrupted, ungrouped=len(mlps) < len(inner))
    hidden = iter([x for _, x in seen])
    return [
        trace.attended[each.layer][:, 0] if each.hidden is None
        else next(hidden).reshape(1, *prompts.mask.shape, each.width)
        for each in inner
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Switched:
    """Units of the nodes of one layer.

    Attributes:
        inner: the nodes.
        kept: `[node, C, X]` bool; reference: `[node, B, W, X]`, or a number.
    """

    inner: Inner
    kept: Tensor
    reference: Tensor

    def switch(self, nodes: IntArray, own: Tensor, context: Context, *, read: bool) -> Tensor:
        """Units `[node, C or 1, B, W or P, X]` of some of the nodes, with the reference where they are not kept."""
        which = torch.as_tensor(nodes, device=own.device)
        reference = self.reference
        if reference.dim():
            reference = reference[which][:, None]
            reference = context.at_read(reference) if read else reference
        return torch.where(self.kept[which][:, :, None, None], own, reference.to(own.dtype))


@dataclasses.dataclass(frozen=True)
class Neurons:
    """Which units are kept on one batch of prompts, and what the others carry; MLPs and heads by layer."""

    mlps: Mapping[int, Switched]
    heads: Mapping[int, Switched]

    @property
    def circuits(self) -> int:
        return max((part.kept.shape[1] for part in (*self.mlps.values(), *self.heads.values())), default=1)

    def mlp(self, layer: Layer, index: int, x: Tensor, context: Context, *, read: bool) -> Tensor:
        """What an MLP in `mlps` writes, given its residual input `[C or 1, B, W or P, D]`."""
        part = self.mlps[index]
        assert part.inner.hidden is not None
        if (circuits := part.kept.shape[1]) > 1:
            x = x.expand(circuits, *x.shape[1:])
        only = np.zeros(1, dtype=np.int64)
        return mlp_with(
            layer, part.inner.hidden, x, lambda own: part.switch(only, own[None], context, read=read)[0]
        )


class NeuronReferences:
    """What removed units carry on the prompts of a problem.

    Args:
        nodes: as for `inner_of`.

    Attributes:
        inner: the nodes whose units are switched.

    Raises:
        UnsupportedModelError: the hidden units of some MLP cannot be found.
    """

    def __init__(self, problem: Problem, inside: Inside = "mlps", nodes: Collection[str] | None = None) -> None:
        if problem.ablation == "optimal":
            raise AcdcError(NO_CONSTANTS)
        self.problem, self.inner = problem, inner_of(problem.model, problem.graph, inside, nodes)
        self._last: tuple[Prompts, list[Tensor]] | None = None

    @property
    def widths(self) -> dict[str, int]:
        """Units of each node."""
        return {name: each.width for each in self.inner for name in each.names}

    @cached_property
    def _means(self) -> list[Tensor]:
        problem = self.problem
        return means_over(
            lambda prompts: inner_values(problem.model, self.inner, prompts),
            problem.prompts,
            per_position=problem.ablation == "mean-position",
            batch_size=problem.batch_of("circuits"),
            device=problem.model.device,
            dtype=problem.model.dtype,
        )

    @torch.no_grad()
    def of(self, prompts: Prompts) -> list[Tensor]:
        """The reference of the units of each of `inner` on a batch of these prompts: `[node, B, T, X]`, or 0."""
        if self._last is None or self._last[0] is not prompts:
            self._last = prompts, self._made(prompts)
        return self._last[1]

    def _made(self, prompts: Prompts) -> list[Tensor]:
        model, ablation = self.problem.model, self.problem.ablation
        if ablation == "resample":
            return inner_values(model, self.inner, prompts, corrupted=True)
        if ablation == "zero":
            return [model.decomposition.unembedding.new_zeros(())] * len(self.inner)
        return list(References(tuple(self._means), ()).of(prompts).inputs)

    def keeping(self, patching: Patching, kept: Kept) -> Neurons:
        """Only these units, on one batch; nodes that are not named are whole."""
        device = patching.model.device
        mlps, heads = dict[int, Switched](), dict[int, Switched]()
        for each, reference in zip(self.inner, self.of(patching.prompts), strict=True):
            given = [kept.get(name) for name in each.names]
            if all(units is None for units in given):
                continue
            rows = [np.ones((1, each.width), bool) if u is None else u.reshape(-1, each.width) for u in given]
            circuits = max(len(row) for row in rows)
            every = np.stack([np.broadcast_to(row, (circuits, each.width)) for row in rows])
            window = reference[:, :, patching.start :] if reference.dim() else reference
            part = Switched(each, torch.as_tensor(every, device=device), window)
            (heads if each.hidden is None else mlps)[each.layer] = part
        return Neurons(mlps, heads)
