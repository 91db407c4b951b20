"""Tensor files: their headers cost nothing, and a torch file that would keep a reader busy, or run code, is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

import odd_folders
from acdc.errors import AcdcError
from acdc.store.tensors import open_tensors

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


@pytest.mark.parametrize("ending", ["safetensors", "bin", "pth"])
def test_headers_and_numbers(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"file.{ending}"
    if ending == "safetensors":
        safetensors.torch.save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path)
    file = open_tensors(path)
    assert {name: (header.shape, header.dtype) for name, header in file.headers.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in TENSORS.items()
    }
    assert all(header.is_meta for header in file.headers.values())
    assert all(torch.equal(file.read(name), tensor) for name, tensor in TENSORS.items())


REFUSED = {
    "legacy": "torch.save has not written it, or not in a version since 1.6",
    "wrapped": "expected a state dict, names and plain tensors, got 'state_dict' among others",
    "list": "expected a state dict, names and plain tensors, got a list",
    "attack": "holds more than tensors, and code in it",
    "attack-bare": "torch.save has not written it",
    "expanded": "claims more numbers than the file holds",
    "nested-key": "has keys, .*that are not texts, numbers or flat tuples",
    "nested-value": "more than 10,000,000 parts",
    "compressed": "is compressed",
    "cut-pickle": "pickle",
    "sparse": "expected a state dict",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / "model.safetensors")
    odd_folders.TORCH_FILES[f"torch-{kind}"](tmp_path)
    with pytest.raises(AcdcError, match=REFUSED[kind]):
        open_tensors(tmp_path / "pytorch_model.bin")
    assert not odd_folders.WITNESS.exists()
