"""States: runs whose residual inputs are known, from which differences are taken and which a search moves on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from acdc.engine.references import References
from acdc.graph import IntArray
from acdc.model import forward
from acdc.model.architecture import Layer
from acdc.model.forward import Context
from acdc.model.model import Model


@dataclasses.dataclass
class PortInputs:
    """Residual inputs of a layer's q, k and v ports: one that all share, and those that have come to differ.

    Attributes:
        _shared: `[1, B, W, D]`.
    """

    _shared: Tensor
    _own: dict[tuple[int, int], Tensor] = dataclasses.field(default_factory=dict)

    def get(self, which: int, heads: IntArray) -> Tensor:
        """`[len(heads) or 1, 1, B, W, D]`; `which` is 0, 1, 2 for q, k, v."""
        rows = [self._own.get((which, int(head))) for head in heads]
        if all(row is None for row in rows):
            return self._shared[None]
        return torch.stack([self._shared if row is None else row for row in rows])

    def own(self, which: int, head: int) -> Tensor:
        """The port's own input `[1, B, W, D]`, to be written to."""
        if (which, head) not in self._own:
            self._own[which, head] = self._shared.clone()
        return self._own[which, head]


@dataclasses.dataclass
class State:
    """A run with known residual inputs; lists are per layer.

    Attributes:
        heads_x: residual inputs of the q, k and v ports.
        q: `[H, 1, B, W, d_head]`; k, v: `[H, 1, B, T, d_head]`.
        reference_z: scaled attention results that differences are taken from, `[H, 1, B, W, d_head]`.
        mlp_x, reference_mlp: input, and output that differences are taken from, `[1, B, W, D]`.
        final_x: `[1, B, W, D]`.
        settled: whether every component's output is its reference, so that unchanged ones need not be run.
    """

    heads_x: list[PortInputs]
    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    reference_z: list[Tensor]
    mlp_x: list[Tensor]
    reference_mlp: list[Tensor]
    final_x: Tensor
    settled: bool


def state_of(
    model: Model, trace: forward.Trace, start: int, references: References | None, *, writable: bool = False
) -> State:
    """The state of a plain run (`references` None) or of a run on references.

    Args:
        writable: copy what a search will change in place.
    """
    layers = model.decomposition.layers
    assert trace.final_input is not None

    def window(x: Tensor) -> Tensor:
        return x[..., start:, :].clone() if writable else x[..., start:, :]

    def every_head(layer: Layer, x: Tensor) -> Tensor:
        repeated = forward.per_head(layer.attention, x)
        return repeated.clone() if writable and repeated is x else repeated

    z = [window(x) for x in trace.z]
    return State(
        heads_x=[PortInputs(x[..., start:, :]) for x in trace.attention_input],
        q=[window(x) for x in trace.q],
        k=[every_head(layer, x) for layer, x in zip(layers, trace.k, strict=True)],
        v=[every_head(layer, x) for layer, x in zip(layers, trace.v, strict=True)],
        reference_z=z if references is None else [window(x) for x in references.z],
        mlp_x=[window(x) for x in trace.mlp_input],
        reference_mlp=[window(x) for x in (trace.mlp_output if references is None else references.mlp)],
        final_x=window(trace.final_input),
        settled=references is None,
    )


@dataclasses.dataclass
class Journal:
    """New values of what was recomputed, so that a search can make one circuit of the batch its state."""

    context: Context
    entries: list[tuple[Callable[[], Tensor], Tensor, bool, int]] = dataclasses.field(default_factory=list)

    def note(self, target: Tensor, value: Tensor, *, read: bool) -> None:
        """`target` `[1, B, W, X]` becomes `value` `[C, B, W or P, X]` of the circuit that is committed."""
        self.entries.append((lambda: target, value, read, 0))

    def note_heads(self, target: Tensor, heads: IntArray, value: Tensor, *, read: bool, offset: int = 0) -> None:
        """The same for heads of `target` `[H, 1, B, T, X]`, from position `offset` on.

        `value` is `[len(heads), C, B, P, X]`.
        """
        for head, new in zip(heads, value, strict=True):
            self.entries.append((partial(target.__getitem__, int(head)), new, read, offset))

    def note_inputs(self, inputs: PortInputs, which: int, heads: IntArray, value: Tensor, *, read: bool) -> None:
        """The same for residual inputs of ports, which are copied only when they come to differ."""
        for head, new in zip(heads, value, strict=True):
            self.entries.append((partial(inputs.own, which, int(head)), new, read, 0))

    def commit(self, circuit: int) -> None:
        """Write the values of one circuit of the batch into the state."""
        for find, value, read, offset in self.entries:
            target, value = find(), value[circuit if value.shape[0] > 1 else 0]
            if read and not self.context.dense:
                target[(0, *self.context.where)] = value
            else:
                target[0, :, offset:] = value
