"""Where long work notes how far it is, so that the same work, started again, goes on from there.

A resume file belongs to one piece of work: its key is a digest of all that the result depends on. A file with another
key, or one that is damaged, is refused and left alone: it may be the only trace of long work. The method says what it
needs to go on, as named arrays.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from acdc.errors import AcdcError
from acdc.store.writing import write_atomically

Arrays = dict[str, npt.NDArray[Any]]
Expected = Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]
"""Shape and dtype of each array, by name."""

LEAST_SECONDS = 5.0
"""Between two notes."""
_INSTEAD = "delete it to begin anew, or choose another"


@dataclasses.dataclass(frozen=True)
class Spent:
    """What work took: seconds by the wall clock, and processor seconds of all threads; NaN where it is not known."""

    seconds: float = 0.0
    processor_seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.processor_seconds + other.processor_seconds)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.seconds - other.seconds, self.processor_seconds - other.processor_seconds)

    @classmethod
    def now(cls) -> Spent:
        """The clocks of this process, of which differences have a meaning."""
        return cls(time.perf_counter(), time.process_time())


@dataclasses.dataclass
class ResumeFile:
    """A file to go on from; without a path nothing is ever noted.

    Attributes:
        path: the file.
        key: of the work.
        stays: whether the file stays when the work is done, for the caller to remove when its result is safe.
    """

    path: Path | None = None
    key: str = ""
    stays: bool = False
    _last: float = dataclasses.field(default_factory=time.monotonic, repr=False)
    _fails: bool = dataclasses.field(default=False, repr=False)
    _began: Spent = dataclasses.field(default_factory=Spent.now, repr=False)
    _before: Spent = dataclasses.field(default_factory=Spent, repr=False)

    def load(self, expected: Expected, *, endless: Collection[str] = ()) -> Arrays:
        """What was noted last; empty if there is nothing.

        Args:
            expected: every array there must be. A number is an array `[1]`.
            endless: names of the arrays that may hold infinity; none may hold NaN.

        Raises:
            AcdcError: there is something else than notes of this work, or they are damaged.
        """
        if self.path is None or not self.path.exists():
            return {}
        if self.path.is_dir():
            raise AcdcError(f"{self.path} is a folder: expected a file to note progress in; choose another")
        try:
            with safe_open(self.path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self.key:
                    raise AcdcError(
                        f"the progress file {self.path} is of other work (of another method, other options, prompts or "
                        f"weights, or of another program): {_INSTEAD}"
                    )
                found = {
                    name: file.get_tensor(name)
                    for name, (shape, _) in expected.items()
                    if tuple(file.get_slice(name).get_shape()) == shape
                }
                whole = set(file.keys()) == set(expected) == set(found)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError):
            whole, found, metadata = False, {}, {}
        whole = whole and metadata.get("digest") == _content(found, metadata.get("spent", ""))
        for name, array in found.items():
            whole = whole and array.dtype == expected[name][1]
            whole = whole and not (np.isnan(array) if name in endless else ~np.isfinite(array)).any()
        if not whole:
            raise AcdcError(
                f"the progress file {self.path} is damaged: expected whole notes of this work, and it was cut short or "
                f"changed, or is none; {_INSTEAD}"
            )
        self._before = _spent(metadata)
        return found

    def save(self, **arrays: npt.ArrayLike) -> None:
        """Note how far the work is, unless that was done a moment ago; it goes on if that cannot be done."""
        if self.path is None or time.monotonic() - self._last < LEAST_SECONDS:
            return
        content = {name: np.ascontiguousarray(np.atleast_1d(value)) for name, value in arrays.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            total = self._before + (Spent.now() - self._began)
            spent = f"{total.seconds} {total.processor_seconds}"
            about = {"key": self.key, "spent": spent, "digest": _content(content, spent)}
            write_atomically(self.path, save(content, metadata=about))
        except (AcdcError, OSError) as error:
            if not self._fails:
                warnings.warn(f"no progress is noted for now: {error}", stacklevel=2)
            self._fails = True
        self._last = time.monotonic()

    def of_prompts(self, first: int, last: int) -> ResumeFile:
        """The file of work on these prompts, where other processes do that on others."""
        return self

    def remove(self) -> None:
        """The work is done."""
        if self.path is not None and not self.stays:
            self.path.unlink(missing_ok=True)


def _content(arrays: Arrays, spent: str) -> str:
    """A digest of arrays and their names, and of what they took where that is noted."""
    parts = [part for name in sorted(arrays) for part in (name, arrays[name])]
    return digest([*parts, spent] if spent else parts)


def spent_before(path: Path) -> Spent:
    """What the work took up to what a file notes; nothing where there is no file."""
    if not path.is_file():
        return Spent()
    try:
        with safe_open(path, framework="numpy") as file:
            return _spent(file.metadata() or {})
    except (SafetensorError, OSError):
        return _UNKNOWN


def _spent(metadata: Mapping[str, str]) -> Spent:
    try:
        seconds, processor_seconds = map(float, metadata["spent"].split())
    except (KeyError, ValueError):
        return _UNKNOWN
    return Spent(seconds, processor_seconds)


_UNKNOWN = Spent(float("nan"), float("nan"))


def number(arrays: Arrays, name: str) -> float:
    """A number that was noted, 0 if it was not."""
    return float(arrays[name].item()) if name in arrays else 0.0


def digest(values: Iterable[object]) -> str:
    """A key for these values: tensors and arrays by their content, everything else by its text."""
    found = hashlib.blake2b(digest_size=16)
    for value in values:
        if isinstance(value, torch.Tensor):
            found.update(f"{tuple(value.shape)} {value.dtype}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, np.ndarray):
            found.update(f"{value.shape} {value.dtype}".encode())
            found.update(np.ascontiguousarray(value).tobytes())
        else:
            found.update(repr(value).encode())
        found.update(b"\0")
    return found.hexdigest()
