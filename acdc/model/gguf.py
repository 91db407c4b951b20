"""GGUF files: weights of llama.cpp, mostly quantised, read by transformers and dequantised once, on loading.

What a file says of itself (magic, architecture, whole or cut off, types of its tensors) is looked at before any
weight is, and the model that it asks for is made without memory and has to be no larger than its tensors, so that a
file that cannot be used is refused at once and in words. A dequantised model is an ordinary
one in memory; that its weights once had four bits stays written in its config.
"""

from __future__ import annotations

import collections
import contextlib
import io
import re
import struct
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from acdc.errors import AcdcError, UnsupportedModelError
from acdc.model.folder import without_memory

_MAGIC = b"GGUF"
_LAYER = re.compile(r"blk\.([0-9]{1,9})\.")
_FLOATS = ("F32", "F16", "BF16", "F64")


def is_gguf(path: Path) -> bool:
    """Whether it is a file of that name or with that beginning."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def check_installed(wanted: str) -> None:
    """Raises an AcdcError if the packages that read GGUF are not there.

    Args:
        wanted: the file or the model that needs them.
    """
    missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if missing:
        raise AcdcError(f"{wanted}: reading GGUF needs {' and '.join(missing)}: pip install 'acdc-circuits[gguf]'")


def load_gguf(path: Path, dtype: torch.dtype, check: Callable[[Any], None]) -> tuple[torch.nn.Module, Any]:
    """The `transformers` module in a GGUF file, dequantised, and its tokenizer.

    The module's config has `dequantised_from`, how the file was quantised ("Q4_K_M"), if it was.

    Args:
        check: raises if a model of this config is not wanted, before the weights are read.

    Raises:
        AcdcError: the file is damaged, or `gguf` and `accelerate` are not installed.
        UnsupportedModelError: of an architecture that transformers does not read.
    """
    check_installed(str(path))
    quantised, n_numbers = _look_at(path)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder, file = str(path.absolute().parent), path.name
    with contextlib.redirect_stderr(io.StringIO()):  # a bar, even where bars are turned off
        try:
            config = AutoConfig.from_pretrained(folder, gguf_file=file)
            check(config)
            _check_size(config, n_numbers, path)
            module: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        except (ValueError, KeyError, OSError, RuntimeError, ImportError, AttributeError, TypeError) as error:
            raise AcdcError(f"{path}: transformers cannot read this GGUF file: {_first_line(error)}") from None
    del module.config.quantization_config  # the weights are plain numbers from here on
    module.hf_quantizer = None
    if quantised:
        module.config.dequantised_from = quantised
    return module.eval(), tokenizer


def weights_note(config: Any) -> str:
    """What a user must know of the weights: "4-bit weights (Q4_1), dequantised"; "" of ordinary ones."""
    kind = getattr(config, "dequantised_from", None)
    if not isinstance(kind, str):
        return ""
    bits = kind.removeprefix("I").removeprefix("Q").split("_")[0]
    return f"{bits}-bit weights ({kind}), dequantised" if bits.isdigit() else f"{kind} weights, dequantised"


def _check_size(config: Any, n_numbers: int, path: Path) -> None:
    """Refuse a model that is larger than the tensors it is to be made of, before it takes memory."""
    asked = sum(parameter.numel() for parameter in without_memory(config, str(path)).parameters())
    if asked > n_numbers:
        raise AcdcError(
            f"{path}: the GGUF file asks for a model of {asked:,} numbers, and its tensors hold {n_numbers:,}; "
            "get it again"
        )


def _look_at(path: Path) -> tuple[str, int]:
    """How the file's weights are quantised, "" if they are not, and how many numbers they are.

    Raises:
        AcdcError: the file is damaged or cut off, or has other layers than it names.
        UnsupportedModelError: of an architecture that transformers does not read.
    """
    from gguf import GGUFReader, LlamaFileType
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise AcdcError(f"{path} is not a GGUF file: expected it to begin with {_MAGIC!r}, got {magic!r}")
    try:
        reader = GGUFReader(path)
        field = reader.fields["general.architecture"]
        architecture = str(field.contents())
        kinds = collections.Counter[str]()
        for tensor in reader.tensors:
            kinds[tensor.tensor_type.name] += int(tensor.n_elements)
        depth = reader.fields.get(f"{architecture}.block_count")
        n_layers = None if depth is None else int(depth.contents())
        layers = {int(found[1]) for tensor in reader.tensors if (found := _LAYER.match(tensor.name))}
        named = reader.fields.get("general.file_type")
        whole = "" if named is None else LlamaFileType(int(named.contents())).name.removeprefix("MOSTLY_")
    except KeyError:
        raise AcdcError(f"{path}: the GGUF file does not say its architecture") from None
    except (ValueError, TypeError, IndexError, OSError, OverflowError, MemoryError, struct.error) as error:
        raise AcdcError(
            f"{path} ({size} bytes) is damaged or cut off: it cannot be read as GGUF ({_first_line(error)}); "
            "get it again"
        ) from None
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        raise UnsupportedModelError(
            f"{path}: transformers does not read GGUF files of architecture {architecture!r}; "
            f"it reads {', '.join(GGUF_SUPPORTED_ARCHITECTURES)}"
        )
    if layers != set(range(len(layers))) or n_layers not in (None, len(layers)):
        raise AcdcError(f"{path}: the GGUF file asks for {n_layers} layers, and has {len(layers)}; get it again")
    quantised = [kind for kind, _ in kinds.most_common() if kind not in _FLOATS]
    named_well = whole.startswith(("Q", "IQ"))
    return (whole if named_well else quantised[0]) if quantised else "", kinds.total()


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
