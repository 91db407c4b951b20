"""What the engine must know of a model: where its weights are, as views, and nothing else.

An adapter (one file per family) fills a `Decomposition` from a `transformers` module in place. Everything the
engine does, with shared or separate inputs per head, is then written once in `acdc.model.forward`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Rotary = Callable[[Tensor, Tensor], Mapping[str, tuple[Tensor, Tensor]]]

EPSILONS = ("variance_epsilon", "eps", "epsilon", "norm_eps")
"""Names under which norms keep their ε."""


@dataclasses.dataclass(frozen=True)
class Norm:
    """A LayerNorm or RMSNorm of the model, with the facts its closed-form gradient needs.

    Attributes:
        module: the family's own module; `[..., d_model] -> [..., d_model]`. Its weight and its ε are read at each
            use, as both may change.
        centred: LayerNorm (mean removed) or RMSNorm.
        plus_one: whether the normalised input is multiplied by 1 + weight (Gemma).
        epsilon: ε, of a module that does not keep it (OLMo).
    """

    module: Any
    centred: bool
    plus_one: bool = False
    epsilon: float | None = None

    @property
    def gain(self) -> Tensor:
        """`[d_model]`, what the normalised input is multiplied by; `[]` of a norm without weights."""
        weight: Tensor | None = getattr(self.module, "weight", None)
        if weight is None:
            return torch.ones(())
        return 1 + weight.detach() if self.plus_one else weight.detach()

    @property
    def eps(self) -> float:
        """What is added to the variance (or mean square)."""
        if self.epsilon is not None:
            return self.epsilon
        eps: float = next(getattr(self.module, name) for name in EPSILONS if hasattr(self.module, name))
        return eps

    def inverse_scale(self, x: Tensor) -> Tensor:
        """1 / σ of each token, `[..., 1]`, in float32 or better."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        variance = x.var(-1, unbiased=False, keepdim=True) if self.centred else x.square().mean(-1, keepdim=True)
        return torch.rsqrt(variance + self.eps)

    def closed_form(self, x: Tensor) -> Tensor:
        """What the module computes if it is the norm that its closed-form gradient takes it to be: `[..., d_model]`.

        In float32 or better.
        """
        inverse, dtype = self.inverse_scale(x), x.dtype
        x = x.to(inverse.dtype)
        centre = x - x.mean(-1, keepdim=True) if self.centred else x
        constant: Tensor = self.module(torch.zeros_like(x[..., :1, :], dtype=dtype))
        return centre * inverse * self.gain + constant


@dataclasses.dataclass(frozen=True)
class HeadNorm:
    """A norm without its gain, of queries or keys whose gain differs by head: `[..., d_head] -> [..., d_head]`."""

    norm: Norm

    def __call__(self, x: Tensor) -> Tensor:
        inverse = self.norm.inverse_scale(x)
        wide = x.to(inverse.dtype)
        return ((wide - wide.mean(-1, keepdim=True) if self.norm.centred else wide) * inverse).to(x.dtype)


@dataclasses.dataclass(frozen=True)
class Latent:
    """The second half of a projection that goes through a latent vector (DeepSeek's latent attention).

    What the first matrix gives is `[rank + rest]`: the latent is normalised and goes through a matrix of each head;
    the rest is handed to every head as it is, after that.

    Attributes:
        norm: of the latent, `[..., rank] -> [..., rank]`.
        up: `[head, d_up, rank]`; bias: `[head, d_up]`.
    """

    norm: Callable[[Tensor], Tensor] | None
    up: Tensor
    bias: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Projection:
    """The q, k or v projection of a layer, per head.

    Attributes:
        weight: `[head, d_head, d_model]`, a view of the model's weight (key/value heads for k and v; one head,
            shared by all, before a latent).
        bias: `[head, d_head]` or None.
        norm: normalisation after the projection (Qwen3, Gemma 3: per head; OLMo-2: over all heads at once).
        norm_across_heads: whether `norm` acts on `[..., head * d_head]`.
        norm_gain: `[head, d_head]`, what follows `norm` where each head has its own (Cohere).
        norm_after_rotary: whether `norm` comes after the rotary embedding.
        latent: what follows the matrix, in latent attention.
        clip: bound of the absolute value of what the matrix gives (OLMo, DBRX).
    """

    weight: Tensor
    bias: Tensor | None
    norm: Callable[[Tensor], Tensor] | None = None
    norm_across_heads: bool = False
    norm_gain: Tensor | None = None
    norm_after_rotary: bool = False
    latent: Latent | None = None
    clip: float | None = None

    @property
    def n_heads(self) -> int:
        """Number of heads of the finished projection."""
        return (self.weight if self.latent is None else self.latent.up).shape[0]


@dataclasses.dataclass(frozen=True)
class RotaryUse:
    """How a layer uses rotary tables.

    Attributes:
        table: key into the context's rotary tables.
        first: of the dimensions of a head that are rotated; as many as the table is wide.
        interleaved: pairs are neighbours (0, 1), (2, 3), … and not the halves (GPT-J); the table stays that of halves.
    """

    table: str
    first: int = 0
    interleaved: bool = False


@dataclasses.dataclass(frozen=True)
class PatternRule:
    """How gradients flow back through an attention pattern, where not by the derivative (`acdc.model.backward`).

    Attributes:
        frozen: the pattern is a constant: nothing flows to queries and keys.
        temperature: the softmax's Jacobian is that of softmax(scores / temperature), not divided by it.
        query_key, value: what queries and keys, and values, get of their gradients.
    """

    frozen: bool = False
    temperature: float = 1.0
    query_key: float = 1.0
    value: float = 1.0


@dataclasses.dataclass(frozen=True)
class Gate:
    """What z is multiplied by before the output weights: `activation` of further rows of the q projection.

    A model that gates has one more projection; the gate belongs to the query's destination.

    Attributes:
        width: rows a head: 1, or the size of z.
    """

    activation: Callable[[Tensor], Tensor]
    width: int


@dataclasses.dataclass(frozen=True)
class Attention:
    """One attention layer.

    Attributes:
        norm: applied to each head's input before its projection; None if the model has none there.
        q, k, v: projections.
        w_o: `[head, d_head, d_model]` output weights.
        b_o: `[d_model]`: a constant of the residual stream that belongs to no head.
        scale: multiplies q·k.
        softcap: soft cap of the attention scores (Gemma 2).
        window: number of positions a query sees, itself included; None sees all.
        chunk: a query sees positions of its own chunk of so many only (Llama 4); None sees all.
        causal: whether a query sees only earlier positions and itself.
        rotary: how queries and keys are rotated.
        slopes: `[head]`, ALiBi: what scores fall by with each position of distance.
        sinks: `[head]`, scores that take their share of the attention and give nothing (gpt-oss).
        gate: of z.
        z_norm: an RMSNorm of the z of all heads at once (BitNet).
        multiplier: of z, where what attention writes is multiplied (Granite).
        post_norm: applied to the sum of the heads (Gemma 2 and 3, OLMo-2).
        pattern: how gradients flow back through the attention pattern; None: by the derivative.
    """

    norm: Norm | None
    q: Projection
    k: Projection
    v: Projection
    w_o: Tensor
    b_o: Tensor | None
    scale: float
    softcap: float | None = None
    window: int | None = None
    chunk: int | None = None
    causal: bool = True
    rotary: RotaryUse | None = None
    slopes: Tensor | None = None
    sinks: Tensor | None = None
    gate: Gate | None = None
    z_norm: Norm | None = None
    multiplier: float = 1.0
    post_norm: Norm | None = None
    pattern: PatternRule | None = None

    @property
    def n_heads(self) -> int:
        return self.w_o.shape[0]

    @property
    def sees(self) -> tuple[bool, int | None, int | None]:
        """What the mask depends on: (causal, window, chunk)."""
        return self.causal, self.window, self.chunk

    @property
    def coupled(self) -> bool:
        """Whether a change in one head changes what the other heads of the layer write."""
        return self.post_norm is not None or self.z_norm is not None or self.q.norm_across_heads


@dataclasses.dataclass(frozen=True)
class Mixer:
    """What mixes positions otherwise than heads do: a state space, linear attention, a convolution. One node.

    Attributes:
        run: `(stream [b, T, D], mask of real tokens [b, T], position ids [b, T])` to what is written, `[b, T, D]`, with
            its norm.
        norm: before it.
    """

    run: Callable[[Tensor, Tensor, Tensor], Tensor]
    norm: Norm | None


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a block as the module runs them, so that a difference can be traced to one of them.

    Attributes:
        block: reads the residual stream.
        attention, mlp: read the normalised stream; attention is None where it is no module of its own.
        attention_writes, mlp_writes: their last module (a post-norm, or themselves), whose output is added.
    """

    block: torch.nn.Module
    attention: torch.nn.Module | None
    attention_writes: torch.nn.Module | None
    mlp: torch.nn.Module
    mlp_writes: torch.nn.Module


@dataclasses.dataclass(frozen=True)
class Layer:
    """One block: what mixes positions, then the MLP (or both at once in parallel blocks).

    `mlp` maps its normalised input to what it writes to the residual stream, post-norm included.
    """

    mixes: Attention | Mixer
    mlp_norm: Norm | None
    mlp: Callable[[Tensor], Tensor]
    parts: Parts

    @property
    def attention(self) -> Attention:
        """The heads; not for layers with a mixer."""
        if isinstance(self.mixes, Mixer):
            raise TypeError("this layer has a mixer and no heads")
        return self.mixes

    @property
    def mixer(self) -> Mixer | None:
        return self.mixes if isinstance(self.mixes, Mixer) else None


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """A whole decoder.

    Attributes:
        token_embedding: `[batch, position] int -> [batch, position, d_model]`.
        position_embedding: the same for position ids; None for rotary models.
        rotary: `(x, position_ids) -> {key: (cos, sin)}`, each `[batch, position, rotary]`; None without rotary.
        unembedding: `[vocabulary, d_model]`.
        logit_scale: multiplies the logits (Cohere).
        final_softcap: soft cap of the logits.
        parallel: the MLP reads the block's input, not the heads of its own layer.
    """

    layers: tuple[Layer, ...]
    token_embedding: Callable[[Tensor], Tensor]
    position_embedding: Callable[[Tensor], Tensor] | None
    rotary: Rotary | None
    final_norm: Norm | None
    unembedding: Tensor
    unembedding_bias: Tensor | None = None
    logit_scale: float = 1.0
    final_softcap: float | None = None
    parallel: bool = False

    @property
    def attends_by_position(self) -> bool:
        """Whether attention depends on position ids."""
        return self.rotary is not None or any(x.slopes is not None or x.chunk is not None for x in self.attentions)

    @property
    def attentions(self) -> list[Attention]:
        """Of the layers that have heads."""
        return [layer.mixes for layer in self.layers if isinstance(layer.mixes, Attention)]


def layer_norm(module: Any) -> Norm:
    """A `torch.nn.LayerNorm`."""
    return Norm(module=module, centred=True)


def rms_norm(module: Any, *, plus_one: bool = False) -> Norm:
    """A `transformers` RMSNorm; `plus_one` where it multiplies by 1 + weight (Gemma)."""
    return Norm(module=module, centred=False, plus_one=plus_one)


def rows(weight: Tensor, bias: Tensor | None, n_heads: int) -> Projection:
    """A projection whose weight `[head * d_head, d_model]` stacks the heads (`torch.nn.Linear`)."""
    d_head = weight.shape[0] // n_heads
    return Projection(
        weight=weight.detach().view(n_heads, d_head, weight.shape[1]),
        bias=None if bias is None else bias.detach().view(n_heads, d_head),
    )


def columns(weight: Tensor, n_heads: int) -> Tensor:
    """Output weights `[d_model, head * d_head]` (`torch.nn.Linear`) as `[head, d_head, d_model]`."""
    d_model, width = weight.shape
    return weight.detach().view(d_model, n_heads, width // n_heads).permute(1, 2, 0)


def detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
