"""A model in a local folder, as `save_pretrained` writes it: read so that what its files claim costs nothing.

`config.json` says how large a model is to be, and the headers of the weights say how large it is. The two are compared
before anything is built: the architecture is made without memory (on torch's meta device), and each of its parameters
has to be among the weights in its very shape, and no weight of the decoder may be left over. Only then are numbers
read, by us, so that what was compared is what is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from acdc.errors import AcdcError, UnsupportedModelError
from acdc.model.bars import no_bars
from acdc.model.supported import DTYPES, check_config, check_kind
from acdc.store.reading import read_json
from acdc.store.tensors import TensorFile, open_tensors, reason

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where weights may be, best first."""

_LARGEST_CONFIG = 16 * 2**20  # bytes
_LARGEST_BUFFER = 2**24  # numbers
_MOST_LABELS = 100_000


def load_module(
    folder: Path,
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
    on_disk: bool = False,
) -> torch.nn.Module:
    """The causal language model in a folder, in evaluation mode.

    Args:
        folder: with `config.json` and weights.
        name: of the model in messages.
        on_disk: leave the weights in their files, memory-mapped.

    Raises:
        UnsupportedModelError: of a kind that is not supported.
        AcdcError: a file is missing or broken, or the configuration and the weights disagree.
    """
    settings = read_config(folder, name)
    check_config(SimpleNamespace(**settings), name)
    check_kind(settings["model_type"], name)
    weights = open_weights(folder, name)
    headers = {key: header for file in weights for key, header in file.headers.items()}
    _check_depth(settings, len(headers), name)
    config, skeleton = _build(folder, settings, name, trust_remote_code)
    converted = _is_converted(skeleton)
    if converted:  # names and shapes are those of the hub, from which transformers makes the module's
        _check_amount(skeleton, headers, name)
        places = {key: key for key in headers}
    else:
        places = match(skeleton, headers, name)
    other = sorted(
        {str(headers[key].dtype).removeprefix("torch.") for key in places if headers[key].dtype != dtype}
    )
    if on_disk and converted:
        raise AcdcError(
            f"{name}: weights of {config.model_type} models are put together when they are read, and cannot stay on "
            "the disk: give --device cpu, cuda or cuda+cpu"
        )
    if on_disk and other:
        raise AcdcError(
            f"{name}: weights stay on the disk as they are there, in {' and '.join(other)}, and "
            f"{str(dtype).removeprefix('torch.')} was asked for: give --dtype {other[0]}, or --device cpu"
        )
    if dtype == torch.float64:  # the product of all experts at once knows no float64
        config._experts_implementation = "eager"
    state = {}
    for file in weights:
        for key in file.headers:
            if key in places:
                tensor = file.read(key)
                kept = dtype if tensor.is_floating_point() else tensor.dtype
                state[places[key]] = tensor.to(device, kept, copy=not on_disk)
    try:
        with no_bars():
            loaded: Any = type(skeleton).from_pretrained(
                None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
            )
    except Exception as error:
        raise AcdcError(f"cannot load model {name!r}: {reason(error)}") from error
    module: torch.nn.Module
    module, loading = loaded
    if converted:
        _check_left_over(sorted(loading["unexpected_keys"]), {_core(key) for key in module.state_dict()}, name)
    made_up = sorted(loading["missing_keys"]) + sorted(str(key) for key in loading["mismatched_keys"])
    if made_up:  # transformers has put random numbers there
        raise AcdcError(f"cannot load model {name!r}: transformers found no weight {made_up[0]!r} in it")
    if not getattr(config, "is_causal", True):
        _see_everything(module)
    if dtype == torch.float64:  # transformers keeps some weights in float32 whatever is asked for
        module = module.to(dtype)
    return module.to(device).eval()


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """The settings in a folder's `config.json`; of a model of text and images, those of its text part.

    Raises:
        AcdcError: there are none, or they are not what `save_pretrained` writes.
    """
    path = folder / CONFIG
    if not path.exists():
        packed = next(iter(sorted(folder.glob("*.gguf"))), None)
        more = f", or the GGUF file itself: {packed}" if packed else ""
        raise AcdcError(f"{name}: the folder has no {CONFIG}; expected one written by save_pretrained{more}")
    settings = _floats(read_json(path, largest=_LARGEST_CONFIG))
    if not isinstance(settings, dict):
        raise AcdcError(
            f"{path}: expected the JSON object that save_pretrained writes, got a {type(settings).__name__}"
        )
    kind = settings.get("model_type")
    if not isinstance(kind, str):
        raise AcdcError(f'{path}: expected a "model_type" like "gpt2", as save_pretrained writes it, got {kind!r}')
    if kind == "gemma3" and settings.get("quantization_config") is None:
        text = settings.get("text_config")
        if not isinstance(text, dict):
            raise AcdcError(f'{path}: expected "text_config" to be an object, got {type(text).__name__}')
        inherited = {key: settings[key] for key in ("tie_word_embeddings",) if key in settings}
        return inherited | text | {"model_type": "gemma3_text"}
    return settings


def _floats(value: Any) -> Any:
    """With numbers that JSON has no word for, which `save_pretrained` writes as `{"__float__": "Infinity"}`."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])
        return {key: _floats(item) for key, item in value.items()}
    return [_floats(item) for item in value] if isinstance(value, list) else value


# ---- weights ----------------------------------------------------------------------------------------------------


def open_weights(folder: Path, name: str) -> list[TensorFile]:
    """The files of a folder's weights, opened; no two hold a tensor of the same name.

    Raises:
        AcdcError: there are none, or one of them is missing or broken.
    """
    found = next((file for file in WEIGHTS if (folder / file).exists()), None)
    if found is None:
        raise AcdcError(f"cannot load model {name!r}: {_no_weights(folder)}")
    if not found.endswith(".json"):
        return [open_tensors(folder / found)]
    path = folder / found
    index = read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise AcdcError(f'{path}: expected a "weight_map" from the names of tensors to those of files')
    ending = Path(found.removesuffix(".index.json")).suffix
    files = {}
    for file in sorted(set(places.values())):
        if not re.fullmatch(r"[\w.-]+", file) or not file.endswith(ending):
            raise AcdcError(f"{path}: expected the name of a {ending} file in the same folder, got {file!r}")
        files[file] = open_tensors(folder / file)
    missing = next((key for key, file in places.items() if key not in files[file].headers), None)
    if missing is not None:
        raise AcdcError(f"{path}: tensor {missing!r} is not in {places[missing]}")
    seen: dict[str, str] = {}
    for file, content in files.items():
        for key in content.headers:
            if seen.setdefault(key, file) != file:
                raise AcdcError(f"{path}: tensor {key!r} is both in {seen[key]} and in {file}")
    return list(files.values())


def _no_weights(folder: Path) -> str:
    kinds = {
        ".gguf": "GGUF weights, which are quantised: take the original model",
        ".safetensors": "no model.safetensors, but others: rename the one that holds the whole model",
        ".bin": "no pytorch_model.bin, but others: save the model again with save_pretrained",
        ".pt": "weights in a .pt file: load them with torch, and save the model with save_pretrained",
        ".pth": "weights in a .pth file: load them with torch, and save the model with save_pretrained",
        ".ckpt": "a training checkpoint: load it with what wrote it, and save the model with save_pretrained",
        ".h5": "weights of TensorFlow: take a version of the model for PyTorch",
        ".msgpack": "weights of Flax: take a version of the model for PyTorch",
    }
    endings = {path.suffix for path in folder.iterdir()}
    found = next((text for ending, text in kinds.items() if ending in endings), None)
    return (
        f"the folder holds {found}" if found else f"the folder has no weights; expected {' or '.join(WEIGHTS[::2])}"
    )


# ---- what config.json and the weights say of each other ---------------------------------------------------------


def _check_depth(settings: dict[str, Any], n_tensors: int, name: str) -> None:
    """Bound what is repeated when a model is built; all else costs nothing without memory."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[settings["model_type"]]
    names = {"num_hidden_layers", kind.attribute_map.get("num_hidden_layers", "num_hidden_layers")}
    for key in sorted(names & settings.keys()):  # a class takes either
        depth = settings[key]
        if type(depth) is not int or not 1 <= depth <= n_tensors:
            raise AcdcError(
                f"{name}: config.json says {key} = {depth!r}; expected a whole number from 1 to the {n_tensors} "
                "tensors that the weights have"
            )
    labels = settings.get("num_labels")
    if labels is not None and (type(labels) is not int or not 0 <= labels <= _MOST_LABELS):
        raise AcdcError(f"{name}: config.json says num_labels = {labels!r}; a language model has no use for that")
    dtype = settings.get("dtype", settings.get("torch_dtype"))
    if dtype is not None and not isinstance(dtype, str):
        raise AcdcError(f'{name}: config.json says dtype = {dtype!r}; expected a name like "float32"')


_RUNS_OTHER_CODE = (
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation",
    "_experts_implementation", "use_kernels", "kernel_config", "fusion_config", "distributed_config",
    "transformers_weights", "return_dict", "output_attentions", "output_hidden_states",
)  # fmt: skip
"""Settings of how to run, and from which file; they are not the model's, and could fetch other code or weights."""


def _build(folder: Path, settings: dict[str, Any], name: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """The configuration, and a module of its class without memory."""
    from transformers import CONFIG_MAPPING, AutoConfig

    settings = {key: value for key, value in settings.items() if key not in _RUNS_OTHER_CODE}
    try:
        if trust_remote_code and "auto_map" in settings:
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=True)
        else:
            config = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
    except Exception as error:  # whatever a nonsensical setting makes the class stumble over
        raise _makes_nothing(name, settings["model_type"], error) from error
    return config, without_memory(config, name, trust_remote_code=trust_remote_code)


def without_memory(config: Any, name: str, *, trust_remote_code: bool = False) -> torch.nn.Module:
    """The module that a configuration asks for, on torch's meta device.

    Raises:
        AcdcError: transformers can make none of it, or it has a table that is computed and far too large.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            skeleton: torch.nn.Module = AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust_remote_code
            )
    except Exception as error:
        raise _makes_nothing(name, config.model_type, error) from error
    for key, buffer in skeleton.named_buffers():
        if buffer.numel() > _LARGEST_BUFFER:
            raise AcdcError(
                f"cannot load model {name!r}: by its configuration {key} has {buffer.numel():,} numbers"
            )
    return skeleton


def _makes_nothing(name: str, kind: str, error: Exception) -> AcdcError:
    return AcdcError(
        f"cannot load model {name!r}: transformers can make no {kind} of its configuration: {reason(error)}"
    )


_WRAPPERS = re.compile(r"((model|transformer|gpt_neox|language_model|module|_orig_mod)\.)+")
_LAYER = re.compile(r"\.\d+\.")
_LEFT_OVER = re.compile(r"\.(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)$")
"""Buffers that older versions of transformers saved, and that are computed."""


def match(skeleton: torch.nn.Module, headers: dict[str, Tensor], name: str) -> dict[str, str]:
    """Which parameter each of the weights is: its name in the file → its name in the module.

    Names are the same but for what the decoder is wrapped in (`model.`, `transformer.`, …), which depends on how the
    weights were saved.

    Args:
        skeleton: the module that the configuration asks for.
        headers: shape and dtype of each of the weights.

    Raises:
        UnsupportedModelError: the weights are quantised.
        AcdcError: a parameter is not among the weights, has another shape, or a part of the decoder is left over.
    """
    parameters = dict(skeleton.named_parameters(remove_duplicate=False))  # with both names of what is tied
    tensors = skeleton.state_dict(keep_vars=True)  # buffers that are saved, too
    by_core = {_core(key): key for key in [*parameters, *tensors]}
    places: dict[str, str] = {}
    left_over = []
    taken = set()
    for key in headers:
        core = _core(key)
        if core not in by_core:
            left_over.append(key)
        elif core in taken:
            raise AcdcError(f"cannot load model {name!r}: the weights hold {core!r} twice")
        else:
            places[key] = by_core[core]
            taken.add(core)
    _check_shapes(parameters, parameters | tensors, headers, places, name)
    _check_left_over(left_over, by_core, name)
    return places


def _check_left_over(keys: Iterable[str], cores: Collection[str], name: str) -> None:
    """Refuse weights of the decoder that have no place among its tensors."""
    parts = {core.partition(".")[0] for core in cores}
    for key in keys:
        core = _core(key)
        if core.partition(".")[0] not in parts or _LEFT_OVER.search(core):
            continue  # a head for another purpose, the part that sees images, a table that is computed
        first_layer = _LAYER.sub(".0.", core, count=1)
        what = "has fewer layers" if first_layer in cores else "has no place for it"
        raise AcdcError(
            f"cannot load model {name!r}: the weights hold {key!r}, and the model that config.json asks for {what}"
        )


def _core(key: str) -> str:
    """A parameter's name within the decoder; GPT-NeoX's head has had two names."""
    wrapper = _WRAPPERS.match(key)
    core = key[wrapper.end() :] if wrapper else key
    return core.replace("embed_out.", "lm_head.", 1) if core.startswith("embed_out.") else core


def _check_shapes(
    parameters: dict[str, torch.nn.Parameter],
    tensors: dict[str, Tensor],
    headers: dict[str, Tensor],
    places: dict[str, str],
    name: str,
) -> None:
    given = {place: headers[key] for key, place in places.items()}
    there = {id(tensors[place]) for place in given}
    missing = [key for key, parameter in parameters.items() if id(parameter) not in there]
    other = [key for key, header in given.items() if header.shape != tensors[key].shape]
    more = f" (and {len(missing + other) - 1} more)" if len(missing + other) > 1 else ""
    if other:
        key = min(other, key=list(tensors).index)
        raise AcdcError(
            f"cannot load model {name!r}: {key!r} is {list(given[key].shape)} in the weights, and should be "
            f"{list(tensors[key].shape)} by config.json{more}"
        )
    if missing:
        raise AcdcError(
            f"cannot load model {name!r}: the checkpoint has no weight {missing[0]!r}, which should be "
            f"{list(parameters[missing[0]].shape)} by config.json{more}"
        )
    _check_not_quantised({key: header for key, header in given.items() if key in parameters}, name)


def _check_not_quantised(given: dict[str, Tensor], name: str) -> None:
    quantised = next((key for key, header in given.items() if header.dtype not in DTYPES.values()), None)
    if quantised is not None:
        dtype = str(given[quantised].dtype).removeprefix("torch.")
        raise UnsupportedModelError(
            f"{name}: quantised weights are not supported; {quantised!r} is in {dtype}: take the model in bfloat16 "
            "or float32"
        )


# ---- weights that transformers renames and puts together ---------------------------------------------------------


def _is_converted(skeleton: torch.nn.Module) -> bool:
    """Whether the files of such models have other tensors than the module, as the single experts of a layer."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return bool(get_model_conversion_mapping(skeleton, add_legacy=False))  # type: ignore[arg-type]


def _check_amount(skeleton: torch.nn.Module, headers: dict[str, Tensor], name: str) -> None:
    """Putting tensors together makes no numbers: the module has no more than the files."""
    asked = sum(parameter.numel() for parameter in skeleton.parameters())
    given = sum(header.numel() for header in headers.values())
    if asked > given:
        raise AcdcError(
            f"cannot load model {name!r}: the weights hold {given:,} numbers, and the model that config.json asks for "
            f"has {asked:,}"
        )
    _check_not_quantised({key: header for key, header in headers.items() if header.dtype.is_floating_point}, name)


def _see_everything(module: torch.nn.Module) -> None:
    """Tell the attention modules too: they do not read the config, and SDPA asks them if nothing is padded."""
    parts: list[Any] = [part for part in module.modules() if hasattr(part, "is_causal")]
    for part in parts:
        part.is_causal = False
