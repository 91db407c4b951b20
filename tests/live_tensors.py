"""The memory that tensors and arrays take, counted as they are made and go: the same every time, on every machine."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Bytes of the tensors that were made inside.

    Attributes:
        now: those that there are; peak: the most that there were at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        for before in tree_leaves((args, kwargs)):
            self._meet(before, made=False)
        out = func(*args, **(kwargs or {}))
        for after in tree_leaves(out):
            self._meet(after, made=True)
        return out

    def _meet(self, x: object, *, made: bool) -> None:
        """Count storage that was not known yet, if it was made here."""
        if not isinstance(x, torch.Tensor):
            return
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if made else 0
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._known.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


@contextmanager
def most_bytes() -> Iterator[list[float]]:
    """A list that gets the most bytes that tensors, and arrays and all else of Python's, took inside."""
    found: list[float] = []
    tracemalloc.start()
    try:
        with Live() as live:
            yield found
        found.append(live.peak + tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
