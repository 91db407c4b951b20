"""Tiny random decoders, one for each way in which a supported family can differ, built from their configs.

Every weight is random, norm gains and biases included, so that a term that is dropped or counted twice shows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from torch import Tensor
from transformers.masking_utils import sdpa_mask

from acdc.model.load import load
from acdc.model.model import Model

VOCABULARY = 50


def _gpt2() -> torch.nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=24, n_layer=3, n_head=3, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def _gpt2_scaled_by_layer() -> torch.nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2, n_inner=20,
        scale_attn_by_inverse_layer_idx=True, activation_function="relu", tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def _gpt_neox(*, parallel: bool) -> torch.nn.Module:
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=30,
        max_position_embeddings=32, use_parallel_residual=parallel, rope_parameters=_rope(partial=0.5),
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPTNeoXForCausalLM(config)


def _rope(*, partial: float | None = None) -> dict[str, object]:
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": 100.0}
    return rope if partial is None else {**rope, "partial_rotary_factor": partial}


def _llama_layout(name: str, **options: object) -> torch.nn.Module:
    """Four heads of size 6 in two key/value groups, in a residual stream of 20: 4 · 6 ≠ 20."""
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "rope_parameters": _rope(),
    }  # fmt: skip
    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    config = getattr(transformers, config_name)(**{**sizes, **options})
    module: torch.nn.Module = getattr(transformers, f"{name}ForCausalLM")(config)
    return module


def _gemma2() -> torch.nn.Module:
    return _llama_layout(
        "Gemma2", num_hidden_layers=3, sliding_window=3, query_pre_attn_scalar=10, attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip


def _gemma3() -> torch.nn.Module:
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
    }
    return _llama_layout(
        "Gemma3", num_hidden_layers=3, sliding_window=3, query_pre_attn_scalar=10, rope_parameters=rope,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip


def _qwen2(*, sliding: bool) -> torch.nn.Module:
    options: dict[str, object] = {"num_hidden_layers": 2, "hidden_size": 24}
    if sliding:
        types = ["full_attention", "sliding_attention"]
        options |= {"use_sliding_window": True, "sliding_window": 3, "layer_types": types}
    return _llama_layout("Qwen2", **options)


FAMILIES: dict[str, Callable[[], torch.nn.Module]] = {
    "gpt2": _gpt2,
    "gpt2-scaled-by-layer": _gpt2_scaled_by_layer,
    "gpt-neox-parallel": lambda: _gpt_neox(parallel=True),
    "gpt-neox-sequential": lambda: _gpt_neox(parallel=False),
    "llama": lambda: _llama_layout("Llama", attention_bias=True, mlp_bias=True),
    "mistral": lambda: _llama_layout("Mistral", sliding_window=3),
    "qwen2": lambda: _qwen2(sliding=False),
    "qwen2-sliding": lambda: _qwen2(sliding=True),
    "qwen3": lambda: _llama_layout("Qwen3", attention_bias=True),
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": lambda: _llama_layout("Phi3", hidden_size=24, sliding_window=4, rope_parameters=_rope(partial=0.5)),
    "olmo2": lambda: _llama_layout("Olmo2", hidden_size=24),
}
"""Untouched modules by name; `module` and `tiny` give them random weights."""


def _longrope() -> torch.nn.Module:
    factors = {"short_factor": [1.0, 1.5, 2.0], "long_factor": [3.0, 7.0, 9.0]}
    rope = {"rope_type": "longrope", "rope_theta": 100.0, **factors}
    return _llama_layout("Phi3", hidden_size=24, original_max_position_embeddings=4, rope_parameters=rope)


def _dynamic_rope() -> torch.nn.Module:
    rope = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 8.0}
    return _llama_layout("Llama", max_position_embeddings=4, rope_parameters=rope)


ROTATE_BY_LENGTH: dict[str, Callable[[], torch.nn.Module]] = {
    "phi3-longrope": _longrope,
    "llama-dynamic": _dynamic_rope,
}
"""Modules whose rotary frequencies the longest prompt of a call chooses; apart, since plain runs mix prompts."""


def _exact_norm(norm: torch.nn.Module, *, plus_one: bool) -> Callable[[Tensor], Tensor]:
    """An RMSNorm in the precision of its input; most families' own round to float32."""
    eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps

    def forward(x: Tensor) -> Tensor:
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        gain: Tensor = norm.weight
        return normed * (1 + gain if plus_one else gain)

    return forward


def _exact_attention(
    attention: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float, softcap: float | None = None, **unused: object,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention in the precision of its inputs; eager attention rounds its softmax to float32."""
    H, T = query.shape[1:3]
    if attention_mask is None:
        attention_mask = torch.ones(T, T, dtype=torch.bool, device=query.device).tril()[None, None]
    key, value = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    attention_mask = attention_mask | torch.eye(T, dtype=torch.bool, device=query.device)
    weights = scores.masked_fill(~attention_mask, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), None


transformers.AttentionInterface.register("exact", _exact_attention)
transformers.AttentionMaskInterface.register("exact", sdpa_mask)


def make_exact(built: torch.nn.Module) -> None:
    """Make every step of a float64 module a float64 one."""
    built.set_attn_implementation("exact")
    for submodule in built.modules():
        if type(submodule).__name__.endswith("RMSNorm"):
            submodule.forward = _exact_norm(submodule, plus_one="Gemma" in type(submodule).__name__)


def module(name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.nn.Module:
    """A tiny `transformers` module of a family with every weight random, in evaluation mode; exact in float64."""
    built = (FAMILIES | ROTATE_BY_LENGTH)[name]().eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter_name, parameter in built.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in parameter_name or "ln_" in parameter_name:
            value = parameter.detach() + 0.3 * noise  # gains (around one or zero) and LayerNorm biases
        elif parameter.dim() == 1:
            value = 0.3 * noise
        else:
            value = noise if parameter.shape[0] == VOCABULARY else noise * 1.5 * parameter.shape[-1] ** -0.5
        parameter.data.copy_(value)
    built = built.to(dtype)
    if dtype == torch.float64:
        make_exact(built)
    return built


def tiny(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Model:
    """The same as an acdc model."""
    return load(module(name, dtype=dtype, seed=seed))
