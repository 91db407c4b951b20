"""Loading: a built-in name, a Hugging Face hub name, a local folder, or a module in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from acdc.errors import AcdcError, UnsupportedModelError, unknown
from acdc.io.files import read_json
from acdc.model import gpt2, gpt_neox, hooked, interpbench, llama
from acdc.model.architecture import Decomposition
from acdc.model.gguf import is_gguf, load_gguf
from acdc.model.model import Model, check_decomposition
from acdc.model.pretrained import PRETRAINED, fetched_folder

FAMILIES: dict[str, Callable[[Any], Decomposition]] = {
    "gpt2": gpt2.decompose,
    "gpt_neox": gpt_neox.decompose,
    "llama": llama.decompose,
    "mistral": llama.decompose,
    "qwen2": llama.decompose,
    "qwen3": llama.decompose,
    "gemma2": llama.decompose,
    "gemma3_text": llama.decompose,
    "phi3": llama.decompose,
    "olmo2": llama.decompose,
}
"""Adapter by `config.model_type`."""

BUILTIN = Path(__file__).parent / "builtin"

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def builtin_models() -> dict[str, str]:
    """Name and one-line description of the models that come with acdc."""
    found = {}
    for folder in sorted(BUILTIN.iterdir()):
        config = folder / "config.json"
        if config.is_file():
            found[folder.name] = json.loads(config.read_text()).get("description", "trained model")
    return found


def load(
    model: str | Path | torch.nn.Module,
    *,
    tokenizer: Any = None,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a decoder for circuit discovery.

    Args:
        model: name of a built-in or fetched model, hub name, local folder (of `save_pretrained`, or an InterpBench
            case), GGUF file (dequantised), or a `transformers` module in memory (used in place, without a copy).
        tokenizer: for a module in memory; otherwise found beside the weights if there is one.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" (the best there is). A module in memory stays where it is.
        dtype: "float32", "float64", "bfloat16", "float16"; None: float32 for files, as it is for a module.
        trust_remote_code: run code that comes with a hub model. Off unless you ask.

    Raises:
        UnsupportedModelError: the architecture or checkpoint cannot be decomposed exactly.
        AcdcError: the model cannot be found, or device or dtype are not available.
    """
    if isinstance(model, torch.nn.Module):
        name = getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__
        wanted, is_now = _dtype(dtype), next((parameter.dtype for parameter in model.parameters()), None)
        if wanted is not None and wanted != is_now:
            raise AcdcError(f"{name} is in {is_now} and is used in place; convert it first: module.to({wanted})")
        return _wrap(model, name, tokenizer)
    torch_device, torch_dtype = _device(device), _dtype(dtype) or torch.float32
    name = str(model)
    folder = _folder(name)
    if is_gguf(folder):
        module, own_tokenizer = load_gguf(folder, torch_dtype, lambda config: _check_config(config, name))
        return _wrap(module.to(torch_device), name, tokenizer or own_tokenizer)
    if folder.is_dir() and _is_tracr(folder):
        from acdc.model.tracr import TracrModel

        return _wrap(TracrModel.load(folder).to(torch_device, torch_dtype), name, None)
    if interpbench.is_interpbench(folder):
        return _wrap(interpbench.load_module(folder).to(torch_device, torch_dtype), name, None)
    module = _from_pretrained(name, folder, torch_dtype, trust_remote_code).to(torch_device).eval()
    return _wrap(module, name, tokenizer or _find_tokenizer(name, folder, trust_remote_code))


def _folder(name: str) -> Path:
    """Where the model of this name is: built in, fetched, or what the name says."""
    if (BUILTIN / name / "config.json").is_file():
        return BUILTIN / name
    if name in PRETRAINED and not Path(name).exists():
        folder = fetched_folder(name)
        if folder is None:
            raise AcdcError(f"{name} has not been fetched yet: acdc models fetch {name}")
        return folder
    return Path(name)


def _is_tracr(folder: Path) -> bool:
    path = folder / "config.json"
    if not path.is_file():
        return False
    config = read_json(path)
    if not isinstance(config, dict):
        raise AcdcError(
            f"{path}: expected the JSON object that save_pretrained writes, got a {type(config).__name__}"
        )
    return config.get("model_type") == "tracr"


def _wrap(module: torch.nn.Module, name: str, tokenizer: Any) -> Model:
    decomposition = decompose(module, name)
    model = Model(name=name, module=module, tokenizer=tokenizer, decomposition=decomposition)
    check_decomposition(model)
    return model


def decompose(module: torch.nn.Module, name: str) -> Decomposition:
    """Find the family's adapter and apply it.

    Raises:
        UnsupportedModelError: with the reason.
    """
    from acdc.model import tracr

    if isinstance(module, tracr.TracrModel):
        return tracr.decompose(module)
    if isinstance(module, hooked.HookedModel):
        return hooked.decompose(module)
    config: Any = getattr(module, "config", None)
    if getattr(config, "model_type", None) is None:
        raise UnsupportedModelError(
            f"{name}: expected a transformers causal language model, got {type(module).__name__}"
        )
    _check_config(config, name)
    if not hasattr(module, "lm_head") and not hasattr(module, "embed_out"):
        raise UnsupportedModelError(
            f"{name}: {type(module).__name__} has no language-model head; load it with AutoModelForCausalLM"
        )
    if module.training and _has_dropout(module):
        raise UnsupportedModelError(f"{name}: dropout is on, so every run would differ; call model.eval() first")
    if not all(parameter.is_floating_point() for parameter in module.parameters()):
        raise UnsupportedModelError(f"{name}: weights that are not floating point are not supported")
    dtypes = {parameter.dtype for parameter in module.parameters()}
    if len(dtypes) > 1 or not dtypes <= set(_DTYPES.values()):
        got = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise UnsupportedModelError(f"{name}: expected all weights in one of {', '.join(_DTYPES)}, got {got}")
    return FAMILIES[config.model_type](module)


def _check_config(config: Any, name: str) -> None:
    """Refuse what can be refused before any weight is read.

    Raises:
        UnsupportedModelError: with the reason.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name}: encoder-decoder models ({kind}) are not supported, only decoders")
    if getattr(config, "quantization_config", None) is not None and not _dequantised(config):
        raise UnsupportedModelError(f"{name}: quantised weights are not supported; load it in bfloat16 or float32")
    if any(getattr(config, key, None) for key in ("num_local_experts", "num_experts", "n_routed_experts")):
        raise UnsupportedModelError(f"{name}: mixture-of-experts models ({kind}) are not supported")
    if kind not in FAMILIES:
        raise UnsupportedModelError(
            f"{name}: architecture {kind!r} has no adapter; supported: {', '.join(FAMILIES)}, tracr"
        )
    if getattr(config, "add_cross_attention", False):
        raise UnsupportedModelError(f"{name}: cross-attention ({kind}) is not supported")


def _dequantised(config: Any) -> bool:
    """Whether transformers read the weights from a GGUF file: they are plain numbers now."""
    given = config.quantization_config
    return getattr(given, "quant_method", None) == "gguf" and not isinstance(given, dict)


def _has_dropout(module: torch.nn.Module) -> bool:
    # Attention's dropout is no module of its own in most families.
    in_attention = getattr(getattr(module, "config", None), "attention_dropout", 0.0)
    return bool(in_attention) or any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in module.modules())


def _from_pretrained(name: str, folder: Path, dtype: torch.dtype, trust_remote_code: bool) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    source = str(folder) if folder.is_dir() else name
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise AcdcError(f"{name}: the folder has no config.json; expected one written by save_pretrained")
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        _check_config(config, name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True if folder.is_dir() else None,
            ignore_mismatched_sizes=True,  # reported below
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError, ImportError) as error:
        if "/" not in name and not folder.exists():
            near = unknown("model", name, builtin_models())
            raise AcdcError(
                f"{near}; nor is it a local folder or a model the Hugging Face hub would give"
            ) from None
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise AcdcError(f"cannot load model {name!r}: {first}") from None
    module: torch.nn.Module
    module, loading = loaded
    wrong = sorted(loading["missing_keys"]) + sorted(key for key, *_ in loading["mismatched_keys"])
    if wrong:  # transformers has made these up at random
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise AcdcError(
            f"cannot load model {name!r}: the checkpoint has no weight {wrong[0]!r}{more} of the size that "
            f"{type(module).__name__} and its config.json ask for"
        )
    if not getattr(config, "is_causal", True):
        _see_everything(module)
    return module


def _see_everything(module: torch.nn.Module) -> None:
    """Tell the attention modules too: they do not read the config, and SDPA asks them if nothing is padded."""
    parts: list[Any] = [part for part in module.modules() if hasattr(part, "is_causal")]
    for part in parts:
        part.is_causal = False


def _find_tokenizer(name: str, folder: Path, trust_remote_code: bool) -> Any:
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if _is_whole_tokenizer(folder):
            return PreTrainedTokenizerFast.from_pretrained(str(folder))
        return AutoTokenizer.from_pretrained(
            str(folder) if folder.is_dir() else name, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError):
        return None


def _is_whole_tokenizer(folder: Path) -> bool:
    """Whether tokenizer.json says it all; AutoTokenizer would cut text as, say, Qwen2's own tokenizer does."""
    try:
        settings = read_json(folder / "tokenizer_config.json")
    except AcdcError:
        return False
    plain = ("TokenizersBackend", "PreTrainedTokenizerFast")
    return (folder / "tokenizer.json").is_file() and settings.get("tokenizer_class") in plain


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ("cpu", "cuda", "mps", "auto")) from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise unknown("device", name, ("cpu", "cuda", "mps", "auto"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise AcdcError(f"device {name!r}: this machine has no CUDA GPU that torch can use; try cpu or auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise AcdcError(f"device {name!r}: this machine has no Apple GPU that torch can use; try cpu or auto")
    return device


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        if dtype not in _DTYPES:
            raise unknown("dtype", dtype, _DTYPES)
        return _DTYPES[dtype]
    if dtype is not None and dtype not in _DTYPES.values():
        raise unknown("dtype", str(dtype).removeprefix("torch."), _DTYPES)
    return dtype
