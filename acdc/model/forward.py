"""The decomposed forward: the same arithmetic as the plain model, component by component.

Tensors are component-first. Residual inputs and outputs of components are `[component, C, B, P, D]`: C circuits run
at once, B prompts, P positions, D d_model. P is either the *window* (every position from `Context.start` on) or the
*read* positions (those whose output the metric reads); functions take `read=True` for the latter. Positions before
`start` are the same in every run of a search, so only their keys and values are needed, from a stored run.

A head's output is linear in its attention result z `[.., d_head]`. Where the family normalises the sum of the heads
(a post-norm), z is scaled by that norm's 1/σ, so that the heads still sum to what the layer writes, exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from acdc.model import rotary
from acdc.model.architecture import Attention, Decomposition, Latent, Layer, Projection, RotaryUse
from acdc.model.gradients import scaled, softmax

Heads = Sequence[int] | None  # None: all heads of the layer


@dataclasses.dataclass(frozen=True)
class Context:
    """What a forward pass needs besides weights and residual stream: who sees whom, and rotary tables.

    Attributes:
        token_ids, position_ids: `[B, T]`.
        start: first position of the window, W = T - start.
        read: `[B, P]` read positions, counted from `start`.
        bias: per kind of mask, `[B, W, T]` added to attention scores.
        distance: `[B, W, T]` by how many positions a key is before a query; None if no layer has ALiBi.
        rotary: per key, (cos, sin) `[B, W, rotary]`.
        dense: whether the read positions are the whole window, so that the two need not be told apart.
        mask: `[B, T]` bool, real tokens.
        where: index of the read positions into `[B, W]`; slices if they are the same range in every prompt, so that
            reading there makes a view.
    """

    token_ids: Tensor
    position_ids: Tensor
    start: int
    read: Tensor
    bias: Mapping[tuple[bool, int | None, int | None], Tensor]
    distance: Tensor | None
    rotary: Mapping[str, tuple[Tensor, Tensor]]
    dense: bool
    where: tuple[slice | Tensor, slice | Tensor]
    mask: Tensor

    def at_read(self, x: Tensor) -> Tensor:
        """`[..., B, W, X] -> [..., B, P, X]`."""
        if self.dense:
            return x
        return x[(..., *self.where, slice(None))]

    def bias_for(self, attention: Attention, *, read: bool) -> Tensor:
        bias = self.bias[attention.sees]
        return self.at_read(bias) if read else bias


def make_context(
    model: Decomposition,
    token_ids: Tensor,
    mask: Tensor,
    position_ids: Tensor | None,
    *,
    read: Tensor,
    start: int = 0,
    branch: Tensor | None = None,
) -> Context:
    """Build the context of a batch.

    Args:
        token_ids: `[B, T]`; mask: `[B, T]` bool, real tokens; position_ids: None counts real tokens from 0.
        read: `[B, P]` read positions counted from 0, none before `start` (pads may be anything valid).
        branch: `[B, T]`; a token sees those of its own branch and of 0. None: all are of one.
    """
    B, T = token_ids.shape
    if position_ids is None:
        position_ids = (mask.long().cumsum(-1) - 1).clamp(min=0)
    weight = model.unembedding
    lowest = torch.finfo(weight.dtype).min
    positions = torch.arange(T, device=token_ids.device)
    distance = positions[start:, None] - positions[None, :]  # [W, T]
    before = distance  # by how many positions a key is before a query, [W, T] or [B, W, T]
    if branch is not None:
        before = position_ids[:, start:, None] - position_ids[:, None, :]
    bias = {}
    for key in {attention.sees for attention in model.attentions}:
        causal, window, chunk = key
        visible = mask[:, None, :].expand(B, T - start, T)
        if causal:
            visible = visible & (distance >= 0)
        if window is not None:
            visible = visible & (before < window)
        if chunk is not None:
            chunks = position_ids // chunk
            visible = visible & (chunks[:, start:, None] == chunks[:, None, :])
        if branch is not None:
            visible = visible & ((branch[:, None, :] == 0) | (branch[:, start:, None] == branch[:, None, :]))
        visible = visible | (distance == 0)  # a padding query sees itself, so that no row is empty
        bias[key] = torch.zeros(visible.shape, dtype=weight.dtype, device=weight.device).masked_fill(
            ~visible, lowest
        )
    apart = None
    if any(attention.slopes is not None for attention in model.attentions):
        apart = (position_ids[:, start:, None] - position_ids[:, None, :]).to(weight.dtype)
    tables = rotary.tables(model, mask, position_ids)
    rotated = {key: (cos[:, start:], sin[:, start:]) for key, (cos, sin) in tables.items()}
    where = _where(read - start)
    dense = where == (slice(None), slice(0, T - start))
    return Context(token_ids, position_ids, start, read - start, bias, apart, rotated, dense, where, mask)


def _where(read: Tensor) -> tuple[slice | Tensor, slice | Tensor]:
    """Index of the positions `[B, P]` into `[B, W]`."""
    first, P = int(read[0, 0]), read.shape[1]
    if bool((read == torch.arange(first, first + P, device=read.device)).all()):
        return slice(None), slice(first, first + P)
    return torch.arange(len(read), device=read.device)[:, None], read


# ---- attention --------------------------------------------------------------------------------------------------


def project(
    attention: Attention, port: str, x: Tensor, context: Context, *, heads: Heads = None, read: bool = False
) -> Tensor:
    """Queries, keys or values.

    Args:
        port: "q", "k" or "v".
        x: residual inputs `[h, C, B, P, D]`, one per head, or `[1, C, B, P, D]` shared by all heads (then keys and
            values come per key/value head).
        heads: which query heads `x` belongs to; None if all.

    Returns:
        `[h, C, B, P, d_head]`.
    """
    normed = x if attention.norm is None else attention.norm.module(x)
    raw = raw_projection(attention, port, normed, heads)
    return finish_projection(attention, port, raw, context, heads=heads, read=read)


def raw_projection(attention: Attention, port: str, normed: Tensor, heads: Heads = None) -> Tensor:
    """The linear part of `project`, on inputs that are normalised already."""
    projection: Projection = getattr(attention, port)
    h, C, B, P, D = normed.shape
    n_own, d_head, _ = projection.weight.shape
    if h == 1 and heads is None and attention.n_heads > 1:  # one input for all heads
        weight, bias = projection.weight.reshape(n_own * d_head, D), projection.bias
        flat = F.linear(normed[0], weight, None if bias is None else bias.reshape(-1))
        return flat.view(C, B, P, n_own, d_head).permute(3, 0, 1, 2, 4)
    group = attention.n_heads // n_own
    index = None if heads is None and group == 1 else [head // group for head in heads or range(h)]
    weight = _of_heads(projection.weight, index)
    out = torch.bmm(normed.reshape(h, C * B * P, D), weight.transpose(1, 2))
    if projection.bias is not None:
        out = out + _of_heads(projection.bias, index)[:, None]
    return out.view(h, C, B, P, d_head)


def _of_heads(x: Tensor, heads: Heads) -> Tensor:
    """The heads' slices of `[H, ...]`, without a copy where they are a range."""
    if heads is None:
        return x
    if list(heads) == list(range(heads[0], heads[0] + len(heads))):
        return x[heads[0] : heads[0] + len(heads)]
    return x[list(heads)]


def finish_projection(
    attention: Attention, port: str, out: Tensor, context: Context, *, heads: Heads = None, read: bool = False
) -> Tensor:
    """What follows the matrix, on raw projections `[h, C, B, P, d_head]`: latent, normalisation, rotary embedding.

    The rows of a gate, behind those of the query, stay as they are.
    """
    projection: Projection = getattr(attention, port)
    if projection.clip is not None:
        out = out.clamp(-projection.clip, projection.clip)
    if projection.latent is not None:
        out = _through_latent(projection.latent, out, heads)
    gate: Tensor | None = None
    if port == "q" and attention.gate is not None:
        out, gate = out.split((out.shape[-1] - attention.gate.width, attention.gate.width), dim=-1)
    if projection.norm is not None and not projection.norm_after_rotary:
        out = _normalised(projection, out, _own(attention, projection, heads))
    if port != "v" and attention.rotary is not None:
        cos, sin = context.rotary[attention.rotary.table]
        if read:
            cos, sin = context.at_read(cos), context.at_read(sin)
        out = _rotate(attention.rotary, out, cos, sin)
    if projection.norm is not None and projection.norm_after_rotary:
        out = _normalised(projection, out, _own(attention, projection, heads))
    return out if gate is None else torch.cat((out, gate), dim=-1)


def _through_latent(latent: Latent, out: Tensor, heads: Heads) -> Tensor:
    """Raw projections `[h or 1, C, B, P, rank + rest]` to those of each head `[h, C, B, P, d_up + rest]`."""
    inner, rest = out.split((latent.up.shape[-1], out.shape[-1] - latent.up.shape[-1]), dim=-1)
    inner = inner if latent.norm is None else latent.norm(inner)
    up = _of_heads(latent.up, heads)
    head = torch.einsum("hcbpr,her->hcbpe", inner.expand(len(up), *inner.shape[1:]), up)
    if latent.bias is not None:
        head = head + _of_heads(latent.bias, heads)[:, None, None, None]
    return torch.cat((head, rest.expand(len(up), *rest.shape[1:])), dim=-1) if rest.shape[-1] else head


def _own(attention: Attention, projection: Projection, heads: Heads) -> Heads:
    """The projection's own heads of some query heads."""
    group = attention.n_heads // projection.n_heads
    return heads if heads is None or group == 1 else [head // group for head in heads]


def _normalised(projection: Projection, out: Tensor, heads: Heads = None) -> Tensor:
    """Query or key normalisation of `[h, C, B, P, d_head]`; `heads` are the projection's own."""
    assert projection.norm is not None
    if not projection.norm_across_heads:
        normed = projection.norm(out)
        if projection.norm_gain is None:
            return normed
        gain = _of_heads(projection.norm_gain, heads)
        group = out.shape[0] // len(gain)  # all query heads have copies of their group's
        gain = gain if group == 1 else gain.repeat_interleave(group, dim=0)
        return normed * gain[:, None, None, None]
    n_own, group = projection.n_heads, out.shape[0] // projection.n_heads
    if group > 1:
        return _grouped_norm_across_heads(projection, out, group)
    flat = out.permute(1, 2, 3, 0, 4).flatten(-2)
    return projection.norm(flat).unflatten(-1, (n_own, -1)).permute(3, 0, 1, 2, 4)


def _grouped_norm_across_heads(projection: Projection, out: Tensor, group: int) -> Tensor:
    """Norm over all key heads when every query head has its own copy of its group's key.

    The member i of each group together form one full set of key heads; each set is normalised on its own, which is
    the model's own normalisation when all members are equal.
    """
    assert projection.norm is not None
    sets = out.unflatten(0, (-1, group)).permute(1, 2, 3, 4, 0, 5)  # [group, C, B, P, kv head, d_head]
    normed = projection.norm(sets.flatten(-2)).unflatten(-1, sets.shape[-2:])
    return normed.permute(4, 0, 1, 2, 3, 5).flatten(0, 1)


def _rotate(use: RotaryUse, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    before, rotated, rest = x.split((use.first, cos.shape[-1], x.shape[-1] - use.first - cos.shape[-1]), dim=-1)
    if use.interleaved:
        half = cos.shape[-1] // 2
        cos, sin = (table[..., :half].repeat_interleave(2, dim=-1) for table in (cos, sin))
        first, second = rotated[..., ::2], rotated[..., 1::2]
        turned = torch.stack((-second, first), dim=-1).flatten(-2)
    else:
        first, second = rotated.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
    rotated = (rotated * cos + turned * sin).to(x.dtype)  # OLMo-2: tables in float32
    parts = [part for part in (before, rotated, rest) if part.shape[-1]]
    return torch.cat(parts, dim=-1) if len(parts) > 1 else rotated


def per_head(attention: Attention, x: Tensor) -> Tensor:
    """Keys or values per key/value head `[g, ...]` repeated for every query head `[h, ...]`."""
    group = attention.n_heads // x.shape[0]
    return x if group == 1 else x.repeat_interleave(group, dim=0)


def attend(
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: Context,
    *,
    heads: Heads = None,
    read: bool = False,
    weights: Tensor | None = None,
) -> Tensor:
    """Attention results z.

    Args:
        q: `[h, C or 1, B, P, d_head]`; k, v: `[h, C or 1, B, T, d_head]`.
        heads: which heads they are of; None if all.
        weights: `[h, C or 1, B, P, T]`, in place of the attention that q and k give.

    Returns:
        z `[h, C, B, P, d_head]`, before any post-norm scale.
    """
    gate: Tensor | None = None
    if attention.gate is not None:
        q, gate = q.split((q.shape[-1] - attention.gate.width, attention.gate.width), dim=-1)
    if (rule := attention.pattern) is not None:
        q, k, v = scaled(q, rule.query_key), scaled(k, rule.query_key), scaled(v, rule.value)
    plain = attention.softcap is None and attention.sinks is None and rule is None
    if weights is not None:
        z = weights @ v
    elif plain and q.shape[1] == k.shape[1] == v.shape[1] == 1:
        bias = _score_bias(attention, context, heads, read=read)
        z = F.scaled_dot_product_attention(q[:, 0], k[:, 0], v[:, 0], attn_mask=bias, scale=attention.scale)[
            :, None
        ]
    else:
        z = attention_weights(attention, q, k, context, heads=heads, read=read) @ v
    if gate is not None:
        assert attention.gate is not None
        z = z * attention.gate.activation(gate)
    return z


def attention_weights(
    attention: Attention, q: Tensor, k: Tensor, context: Context, *, heads: Heads = None, read: bool = False
) -> Tensor:
    """Whom each query attends to, `[h, C, B, P, T]`; arguments as in `attend`, a gate left away."""
    scores = q @ k.transpose(-1, -2) * attention.scale  # [h, C, B, P, T]
    if attention.softcap is not None:
        scores = torch.tanh(scores / attention.softcap) * attention.softcap
    bias = _score_bias(attention, context, heads, read=read)
    scores = scores + (bias if bias.dim() == 3 else bias[:, None])
    if attention.sinks is None:
        return softmax(scores, attention.pattern)
    sinks = _of_heads(attention.sinks, heads)[:, None, None, None, None].expand(*scores.shape[:-1], 1)
    return softmax(torch.cat((scores, sinks), dim=-1), attention.pattern)[..., :-1]


def _score_bias(attention: Attention, context: Context, heads: Heads, *, read: bool) -> Tensor:
    """What is added to the scores: `[B, P, T]`, or `[h, B, P, T]` where heads differ."""
    bias = context.bias_for(attention, read=read)
    if attention.slopes is None:
        return bias
    assert context.distance is not None
    distance = context.at_read(context.distance) if read else context.distance
    return bias - _of_heads(attention.slopes, heads)[:, None, None, None] * distance


def scaled_by_post_norm(attention: Attention, z: Tensor) -> Tensor:
    """z as it is written: normalised, divided by the scale of the post-norm, multiplied.

    Needs all heads: `[H, C, B, P, d_head]`.
    """
    if attention.z_norm is not None:
        H, _, _, _, d_head = z.shape
        inverse = attention.z_norm.inverse_scale(z.permute(1, 2, 3, 0, 4).flatten(-2))  # [C, B, P, 1]
        z = z * inverse.to(z.dtype) * attention.z_norm.gain.view(H, 1, 1, 1, d_head)
    if attention.post_norm is not None:
        total = _summed(attention, z)
        if attention.b_o is not None:
            total = total + attention.b_o
        z = z * attention.post_norm.inverse_scale(total).to(z.dtype)
    return z if attention.multiplier == 1.0 else z * attention.multiplier


def _summed(attention: Attention, z: Tensor) -> Tensor:
    """The sum of all heads' outputs: `[H, C, B, P, d_head] -> [C, B, P, D]`, without a copy of the weights."""
    return z.permute(1, 2, 3, 0, 4).flatten(-2) @ attention.w_o.flatten(0, 1)


def write(attention: Attention, z: Tensor, *, heads: Heads = None) -> Tensor:
    """What heads write to the residual stream: `[h, C, B, P, d_head] -> [h, C, B, P, D]`."""
    h, C, B, P, d_head = z.shape
    w_o = _of_heads(attention.w_o, heads)
    out = torch.bmm(z.reshape(h, C * B * P, d_head), w_o).view(h, C, B, P, -1)
    return out if attention.post_norm is None else out * attention.post_norm.gain


def attention_output(attention: Attention, z: Tensor) -> Tensor:
    """What the whole layer writes, bias included: scaled z `[H, C, B, P, d_head] -> [C, B, P, D]`."""
    out = _summed(attention, z)
    if attention.post_norm is not None:
        return out * attention.post_norm.gain
    return out if attention.b_o is None else out + attention.b_o


# ---- the rest ---------------------------------------------------------------------------------------------------


def mix(layer: Layer, x: Tensor, context: Context) -> Tensor:
    """What a mixer writes, given its residual input at all positions: `[C, B, T, D] -> [C, B, T, D]`."""
    assert layer.mixer is not None
    C = x.shape[0]
    places = (context.mask.repeat(C, 1), context.position_ids.repeat(C, 1))
    return layer.mixer.run(x.flatten(0, 1), *places).view(x.shape)


def mlp(layer: Layer, x: Tensor) -> Tensor:
    """What the MLP writes, given its residual input `[..., D]`."""
    out: Tensor = layer.mlp(x if layer.mlp_norm is None else layer.mlp_norm.module(x))
    return out


SLICE = 8192
"""Vocabulary rows that are converted to float32 at once."""


def readout(model: Decomposition, x: Tensor, rows: Tensor | None = None) -> Tensor:
    """Logits of the vocabulary rows `rows` `[R]` (None: all): `[..., D] -> [..., R]`, in float32 or better.

    In half precision the final norm and the unembedding are computed in float32: metrics subtract logits, which may
    share an offset so large that their differences would be lost in its rounding.
    """
    weight = model.unembedding if rows is None else model.unembedding[rows]
    bias = model.unembedding_bias
    bias = bias if bias is None or rows is None else bias[rows]
    if x.dtype.itemsize < 4:
        normed = x.float() if model.final_norm is None else _in_float32(model.final_norm.module, x)
        parts = weight.split(SLICE)
        biases = [None] * len(parts) if bias is None else [part.float() for part in bias.split(SLICE)]
        logits = torch.cat([F.linear(normed, w.float(), b) for w, b in zip(parts, biases, strict=True)], dim=-1)
    else:
        logits = F.linear(x if model.final_norm is None else model.final_norm.module(x), weight, bias)
    if model.logit_scale != 1.0:
        logits = logits * model.logit_scale
    if model.final_softcap is not None:
        logits = torch.tanh(logits / model.final_softcap) * model.final_softcap
    return logits


def _in_float32(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A norm of half precision, computed in float32."""
    if not isinstance(module, torch.nn.Module):
        return module(x).float()
    weights = {name: value.float() for name, value in module.named_parameters()}
    normed: Tensor = torch.func.functional_call(module, weights, (x.float(),))
    return normed.float()


def embed(model: Decomposition, context: Context) -> list[Tensor]:
    """The parts of the embedding, token first, each `[1, B, W, D]`."""
    parts = [model.token_embedding(context.token_ids[:, context.start :])]
    if model.position_embedding is not None:
        parts.append(model.position_embedding(context.position_ids[:, context.start :]))
    return [part[None] for part in parts]
