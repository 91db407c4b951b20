"""Things that are worked on in turn, whose tensors may wait on disk.

The tensors stay the same objects, and are empty while they wait. A file is mapped while its thing is worked on, and the
tensors are laid into it: what is written to them is in the file, new ones are added at the end, and afterwards nothing
of it is in the memory of the process.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from acdc.errors import AcdcError

Thing = TypeVar("Thing")

ALIGNMENT = 64
"""Bytes, so that every dtype can be mapped where a tensor begins."""


@dataclasses.dataclass(frozen=True)
class _Slot:
    """A tensor and where it is in its file: first byte, and bytes there are for it."""

    tensor: Tensor
    start: int
    room: int
    shape: tuple[int, ...]

    def open(self, mapped: Tensor) -> None:
        """Fill the tensor from the file, which is mapped as bytes; on a CPU it lies in there."""
        self.tensor.set_(self._inside(mapped).to(self.tensor.device))  # type: ignore[call-overload]

    def close(self, mapped: Tensor) -> None:
        """Empty the tensor."""
        if self.tensor.device != mapped.device:
            self._inside(mapped).copy_(self.tensor)
        self.tensor.set_()  # type: ignore[call-overload]

    def _inside(self, mapped: Tensor) -> Tensor:
        size = math.prod(self.shape) * self.tensor.dtype.itemsize
        return mapped[self.start : self.start + size].view(self.tensor.dtype).view(self.shape)


class Shelf(Generic[Thing]):
    """Things made of dataclasses, lists, tuples, mappings and tensors, gone through as often as need be.

    Args:
        on_disk: whether their tensors wait in files, in the folder for temporary ones (`TMPDIR`), which are gone when
            the shelf is; otherwise they stay in memory.
    """

    def __init__(self, *, on_disk: bool) -> None:
        self._folder: Path | None = None
        self._things: list[Thing] = []
        self._slots: list[dict[int, _Slot]] = []  # of each thing, by the identity of the tensor
        if on_disk:
            self._folder = Path(tempfile.mkdtemp(prefix="acdc-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._things)

    def add(self, thing: Thing) -> None:
        self._things.append(thing)
        self._slots.append({})
        if self._folder is not None:
            self._put(len(self) - 1)

    def __iter__(self) -> Iterator[Thing]:
        """Each in turn; what was changed in it, or given to it, stays."""
        for i, thing in enumerate(self._things):
            if self._folder is None:
                yield thing
                continue
            slots = list(self._slots[i].values())
            mapped = torch.from_numpy(np.memmap(self._file(i), dtype=np.uint8, mode="r+"))
            for slot in slots:
                slot.open(mapped)
            yield thing
            self._put(i)
            for slot in slots:
                slot.close(mapped)
            del mapped

    def _file(self, i: int) -> Path:
        assert self._folder is not None
        return self._folder / str(i)

    def _put(self, i: int) -> None:
        """Write the tensors that have no place yet, and have the thing hold others that lie there."""
        found, slots = _tensors(self._things[i]), self._slots[i]
        new = {key: tensor for key, tensor in found.items() if key not in slots}
        if not new:
            return
        free = [slots.pop(key) for key in set(slots) - set(found)]
        try:
            with self._file(i).open("r+b" if self._file(i).exists() else "w+b") as file:
                for key, tensor in new.items():
                    slots[key] = slot = _place(file.seek(0, 2), tensor, free)
                    file.seek(slot.start)
                    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                    file.write(content.data)
                    file.write(bytes(max(0, slot.start + slot.room - file.seek(0, 1))))
        except OSError as error:
            raise AcdcError(
                f"the searched prompts do not fit in memory, and cannot be kept in {self._file(i).parent}: "
                f"{error.strerror}; set TMPDIR to a folder with more room, or use fewer prompts"
            ) from error
        self._things[i] = _replaced(self._things[i], lambda tensor: slots[id(tensor)].tensor)
        self._slots[i] = {id(slot.tensor): slot for slot in slots.values()}


def _place(end: int, tensor: Tensor, free: list[_Slot]) -> _Slot:
    """A slot for a new tensor: where another one was, or at the end of the file."""
    size = -(-tensor.numel() * tensor.dtype.itemsize // ALIGNMENT) * ALIGNMENT
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    shape = tuple(tensor.shape)
    for slot in free:
        if slot.room >= size:
            free.remove(slot)
            return _Slot(empty, slot.start, slot.room, shape)
    return _Slot(empty, end, max(size, ALIGNMENT), shape)


def _tensors(thing: Any) -> dict[int, Tensor]:
    """All tensors in a thing, by identity."""
    found: dict[int, Tensor] = {}
    left = [thing]
    while left:
        part = left.pop()
        if isinstance(part, Tensor):
            found[id(part)] = part
        elif (parts := _parts(part)) is not None:
            left.extend(parts.values() if isinstance(parts, Mapping) else parts)
    return found


def _parts(thing: Any) -> Any:
    """What a container holds, by name if it has names; None of what is no container."""
    if isinstance(thing, list | tuple | Mapping):
        return thing
    return vars(thing) if dataclasses.is_dataclass(thing) and not isinstance(thing, type) else None


def _replaced(thing: Any, by: Callable[[Tensor], Tensor]) -> Any:
    """A thing with all its tensors replaced; what is no container stays the same object."""
    if isinstance(thing, Tensor):
        return by(thing)
    if isinstance(thing, list | tuple):
        return type(thing)(_replaced(part, by) for part in thing)
    if isinstance(thing, Mapping):
        return {key: _replaced(part, by) for key, part in thing.items()}
    if not dataclasses.is_dataclass(thing) or isinstance(thing, type):
        return thing
    other = copy.copy(thing)
    for name, part in vars(thing).items():
        object.__setattr__(other, name, _replaced(part, by))
    return other
