"""Timing side by side: reference, work, reference, in rounds, so that what slows the machine slows both."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from acdc.benchmarks.cost import count_operations
from acdc.engine.memory import give_back

SHORTEST = 0.05
"""Seconds: calls that take less are repeated within a sample."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One timed call.

    Attributes:
        seconds, cpu_seconds: wall time, and processor time of all threads.
        bytes: the process's peak memory above what it held before; None where the system does not tell.
    """

    seconds: float
    cpu_seconds: float
    bytes: int | None


@dataclasses.dataclass(frozen=True)
class Part:
    """A pass of the reference, and how often the reference has it."""

    times: int
    run: Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Rounds of a work beside its reference; each round's reference is the mean of before and after.

    Attributes:
        operations: floating-point operations of the work's matrix products, as a multiple of the reference's.
    """

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    reference_seconds: tuple[float, ...]
    reference_cpu_seconds: tuple[float, ...]
    peak_bytes: int | None
    reference_peak_bytes: int | None
    operations: float | None = None


def timed(function: Callable[[], object], *, calls: int = 1) -> Sample:
    """Time a call (the mean of `calls` of them)."""
    before = _reset_peak()
    cpu, wall = _cpu_seconds(), time.perf_counter()
    for _ in range(calls):
        function()
    wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
    peak = _memory("VmHWM")
    return Sample(wall / calls, cpu / calls, None if peak is None or before is None else max(0, peak - before))


def _cpu_seconds() -> float:
    """Processor time of all threads and of processes that were started and have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def calls_for(seconds: float) -> int:
    """How many calls make a sample long enough to trust the clock."""
    return max(1, round(SHORTEST / max(seconds, 1e-6)))


def side_by_side(
    work: Callable[[], object], reference: Sequence[Part], *, rounds: int, warm: bool = True
) -> Timing:
    """Time a work and its reference in turns.

    Args:
        warm: run the work once before, untimed, to count its operations. For works of minutes that is not worth it;
            there they are counted in the timed run, which slows it by some microseconds for each of them.
    """
    calls, operations, reference_operations = [], [], 0
    for part in reference:
        reference_operations += part.times * count_operations(part.run)[1]
        calls.append(calls_for(timed(part.run).seconds))
    work_calls = 1
    if warm:
        operations.append(count_operations(work)[1])
        work_calls = calls_for(timed(work).seconds)
    around = 1 if rounds > 1 else 3  # a single round has fewer references to take the mean of

    def references() -> list[list[Sample]]:
        return [[timed(part.run, calls=n) for _ in range(around)] for part, n in zip(reference, calls, strict=True)]

    works: list[Sample] = []
    beside: list[list[list[Sample]]] = [references()]

    def counted() -> object:
        result, count = count_operations(work)
        operations.append(count)
        return result

    for _ in range(rounds):
        works.append(timed(work if warm else counted, calls=work_calls))
        beside.append(references())

    def total(i: int, field: str) -> float:
        samples = [a + b for a, b in zip(beside[i], beside[i + 1], strict=True)]
        return sum(
            part.times * statistics.mean(getattr(sample, field) for sample in these)
            for part, these in zip(reference, samples, strict=True)
        )

    return Timing(
        seconds=tuple(sample.seconds for sample in works),
        cpu_seconds=tuple(sample.cpu_seconds for sample in works),
        reference_seconds=tuple(total(i, "seconds") for i in range(rounds)),
        reference_cpu_seconds=tuple(total(i, "cpu_seconds") for i in range(rounds)),
        peak_bytes=_largest(works),
        reference_peak_bytes=_largest([s for row in beside for samples in row for s in samples]),
        operations=operations[-1] / reference_operations if reference_operations else None,
    )


def _largest(samples: Sequence[Sample]) -> int | None:
    known = [sample.bytes for sample in samples if sample.bytes is not None]
    return max(known) if known else None


# ---- memory: Linux keeps a high-water mark of a process, which it may set back ----------------------------------


def _reset_peak() -> int | None:
    """Give freed memory back, set the high-water mark back to now, and return it in bytes."""
    give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _memory("VmRSS")


def _memory(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(field + ":")]
    return 1024 * int(found[0]) if found else None
