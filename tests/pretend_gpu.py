"""A GPU that is only pretended: work is done on the CPU, and what a real GPU refuses is refused.

Tensors whose memory would be on the GPU are known by their storage. Of an operation on tensors of both kinds a real one
says that they are on different devices; NumPy cannot read memory of a GPU, and a generator of the CPU cannot fill it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from acdc.model import elsewhere
from acdc.model.elsewhere import Elsewhere

GPU, CPU = torch.device("cuda"), torch.device("cpu")

MIXING = {"aten::copy_", "aten::_to_copy", "aten::set_", "aten::set_.source_Tensor"}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
"""Whose indices may be on the CPU."""


class _Storages:
    """The storages that would be on the GPU."""

    def __init__(self) -> None:
        self._known: dict[int, StorageWeakRef] = {}

    def __contains__(self, tensor: torch.Tensor) -> bool:
        if isinstance(tensor, Elsewhere):
            return True
        if tensor.is_sparse or not torch._C._has_storage(tensor):
            return False
        known = self._known.get(tensor.untyped_storage()._cdata)
        return known is not None and not known.expired()

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        if torch._C._has_storage(tensor) and not isinstance(tensor, Elsewhere):
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = StorageWeakRef(storage)
        return tensor


class _Operations(TorchDispatchMode):
    """Results of operations on the GPU's tensors are the GPU's; operations on both kinds are refused."""

    def __init__(self, on_gpu: _Storages) -> None:
        super().__init__()
        self.on_gpu = on_gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
        here = [tensor in self.on_gpu for tensor in tensors]
        name = func._schema.name
        if any(here) and not all(here) and name not in MIXING:
            checked = list(zip(tensors, here, strict=True))[: 1 if name in INDEXED else None]
            if name in INDEXED and not here[0]:
                raise RuntimeError(f"{name}: indices should be on the same device as the indexed tensor (cpu)")
            if any(not mine and tensor.dim() and tensor.numel() for tensor, mine in checked):
                shapes = [f"{tuple(t.shape)} on {'cuda' if mine else 'cpu'}" for t, mine in checked]
                raise RuntimeError(f"{name}: expected all tensors to be on the same device: {', '.join(shapes)}")
        result = func(*args, **kwargs)
        if any(here) and not (name == "aten::copy_" and not here[0]):
            for each in tree_flatten(result)[0]:
                if isinstance(each, torch.Tensor):
                    self.on_gpu.add(each)
        return result


class _Functions(TorchFunctionMode):
    """What is asked for on the GPU, or of a tensor that is there."""

    def __init__(self, on_gpu: _Storages) -> None:
        super().__init__()
        self.on_gpu = on_gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if first is not None:
            if name == "__get__" and func == torch.Tensor.device.__get__:
                return GPU if first in self.on_gpu else func(*args)
            if name == "__get__" and func == torch.Tensor.is_cuda.__get__:
                return first in self.on_gpu
            if name in ("numpy", "__array__") and first in self.on_gpu:
                raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")
            if name in ("cpu", "cuda"):
                return self._moved(first, GPU if name == "cuda" else CPU, first)
            if name == "to":
                asked = [
                    torch.device(x).type
                    for x in (*args[1:], kwargs.get("device"))
                    if isinstance(x, str | torch.device)
                ]
                if not {*asked} - {"cpu", "cuda"}:
                    return self._to(first, args[1:], kwargs)
        device = kwargs.get("device")
        if device is None or torch.device(device).type not in ("cpu", "cuda"):
            return func(*args, **kwargs)
        kwargs["device"] = CPU
        there = torch.device(device).type == "cuda"
        if there and kwargs.get("generator") is not None:
            raise RuntimeError("expected a 'cuda' device type for generator but found 'cpu'")
        result = func(*args, **kwargs)
        given = args[0] if name in ("as_tensor", "asarray") and first is not None else None
        if isinstance(result, torch.Tensor):
            return self._placed(result, GPU if there else CPU, given)
        return result

    def _to(self, tensor: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        device = kwargs.pop("device", None)
        others: list[Any] = []
        for each in args:
            if isinstance(each, torch.Tensor):
                device = GPU if each in self.on_gpu else CPU
                others.append(each.dtype)
            elif isinstance(each, str | torch.device):
                device = torch.device(each)
            elif each is not None:
                others.append(each)
        others = [each for each in others if isinstance(each, torch.dtype)]
        result = tensor.to(*others, **kwargs) if others or kwargs else tensor
        return result if device is None else self._placed(result, torch.device(device), tensor)

    def _moved(self, tensor: torch.Tensor, device: torch.device, given: torch.Tensor) -> torch.Tensor:
        return self._placed(tensor, device, given)

    def _placed(self, result: torch.Tensor, device: torch.device, given: torch.Tensor | None) -> torch.Tensor:
        """A result on the device, with memory of its own where what was given is on the other."""
        there = device.type == "cuda"
        if (result in self.on_gpu) == there:
            return result
        if given is not None:
            result = _Copied.apply(result, there, self.on_gpu)
            return result
        return self.on_gpu.add(result) if there else result


class _Copied(torch.autograd.Function):
    """A copy with memory of its own on the other device."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, there: bool, on_gpu: _Storages) -> torch.Tensor:
        ctx.there, ctx.on_gpu = there, on_gpu
        with torch.utils._python_dispatch._disable_current_modes():
            copy = tensor.detach().clone()
        return on_gpu.add(copy) if there else copy

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        with torch.utils._python_dispatch._disable_current_modes():
            copy = gradient.detach().clone()
        return (copy if ctx.there else ctx.on_gpu.add(copy)), None, None


@contextlib.contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with one GPU."""
    on_gpu = _Storages()
    free = 8 << 30
    for name, value in {
        "is_available": lambda: True, "mem_get_info": lambda device=None: (free, free), "current_device": lambda: 0,
        "memory_reserved": lambda device=None: 0, "memory_allocated": lambda device=None: 0,
        "synchronize": lambda device=None: None, "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None, "max_memory_allocated": lambda device=None: 0,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    make = Elsewhere.__new__  # what follows is done where no mode watches any more
    monkeypatch.setattr(Elsewhere, "__new__", staticmethod(lambda cls, home, device: make(cls, home, CPU)))
    monkeypatch.setattr(elsewhere, "_moved", lambda x, device: x)
    with _Operations(on_gpu), _Functions(on_gpu):
        yield
