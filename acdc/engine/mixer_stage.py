"""The mixer of a layer: one component that reads every position; its compact output is what it writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from acdc.engine.demand import AT_READ, NOWHERE
from acdc.engine.stage import Stage, StageState, Written
from acdc.graph import IntArray
from acdc.model import forward
from acdc.model.trace import Trace

if TYPE_CHECKING:
    from acdc.engine.propagate import Run


@dataclasses.dataclass
class MixerState(StageState):
    """With the residual input at all positions, `[1, B, T, D]`."""

    x: Tensor


class MixerStage(Stage):
    kind = "mixer"
    place = "attention"

    def output(self, trace: Trace) -> Tensor:
        return trace.z[self.sublayer.layer]

    def zeros(self) -> Tensor:
        return self.nothing

    def write(self, compact: Tensor, components: IntArray | None = None) -> Tensor:
        return compact

    def total(self, compact: Tensor) -> Tensor:
        return compact[0]

    def state(self, trace: Trace, start: int, output: Tensor | None, *, writable: bool) -> MixerState:
        x = trace.attention_input[self.sublayer.layer]
        output = (self.output(trace) if output is None else output)[..., start:, :]
        return MixerState(output.clone(), x.clone()) if writable else MixerState(output, x)

    def rerun(self, run: Run) -> list[Written]:
        (source,), ports = self.sublayer.sources, np.array(self.sublayer.every_port)
        if run.plan.demand[source] == NOWHERE:
            return []
        state, start = run.of(self, MixerState), run.context.start
        read = bool(run.plan.demand[source] == AT_READ)
        window, reference = state.x[..., start:, :], state.output[0]
        (x,) = run.port_inputs([(ports, window[None])], read=False)
        if x is None:
            if run.state.settled:
                return []
            x = window[None]
        earlier = state.x[..., :start, :].expand(x.shape[1], *(-1,) * 3)
        new = forward.mix(self.layer, torch.cat((earlier, x[0]), dim=-2), run.context)[..., start:, :]
        if read:
            new, reference = run.context.at_read(new), run.context.at_read(reference)
        if run.journal is not None:
            run.journal.write(window, x[0], read=False)
            run.journal.write(state.output[0], new, read=read)
        return [Written([source], (new - reference)[None], not read)]

    def ends(self, trace: Trace) -> list[Tensor]:
        return [trace.attention_input[self.sublayer.layer]]

    def gradients(self, trace: Trace, given: Sequence[Tensor], start: int, out: Tensor) -> None:
        out[:] = given[0][0, :, start:]
