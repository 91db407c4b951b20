"""Files of named tensors that others wrote: safetensors, and what `torch.save` writes.

What a file says of its tensors (names, shapes, dtypes) is read first and costs nothing; a tensor's numbers are read
when they are asked for. A torch file is a pickle inside a ZIP archive. That pickle is first read as data and bounded
(`acdc.store.pickle_data`), because a few hundred bytes of it can keep a reader busy for ever; then torch itself reads
the file with `weights_only=True`, which makes tensors and calls nothing else.
"""

from __future__ import annotations

import dataclasses
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import safetensors
import torch
from torch import Tensor

from acdc.errors import AcdcError
from acdc.store.pickle_data import read_pickle
from acdc.store.reading import check_file

Module = TypeVar("Module", bound=torch.nn.Module)

MOST_TENSORS = 1_000_000
"""Tensors in the largest file that is read."""

LARGEST_PICKLE = 64 * 2**20
"""Bytes of the largest pickle in a torch file, which names the tensors and holds none of their numbers."""


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """The tensors of a file, by name.

    Attributes:
        headers: the tensors without numbers, on torch's meta device.
        read: a tensor on the CPU by its name; its memory may be the file's own, so copy what is to be kept.
    """

    headers: dict[str, Tensor]
    read: Callable[[str], Tensor]


def open_tensors(path: Path) -> TensorFile:
    """The tensors of a safetensors or torch file.

    Raises:
        AcdcError: it cannot be read, or holds something other than named tensors.
    """
    size = check_file(path)
    try:
        return _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path, size)
    except AcdcError:
        raise
    except pickle.UnpicklingError:
        raise AcdcError(
            f"{path} holds more than tensors, and code in it would have to be run to read that, which acdc never does: "
            "save the weights as safetensors"
        ) from None
    except Exception as error:  # both libraries raise whatever a broken file makes them stumble over
        raise AcdcError(f"{path} cannot be read as tensors: {reason(error)}") from None


def build(make: Callable[[], Module], parts: int, weights: TensorFile, what: str) -> Module:
    """A module whose state dict is a file's tensors: compared without memory first, and only then built.

    Args:
        make: builds the module.
        parts: layers that it will have; each has a tensor of its own.
        what: names the model in the message of an error.

    Raises:
        AcdcError: the tensors are not those of the module, by name and shape.
    """
    if not 0 <= parts <= len(weights.headers):
        raise AcdcError(
            f"{what}: its configuration says {parts:,} layers, and its weights have {len(weights.headers)} tensors"
        )
    try:
        with torch.device("meta"):
            wanted = {name: list(tensor.shape) for name, tensor in make().state_dict().items()}
    except (RuntimeError, TypeError, OverflowError) as error:
        raise AcdcError(f"{what}: no model has the sizes of its configuration: {reason(error)}") from None
    given = {name: list(header.shape) for name, header in weights.headers.items()}
    wrong = [name for name in sorted(wanted.keys() | given.keys()) if wanted.get(name) != given.get(name)]
    if wrong:
        name, more = wrong[0], f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise AcdcError(
            f"the weights in {what} do not fit the configuration: {name} should be {wanted.get(name, 'absent')}, "
            f"and is {given.get(name, 'absent')}{more}"
        )
    module = make()
    module.load_state_dict({name: weights.read(name) for name in wanted})
    return module.eval()


def reason(error: BaseException) -> str:
    """What an exception of a library says, in one line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else f"{text[:300]}…"
    return f"{type(error).__name__} {text}".strip() if not text or isinstance(error, LookupError) else text


def _open_safetensors(path: Path) -> TensorFile:
    file = safetensors.safe_open(path, framework="pt")
    names = file.keys()
    _check_count(path, len(names))
    headers = {}
    for name in names:
        part = file.get_slice(name)
        dtype = _DTYPES.get(part.get_dtype())
        if dtype is None:
            raise AcdcError(f"{path}: tensor {name!r} is of a kind that is not read, {part.get_dtype()}")
        headers[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    return TensorFile(headers, file.get_tensor)


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _open_torch(path: Path, size: int) -> TensorFile:
    _check_archive(path)
    tensors = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    if not isinstance(tensors, dict) or not all(_is_named_tensor(*item) for item in tensors.items()):
        raise AcdcError(
            f"{path}: expected a state dict, names and plain tensors, got {_kinds(tensors)}; save one with "
            "torch.save(model.state_dict(), FILE), or the model with save_pretrained"
        )
    _check_count(path, len(tensors))
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > size:  # a view of fewer numbers than it shows
            raise AcdcError(f"{path}: tensor {name!r} claims more numbers than the file holds")
    headers = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()
    }
    return TensorFile(headers, lambda name: tensors[name].detach())


def _check_archive(path: Path) -> None:
    """Refuse what torch would spend for ever on, or would unpack into more than the file holds."""
    if not zipfile.is_zipfile(path):
        raise AcdcError(
            f"{path} cannot be read as tensors: torch.save has not written it, or not in a version since 1.6; if "
            "torch.load reads it, save the weights again, by safetensors.torch.save_file or save_pretrained"
        )
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_count(path, len(members))
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise AcdcError(f"{path} is compressed, which torch.save's files are not")
        pickles = [member for member in members if member.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
            raise AcdcError(f"{path}: expected one data.pkl of at most {LARGEST_PICKLE:,} bytes in the archive")
        read_pickle(archive.read(pickles[0]), f"{path}")


def _check_count(path: Path, count: int) -> None:
    if count > MOST_TENSORS:
        raise AcdcError(f"{path} holds {count:,} tensors, and at most {MOST_TENSORS:,} are read")


def _is_named_tensor(name: object, tensor: object) -> bool:
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided  # type: ignore[attr-defined]
    return isinstance(name, str) and plain


def _kinds(found: object) -> str:
    if not isinstance(found, dict):
        return f"a {type(found).__name__}"
    return f"{next(repr(name) for name, value in found.items() if not _is_named_tensor(name, value))} among others"
