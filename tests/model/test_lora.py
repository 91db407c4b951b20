"""A folder with a model and a LoRA adapter gives the adapted model, says so, and without PEFT is refused."""

from __future__ import annotations

import json
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import families
from acdc.errors import AcdcError
from acdc.model.load import load

TOKENS = torch.tensor([[5, 9, 3, 7]])
MASK = torch.ones_like(TOKENS, dtype=torch.bool)


def settings(**changes: Any) -> dict[str, Any]:
    own = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    return {**own, **changes}


def matrices() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    shapes = {"A": (2, 20), "B": (24, 2)}
    return {name.format(i, k): torch.randn(shapes[k], generator=generator) for i in (0, 1) for k in "AB"}


def write(folder: Path, **changes: Any) -> torch.nn.Module:
    """The folder, and the adapted model by the definition W + (alpha / r) B A (Hu et al. 2021, section 4.1)."""
    module: Any = families.module("llama")
    module.save_pretrained(folder)
    (folder / "adapter_config.json").write_text(json.dumps(settings(**changes)))
    safetensors.torch.save_file(matrices(), folder / "adapter_model.safetensors")
    for i, layer in enumerate(module.model.layers):
        a, b = (matrices()[f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{k}.weight"] for k in "AB")
        layer.self_attn.q_proj.weight.data += 3 * b @ a
    return module


def test_the_adapter_is_applied_and_said_to_be(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    expected = write(tmp_path)
    with pytest.warns(UserWarning, match=r"analysed is the model with the adapter merged .*\(2 matrices\)"):
        model = load(tmp_path)
    with torch.no_grad():
        wanted = expected(input_ids=TOKENS).logits
        torch.testing.assert_close(model.decomposed_logits(TOKENS, MASK), wanted, rtol=1e-4, atol=1e-4)


def test_without_peft_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(
        AcdcError, match=r"PEFT, which applies adapters, is not installed: pip install peft, or move"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "'IA3'; only LORA is applied here: merge it with PEFT"),
        ({"use_dora": True}, "an adapter with use_dora = True is not applied here: merge it with PEFT"),
        ({"init_lora_weights": "pissa"}, "may change the model's own weights"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "with megatron_config"),
        ({"alpha_pattern": {"(a+)+$": 4}}, "alpha_pattern"),
        ({"lora_alpha": "6"}, "lora_alpha = '6' is not what PEFT writes"),
    ],
)
def test_what_is_not_known_to_be_harmless_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    write(tmp_path, **changes)
    with pytest.raises(AcdcError, match=words):
        load(tmp_path)


def test_what_the_settings_say_of_rank_and_modules_is_not_asked(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    expected = write(
        tmp_path, r=10**9, lora_alpha=3 * 2, target_modules="(x+x+)+y", rank_pattern={"(x+x+)+y": 10**9}
    )
    with pytest.warns(UserWarning, match="merged into its weights"):
        model = load(tmp_path)
    with torch.no_grad():
        wanted = expected(input_ids=TOKENS).logits
        torch.testing.assert_close(model.decomposed_logits(TOKENS, MASK), wanted, rtol=1e-4, atol=1e-4)


def test_another_models_adapter_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    write(tmp_path)
    renamed = {name.replace("layers.1", "layers.7"): tensor for name, tensor in matrices().items()}
    safetensors.torch.save_file(renamed, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AcdcError, match="does not fit the model: it is another model's"):
        load(tmp_path)


def test_an_adapter_alone_names_its_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings(base_model_name_or_path="gpt2")))
    with pytest.raises(AcdcError, match=r"holds an adapter of 'gpt2', and no model: merge .*merge_and_unload\(\)"):
        load(tmp_path)
