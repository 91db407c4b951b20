"""What a result belongs to: digests of the weights and the prompts, and what has changed since.

A circuit is found in one model on one set of prompts. Both live in files that can be edited, under names that stay the
same, so a circuit remembers SHA-256 digests of what the names stood for. Weights are hashed in pieces, in place, and
once: a model whose tensors have not been touched keeps its digest.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from acdc.circuit import Provenance
from acdc.model.elsewhere import numbers
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset

_PIECE = 16 * 2**20
"""Bytes that are hashed at a time, in whole rows of the first dimension."""

_COLUMNS = 512
"""64-bit numbers in a row of a checksum's table."""

_Mark = tuple[object, ...]
_known: weakref.WeakKeyDictionary[torch.nn.Module, tuple[list[_Mark], str]] = weakref.WeakKeyDictionary()


def weights_digest(model: Model) -> str:
    """SHA-256 of a model's parameters and buffers: names, shapes, dtypes and bytes, in the order of the names.

    It is computed once for a model whose tensors are the same and unchanged.
    """
    tensors = {name: tensor for name, tensor in sorted(model.module.state_dict().items()) if _has_content(tensor)}
    marks = [_mark(name, tensor) for name, tensor in tensors.items()]
    known = _known.get(model.module)
    if known is not None and known[0] == marks:
        return known[1]
    digest = hashlib.sha256()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing leaves Python's lock to others
        hashed = {name: [pool.submit(_digest, piece) for piece in _pieces(t)] for name, t in tensors.items()}
        for name, pieces in hashed.items():
            digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
            for piece in pieces:
                digest.update(piece.result())
    _known[model.module] = marks, digest.hexdigest()
    return digest.hexdigest()


def prompts_digest(prompts: Prompts | None) -> str:
    """SHA-256 of prompts: tokens, masks, positions that are read and answers; "" if there are none."""
    if prompts is None:
        return ""
    digest = hashlib.sha256()
    for name in sorted(field.name for field in dataclasses.fields(prompts)):
        value = getattr(prompts, name)
        if isinstance(value, Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(_digest(value))
    return digest.hexdigest()


def belonging(model: Model, dataset: Dataset) -> dict[str, Any]:
    """The fields of `Provenance` that say what a result belongs to."""
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights_sha256": weights_digest(model),
        "n_prompts": len(dataset.discovery),
        "prompts_sha256": prompts_digest(dataset.discovery),
        "held_out_sha256": prompts_digest(dataset.held_out),
    }


def changes(made: Provenance, model: Model, dataset: Dataset) -> dict[str, str]:
    """What is not as it was when a circuit was found; what an older file does not say is not judged.

    Returns:
        A line for people for each of "weights", "prompts" and "held-out prompts" that changed.
    """
    now = belonging(model, dataset)
    found = {}
    if made.dtype and made.dtype != now["dtype"]:
        found["weights"] = f"the model is in {now['dtype']}, and the circuit was found in {made.dtype}"
    elif made.weights_sha256 and made.weights_sha256 != now["weights_sha256"]:
        found["weights"] = f"the weights of {model.name} differ from those the circuit was found with"
    if made.prompts_sha256 and made.prompts_sha256 != now["prompts_sha256"]:
        found["prompts"] = f"the prompts of {dataset.name} differ from those the circuit was found on"
    if made.prompts_sha256 and made.held_out_sha256 != now["held_out_sha256"]:
        found["held-out prompts"] = f"the held-out prompts of {dataset.name} differ from those of its discovery"
    return found


def _has_content(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_meta


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.dim() == 0 or tensor.numel() == 0:
        return (tensor,)
    rows = max(1, _PIECE * tensor.shape[0] // (tensor.numel() * tensor.element_size()))
    return tensor.detach().split(rows)


def _digest(tensor: Tensor) -> bytes:
    flat = numbers(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).digest()


def _mark(name: str, tensor: Tensor) -> _Mark:
    """What tells whether a tensor is the same and unchanged: where it is, and a sum that any edit changes.

    A change in place counts the version up, unless it is made through `tensor.data` or NumPy, as ablations often are.
    """
    tensor = numbers(tensor).detach()
    version = None if tensor.is_inference() else tensor._version
    return name, tensor.data_ptr(), tuple(tensor.shape), str(tensor.dtype), version, _checksum(tensor)


def _checksum(tensor: Tensor) -> bytes:
    """Of all bytes of a tensor, several times faster than SHA-256.

    The bytes are laid out as a table of 64-bit numbers, of which every row and every column is summed, so that numbers
    that changed their places show too.
    """
    flat = tensor.reshape(-1).view(torch.uint8)
    size = len(flat) - len(flat) % (8 * _COLUMNS)
    table = flat[:size]
    if table.storage_offset() % 8:
        table = table.clone()
    table = table.view(torch.int64).view(-1, _COLUMNS)
    found = hashlib.sha256()
    for part in (table.sum(0), table.sum(1), flat[size:]):
        found.update(part.cpu().contiguous().numpy().tobytes())
    return found.digest()
