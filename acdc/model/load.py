"""Loading: a built-in name, a Hugging Face hub name, a local folder, or a module in memory."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Final, Literal

import torch

from acdc.errors import AcdcError, check_type, near_misses, unknown
from acdc.model import hub
from acdc.model import lora as adapter
from acdc.model.check import check_loaded
from acdc.model.elsewhere import leave_elsewhere
from acdc.model.folder import CONFIG, load_module, read_config
from acdc.model.gguf import is_gguf, load_gguf
from acdc.model.model import Model
from acdc.model.offload import map_in_place
from acdc.model.pretrained import PRETRAINED, fetched_folder
from acdc.model.programs import interpbench
from acdc.model.supported import DTYPES, check_config, check_kind, decompose, unwrap
from acdc.model.tokenizer import load_tokenizer, own_tokenizer
from acdc.store.tensors import reason

BUILTIN = Path(__file__).parent / "builtin"


def builtin_models() -> dict[str, str]:
    """Name and one-line description of the models that come with acdc."""
    found = {}
    for folder in sorted(BUILTIN.iterdir()):
        config = folder / CONFIG
        if config.is_file():
            found[folder.name] = json.loads(config.read_text()).get("description", "trained model")
    return found


DISK: Final = "disk"
"""A device: the CPU, with weights that stay in their files."""
DEVICES = ("cpu", "cuda", "mps", "auto", DISK, "cuda+cpu", "cuda+disk")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a model computes, and where its weights stay: there, in the CPU's memory, or in their files."""

    device: torch.device
    weights: Literal["", "cpu", "disk"] = ""

    @property
    def loaded(self) -> torch.device:
        """Where weights are loaded."""
        return torch.device("cpu") if self.weights else self.device

    @classmethod
    def named(cls, name: str) -> Place:
        """Of a name like "cuda:1", "disk" or "cuda+cpu".

        Raises:
            AcdcError: it is none, or this machine has no such device.
        """
        check_type("a device like 'cpu' or 'cuda:1'", name, (str, torch.device))
        if name == DISK:
            return cls(torch.device("cpu"), DISK)
        computes, plus, weights = str(name).partition("+")
        if plus and weights not in ("cpu", DISK):
            raise unknown("device", name, DEVICES)
        device = _device(computes)
        if plus and device.type == "cpu":
            raise AcdcError(
                f"device {name!r}: weights stay beside a GPU; where the CPU computes, use cpu or {DISK}"
            )
        return cls(device, weights)  # type: ignore[arg-type]


def load(
    model: str | Path | torch.nn.Module,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a decoder; arguments and errors as for `acdc.load`, which opens circuits' models too."""
    with torch.inference_mode(False):  # what is made under it could not be differentiated later
        if isinstance(model, torch.nn.Module):
            return _from_memory(model, tokenizer, revision, _dtype(dtype))
        if not isinstance(model, str | os.PathLike):
            raise AcdcError(f"expected a model's name, a folder or a transformers module, got {_kind(model)}")
        name = os.fspath(model)
        if not name or "\0" in name:
            raise AcdcError(f"expected a model's name, a folder or a transformers module, got {name!r}")
        check_type("trust_remote_code to be True or False", trust_remote_code, bool)
        where = Place.named(device), _dtype(dtype) or torch.float32
        return _from_files(name, tokenizer, revision, *where, trust_remote_code)


def _from_memory(module: torch.nn.Module, tokenizer: Any, revision: str | None, dtype: torch.dtype | None) -> Model:
    if revision is not None:
        raise AcdcError(f"a module in memory has no revision {revision!r}; give it to from_pretrained")
    module = unwrap(module)
    map_in_place(module)
    name = getattr(getattr(module, "config", None), "_name_or_path", "") or type(module).__name__
    is_now = next((parameter.dtype for parameter in module.parameters()), None)
    if dtype is not None and dtype != is_now:
        raise AcdcError(f"{name} is in {is_now} and is used in place; convert it first: module.to({dtype})")
    tokenizer, named = _tokenizer(tokenizer, trust_remote_code=False)
    return _wrap(module, name, tokenizer, tokenizer_name=named)


def _from_files(
    name: str,
    tokenizer: Any,
    revision: str | None,
    place: Place,
    dtype: torch.dtype,
    trust_remote_code: bool,
) -> Model:
    folder = _folder(name)
    gguf = is_gguf(folder)
    if not folder.is_dir() and not gguf:
        folder = _downloaded(name, folder, revision, trust_remote_code)
    else:
        refuse_revision(name, revision)
    tokenizer, named = _tokenizer(tokenizer, trust_remote_code=trust_remote_code)
    origin = {"revision": revision, "tokenizer_name": named}
    try:
        if place.weights == DISK and (gguf or adapter.adapter_in(folder)):
            raise AcdcError(
                f"{name}: weights that are dequantised or adapted cannot stay on the disk; use --device cpu"
            )
        if gguf:
            module, own = load_gguf(folder, dtype, lambda config: _check_file(config, name))
            return _wrap(_placed(module, place), name, own if tokenizer is None else tokenizer, **origin)
        if interpbench.is_interpbench(folder):
            return _wrap(_placed(interpbench.load_module(folder).to(dtype), place), name, tokenizer, **origin)
        if (folder / "circuit-model.json").is_file():
            raise AcdcError(f"{name} is a circuit as a model, not a decoder: acdc.load in Python opens it")
        if not (folder / CONFIG).exists() and adapter.adapter_in(folder):
            raise adapter.refuse_adapter_alone(folder, name)
        if read_config(folder, name)["model_type"] == "tracr":
            from acdc.model.programs.tracr import TracrModel

            return _wrap(_placed(TracrModel.load(folder).to(dtype), place), name, tokenizer, **origin)
        module = load_module(
            folder, name, dtype=dtype, device=place.loaded, trust_remote_code=trust_remote_code,
            on_disk=place.weights == DISK,
        )  # fmt: skip
        if adapter.adapter_in(folder):
            module = adapter.apply_adapter(module, folder, name)
        if tokenizer is None:
            tokenizer = own_tokenizer(folder, trust_remote_code=trust_remote_code)
        return _wrap(_placed(module, place), name, tokenizer, **origin)
    except AcdcError:
        raise
    except Exception as error:  # libraries raise whatever a nonsensical file makes them stumble over
        raise AcdcError(f"cannot load model {name!r}: {type(error).__name__}: {reason(error)}") from error


def refuse_revision(name: str, revision: str | None) -> None:
    """Nothing on the disk has revisions."""
    if revision is not None:
        raise AcdcError(f"{name}: what is on the disk has no revision {revision!r}; it is for models of the hub")


def _check_file(config: Any, name: str) -> None:
    check_config(config, name)
    check_kind(config.model_type, name)


def _folder(name: str) -> Path:
    """Where the model of this name is: built in, fetched, or what the name says."""
    if (BUILTIN / name / CONFIG).is_file():
        return BUILTIN / name
    if name in PRETRAINED and not Path(name).exists():
        folder = fetched_folder(name)
        if folder is None:
            raise AcdcError(f"{name} has not been fetched yet: acdc models fetch {name}")
        return folder
    return Path(name)


def _downloaded(name: str, path: Path, revision: str | None, trust_remote_code: bool) -> Path:
    """The folder of a hub model; a name that can be none is an unknown one."""
    if path.exists():
        raise AcdcError(
            f"{name} is a file; expected a GGUF file, or the folder that holds it, as save_pretrained writes it"
        )
    if path.is_absolute() or name.startswith(("./", "../", "~")):
        raise AcdcError(f"there is no folder {name!r}; expected one with a model that save_pretrained wrote")
    try:
        return hub.folder_of(name, revision=revision, trust_remote_code=trust_remote_code)
    except AcdcError as error:
        if "/" in name:
            raise
        known = builtin_models()
        if not near_misses(name, known):
            raise AcdcError(f"{error}; `acdc models` lists those that need no hub") from None
        near = unknown("model", name, known)
        raise AcdcError(f"{near}; nor is it a local folder or a model of the Hugging Face hub: {error}") from None


def _tokenizer(given: Any, *, trust_remote_code: bool) -> tuple[Any, str | None]:
    """The tokenizer, and its name if it was given by name."""
    if given is not None and not isinstance(given, str | os.PathLike):
        if not (callable(given) and hasattr(given, "decode")):
            raise AcdcError(f"expected a tokenizer, its name or its folder, got {type(given).__name__}")
        return given, None
    if given is None:
        return None, None
    name = os.fspath(given)
    folder = Path(name)
    if not folder.is_dir():
        folder = hub.folder_of(name, weights=False, trust_remote_code=trust_remote_code)
    return load_tokenizer(folder, trust_remote_code=trust_remote_code), name


def _wrap(module: torch.nn.Module, name: str, tokenizer: Any, **origin: str | None) -> Model:
    decomposition = decompose(module, name)
    model = Model(name, module, tokenizer, decomposition, **origin)
    check_loaded(model)
    return model


def _placed(module: torch.nn.Module, place: Place) -> torch.nn.Module:
    """A module on its device, or on the CPU with weights that stay there."""
    module = module.to(place.loaded)
    if place.loaded != place.device:
        leave_elsewhere(module, place.device)
    return module


def _kind(given: Any) -> str:
    if isinstance(given, Model):
        return "a Model, which acdc.load has given: use it as it is"
    inside = getattr(given, "model", None)  # of a pipeline, for instance
    hint = f"; load its .model, a {type(inside).__name__}" if isinstance(inside, torch.nn.Module) else ""
    return f"{type(given).__name__}{hint}"


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError, ValueError):
        raise unknown("device", name, DEVICES) from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise unknown("device", name, DEVICES)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise AcdcError(f"device {name!r}: this machine has no CUDA GPU that torch can use; try cpu or auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise AcdcError(f"device {name!r}: this machine has no Apple GPU that torch can use; try cpu or auto")
    return device


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
        return DTYPES[dtype]
    if dtype is not None and (not isinstance(dtype, torch.dtype) or dtype not in DTYPES.values()):
        raise unknown("dtype", str(dtype).removeprefix("torch."), DTYPES)
    return dtype
