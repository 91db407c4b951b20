"""Weights that stay elsewhere than where they are computed with: in the CPU's memory, in files, on another GPU.

Such a weight is a tensor of the device that computes, without numbers of its own there. Each operation on it takes them
for as long as it runs; parts of it (a head's rows, a transpose) are parts of what is elsewhere, so that no more than
what is needed is taken, and rows that are looked up (a token's embedding) are looked up where they are. What gradients
keep of a weight is that tensor too, so attribution holds one weight at a time. Nothing else in the engine knows of it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

_LOOKS_UP = frozenset({torch.ops.aten.embedding.default, torch.ops.aten.index_select.default})
"""Operations that read a few rows of their first argument; their other arguments say which."""


class Elsewhere(Tensor):
    """A frozen tensor of a device whose numbers are on another.

    Attributes:
        home: the numbers, where they stay.
    """

    home: Tensor

    @staticmethod
    def __new__(cls, home: Tensor, device: torch.device) -> Elsewhere:
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(  
            cls, home.shape, strides=home.stride(), storage_offset=home.storage_offset(), dtype=home.dtype,
            device=device, requires_grad=False,
        )  # fmt: skip
        made.home = home
        return made

    def here(self) -> Tensor:
        """A copy on the device, for as long as it is used."""
        return _moved(self.home, self.device)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        device = next(x.device for x in tree_flatten((args, kwargs))[0] if isinstance(x, cls))
        if func.is_view:
            parts = func(*tree_map_only(cls, _home, args), **kwargs)
            return tree_map_only(Tensor, lambda part: cls(part, device), parts)
        if func in _LOOKS_UP and isinstance(args[0], cls):
            home = args[0].home
            which = tree_map_only(Tensor, lambda x: _moved(x, home.device), args[1:])
            return _moved(func(home, *which, **kwargs), device)
        return func(*tree_map_only(cls, _here, args), **tree_map_only(cls, _here, kwargs))

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        new = memo.get(id(self))
        if new is None:
            new = Elsewhere(copy.deepcopy(self.home, memo), self.device)
            new = nn.Parameter(new, requires_grad=False) if isinstance(self, nn.Parameter) else new
            memo[id(self)] = new
        return new

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({tuple(self.shape)}, {self.dtype}, for {self.device}, on {self.home.device})"


def _moved(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device, non_blocking=device.type != "cpu")


def _home(x: Elsewhere) -> Tensor:
    return x.home


def _here(x: Elsewhere) -> Tensor:
    return x.here()


def numbers(tensor: Tensor) -> Tensor:
    """A tensor's numbers where they are."""
    return tensor.home if isinstance(tensor, Elsewhere) else tensor


def leave_elsewhere(module: nn.Module, device: torch.device) -> None:
    """Let a module compute on a device with weights that stay where they are; those that are there are kept."""
    device = torch.empty(0, device=device).device  # "cuda" with its number
    new: dict[int, nn.Parameter] = {}  # by the parameter that it stands for: tied ones stay one
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in new:
                home = parameter.detach()
                away = home if home.device == device else Elsewhere(home, device)
                new[id(parameter)] = nn.Parameter(away, requires_grad=False)
            part._parameters[name] = new[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)
