"""Where long work notes how far it is, so that the same work, started again, goes on from there.

A checkpoint belongs to one piece of work: its key is a digest of all that the result depends on, and a file with
another key is not looked at. The method says what it needs to go on, as named arrays.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from acdc.io.files import write_atomically

Arrays = dict[str, npt.NDArray[Any]]

LEAST_SECONDS = 5.0
"""Between two notes."""


@dataclasses.dataclass
class Checkpoint:
    """A file to go on from; without a path nothing is ever noted.

    Attributes:
        path: the file.
        key: of the work.
    """

    path: Path | None = None
    key: str = ""
    _last: float = dataclasses.field(default_factory=time.monotonic, repr=False)

    def load(self) -> Arrays:
        """What was noted last; empty if there is nothing, or the file is of other work."""
        if self.path is None or not self.path.is_file():
            return {}
        try:
            with safe_open(self.path, framework="numpy") as file:
                if (file.metadata() or {}).get("key") != self.key:
                    return {}
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return {}

    def save(self, **arrays: npt.ArrayLike) -> None:
        """Note how far the work is, unless that was done a moment ago."""
        if self.path is None or time.monotonic() - self._last < LEAST_SECONDS:
            return
        content = {name: np.ascontiguousarray(np.atleast_1d(value)) for name, value in arrays.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, save(content, metadata={"key": self.key}))
        self._last = time.monotonic()

    def remove(self) -> None:
        """The work is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def number(arrays: Arrays, name: str) -> float:
    """A number that was noted, 0 if it was not."""
    return float(arrays[name].item()) if name in arrays else 0.0


def digest(values: Iterable[object]) -> str:
    """A key for these values: tensors by their content, everything else by its text."""
    found = hashlib.blake2b(digest_size=16)
    for value in values:
        if isinstance(value, torch.Tensor):
            found.update(f"{tuple(value.shape)} {value.dtype}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(value).encode())
        found.update(b"\0")
    return found.hexdigest()
