"""GPT-2: learned positions, LayerNorm, fused q/k/v stored as `[in, out]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.activations import NewGELUActivation

from acdc.model.architecture import Attention, Decomposition, Layer, Parts, Projection, detached, layer_norm
from acdc.model.observe import Observed, observe


def decompose(model: Any) -> Decomposition:
    """Read a `GPT2LMHeadModel` in place; with `is_causal: false` in its config every position sees every other."""
    body = model.transformer
    seen = observe(model, [block.attn for block in body.h])
    return Decomposition(
        layers=tuple(_layer(block, own) for block, own in zip(body.h, seen, strict=True)),
        token_embedding=body.wte,
        position_embedding=body.wpe,
        rotary=None,
        final_norm=layer_norm(body.ln_f),
        unembedding=model.lm_head.weight.detach(),
        unembedding_bias=detached(model.lm_head.bias),
    )


def _layer(block: Any, seen: Observed) -> Layer:
    attention = block.attn
    n_heads, d_head, d_model = attention.num_heads, attention.head_dim, attention.embed_dim
    weight = attention.c_attn.weight.detach().t().view(3, n_heads, d_head, d_model)  # Conv1D stores [in, out]
    bias = attention.c_attn.bias.detach().view(3, n_heads, d_head)
    q, k, v = (Projection(weight=weight[i], bias=bias[i]) for i in range(3))
    return Layer(
        attention=Attention(
            norm=layer_norm(block.ln_1),
            q=q,
            k=k,
            v=v,
            w_o=attention.c_proj.weight.detach().view(n_heads, d_head, d_model),
            b_o=attention.c_proj.bias.detach(),
            scale=seen.scale,
            window=seen.window,
            causal=seen.causal,
        ),
        mlp_norm=layer_norm(block.ln_2),
        mlp=_mlp(block.mlp),
        parts=Parts(block, attention, attention, block.mlp, block.mlp),
    )


def _mlp(module: Any) -> Callable[[Tensor], Tensor]:
    """The MLP, with its activation in one kernel where transformers writes out eight operations."""
    if not isinstance(module.act, NewGELUActivation):
        return module

    def forward(x: Tensor) -> Tensor:
        out: Tensor = module.c_proj(F.gelu(module.c_fc(x), approximate="tanh"))
        return out

    return forward
