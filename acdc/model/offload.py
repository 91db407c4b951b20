"""What `accelerate` has spread over devices and the disk, as a module of plain tensors without its hooks.

The engine reads weights in place, and does not call the modules that hold them, whose hooks would load what
`accelerate` has offloaded. So a weight on the disk becomes a tensor over its memory-mapped file: it has the same
numbers, takes memory only while it is used, and gives it back when others need it. Nothing ever writes to it. Where
GPUs are among the devices the first of them computes, and the weights of all others visit it (`acdc.model.elsewhere`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from acdc.model.elsewhere import leave_elsewhere


def map_in_place(module: nn.Module) -> None:
    """Give a module that `accelerate` has spread its weights again, and drop the hooks; others are left as they are."""
    hooked = [(part, hook) for part in module.modules() for hook in _hooks(getattr(part, "_hf_hook", None))]
    away = [(part, hook) for part, hook in hooked if getattr(hook, "offload", False)]
    devices = {torch.device(device) for _, hook in hooked if (device := _device(hook)) is not None}
    if not away and len(devices) < 2:
        return
    from accelerate.hooks import remove_hook_from_module

    new: dict[int, nn.Parameter] = {}  # by the parameter that it stands for: tied ones stay one
    found: list[tuple[nn.Module, str, nn.Parameter]] = []
    for part, hook in away:
        for name, parameter in part.named_parameters(recurse=bool(getattr(hook, "place_submodules", False))):
            if parameter.is_meta:
                if id(parameter) not in new:
                    tensor = _mapped(hook.weights_map, name)
                    new[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
                owner = part.get_submodule(name.rpartition(".")[0])
                found.append((owner, name.rpartition(".")[2], new[id(parameter)]))
    remove_hook_from_module(module, recurse=True)
    for owner, name, parameter in found:
        owner._parameters[name] = parameter
    gpus = sorted((device for device in devices if device.type != "cpu"), key=str)
    if gpus:
        leave_elsewhere(module, gpus[0])


def _hooks(hook: Any) -> Iterator[Any]:
    """A hook, or those that it consists of."""
    if hook is not None:
        yield from getattr(hook, "hooks", None) or (hook,)


def _device(hook: Any) -> Any:
    device = getattr(hook, "execution_device", None)
    return f"cuda:{device}" if isinstance(device, int) else device


def _mapped(weights: Mapping[str, Any], name: str) -> Tensor:
    """A weight of `accelerate`'s map: in its file if that has it as it is, else in memory."""
    loader, key = getattr(weights, "dataset", None), f"{getattr(weights, 'prefix', '')}{name}"
    info = (getattr(loader, "index", None) or {}).get(key)
    if info is not None and key not in getattr(loader, "state_dict", {}):
        dtype = getattr(torch, str(info.get("dtype")), None)
        if file := info.get("safetensors_file"):
            with safe_open(file, framework="pt", device="cpu") as opened:
                tensor: Tensor = opened.get_tensor(info.get("weight_name", key))
            if dtype in (None, tensor.dtype):
                return tensor
        elif dtype is not None and info.get("shape"):
            size = torch.Size(info["shape"])
            path = Path(loader.save_folder) / f"{key}.dat"  # type: ignore[union-attr]
            return torch.from_file(str(path), shared=False, size=size.numel(), dtype=dtype).view(size)
    given: Tensor = weights[name]
    return given
