"""The MLP of a layer: one component with one port; its compact output is what it writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from acdc.engine.demand import AT_READ, NOWHERE
from acdc.engine.stage import Stage, StageState, Written
from acdc.graph import IntArray
from acdc.model import forward
from acdc.model.trace import Trace

if TYPE_CHECKING:
    from acdc.engine.propagate import Run


@dataclasses.dataclass
class MlpState(StageState):
    """With the residual input, `[1, B, W, D]`."""

    x: Tensor


class MlpStage(Stage):
    kind = "mlp"
    place = "mlp"

    def output(self, trace: Trace) -> Tensor:
        return trace.mlp_output[self.sublayer.layer][None]

    def zeros(self) -> Tensor:
        return self.nothing

    def write(self, compact: Tensor, components: IntArray | None = None) -> Tensor:
        return compact

    def total(self, compact: Tensor) -> Tensor:
        return compact[0]

    def state(self, trace: Trace, start: int, output: Tensor | None, *, writable: bool) -> MlpState:
        x = trace.mlp_input[self.sublayer.layer][..., start:, :]
        output = (self.output(trace) if output is None else output)[..., start:, :]
        return MlpState(output.clone(), x.clone()) if writable else MlpState(output, x)

    def rerun(self, run: Run) -> list[Written]:
        (source,), ports = self.sublayer.sources, np.array(self.sublayer.every_port)
        if run.plan.demand[source] == NOWHERE:
            return []
        state = run.of(self, MlpState)
        read = bool(run.plan.demand[source] == AT_READ)
        base, reference = state.x, state.output[0]
        if read:
            base, reference = run.context.at_read(base), run.context.at_read(reference)
        (x,) = run.port_inputs([(ports, base[None])], read=read)
        if x is None:
            if run.state.settled:
                return []
            x = base[None]
        new = forward.mlp(self.layer, x[0])
        if run.journal is not None:
            run.journal.write(state.x, x[0], read=read)
            run.journal.write(state.output[0], new, read=read)
        return [Written([source], (new - reference)[None], not read)]

    def ends(self, trace: Trace) -> list[Tensor]:
        return [trace.mlp_input[self.sublayer.layer]]

    def gradients(self, trace: Trace, given: Sequence[Tensor], start: int, out: Tensor) -> None:
        out[:] = given[0][0, :, start:]
