"""The MLP of a layer: one component with one port; its compact output is what it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from acdc.engine.demand import AT_READ, NOWHERE
from acdc.engine.stage import WholeStage, WholeState, Written
from acdc.model import forward
from acdc.model.trace import Trace

if TYPE_CHECKING:
    from acdc.engine.propagate import Run


class MlpStage(WholeStage):
    kind = "mlp"
    place = "mlp"

    def read(self, trace: Trace) -> Tensor:
        return trace.mlp_input[self.sublayer.layer]

    def output(self, trace: Trace) -> Tensor:
        return trace.mlp_output[self.sublayer.layer][None]

    def rerun(self, run: Run) -> list[Written]:
        (source,), ports = self.sublayer.sources, np.array(self.sublayer.every_port)
        if run.plan.demand[source] == NOWHERE:
            return []
        state = run.of(self, WholeState)
        read = bool(run.plan.demand[source] == AT_READ)
        base, reference = state.x, state.output[0]
        if read:
            base, reference = run.context.at_read(base), run.context.at_read(reference)
        (x,) = run.port_inputs([(ports, base[None])], read=read)
        if x is None:
            if run.state.settled:
                return []
            x = base[None]
        neurons, index = run.plan.neurons, self.sublayer.layer
        if neurons is not None and index in neurons.mlps:
            new = neurons.mlp(self.layer, index, x[0], run.context, read=read)
        else:
            new = forward.mlp(self.layer, x[0])
        if run.journal is not None:
            run.journal.write(state.x, x[0], read=read)
            run.journal.write(state.output[0], new, read=read)
        return [Written([source], (new - reference)[None], not read)]
