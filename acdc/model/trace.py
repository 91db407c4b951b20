"""Runs of the whole plain model, in which all heads read one residual stream, and what they leave behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from acdc.model import passes
from acdc.model.architecture import Attention, Decomposition, Layer
from acdc.model.forward import (
    Context,
    attend,
    attention_output,
    embed,
    finish_projection,
    mix,
    mlp,
    per_head,
    raw_projection,
    scaled_by_post_norm,
)
from acdc.model.gradients import scaled


@dataclasses.dataclass
class Trace:
    """What a plain run leaves behind, per layer. Lists grow as layers run.

    Attributes:
        attention_input, mlp_input: residual inputs `[C, B, P, D]`.
        q, k, v: finished projections `[head or kv head, C, B, P, d_head]`; raw: the raw ones (q, k, v), in an
            ungrouped run only. Empty in layers with a mixer, whose z is `[1, C, B, P, D]`.
        z: attention results scaled by the post-norm `[H, C, B, P, d_head]`.
        mlp_output: `[C, B, P, D]`.
        attended: z before it is scaled, in an ungrouped run only.
        final_input: the residual stream before the final norm.
    """

    attention_input: list[Tensor] = dataclasses.field(default_factory=list)
    raw: list[tuple[Tensor, ...]] = dataclasses.field(default_factory=list)
    q: list[Tensor] = dataclasses.field(default_factory=list)
    k: list[Tensor] = dataclasses.field(default_factory=list)
    v: list[Tensor] = dataclasses.field(default_factory=list)
    z: list[Tensor] = dataclasses.field(default_factory=list)
    mlp_input: list[Tensor] = dataclasses.field(default_factory=list)
    mlp_output: list[Tensor] = dataclasses.field(default_factory=list)
    attended: list[Tensor] = dataclasses.field(default_factory=list)
    final_input: Tensor | None = None

    def detached(self) -> Trace:
        """The same values without their history, and without what only gradients need."""
        lists = {name: [x.detach() for x in part] for name, part in vars(self).items() if name not in _NOT_PLAIN}
        return Trace(**lists, final_input=None if self.final_input is None else self.final_input.detach())


_NOT_PLAIN = ("raw", "attended", "final_input")


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What the heads and the MLP of each layer write, in place of what they would compute: `[C, B, T, D]`."""

    attention: Sequence[Tensor]
    mlp: Sequence[Tensor]


@dataclasses.dataclass(frozen=True)
class Added:
    """A change of what one sublayer writes, from which gradients are taken: what is before it has none.

    Attributes:
        layer, place: whose sum it is added to.
        difference: `[C, B, T, D]`, requires a gradient.
        parallel: whether the MLP does not read what mixes positions in its layer.
    """

    layer: int
    place: Literal["attention", "mlp"]
    difference: Tensor
    parallel: bool

    def at(self, layer: int, place: str) -> bool:
        return (layer, place) == (self.layer, self.place)

    def is_before(self, layer: int, place: str) -> bool:
        """Whether a sublayer reads the change."""
        inside = layer == self.layer and place == "mlp" and self.place == "attention" and not self.parallel
        return layer > self.layer or inside


def whole_run(
    model: Decomposition,
    context: Context,
    x: Tensor | None = None,
    *,
    instead: Outputs | None = None,
    added: Added | None = None,
    dropped: int | None = None,
    ungrouped: bool = False,
) -> Trace:
    """Run the plain model from the embedding `x` `[C, B, T, D]` (None: that of the context's tokens; window = all
    positions) and keep everything.

    With `instead`, the residual stream receives those outputs, while the trace keeps what each component computes
    when it reads that stream; with `added`, what one sublayer writes changes; through what layer `dropped` writes, no
    gradient flows. With `ungrouped`, keys and values are repeated per query head before anything is done to them, so
    that each copy has a gradient of its own. The MLP inputs and the final input in the trace are aliases of the
    residual stream: their gradients are those of their own reader alone.
    """
    x = torch.stack(embed(model, context)).sum(0) if x is None else x
    passes.count(forward=x.shape[0] * x.shape[1])
    trace = Trace()
    for index, layer in enumerate(model.layers):
        if layer.mixer is None:
            mixed = _run_heads(layer.attention, context, x, trace, ungrouped=ungrouped)
        else:
            mixed = _run_mixer(layer, context, x, trace)
        if index == dropped:
            mixed = scaled(mixed, 0.0)
        middle = x + (mixed if instead is None else instead.attention[index])
        if added is not None and added.at(index, "attention"):
            middle = middle + added.difference
        mlp_input = (x if model.parallel else middle).view_as(x)
        trace.mlp_input.append(mlp_input)
        written = mlp(layer, mlp_input)
        trace.mlp_output.append(written)
        if index == dropped:
            written = scaled(written, 0.0)
        x = middle + (written if instead is None else instead.mlp[index])
        if added is not None and added.at(index, "mlp"):
            x = x + added.difference
    trace.final_input = x.view_as(x)
    return trace


def _run_heads(attention: Attention, context: Context, x: Tensor, trace: Trace, *, ungrouped: bool) -> Tensor:
    """What all heads of a layer write; noted in the trace."""
    trace.attention_input.append(x)
    normed = x if attention.norm is None else attention.norm.module(x)
    raw = [raw_projection(attention, port, normed[None]) for port in "qkv"]
    if ungrouped:
        raw = [per_head(attention, r) for r in raw]
    trace.raw.append((raw[0], raw[1], raw[2]) if ungrouped else ())
    q, k, v = (finish_projection(attention, port, r, context) for port, r in zip("qkv", raw, strict=True))
    z = attend(attention, q, per_head(attention, k), per_head(attention, v), context)
    trace.attended.append(z if ungrouped else z.new_empty(0))
    z = scaled_by_post_norm(attention, z)
    for part, value in ((trace.q, q), (trace.k, k), (trace.v, v), (trace.z, z)):
        part.append(value)
    return attention_output(attention, z)


def _run_mixer(layer: Layer, context: Context, x: Tensor, trace: Trace) -> Tensor:
    """What a mixer writes; noted in the trace, with an input of its own."""
    trace.attention_input.append(x.view_as(x))
    written = mix(layer, trace.attention_input[-1], context)
    none = x.new_empty(0)
    trace.raw.append(())
    trace.attended.append(none)
    for part, value in ((trace.q, none), (trace.k, none), (trace.v, none), (trace.z, written[None])):
        part.append(value)
    return written


def rest_of_run(
    model: Decomposition, context: Context, trace: Trace, x: Tensor, layer: int, *, at_mlp: bool = False
) -> Tensor:
    """Run the rest of the plain model from a changed residual stream.

    Args:
        trace: a plain run on the same prompts; keys and values before the window come from it.
        x: `[C, B, W, D]`, the stream before layer `layer`, or before its MLP if `at_mlp` (sequential blocks).

    Returns:
        The final residual stream at the read positions, `[C, B, P, D]`.
    """
    passes.count(forward=x.shape[0] * x.shape[1])
    for index in range(layer, len(model.layers)):
        block, read = model.layers[index], index == len(model.layers) - 1  # the last layer matters only where read
        before = context.at_read(x) if read else x
        if at_mlp and index == layer:
            after = before
        else:
            after = before + mixed_again(block, context, trace, x, index, read=read)
        x = after + mlp(block, before if model.parallel else after)
    return x if layer < len(model.layers) else context.at_read(x)


def mixed_again(
    block: Layer, context: Context, trace: Trace, x: Tensor, index: int, *, read: bool = False
) -> Tensor:
    """What a layer's heads or mixer write when they read `x` `[C, B, W, D]`: `[C, B, W, D]`, P for W if `read`.

    Args:
        trace: a plain run on the same prompts, from which the positions before the window come.
        index: the layer's.
    """
    if block.mixer is not None:
        written = mix_after(block, trace.attention_input[index], x, context)
        return context.at_read(written) if read else written
    attention = block.attention
    normed = (x if attention.norm is None else attention.norm.module(x))[None]
    k, v = (
        after_earlier(trace_part[index], project_normed(attention, port, normed, context), context.start)
        for port, trace_part in (("k", trace.k), ("v", trace.v))
    )
    if read:
        normed = context.at_read(normed)
    q = project_normed(attention, "q", normed, context, read=read)
    z = attend(attention, q, per_head(attention, k), per_head(attention, v), context, read=read)
    return attention_output(attention, scaled_by_post_norm(attention, z))


def project_normed(
    attention: Attention, port: str, normed: Tensor, context: Context, *, read: bool = False
) -> Tensor:
    """`project` on inputs that are normalised already, shared by all heads."""
    return finish_projection(attention, port, raw_projection(attention, port, normed), context, read=read)


def mix_after(layer: Layer, earlier: Tensor, x: Tensor, context: Context) -> Tensor:
    """What a mixer writes on the window when it reads `x` `[C, B, W, D]` there, and `earlier` before it."""
    before = earlier[..., : context.start, :].expand(x.shape[0], *(-1,) * 3)
    return mix(layer, torch.cat((before, x), dim=-2), context)[..., context.start :, :]


def after_earlier(earlier: Tensor, new: Tensor, start: int) -> Tensor:
    """Keys or values of the window after those of the positions before it."""
    if start == 0:
        return new
    if earlier.shape[0] != new.shape[0]:  # the trace was ungrouped
        earlier = earlier[:: earlier.shape[0] // new.shape[0]]
    return torch.cat((earlier[..., :start, :].expand(-1, new.shape[1], -1, -1, -1), new), dim=-2)
