"""The mixer of a layer: one component that reads every position; its compact output is what it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from acdc.engine.demand import AT_READ, NOWHERE
from acdc.engine.stage import WholeStage, WholeState, Written
from acdc.model.trace import Trace, mix_after

if TYPE_CHECKING:
    from acdc.engine.propagate import Run


class MixerStage(WholeStage):
    kind = "mixer"
    place = "attention"

    def read(self, trace: Trace) -> Tensor:
        return trace.attention_input[self.sublayer.layer]

    def reads_from(self, start: int) -> int:
        return 0

    def output(self, trace: Trace) -> Tensor:
        return trace.z[self.sublayer.layer]

    def rerun(self, run: Run) -> list[Written]:
        (source,), ports = self.sublayer.sources, np.array(self.sublayer.every_port)
        if run.plan.demand[source] == NOWHERE:
            return []
        state, start = run.of(self, WholeState), run.context.start
        read = bool(run.plan.demand[source] == AT_READ)
        window, reference = state.x[..., start:, :], state.output[0]
        (x,) = run.port_inputs([(ports, window[None])], read=False)
        if x is None:
            if run.state.settled:
                return []
            x = window[None]
        new = mix_after(self.layer, state.x, x[0], run.context)
        if read:
            new, reference = run.context.at_read(new), run.context.at_read(reference)
        if run.journal is not None:
            run.journal.write(window, x[0], read=False)
            run.journal.write(state.output[0], new, read=read)
        return [Written([source], (new - reference)[None], not read)]
