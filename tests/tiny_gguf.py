"""A tiny Llama as a GGUF file, written as llama.cpp's converter writes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf.quants import dequantize, quantize

WIDTH = 64  # quantised blocks have 32 numbers a row
WORDS = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ġa", "Ġb", "th"]
MERGES = ["Ġ a", "Ġ b", "t h"]


def llama() -> Any:
    """Two layers of four heads on two key/value heads, weights random."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    )  # fmt: skip
    module = transformers.LlamaForCausalLM(config).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.15)
    return module


def rounded(matrix: torch.Tensor) -> torch.Tensor:
    """What eight bits leave of a matrix."""
    kind = gguf.GGMLQuantizationType.Q8_0
    return torch.from_numpy(dequantize(quantize(matrix.detach().numpy(), kind), kind))


def write(path: Path, module: Any, *, quantised: bool = False, architecture: str = "llama") -> Path:
    """The module as a GGUF file, its matrices in eight bits if `quantised`."""
    config = module.config
    writer = gguf.GGUFWriter(str(path), architecture)
    if quantised:
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in module.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        array = tensor.numpy()
        part = name.split(".")[-2]
        if part in heads:  # llama.cpp rotates neighbours, transformers halves
            array = array.reshape(heads[part], 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        kind = gguf.GGMLQuantizationType.Q8_0
        if quantised and array.ndim == 2:
            writer.add_tensor(_gguf_name(name), quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(_gguf_name(name), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_NAMES = {
    "input_layernorm": "attn_norm", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip


def _gguf_name(name: str) -> str:
    parts = name.split(".")
    if parts[1] == "layers":
        return f"blk.{parts[2]}.{_NAMES[parts[-2]]}.weight"
    return {"embed_tokens": "token_embd", "norm": "output_norm"}[parts[1]] + ".weight"
