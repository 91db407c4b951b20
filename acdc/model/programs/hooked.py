"""Transformers as TransformerLens stores them: the layout of the InterpBench models' `ll_model.pth`.

TransformerLens keeps a head's weights apart (`W_Q [H, D, d_head]`), may leave norms out altogether, and lets the
output vocabulary differ from the input's. `HookedModel` has the same parameters by the same names and runs them in
plain torch, so that a state dict is loaded as it is, and `decompose` finds the weights in it without a copy.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Literal

import pydantic
import torch
from torch import Tensor, nn

from acdc.model.architecture import Attention, Decomposition, Layer, Norm, Parts, Projection

ACTIVATIONS: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "gelu": nn.GELU(),
    "gelu_new": nn.GELU(approximate="tanh"),
    "gelu_fast": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
}


class HookedConfig(pydantic.BaseModel, frozen=True, extra="ignore"):
    """What of a `HookedTransformerConfig` decides what the model computes; the rest must be as here, or is ignored."""

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    n_ctx: int
    d_vocab: int
    d_vocab_out: int = -1
    act_fn: Literal["relu", "gelu", "gelu_new", "gelu_fast", "silu"]
    normalization_type: Literal["LN", "LNPre"] | None
    eps: float = 1e-5
    attention_dir: Literal["causal", "bidirectional"] = "causal"
    use_attn_scale: bool = True
    attn_scale: float = -1.0
    # What is not supported has one value that is:
    positional_embedding_type: Literal["standard"] = "standard"
    attn_only: Literal[False] = False
    parallel_attn_mlp: Literal[False] = False
    gated_mlp: Literal[False] = False
    use_local_attn: Literal[False] = False
    use_hook_tokens: Literal[False] = False
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    use_normalization_before_and_after: Literal[False] = False
    post_embedding_ln: Literal[False] = False
    n_key_value_heads: None = None
    attn_scores_soft_cap: Literal[-1] = -1
    output_logits_soft_cap: Literal[-1] = -1
    name: str = "hooked-transformer"
    model_type: Literal["hooked-transformer"] = "hooked-transformer"

    @pydantic.field_validator("attn_scores_soft_cap", "output_logits_soft_cap", mode="before")
    @classmethod
    def _whole(cls, value: object) -> object:
        return -1 if value == -1 else value  # TransformerLens writes -1.0

    @property
    def n_outputs(self) -> int:
        return self.d_vocab if self.d_vocab_out == -1 else self.d_vocab_out

    @property
    def scale(self) -> float:
        """What attention scores are multiplied by."""
        if not self.use_attn_scale:
            return 1.0
        return 1 / (self.attn_scale if self.attn_scale > 0 else self.d_head**0.5)

    @property
    def max_position_embeddings(self) -> int:
        return self.n_ctx

    @property
    def _name_or_path(self) -> str:
        return self.name


class Weights(nn.Module):
    """Parameters by name, like `W_E`."""

    W_E: Tensor
    W_pos: Tensor
    W_U: Tensor
    b_U: Tensor
    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor
    b_Q: Tensor
    b_K: Tensor
    b_V: Tensor
    b_O: Tensor
    W_in: Tensor
    b_in: Tensor
    W_out: Tensor
    b_out: Tensor

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


class HookedNorm(nn.Module):
    """A LayerNorm; without parameters if it is of type "LNPre"."""

    def __init__(self, d_model: int, eps: float, *, affine: bool) -> None:
        super().__init__()
        self.eps = eps
        self.w = nn.Parameter(torch.ones(d_model)) if affine else None
        self.b = nn.Parameter(torch.zeros(d_model)) if affine else None
        self.register_buffer("ones", torch.ones(d_model), persistent=False)

    @property
    def weight(self) -> Tensor:
        """`[d_model]`, ones if it has none of its own."""
        return self.get_buffer("ones") if self.w is None else self.w.detach()

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], self.w, self.b, self.eps)


class HookedMLP(Weights):
    def __init__(self, config: HookedConfig) -> None:
        D, M = config.d_model, config.d_mlp
        super().__init__(W_in=(D, M), b_in=(M,), W_out=(M, D), b_out=(D,))
        self.act = ACTIVATIONS[config.act_fn]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(x @ self.W_in + self.b_in) @ self.W_out + self.b_out
        return out


class HookedBlock(nn.Module):
    def __init__(self, config: HookedConfig) -> None:
        super().__init__()
        H, D, K = config.n_heads, config.d_model, config.d_head
        self.scale = config.scale
        if config.normalization_type is not None:
            affine = config.normalization_type == "LN"
            self.ln1, self.ln2 = (HookedNorm(D, config.eps, affine=affine) for _ in range(2))
        self.attn = Weights(
            W_Q=(H, D, K), W_K=(H, D, K), W_V=(H, D, K), W_O=(H, K, D), b_Q=(H, K), b_K=(H, K), b_V=(H, K), b_O=(D,)
        )
        self.mlp = HookedMLP(config)

    def norm(self, name: str) -> HookedNorm | None:
        norm = getattr(self, name, None)
        return norm if isinstance(norm, HookedNorm) else None

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """`x [B, T, D]`, `allowed [B, 1, query, key]` bool."""
        ln1, ln2, attn = self.norm("ln1"), self.norm("ln2"), self.attn
        normed = x if ln1 is None else ln1(x)
        q, k, v = (
            torch.einsum("btd,hde->bhte", normed, weight) + bias[:, None]
            for weight, bias in ((attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V))
        )
        scores = q @ k.transpose(-1, -2) * self.scale
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        x = x + torch.einsum("bhte,hed->btd", scores.softmax(-1) @ v, attn.W_O) + attn.b_O
        out: Tensor = x + self.mlp(x if ln2 is None else ln2(x))
        return out


class HookedModel(nn.Module):
    """A transformer in TransformerLens's layout; its parameters have TransformerLens's names."""

    def __init__(self, config: HookedConfig) -> None:
        super().__init__()
        self.config = config
        D = config.d_model
        self.embed = Weights(W_E=(config.d_vocab, D))
        self.pos_embed = Weights(W_pos=(config.n_ctx, D))
        self.blocks = nn.ModuleList(HookedBlock(config) for _ in range(config.n_layers))
        if config.normalization_type is not None:
            self.ln_final = HookedNorm(D, config.eps, affine=config.normalization_type == "LN")
        self.unembed = Weights(W_U=(D, config.n_outputs), b_U=(config.n_outputs,))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
    ) -> SimpleNamespace:
        """Like a `transformers` model: an object with `logits [B, T, O]` and, if asked for, `hidden_states`."""
        B, T = input_ids.shape
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        if position_ids is None:
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        everywhere = torch.ones(T, T, dtype=torch.bool, device=input_ids.device)
        allowed = mask.bool()[:, None, None, :].expand(B, 1, T, T)
        if self.config.attention_dir == "causal":
            allowed = allowed & everywhere.tril()
        allowed = allowed | everywhere.tril().triu()  # padding sees itself, so that no row is empty
        states: list[Tensor] = [self.embed.W_E[input_ids] + self.pos_embed.W_pos[position_ids]]
        for block in self.blocks:
            states.append(block(states[-1], allowed))
        x = states[-1] if self.config.normalization_type is None else self.ln_final(states[-1])
        logits = x @ self.unembed.W_U + self.unembed.b_U
        return SimpleNamespace(logits=logits, hidden_states=tuple(states) if output_hidden_states else None)


@dataclasses.dataclass(frozen=True)
class EmbeddingTable:
    """An embedding: rows of a weight by their ids."""

    weight: Tensor

    @property
    def num_embeddings(self) -> int:
        return len(self.weight)

    def __call__(self, ids: Tensor) -> Tensor:
        return self.weight[ids]


def decompose(model: HookedModel) -> Decomposition:
    """Where the engine finds the weights of a `HookedModel`, in place."""
    config = model.config
    final = model.ln_final if config.normalization_type is not None else None

    def layer(block: HookedBlock) -> Layer:
        attn = block.attn
        q, k, v = (
            Projection(weight.detach().transpose(1, 2), bias.detach())
            for weight, bias in ((attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V))
        )
        return Layer(
            mixes=Attention(
                norm=_norm(block.norm("ln1")), q=q, k=k, v=v, w_o=attn.W_O.detach(),
                b_o=attn.b_O.detach(), scale=block.scale, causal=config.attention_dir == "causal",
            ),
            mlp_norm=_norm(block.norm("ln2")),
            mlp=block.mlp,
            parts=Parts(block, attention=None, attention_writes=None, mlp=block.mlp, mlp_writes=block.mlp),
        )  # fmt: skip

    return Decomposition(
        layers=tuple(layer(block) for block in model.blocks if isinstance(block, HookedBlock)),
        token_embedding=EmbeddingTable(model.embed.W_E.detach()),
        position_embedding=EmbeddingTable(model.pos_embed.W_pos.detach()),
        rotary=None,
        final_norm=_norm(final),
        unembedding=model.unembed.W_U.detach().T,
        unembedding_bias=model.unembed.b_U.detach(),
    )


def _norm(module: HookedNorm | None) -> Norm | None:
    return None if module is None else Norm(module=module, centred=True)
