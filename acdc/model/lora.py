"""A LoRA adapter beside the model it adapts: applied when PEFT is installed, and never left out without a word.

PEFT does the arithmetic, but it is not shown the adapter's own settings: some of them import modules by name, and
others are regular expressions that can be made to run for ever. Which modules are adapted, and at what rank, is read
from the adapter's tensors; what remains of the settings are a few plain numbers and flags, each checked.
"""

from __future__ import annotations

import re
import warnings
from importlib import util
from pathlib import Path
from typing import Any

import torch

from acdc.errors import AcdcError
from acdc.store.reading import read_json
from acdc.store.tensors import open_tensors, reason

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_LARGEST_CONFIG = 2**20  # bytes
_NAME = re.compile(r"base_model\.model\.([\w.]+?)\.lora_([AB])(?:\.default)?\.weight")
_WITHOUT_EFFECT = {
    "arrow_config", "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_type", "peft_version", "revision",
    "r", "rank_pattern", "runtime_config", "target_modules", "exclude_modules", "task_type", "layer_replication_config",
    "qalora_group_size",
}  # fmt: skip
"""Settings that say what the tensors say too, or that matter to training alone."""
_TAKEN: dict[str, Any] = {
    "lora_alpha": (int, float),
    "fan_in_fan_out": bool,
    "use_rslora": bool,
    "alpha_pattern": dict,
}
_HARMLESS_STARTS = (True, False, "gaussian", "orthogonal", "eva", "mica")


def adapter_in(folder: Path) -> bool:
    return (folder / CONFIG).exists()


def refuse_adapter_alone(folder: Path, name: str) -> AcdcError:
    """The error for a folder that holds an adapter and no model."""
    settings = _settings(folder)
    base = settings.get("base_model_name_or_path")
    of = f"of {base!r}" if isinstance(base, str) and base else "and does not say of which model"
    model = repr(base) if isinstance(base, str) and base else "BASE"
    return AcdcError(
        f"{name}: the folder holds an adapter {of}, and no model: merge the two and save the whole model: "
        f"peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({model}), {str(folder)!r})"
        ".merge_and_unload().save_pretrained(FOLDER)"
    )


def apply_adapter(module: torch.nn.Module, folder: Path, name: str) -> torch.nn.Module:
    """The model with the folder's LoRA adapter merged into its weights; warns that it is.

    Args:
        module: the folder's own model; changed in place.

    Raises:
        AcdcError: PEFT is not installed, or the adapter is broken or of a kind that is not applied.
    """
    what = f"{name}: the folder holds a model and an adapter of it"
    if util.find_spec("peft") is None:
        raise AcdcError(
            f"{what}, and PEFT, which applies adapters, is not installed: pip install peft, or move {CONFIG} and "
            "adapter_model.* away to analyse the model without it"
        )
    settings = _settings(folder)
    options = _options(settings, folder)
    file = folder / WEIGHTS
    if not file.exists():
        raise AcdcError(f"{what}, but no {WEIGHTS}: save the adapter again with save_pretrained")
    tensors = open_tensors(file)
    found = {key: _NAME.fullmatch(key) for key in tensors.headers}
    other = next((key for key, match in found.items() if match is None), None)
    if other is not None or not found:
        raise AcdcError(f"{what}, with a part that is not applied here ({other!r}): {_MERGE}")
    ranks: dict[str, int] = {}
    parts = dict(module.named_modules())
    for key, match in found.items():
        assert match is not None
        shape, path = tensors.headers[key].shape, match[1]
        if path not in parts or len(shape) != 2:
            raise AcdcError(
                f"{what}, but tensor {key!r}, {list(shape)}, does not fit the model: it is another model's"
            )
        rank = shape[0] if match[2] == "A" else shape[1]
        if ranks.setdefault(path, rank) != rank:
            raise AcdcError(f"{what}, but the two matrices of {path!r} have different ranks")
    merged = _merge(module, {key: tensors.read(key) for key in found}, ranks, options, what)
    warnings.warn(
        f"{what}; analysed is the model with the adapter merged into its weights ({len(ranks)} matrices)",
        stacklevel=2,
    )
    return merged


_MERGE = "merge it with PEFT (model.merge_and_unload()) and save the whole model"


def _merge(module: Any, tensors: Any, ranks: dict[str, int], options: dict[str, Any], what: str) -> torch.nn.Module:
    import peft

    dtypes = {parameter.dtype for parameter in module.parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an unusual setting was given, or corrected
        try:
            config = peft.LoraConfig(
                target_modules=sorted(ranks),
                r=max(ranks.values()),
                rank_pattern=ranks,
                task_type="CAUSAL_LM",
                **options,
            )
            model: Any = peft.get_peft_model(module, config)
            outcome: Any = peft.set_peft_model_state_dict(model, tensors)
            lacking = [key for key in outcome.missing_keys if "lora_" in key] + list(outcome.unexpected_keys)
            if lacking:
                raise AcdcError(f"{what}, but it does not fit the model: {lacking[0]!r}")
            merged = model.merge_and_unload()
        except AcdcError:
            raise
        except Exception as error:  # whatever a broken adapter makes PEFT stumble over
            raise AcdcError(f"{what}, which PEFT cannot apply: {reason(error)}") from error
    for parameter in merged.parameters():
        parameter.requires_grad_(True)  # as from_pretrained leaves them
    if len(dtypes) == 1:
        merged = merged.to(next(iter(dtypes)))
    return merged.eval()


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    settings = read_json(path, largest=_LARGEST_CONFIG)
    if not isinstance(settings, dict):
        raise AcdcError(f"{path}: expected the JSON object that PEFT writes, got a {type(settings).__name__}")
    return settings


def _options(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What of an adapter's settings changes what it computes; refuses what is not known to be harmless."""
    what = f"{folder / CONFIG}"
    if settings.get("peft_type") != "LORA":
        raise AcdcError(
            f"{what}: an adapter of kind {settings.get('peft_type')!r}; only LORA is applied here: {_MERGE}"
        )
    start = settings.get("init_lora_weights", True)
    if not any(
        start is harmless or (isinstance(start, str) and start == harmless) for harmless in _HARMLESS_STARTS
    ):
        raise AcdcError(f"{what}: init_lora_weights = {start!r} may change the model's own weights: {_MERGE}")
    taken = {}
    for key, value in settings.items():
        if key in _WITHOUT_EFFECT or key == "init_lora_weights" or value in (None, False, "none", [], {}):
            continue
        if key not in _TAKEN:
            raise AcdcError(f"{what}: an adapter with {key} = {value!r} is not applied here: {_MERGE}")
        if not isinstance(value, _TAKEN[key]) or (key == "lora_alpha" and isinstance(value, bool)):
            raise AcdcError(f"{what}: {key} = {value!r} is not what PEFT writes")
        taken[key] = value
    for path, alpha in taken.get("alpha_pattern", {}).items():
        if not re.fullmatch(r"[\w.]+", path) or type(alpha) not in (int, float):
            raise AcdcError(f"{what}: an adapter with alpha_pattern {path!r} is not applied here: {_MERGE}")
    return taken
