"""What a computation costs: seconds, memory, passes of the model, arithmetic.

It is run twice: once watched, for what doesn't depend on the machine (passes, floating-point operations, and on a
CPU the bytes of all tensors alive at once), and then unwatched for the time, since watching slows it down and the
first run of anything is slower than the next. Short computations are timed several times, and the best time counts.
"""

from __future__ import annotations

import dataclasses
import platform
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from acdc.model.check import count_seconds
from acdc.model.passes import count_passes

T = TypeVar("T")
CPU = torch.device("cpu")

SHORT = 0.2
"""Seconds below which a computation is timed up to three times."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a computation took.

    Attributes:
        seconds: by the wall clock, the best of up to three runs, less those of comparing it with the plain model.
        peak_bytes: of tensors made by it and alive at once, beyond those there were before.
        forward, backward: passes of the model on one prompt (`acdc.model.passes`); partial ones count as whole.
        flops: floating-point operations of matrix products.
        processor_seconds: of all threads, in the run whose seconds count.
    """

    seconds: float
    peak_bytes: int
    forward: int
    backward: int
    flops: int
    processor_seconds: float


def device_name(device: torch.device = CPU) -> str:
    """The name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def measure(compute: Callable[[], T], device: torch.device) -> tuple[T, Cost]:
    """The result of a computation that gives the same each time, and what it took."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    with count_passes() as passes, _Watch() as watch:
        compute()
    peak = torch.cuda.max_memory_allocated(device) - before if on_gpu else watch.peak
    runs: list[tuple[float, float]] = []
    while not runs or (len(runs) < 3 and sum(seconds for seconds, _ in runs) < SHORT):
        result, seconds, processor_seconds = _timed(compute, device)
        runs.append((seconds, processor_seconds))
    seconds, processor_seconds = min(runs)
    return result, Cost(seconds, peak, passes.forward, passes.backward, watch.flops, processor_seconds)


def measure_once(compute: Callable[[], T], device: torch.device) -> tuple[T, Cost]:
    """The same for work too long to be run twice: not watched, so that bytes and operations are not known (0)."""
    with count_passes() as passes:
        result, seconds, processor_seconds = _timed(compute, device)
    return result, Cost(seconds, 0, passes.forward, passes.backward, 0, processor_seconds)


def _timed(compute: Callable[[], T], device: torch.device) -> tuple[T, float, float]:
    """The result, and its seconds by the wall clock and of all threads."""
    _synchronize(device)
    start, processor = time.perf_counter(), time.process_time()
    with count_seconds() as checking:
        result = compute()
    _synchronize(device)
    return result, time.perf_counter() - start - checking.total, time.process_time() - processor


def count_operations(compute: Callable[[], T]) -> tuple[T, int]:
    """The result of a computation, and the floating-point operations of its matrix products."""
    with _Watch() as watch:
        result = compute()
    return result, watch.flops


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Watch(TorchDispatchMode):
    """Counts operations, and the bytes of tensors made inside the block and alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and not func.is_view and not func._schema.is_mutable:
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, key: int) -> None:
        self.now -= self.sizes.pop(key)
