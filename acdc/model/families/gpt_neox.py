"""GPT-NeoX (Pythia): fused q/k/v rows laid out `[head, 3, d_head]`, partial rotary, parallel or serial blocks."""

from __future__ import annotations

from typing import Any

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
    layer_norm,
)
from acdc.model.observe import Observed, observe


def decompose(model: Any) -> Decomposition:
    """Read a `GPTNeoXForCausalLM` in place."""
    body = model.gpt_neox
    parallel = {bool(block.use_parallel_residual) for block in body.layers}
    if len(parallel) > 1:
        raise UnsupportedModelError("gpt_neox: parallel and sequential blocks in one model are not supported")
    seen = observe(model, [block.attention for block in body.layers])
    return Decomposition(
        layers=tuple(_layer(block, own) for block, own in zip(body.layers, seen, strict=True)),
        token_embedding=body.embed_in,
        position_embedding=None,
        rotary=lambda x, position_ids: {"rotary": body.rotary_emb(x, position_ids=position_ids)},
        final_norm=layer_norm(body.final_layer_norm),
        unembedding=model.get_output_embeddings().weight.detach(),
        parallel=parallel == {True},
    )


def _layer(block: Any, seen: Observed) -> Layer:
    attention, n_heads = block.attention, seen.n_heads
    fused = attention.query_key_value
    weight = fused.weight.detach().view(n_heads, 3, attention.head_size, -1)
    bias = None if fused.bias is None else fused.bias.detach().view(n_heads, 3, attention.head_size)
    q, k, v = (Projection(weight=weight[:, i], bias=None if bias is None else bias[:, i]) for i in range(3))
    return Layer(
        attention=Attention(
            norm=layer_norm(block.input_layernorm),
            q=q,
            k=k,
            v=v,
            w_o=columns(attention.dense.weight, n_heads),
            b_o=detached(attention.dense.bias),
            scale=seen.scale,
            window=seen.window,
            causal=seen.causal,
            rotary=RotaryUse("rotary"),
        ),
        mlp_norm=layer_norm(block.post_attention_layernorm),
        mlp=block.mlp,
        parts=Parts(block, attention, attention, block.mlp, block.mlp),
    )
