"""States: runs whose residual inputs are known, from which differences are taken and which a search moves on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from torch import Tensor

from acdc.engine.references import References
from acdc.engine.stage import PortInputs, Stage, StageState
from acdc.graph import IntArray
from acdc.model.forward import Context
from acdc.model.trace import Trace


@dataclasses.dataclass
class State:
    """A run with known residual inputs.

    Attributes:
        stages: in execution order; parts: what is kept of each.
        final_x: `[1, B, W, D]`.
        settled: whether every component's output is its reference, so that unchanged ones need not be run.
    """

    stages: tuple[Stage, ...]
    parts: tuple[StageState, ...]
    final_x: Tensor
    settled: bool

    @property
    def outputs(self) -> list[Tensor]:
        """Compact outputs that differences are taken from, of each stage, on the window."""
        return [part.output for part in self.parts]


def state_of(
    stages: tuple[Stage, ...],
    trace: Trace,
    start: int,
    references: References | None,
    *,
    writable: bool = False,
) -> State:
    """The state of a plain run (`references` None) or of a run on references.

    Args:
        writable: copy what a search will change in place.
    """
    assert trace.final_input is not None
    final_x = trace.final_input[..., start:, :]
    outputs = [None] * len(stages) if references is None else list(references.outputs)
    return State(
        stages,
        tuple(stage.state(trace, start, x, writable=writable) for stage, x in zip(stages, outputs, strict=True)),
        final_x.clone() if writable else final_x,
        settled=references is None,
    )


@dataclasses.dataclass
class Journal:
    """New values of what was recomputed, so that a search can make one circuit of the batch its state."""

    context: Context
    entries: list[tuple[Callable[[], Tensor], Tensor, bool, int]] = dataclasses.field(default_factory=list)

    def write(self, target: Tensor, value: Tensor, *, read: bool) -> None:
        """`target` `[1, B, W, X]` becomes `value` `[C, B, W or P, X]` of the circuit that is committed."""
        self.entries.append((lambda: target, value, read, 0))

    def write_components(
        self, target: Tensor, components: IntArray, value: Tensor, *, read: bool, offset: int = 0
    ) -> None:
        """The same for components of `target` `[component, 1, B, T, X]`, from position `offset` on.

        `value` is `[len(components), C, B, P, X]`.
        """
        for i, new in zip(components, value, strict=True):
            self.entries.append((partial(target.__getitem__, int(i)), new, read, offset))

    def write_inputs(self, inputs: PortInputs, which: int, heads: IntArray, value: Tensor, *, read: bool) -> None:
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
