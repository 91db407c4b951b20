"""The heads of a layer: components with three ports; a compact output is a head's scaled attention result z."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from acdc.engine.demand import AT_READ, EVERYWHERE
from acdc.engine.stage import PortInputs, Stage, StageState, Written
from acdc.graph import BoolArray, Graph, IntArray, Sublayer
from acdc.model import forward
from acdc.model.architecture import Attention, Norm
from acdc.model.model import Model
from acdc.model.trace import Trace

if TYPE_CHECKING:
    from acdc.engine.propagate import Run


@dataclasses.dataclass
class AttentionState(StageState):
    """With all that heads are recomputed from.

    Attributes:
        x: residual inputs of the q, k and v ports.
        projections: q `[H, 1, B, W, d_head]`; k and v `[H, 1, B, T, d_head]`.
    """

    x: PortInputs
    projections: tuple[Tensor, Tensor, Tensor]


class AttentionStage(Stage):
    kind = "head"
    place = "attention"

    def __init__(self, model: Model, graph: Graph, sublayer: Sublayer, index: int) -> None:
        super().__init__(model, graph, sublayer, index)
        self.attention: Attention = self.layer.attention
        self.coupled = self.attention.coupled
        self.ports = [np.array(ports) for ports in sublayer.ports.values()]

    def output(self, trace: Trace) -> Tensor:
        return trace.z[self.sublayer.layer]

    def zeros(self) -> Tensor:
        w_o = self.attention.w_o
        return w_o.new_zeros(len(w_o), 1, 1, 1, w_o.shape[1])

    def write(self, compact: Tensor, components: IntArray | None = None) -> Tensor:
        return forward.write(self.attention, compact, heads=None if components is None else self._some(components))

    def total(self, compact: Tensor) -> Tensor:
        return forward.attention_output(self.attention, compact)

    def constant(self) -> Tensor | None:
        return None if self.attention.post_norm is not None else self.attention.b_o

    def state(self, trace: Trace, start: int, output: Tensor | None, *, writable: bool) -> AttentionState:
        index = self.sublayer.layer

        def window(x: Tensor) -> Tensor:
            return x[..., start:, :].clone() if writable else x[..., start:, :]

        def every_head(x: Tensor) -> Tensor:
            repeated = forward.per_head(self.attention, x)
            return repeated.clone() if writable and repeated is x else repeated

        return AttentionState(
            output=window(self.output(trace) if output is None else output),
            x=PortInputs(trace.attention_input[index][..., start:, :]),
            projections=(window(trace.q[index]), every_head(trace.k[index]), every_head(trace.v[index])),
        )

    # ---- circuits ----------------------------------------------------------------------------------------------

    def rerun(self, run: Run) -> list[Written]:
        if run.state.settled and not run.reaches(self.sublayer.every_port):
            return []
        demand = run.plan.demand[self.sublayer.outputs]
        found = []
        for level in (EVERYWHERE, AT_READ):
            heads = np.flatnonzero(demand == level)
            if len(heads):
                found += self._heads(run, heads, read=level == AT_READ)
        return found

    def _heads(self, run: Run, heads: IntArray, *, read: bool) -> list[Written]:
        state, context, attention = run.of(self, AttentionState), run.context, self.attention
        ports = [own[heads] for own in self.ports]
        touched = [run.touched(own, read=read and i == 0) for i, own in enumerate(ports)]
        active: BoolArray = touched[0] | touched[1] | touched[2]
        if attention.coupled and active.any():
            active[:] = True
        if not run.state.settled:
            active[:] = True
        if not active.any():
            return []
        heads = heads[active]
        changed = [part[active] for part in touched]
        for i, port in enumerate("qkv"):
            if getattr(attention, port).norm_across_heads and changed[i].any():
                changed[i][:] = True
        x = self._inputs(run, heads, [own[active] for own in ports], changed, read=read)
        q, k, v = (self._projection(run, i, heads, changed[i], x[i], read=read and i == 0) for i in range(3))
        z = forward.attend(attention, q, k, v, context, heads=self._some(heads), read=read)
        neurons, layer = run.plan.neurons, self.sublayer.layer
        if neurons is not None and layer in neurons.heads:
            z = neurons.heads[layer].switch(heads, z, context, read=read)
        z = forward.scaled_by_post_norm(attention, z)
        reference = take(state.output, heads)
        if read:
            reference = context.at_read(reference)
        if run.journal is not None:
            run.journal.write_components(state.output, heads, z, read=read)
        difference = forward.write(attention, z - reference, heads=self._some(heads))
        return [Written([self.sublayer.sources[head] for head in heads], difference, not read)]

    def _inputs(
        self, run: Run, heads: IntArray, ports: list[IntArray], changed: list[BoolArray], *, read: bool
    ) -> list[Tensor | None]:
        """Residual inputs of the changed q, k and v ports."""
        inputs = run.of(self, AttentionState).x
        x: list[Tensor | None] = [None, None, None]
        for at_read in (False, True):  # keys and values are read everywhere, queries where the head is
            group = [i for i in range(3) if (read and i == 0) == at_read and changed[i].any()]
            if group:
                bases = [inputs.get(i, heads[changed[i]]) for i in group]
                bases = [run.context.at_read(base) for base in bases] if at_read else bases
                parts = [(ports[i][changed[i]], base) for i, base in zip(group, bases, strict=True)]
                for i, found in zip(group, run.port_inputs(parts, read=at_read), strict=True):
                    x[i] = found
        return x

    def _projection(
        self, run: Run, which: int, heads: IntArray, touched: BoolArray, x: Tensor | None, *, read: bool
    ) -> Tensor:
        """q, k or v of the heads: from the state where nothing changed, else from the new inputs `x`."""
        state, context = run.of(self, AttentionState), run.context
        stored = state.projections[which]
        old = take(stored, heads)
        if read:
            old = context.at_read(old)
        if x is None:
            return old
        changed = heads[touched]
        if x.shape[0] == 1 and len(changed) > 1:
            x = x.expand(len(changed), *x.shape[1:])
        new = forward.project(self.attention, "qkv"[which], x, context, heads=self._some(changed), read=read)
        offset = context.start if which > 0 else 0
        if run.journal is not None:
            run.journal.write_inputs(state.x, which, changed, x, read=read)
            run.journal.write_components(stored, changed, new, read=read, offset=offset)
        if offset:
            earlier = take(stored, changed)[..., :offset, :]
            new = torch.cat((earlier.expand(-1, new.shape[1], -1, -1, -1), new), dim=-2)
        if touched.all():
            return new
        place = torch.as_tensor(np.flatnonzero(touched), device=new.device)
        return old.expand(-1, new.shape[1], *old.shape[2:]).index_copy(0, place, new)

    def _some(self, heads: IntArray) -> list[int] | None:
        return None if len(heads) == self.attention.n_heads else [int(head) for head in heads]

    # ---- gradients ---------------------------------------------------------------------------------------------

    def ends(self, trace: Trace) -> list[Tensor]:
        return list(trace.raw[self.sublayer.layer])

    def gradients(
        self, trace: Trace, given: Sequence[Tensor], start: int, out: Tensor, *, frozen: bool = False
    ) -> None:
        """In closed form, from the gradient g of the projections.

        All heads read one residual stream, so what is missing is only the way back through each head's weights W and
        through the norm, whose vector-Jacobian product is linear. With x̂ the normalised input, σ its scale and γ the
        gain,

            ∂metric/∂x_d = (1/σ) (h − mean(h) − x̂ · mean(h ⊙ x̂)),   h = γ ⊙ Wᵀ g   (RMSNorm: without mean(h))

        where γ and the centring are folded into W, and mean(h ⊙ x̂) is g · (projection − its constant part) / d_model.
        Where σ is a constant, the last term is none.
        """
        index = self.sublayer.layer
        x, first = trace.attention_input[index][0, :, start:], self.sublayer.every_port.start
        for g, raw, (name, ports) in zip(given, trace.raw[index], self.sublayer.ports.items(), strict=True):
            own = out[ports.start - first : ports.stop - first]
            _at_residual(self.attention, name, x, g[:, 0, :, start:], raw[:, 0, :, start:], out=own, frozen=frozen)


def _at_residual(
    attention: Attention, port: str, x: Tensor, g: Tensor, raw: Tensor, *, out: Tensor, frozen: bool
) -> None:
    """Gradient at each head's residual input, from the gradient at its projection, into `out` `[H, B, W, D]`.

    Args:
        x: the residual input all heads share, `[B, W, D]`; g, raw: gradient and value of the raw projection,
            `[H, B, W, d_head]`.
    """
    H, B, W, d_head = g.shape
    weight = forward.per_head(attention, getattr(attention, port).weight)  # [H, d_head, D]
    norm: Norm | None = attention.norm
    if norm is None:
        torch.bmm(g.reshape(H, B * W, d_head), weight, out=out.view(H, B * W, -1))
        return
    weight = weight * norm.gain
    if norm.centred:
        weight = weight - weight.mean(-1, keepdim=True)
    inverse = norm.inverse_scale(x)  # [B, W, 1]
    scaled = g * inverse.to(g.dtype)
    torch.bmm(scaled.reshape(H, B * W, d_head), weight, out=out.view(H, B * W, -1))
    if frozen:
        return
    centre = x - x.mean(-1, keepdim=True) if norm.centred else x
    normalised = (centre * inverse).to(g.dtype)
    zero = forward.raw_projection(attention, port, norm.module(torch.zeros_like(x[:1, :1]))[None, None])
    constant = forward.per_head(attention, zero)[:, 0]  # [H, 1, 1, d_head]
    along = (scaled * (raw - constant)).sum(-1, keepdim=True) / x.shape[-1]  # [H, B, W, 1]
    out.addcmul_(normalised, along, value=-1)


def take(x: Tensor, index: IntArray) -> Tensor:
    """`x[index]` of ascending indices, without a copy where they are a range."""
    first, last = int(index[0]), int(index[-1])
    if last - first + 1 == len(index):
        return x[first : last + 1]
    return x[torch.as_tensor(index, device=x.device)]
