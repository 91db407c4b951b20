"""The Llama layout: RMSNorm, rotary, gated MLP, grouped-query attention.

Llama 2 and 3, Mistral, Qwen2, Qwen3, Gemma 2 and 3, Phi-3 and OLMo-2 share it; what differs is which norms stand
where, whether q/k/v are fused, and whether queries and keys are normalised. `_FAMILIES` lists just that.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from acdc.errors import UnsupportedModelError
from acdc.model.architecture import (
    Attention,
    Decomposition,
    Layer,
    Parts,
    Projection,
    RotaryUse,
    columns,
    detached,
    rms_norm,
    rows,
)
from acdc.model.observe import Observed, observe


@dataclasses.dataclass(frozen=True)
class _Family:
    """How a family departs from Llama. The norms are attribute names of the block.

    Attributes:
        rotary_by_layer_type: local and global layers, by `config.layer_types`, rotate differently.
        caps_logits: the logits are capped at `config.final_logit_softcapping`; other classes ignore that key.
    """

    attention_norm: str | None = "input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_post_norm: str | None = None
    gain_plus_one: bool = False
    norm_across_heads: bool = False
    rotary_by_layer_type: bool = False
    caps_logits: bool = False


_SANDWICH = _Family(
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    gain_plus_one=True,
    caps_logits=True,
)
_FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(),
    "qwen2": _Family(),
    "qwen3": _Family(),
    "phi3": _Family(),
    "gemma2": _SANDWICH,
    "gemma3_text": dataclasses.replace(_SANDWICH, rotary_by_layer_type=True),
    "olmo2": _Family(
        attention_norm=None,
        attention_post_norm="post_attention_layernorm",
        mlp_norm=None,
        mlp_post_norm="post_feedforward_layernorm",
        norm_across_heads=True,
    ),
}


def decompose(model: Any) -> Decomposition:
    """Read a `transformers` causal model of the Llama layout in place."""
    body, config = model.model, model.config
    family = _FAMILIES[config.model_type]
    kinds = list(config.layer_types) if family.rotary_by_layer_type else ["all"] * len(body.layers)
    seen = observe(model, [block.self_attn for block in body.layers])

    def rotary(x: Tensor, position_ids: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        if family.rotary_by_layer_type:
            return {kind: body.rotary_emb(x, position_ids, kind) for kind in set(kinds)}
        return {"all": body.rotary_emb(x, position_ids)}

    return Decomposition(
        layers=tuple(
            _layer(block, config.model_type, family, own, kind)
            for block, own, kind in zip(body.layers, seen, kinds, strict=True)
        ),
        token_embedding=body.embed_tokens,
        position_embedding=None,
        rotary=rotary,
        final_norm=rms_norm(body.norm, plus_one=family.gain_plus_one),
        unembedding=model.lm_head.weight.detach(),
        unembedding_bias=detached(model.lm_head.bias),
        final_softcap=config.final_logit_softcapping if family.caps_logits else None,
    )


def _layer(block: Any, model_type: str, family: _Family, seen: Observed, rotary: str) -> Layer:
    def norm(name: str | None) -> Any:
        return None if name is None else rms_norm(getattr(block, name), plus_one=family.gain_plus_one)

    attention = block.self_attn
    q, k, v = _projections(attention, seen.n_heads, seen.n_kv_heads)
    if hasattr(attention, "q_norm"):
        q = dataclasses.replace(q, norm=attention.q_norm, norm_across_heads=family.norm_across_heads)
        k = dataclasses.replace(k, norm=attention.k_norm, norm_across_heads=family.norm_across_heads)
    mlp, post_norm, mlp_post_norm = block.mlp, norm(family.attention_post_norm), norm(family.mlp_post_norm)
    if post_norm is not None and attention.o_proj.bias is not None and attention.o_proj.bias.any():
        raise UnsupportedModelError(
            f"{model_type}: an attention output bias before a post-norm is not supported: it belongs to no "
            "head and is not constant"
        )
    return Layer(
        attention=Attention(
            norm=norm(family.attention_norm),
            q=q,
            k=k,
            v=v,
            w_o=columns(attention.o_proj.weight, seen.n_heads),
            b_o=detached(attention.o_proj.bias),
            scale=seen.scale,
            softcap=seen.softcap,
            window=seen.window,
            causal=seen.causal,
            rotary=RotaryUse(rotary),
            post_norm=post_norm,
        ),
        mlp_norm=norm(family.mlp_norm),
        mlp=mlp if mlp_post_norm is None else nn.Sequential(mlp, mlp_post_norm.module),
        parts=Parts(
            block,
            attention=attention,
            attention_writes=attention if post_norm is None else post_norm.module,
            mlp=mlp,
            mlp_writes=mlp if mlp_post_norm is None else mlp_post_norm.module,
        ),
    )


def _projections(attention: Any, n_heads: int, n_kv_heads: int) -> tuple[Projection, Projection, Projection]:
    if hasattr(attention, "qkv_proj"):  # Phi-3 stacks q, k and v
        d_head = attention.head_dim
        sizes = [n_heads * d_head, n_kv_heads * d_head, n_kv_heads * d_head]
        q, k, v = attention.qkv_proj.weight.split(sizes)
        return rows(q, None, n_heads), rows(k, None, n_kv_heads), rows(v, None, n_kv_heads)
    return (
        rows(attention.q_proj.weight, attention.q_proj.bias, n_heads),
        rows(attention.k_proj.weight, attention.k_proj.bias, n_kv_heads),
        rows(attention.v_proj.weight, attention.v_proj.bias, n_kv_heads),
    )
