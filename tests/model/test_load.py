"""Loading takes names, folders and modules as they are, and refuses what it cannot decompose with a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

import families
from acdc.benchmarks.measuring.tiny_decoders import tiny_decoder
from acdc.errors import AcdcError, UnsupportedModelError
from acdc.model.load import builtin_models, load


def test_a_module_in_memory_is_used_in_place() -> None:
    for family in families.FAMILIES:
        module: Any = families.module(family)
        model = load(module)
        assert model.module is module
        assert model.dtype == torch.float32
        storages = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        decomposition = model.decomposition
        views = [decomposition.unembedding]
        for layer in decomposition.layers:
            attention = layer.attention
            views += [attention.q.weight, attention.k.weight, attention.v.weight, attention.w_o]
            biases = (attention.q.bias, attention.k.bias, attention.v.bias, attention.b_o)
            views += [bias for bias in biases if bias is not None]
        for view in views:
            assert view.untyped_storage().data_ptr() in storages, f"{family} was copied"


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_folder_gives_the_module_that_was_saved(family: str, tmp_path: Path) -> None:
    module: Any = families.module(family)
    module.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.name == str(tmp_path)
    assert model.tokenizer is None
    token_ids = torch.arange(12)[None]
    mask = torch.ones_like(token_ids, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(model.plain_logits(token_ids, mask), load(module).plain_logits(token_ids, mask))


@pytest.mark.parametrize(
    "kind", ["mixtral", "qwen3_moe", "jamba", "lfm3", "olmo_hybrid", "gemma4_text", "apertus", "bamba"]
)
def test_weights_that_transformers_renames_or_puts_together_are_read(kind: str, tmp_path: Path) -> None:
    module: Any = tiny_decoder(kind, dtype=torch.float32)
    module.save_pretrained(tmp_path)
    token_ids = torch.arange(1, 8)[None]
    with torch.no_grad():
        ours = load(tmp_path).plain_logits(token_ids, torch.ones_like(token_ids).bool())
        assert torch.equal(ours, module.eval()(token_ids).logits)
    assert load(tmp_path, dtype="float64").dtype == torch.float64


def _without_expert(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["model.layers.0.block_sparse_moe.experts.1.w1.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _with_another_tensor(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["model.layers.0.other"] = torch.zeros(3)
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _with_many_experts(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_local_experts": 100_000}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without_expert, "cannot load model"),
        (_with_another_tensor, "has no place for it"),
        (_with_many_experts, r"the weights hold [\d,]+ numbers, and the model that config.json asks for has"),
    ],
)
def test_experts_are_not_made_up(change: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    module: Any = tiny_decoder("mixtral", dtype=torch.float32)
    module.save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(AcdcError, match=words):
        load(tmp_path)


def test_sizes_are_the_configs() -> None:
    model = families.tiny("llama")
    sizes = (model.n_layers, model.n_heads, model.n_kv_heads, model.d_model, model.vocabulary_size)
    assert sizes == (2, 4, 2, 20, families.VOCABULARY)
    assert (model.context_length, model.bos_token_id, model.program) == (64, 0, None)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_dtype_of_a_folder(dtype: str, tmp_path: Path) -> None:
    module: Any = families.module("gpt2", dtype=torch.bfloat16)
    module.save_pretrained(tmp_path)
    model = load(tmp_path, dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    assert load(tmp_path).dtype == torch.float32


def test_dtype_of_a_module_is_not_changed_behind_its_owners_back() -> None:
    module = families.module("gpt2")
    assert load(module, dtype="float32").module is module
    with pytest.raises(AcdcError, match=r"is in torch\.float32 .* convert it first: module\.to\(torch\.bfloat16\)"):
        load(module, dtype="bfloat16")


def test_builtin_models_load_by_name() -> None:
    names = builtin_models()
    assert "tracr-reverse" in names
    assert load("tracr-reverse").program is not None


# ---- what cannot be found or read -------------------------------------------------------------------------------


def test_an_unknown_name_gives_near_misses() -> None:
    with pytest.raises(AcdcError, match=r"unknown model 'tracr-revers': did you mean tracr-reverse"):
        load("tracr-revers")


def test_a_hub_name_like_no_built_in_one_is_told_what_the_hub_said() -> None:
    with pytest.raises(
        AcdcError, match=r"^cannot load model 'gpt2': the Hugging Face hub is not asked .*acdc models"
    ):
        load("gpt2")


def test_an_unknown_hub_name() -> None:
    with pytest.raises(AcdcError, match="cannot load model 'nobody/nothing'"):
        load("nobody/nothing")


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(AcdcError, match=r"no config\.json; expected one written by save_pretrained"):
        load(tmp_path)


@pytest.mark.parametrize("device", ["gpu", "meta", "xpu"])
def test_an_unknown_device(device: str) -> None:
    with pytest.raises(AcdcError, match=f"unknown device '{device}'"):
        load("tracr-reverse", device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_an_unavailable_device() -> None:
    with pytest.raises(AcdcError, match="no CUDA GPU that torch can use; try cpu or auto"):
        load("tracr-reverse", device="cuda")


@pytest.mark.parametrize("dtype", ["float31", torch.int8])
def test_an_unknown_dtype(dtype: Any) -> None:
    with pytest.raises(AcdcError, match="unknown dtype"):
        load("tracr-reverse", dtype=dtype)


def _without_weight(weights: dict[str, torch.Tensor]) -> None:
    del weights["transformer.h.1.attn.c_attn.weight"]


def _wrong_size(weights: dict[str, torch.Tensor]) -> None:
    weights["transformer.h.1.attn.c_attn.weight"] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without_weight, r"has no weight 'transformer\.h\.1\.attn\.c_attn\.weight'"),
        (_wrong_size, r"c_attn\.weight' is \[3, 3\] in the weights, and should be \[24, 72\] by config\.json"),
    ],
)
def test_weights_that_the_checkpoint_lacks_are_not_made_up(
    change: Callable[[dict[str, torch.Tensor]], None], words: str, tmp_path: Path
) -> None:
    module: Any = families.module("gpt2")
    module.save_pretrained(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AcdcError, match=words):
        load(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", "{", "not valid JSON"),
        ("config.json", "[1]", "expected the JSON object"),
        ("model.safetensors", "abc", "cannot be read as tensors"),
        ("model.safetensors", None, "cannot load model"),
    ],
)
def test_a_broken_folder(file: str, content: str | None, words: str, tmp_path: Path) -> None:
    module: Any = families.module("gpt2")
    module.save_pretrained(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(AcdcError, match=words):
        load(tmp_path)


# ---- what cannot be decomposed ----------------------------------------------------------------------------------


def _t5() -> Any:
    config = transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return transformers.T5ForConditionalGeneration(config).eval()


def _mamba() -> Any:
    config = transformers.MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, state_size=4)
    return transformers.MambaForCausalLM(config).eval()


def _opt_post_layer_norm() -> Any:
    config = transformers.OPTConfig(
        vocab_size=20, hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=8,
        do_layer_norm_before=False,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config).eval()


def _bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    return transformers.BertLMHeadModel(config).eval()


def _pegasus() -> Any:
    config = transformers.PegasusConfig(
        vocab_size=20, d_model=8, decoder_ffn_dim=8, decoder_layers=1, decoder_attention_heads=2
    )
    return transformers.PegasusForCausalLM(config).eval()


def _roberta() -> Any:
    config = transformers.RobertaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    return transformers.RobertaForCausalLM(config).eval()


def _gpt2_config(**options: Any) -> Any:
    return transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, **options)


def _without_head() -> Any:
    return transformers.GPT2Model(_gpt2_config()).eval()


def _cross_attention() -> Any:
    return transformers.GPT2LMHeadModel(_gpt2_config(add_cross_attention=True)).eval()


def _quantised() -> Any:
    module: Any = families.module("gpt2")
    module.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    return module


def _integer_weights() -> Any:
    module: Any = families.module("llama")
    weight = torch.zeros(20, 24, dtype=torch.int8)
    module.model.layers[0].self_attn.o_proj.weight = torch.nn.Parameter(weight, requires_grad=False)
    return module


def _mixed_dtypes() -> Any:
    module: Any = families.module("gpt2")
    module.transformer.h[0].half()
    return module


def _training() -> Any:
    return families.module("gpt2").train()


def _training_with_dropout_in_attention() -> Any:
    module: Any = families.module("llama").train()
    module.config.attention_dropout = 0.1
    return module


def _biased_post_norm() -> Any:
    module: Any = families.module("gemma2")
    module.model.layers[0].self_attn.o_proj.bias = torch.nn.Parameter(torch.ones(20))
    return module


def _not_a_model() -> Any:
    return torch.nn.Linear(2, 2)


REFUSED: dict[Callable[[], Any], str] = {
    _t5: r"encoder-decoder models \(t5\) are not supported, only decoders",
    _mamba: "mamba: no list of blocks that attend was found; state-space layers",
    _opt_post_layer_norm: r"opt: layer 0, OPTAttention: .* post-norm block",
    _bert: "bert: the first block does not read a multiple of the token embedding",
    _pegasus: r"pegasus: layer 0 \(PegasusDecoderLayer\) has a PegasusAttention that a run on token ids leaves out",
    _roberta: "roberta: left to itself it does not count positions from 0",
    _without_head: "GPT2Model has no language-model head; load it with AutoModelForCausalLM",
    _cross_attention: "cross-attention",
    _quantised: "quantised weights are not supported; load it in bfloat16 or float32",
    _integer_weights: "weights that are not floating point",
    _mixed_dtypes: "expected all weights in one of .* got float16, float32",
    _training: r"dropout is on, so every run would differ; call model\.eval\(\) first",
    _training_with_dropout_in_attention: "dropout is on",
    _biased_post_norm: "output bias before a post-norm",
    _not_a_model: "expected a transformers causal language model, got Linear",
}


@pytest.mark.parametrize("build", REFUSED, ids=lambda build: build.__name__.strip("_"))
def test_what_cannot_be_decomposed_is_refused(build: Callable[[], Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=REFUSED[build]):
        load(build())


@pytest.mark.parametrize("build", [_t5, _cross_attention], ids=lambda b: b.__name__)
def test_a_folder_is_refused_by_its_config_alone(build: Callable[[], Any], tmp_path: Path) -> None:
    build().config.save_pretrained(tmp_path)  # no weights
    with pytest.raises(UnsupportedModelError, match=REFUSED[build]):
        load(tmp_path)


def test_a_quantised_folder_is_refused_without_its_quantiser(tmp_path: Path) -> None:
    config = _gpt2_config().to_dict()
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="quantised weights"):
        load(tmp_path)


def test_nothing_is_printed_and_bars_stay_as_they_were(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In Python too, where transformers shows a bar for each model that it loads; the user's own are not touched."""
    families.module("llama").save_pretrained(tmp_path)
    shown, hub_shown = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    try:
        for wanted in (True, False):
            (logging.enable_progress_bar if wanted else logging.disable_progress_bar)()
            capfd.readouterr()
            load(tmp_path)
            assert capfd.readouterr() == ("", "")
            assert logging.is_progress_bar_enabled() == wanted
            assert are_progress_bars_disabled() != wanted
    finally:
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        (enable_progress_bars if hub_shown else disable_progress_bars)()


def test_training_mode_without_dropout_is_fine() -> None:
    assert load(families.module("llama").train()).module.training
