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
    Projection,
    columns,
    detached,
    rms_norm,
    rows,
)


@dataclasses.dataclass(frozen=True)
class _Family:
    """How a family departs from Llama. The norms are attribute names of the block."""

    attention_norm: str | None = "input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_post_norm: str | None = None
    gain_plus_one: bool = False
    norm_across_heads: bool = False


_SANDWICH = _Family(
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    gain_plus_one=True,
)
_FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(),
    "qwen2": _Family(),
    "qwen3": _Family(),
    "phi3": _Family(),
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
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
    layer_types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    by_layer_type = config.model_type == "gemma3_text"  # local and global layers rotate differently

    def rotary(x: Tensor, position_ids: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        if by_layer_type:
            return {kind: body.rotary_emb(x, position_ids, kind) for kind in set(layer_types)}
        table = body.rotary_emb(x, position_ids)
        return dict.fromkeys(set(layer_types), table)

    return Decomposition(
        layers=tuple(_layer(b, config, family, t) for b, t in zip(body.layers, layer_types, strict=True)),
        token_embedding=body.embed_tokens,
        position_embedding=None,
        rotary=rotary,
        final_norm=rms_norm(body.norm, plus_one=family.gain_plus_one),
        unembedding=model.lm_head.weight.detach(),
        unembedding_bias=detached(model.lm_head.bias),
        final_softcap=getattr(config, "final_logit_softcapping", None),
    )


def _layer(block: Any, config: Any, family: _Family, layer_type: str) -> Layer:
    def norm(name: str | None) -> Any:
        return None if name is None else rms_norm(getattr(block, name), plus_one=family.gain_plus_one)

    attention = block.self_attn
    q, k, v = _projections(attention, config.num_attention_heads, config.num_key_value_heads)
    if hasattr(attention, "q_norm"):
        q = dataclasses.replace(q, norm=attention.q_norm, norm_across_heads=family.norm_across_heads)
        k = dataclasses.replace(k, norm=attention.k_norm, norm_across_heads=family.norm_across_heads)
    # Mistral and Phi-3 apply the window to every layer; the others only to the layers of that type.
    sliding = config.model_type in ("mistral", "phi3") or layer_type == "sliding_attention"
    mlp, mlp_post_norm = block.mlp, norm(family.mlp_post_norm)
    if family.attention_post_norm is not None and attention.o_proj.bias is not None and attention.o_proj.bias.any():
        raise UnsupportedModelError(
            f"{config.model_type}: an attention output bias before a post-norm is not supported: it belongs to no "
            "head and is not constant"
        )
    return Layer(
        attention=Attention(
            norm=norm(family.attention_norm),
            q=q,
            k=k,
            v=v,
            w_o=columns(attention.o_proj.weight, config.num_attention_heads),
            b_o=detached(attention.o_proj.bias),
            scale=attention.scaling,
            softcap=getattr(attention, "attn_logit_softcapping", None),
            window=getattr(config, "sliding_window", None) if sliding else None,
            rotary=layer_type,
            post_norm=norm(family.attention_post_norm),
        ),
        mlp_norm=norm(family.mlp_norm),
        mlp=mlp if mlp_post_norm is None else nn.Sequential(mlp, mlp_post_norm.module),
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
