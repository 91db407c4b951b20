"""A tiny random module of every causal type of the installed `transformers`.

Configs are the classes' own defaults, made small by what their settings mean: every setting that is a width becomes 64,
every number of layers 4, and so on. Lists of a value a layer keep each kind of layer that they name. What a class
needs beyond that is in `_NEEDS`. Every weight is random, norms and biases included, so that a term that is left out
shows.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from acdc.errors import AcdcError

LAYERS = 4
VOCABULARY = 61

_SIZES: dict[str, int] = {
    name: size
    for size, names in (
        (
            64,
            "hidden_size n_embd d_model emb_dim embedding_size word_embed_proj_dim embedding_dim hidden_size_global "
            "attention_hidden_size lru_width backbone_hidden_size input_embedding_size output_embedding_size "
            "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions max_source_positions "
            "context_length model_max_length index_topk projector_input_dim projector_output_dim codebook_size "
            "adapter_in_dim adapter_input_size adapter_out_dim",
        ),
        (
            40,
            "intermediate_size n_inner ffn_dim dff dim_ff d_inner d_ff ffn_hidden_size feed_forward_size mlp_dim "
            "intermediate_size_mlp dense_intermediate_size decoder_ffn_dim encoder_ffn_dim moe_intermediate_size "
            "expert_ffn_hidden_size shared_expert_intermediate_size shared_experts_intermediate_size "
            "shared_intermediate_size moe_shared_expert_intermediate_size",
        ),
        (
            LAYERS,
            "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
            "num_encoder_layers num_blocks depth num_layers_per_stack",
        ),
        (
            4,
            "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
            "num_decoder_attention_heads num_encoder_attention_heads attention_heads swa_num_attention_heads "
            "linear_num_value_heads linear_num_heads mamba_n_heads mamba_num_heads num_experts num_local_experts "
            "n_routed_experts moe_num_experts index_n_heads mamba_d_state ssm_state_size state_size time_step_rank "
            "mamba_dt_rank num_query_groups router_hidden_size qk_rope_head_dim rotary_dim",
        ),
        (
            2,
            "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads num_experts_per_tok "
            "num_experts_per_token moe_k moe_topk n_mamba_heads o_groups n_group topk_group n_groups num_expert_group "
            "attn_layer_period layer_group_size heads_per_ngram num_kv_shared_layers zero_expert_num "
            "n_layers_per_attn_res_block first_k_dense_replace index_topk_blocks rescale_every",
        ),
        (
            8,
            "head_dim attention_head_dim attention_head_size kv_channels d_head d_kv dim_head linear_key_head_dim "
            "linear_value_head_dim linear_head_dim v_head_dim qk_nope_head_dim swa_head_dim mamba_d_head "
            "mamba_head_dim mamba_headdim index_head_dim query_pre_attn_scalar codebook_dim d_rel laurel_rank "
            "hidden_size_per_layer_input gated_norm_rank ple_embed_dim hc_lowrank shape_embed_dim dim_model_base "
            "pronunciation_embed_dim adapter_rank",
        ),
        (12, "kv_lora_rank q_lora_rank o_lora_rank"),
        (
            VOCABULARY,
            "vocab_size vocab_size_per_layer_input decoder_vocab_size pronunciation_vocab_size shape_vocab_size "
            "unpadded_vocab_size",
        ),
        (
            5,
            "sliding_window window_size sliding_window_size attention_window_size local_attention keep_window_size "
            "attention_chunk_size local_attention_window_len",
        ),
        (
            16,
            "original_max_position_embeddings rel_extent block_size index_block_size mamba_chunk_size chunk_size "
            "image_size patch_size split_ngram_parts heavily_compressed_attention",
        ),
        (1, "max_window_layers"),
        (100, "ngram_vocab_size_base encoder_hash_byte_group_vocab"),
    )
    for name in names.split()
}
"""What each setting becomes, if the default is larger."""

_ROPE = {"rope_type": "default", "rope_theta": 100.0}

_NEEDS: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 16, "attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {
        "attn_config": {"rope_theta": 100.0, "kv_n_heads": 2, "clip_qkv": 1.0},
        "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_group": 1, "n_group": 1},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 32},
    "gemma4_text": {"hidden_size_per_layer_input": 0, "global_head_dim": 16},
    "gemma4_unified_text": {"hidden_size_per_layer_input": 0, "global_head_dim": 16},
    "granitemoehybrid": {"mamba_n_heads": 16, "layer_types": ["linear_attention", "full_attention"] * 2},
    "helium": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 8, "num_key_value_heads": 2},
    "hunyuan_v1_moe": {"head_dim": 8, "num_key_value_heads": 2},
    "jamba": {"attn_layer_offset": 1},
    "laguna": {"num_attention_heads_per_layer": [4, 4, 4, 4]},
    "lfm2": {"layer_types": ["full_attention", "conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["full_attention", "conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 16, "head_dim": 8},
    "ministral": {"head_dim": 8, "num_key_value_heads": 2},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "olmo": {"clip_qkv": 1.0},
    "qwen4_exp_text": {
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 2,
        "indexer_head_dim": 8,
    },
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [32, 32], "axial_pos_shape": [8, 8]},
    "xlnet": {"d_head": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 128, "attention_head_dim": 32},
    "zamba2": {"attention_hidden_size": 128, "attention_head_dim": 32, "n_mamba_heads": 16, "mamba_ngroups": 1},
}
"""What a type needs beyond small sizes: where sizes depend on each other, or where a default is none that exists.

Gemma 4 is built as its larger models are, without a second embedding for each layer.
"""

_NUMBERS_OF_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def causal_types() -> list[str]:
    """Every `model_type` that `AutoModelForCausalLM` of the installed `transformers` knows."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_decoder(kind: str, *, dtype: torch.dtype = torch.float64, seed: int = 7) -> Any:
    """A tiny random module of a type, in evaluation mode.

    Raises:
        AcdcError: the class cannot be built so.
    """
    try:
        settings = CONFIG_MAPPING[kind](**_settings(CONFIG_MAPPING[kind](), kind))
        torch.manual_seed(0)
        module = transformers.AutoModelForCausalLM.from_config(settings, experts_implementation="eager")
        module = module.to(dtype).eval()
    except Exception as error:  # classes fail in ways of their own
        raise AcdcError(f"{kind} cannot be built from a tiny configuration: {_first_line(error)}") from error
    randomise(module, seed)
    return module


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 7) -> None:
    """Random weights: matrices that keep the size of what they are given, and vectors near what they are."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        if parameter.dim() < 2:
            parameter.add_(0.1 * noise)
        else:
            parameter.copy_(0.7 * noise * parameter.shape[-1] ** -0.5)


def _settings(config: Any, kind: str) -> dict[str, Any]:
    """Settings of a tiny config of the same class."""
    given = config.to_dict()
    given |= {name: _attribute(config, name) for name in type(config).attribute_map}
    layers = next(
        (x for x in (_attribute(config, name) for name in _NUMBERS_OF_LAYERS) if isinstance(x, int)), None
    )
    latent = "qk_rope_head_dim" in given
    settings: dict[str, Any] = {}
    for name, value in given.items():
        inner = _attribute(config, name)
        real = getattr(type(config), type(config).attribute_map.get(name, name), None)
        if isinstance(real, property) and real.fset is None:
            continue
        if isinstance(inner, transformers.PretrainedConfig):
            settings[name] = _settings(inner, inner.model_type)
        elif name.endswith("token_id") and value is not None:
            settings[name] = 0 if name in ("bos_token_id", "eos_token_id", "pad_token_id") else VOCABULARY - 1
        elif name in _SIZES and type(value) is int and value > 1:
            settings[name] = LAYERS if _SIZES[name] == LAYERS and "layer" in name else min(_SIZES[name], value)
        elif isinstance(value, list | tuple) and layers and len(value) == layers:
            settings[name] = _a_value_each(name, list(value))
    if latent:
        settings |= {key: 4 for key in ("head_dim", "num_key_value_heads") if key in settings}
        settings |= {"qk_head_dim": 12} if "qk_head_dim" in given else {}
    for name, value in copy.deepcopy(_NEEDS.get(kind, {})).items():
        settings[name] = settings[name] | value if name == "text_config" and name in settings else value
    return settings


def _attribute(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # some settings are there for single layers only, and say so
        return None


def _a_value_each(name: str, values: list[Any]) -> list[Any]:
    """A value for each of the tiny model's layers, every kind among them: kinds of layers in turn, others in order."""
    kinds = [value for i, value in enumerate(values) if value not in values[:i]]
    each = [kinds[i % len(kinds)] for i in range(LAYERS)]
    in_turn = name in ("layer_types", "layers_block_type", "no_rope_layers")
    return each if in_turn else sorted(each, key=kinds.index)
