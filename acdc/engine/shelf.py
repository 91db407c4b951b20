"""Things that are worked on in turn, whose tensors may wait on disk.

A file is mapped while its thing is worked on: what is written to a tensor is in the file, new tensors are added at the
end, and afterwards nothing of it is in the memory of the process.
"""

from __future__ import annotations

import copy
import dataclasses
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
    """Where a tensor is in its file: first byte, and bytes there are for it."""

    start: int
    room: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Shelf(Generic[Thing]):
    """Things made of dataclasses, lists, tuples, mappings and tensors, gone through as often as need be.

    Args:
        on_disk: whether their tensors wait in files, in the folder for temporary ones (`TMPDIR`), which are gone when
            the shelf is; otherwise they stay in memory.
    """

    def __init__(self, *, on_disk: bool) -> None:
        self._folder: Path | None = None
        self._things: list[Any] = []
        if on_disk:
            self._folder = Path(tempfile.mkdtemp(prefix="acdc-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._things)

    def add(self, thing: Thing) -> None:
        self._things.append(thing if self._folder is None else self._put(len(self), thing, {}, []))

    def __iter__(self) -> Iterator[Thing]:
        """Each in turn; what was changed in it, or given to it, stays."""
        for i, thing in enumerate(self._things):
            if self._folder is None:
                yield thing
                continue
            mapped = np.memmap(self._file(i), dtype=np.uint8, mode="r+")
            slots = _parts(thing, _Slot)
            found = {slot: _tensor(mapped, slot) for slot in slots}
            opened = replaced(thing, found.__getitem__, of=_Slot)
            yield opened
            places = {id(tensor): slot for slot, tensor in found.items()}
            self._things[i] = self._put(i, opened, places, slots)
            del opened, found, mapped

    def _file(self, i: int) -> Path:
        assert self._folder is not None
        return self._folder / str(i)

    def _put(self, i: int, thing: Any, places: dict[int, _Slot], slots: list[_Slot]) -> Any:
        """Write what is not in its place, and return the thing with slots for tensors."""
        kept = {id(tensor): tensor for tensor in _parts(thing, Tensor)}
        taken = {places[key] for key in kept if key in places}
        free = [slot for slot in slots if slot not in taken]
        places = dict(places)
        try:
            with self._file(i).open("r+b" if self._file(i).exists() else "w+b") as file:
                for key, tensor in kept.items():
                    if key not in places:
                        places[key] = _place(file.seek(0, 2), tensor, free)
                    elif tensor.device.type == "cpu":
                        continue  # it is mapped
                    file.seek(places[key].start)
                    content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                    file.write(content.data)
                    file.write(bytes(max(0, places[key].start + places[key].room - file.seek(0, 1))))
        except OSError as error:
            raise AcdcError(
                f"the searched prompts do not fit in memory, and cannot be kept in {self._file(i).parent}: "
                f"{error.strerror}; set TMPDIR to a folder with more room, or use fewer prompts"
            ) from error
        return replaced(thing, lambda tensor: places[id(tensor)], of=Tensor)


def _place(end: int, tensor: Tensor, free: list[_Slot]) -> _Slot:
    """A slot for a new tensor: where another one was, or at the end of the file."""
    size = -(-tensor.numel() * tensor.dtype.itemsize // ALIGNMENT) * ALIGNMENT
    shape = tuple(tensor.shape)
    for slot in free:
        if slot.room >= size:
            free.remove(slot)
            return _Slot(slot.start, slot.room, shape, tensor.dtype, tensor.device)
    return _Slot(end, max(size, ALIGNMENT), shape, tensor.dtype, tensor.device)


def _tensor(mapped: np.memmap[Any, Any], slot: _Slot) -> Tensor:
    size = int(np.prod(slot.shape)) * slot.dtype.itemsize
    content = torch.from_numpy(mapped[slot.start : slot.start + size])
    return content.view(slot.dtype).view(slot.shape).to(slot.device)


def _parts(thing: Any, of: type) -> list[Any]:
    """All parts of one type."""
    found: list[Any] = []
    replaced(thing, lambda part: found.append(part), of=of)
    return found


def replaced(thing: Any, by: Callable[[Any], Any], *, of: type) -> Any:
    """A thing with all its parts of one type replaced; what is no container stays the same object."""
    if isinstance(thing, of):
        return by(thing)
    if isinstance(thing, list | tuple):
        return type(thing)(replaced(part, by, of=of) for part in thing)
    if isinstance(thing, Mapping):
        return {key: replaced(part, by, of=of) for key, part in thing.items()}
    if not dataclasses.is_dataclass(thing) or isinstance(thing, type):
        return thing
    other = copy.copy(thing)
    for name, part in vars(thing).items():
        object.__setattr__(other, name, replaced(part, by, of=of))
    return other
