"""Slots that are shares of a Ray cluster: each row is a task, which asks for the processors and the memory it needs.

A task computes in a folder of its own and sends back its row and its circuits; the driver writes them. So no folder
has to be shared, and what a machine that is lost had in work is nowhere. The cluster's machines need acdc, of this
version, the models of the suite, and files of one's own at the same place as here; what is ready for one row stays for
the next in the same process of Ray.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import torch

from acdc.benchmarks.runner import Runner
from acdc.benchmarks.suites import Case
from acdc.benchmarks.table import Row
from acdc.benchmarks.trials import ProcessEnded, Slot, Trial
from acdc.circuit import Circuit
from acdc.errors import AcdcError, WriteError
from acdc.store.amounts import bytes_of, size

Sent: TypeAlias = tuple[Row, Mapping[str, Circuit]]
"""A row, and its circuits by their folders."""


@contextlib.contextmanager
def ray_slots(
    address: str, folder: str | Path, *, threads: int = 1, memory: str | None = None, at_once: int | None = None
) -> Iterator[list[Slot]]:
    """Slots for `run`, as many as the cluster's processors have room for; the connection ends with the block.

    Args:
        address: "local": started on this machine, and ended with the block; "auto": the cluster that runs here; else
            where a cluster is, as Ray has it ("ray://head:10001", "head:6379").
        folder: of the table, below which circuits are saved, by this process.
        threads: of a task, and the processors that it asks for.
        memory: what a task asks for beside the weights, like "4GB"; None: it asks for none.
        at_once: most tasks at once; None: what there is room for.

    Raises:
        AcdcError: Ray is not installed, there is no cluster at the address, it has other versions of acdc, or no
            machine of it can run a task.
    """
    try:
        import ray
    except ImportError:
        raise AcdcError("Ray is not installed: python -m pip install 'acdc-circuits[ray]'") from None
    started = not ray.is_initialized()
    if started:
        options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        if address == "local" and at_once is not None:
            options["num_cpus"] = at_once * threads
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (OSError, ValueError, RuntimeError) as error:  # what Ray raises for a wrong address, and for none
            raise AcdcError(
                f"no Ray cluster at {address!r} ({_first_line(error)}): expected local (one on this machine), auto "
                "(the one that runs here), or an address like ray://head:10001"
            ) from None
    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        asks: dict[str, Any] = {"num_cpus": threads, "max_retries": 0}  # the driver tries again itself
        wanted = {"CPU": threads}
        if memory is not None:
            asks["memory"] = wanted["memory"] = math.ceil(bytes_of(memory))
        room = sum(min(int(has.get(name, 0) // n) for name, n in wanted.items()) for has in machines)
        if not room:
            raise AcdcError(_no_room(machines, threads, memory))
        task = ray.remote(**asks)(_compute)
        slot = functools.partial(_Share, task, threads, Path(folder))
        yield [slot() for _ in range(min(room, at_once or room))]
    finally:
        if started:
            ray.shutdown()


class _Share:
    """Room for one task."""

    def __init__(self, task: Any, threads: int, folder: Path) -> None:
        self.task, self.threads, self.folder = task, threads, folder

    def submit(self, trial: Trial) -> Future[Row]:
        from ray.exceptions import RayError

        row: Future[Row] = Future()
        there = dataclasses.replace(trial, case=_located(trial.case))
        try:
            sent = self.task.remote(there, self.threads, _version()).future()
        except (RayError, OSError, RuntimeError) as error:
            raise AcdcError(
                f"lost the Ray cluster ({_first_line(error)}); finished rows are kept, and the same command goes on"
            ) from None
        sent.add_done_callback(lambda done: self._receive(done, row, trial.case))
        return row

    def _receive(self, sent: Future[Sent], row: Future[Row], case: Case) -> None:
        import ray.exceptions as failures

        try:
            found, circuits = sent.result()
            for where, circuit in circuits.items():
                circuit.save(self.folder / where, force=True)
            truth = case.truth or found.truth
            row.set_result(dataclasses.replace(found, model=case.model, task=case.task, truth=truth))
        except failures.RayTaskError as error:  # raised by the task itself
            kind = WriteError if isinstance(error.cause, WriteError) else AcdcError
            row.set_exception(kind(f"a task failed: {_first_line(error.cause)}"))
        except failures.RayError as error:
            row.set_exception(ProcessEnded(f"the task ended ({type(error).__name__}: {_first_line(error)})"))
        except BaseException as error:
            row.set_exception(error)


def _located(case: Case) -> Case:
    """A case whose files are found from any folder: Ray computes in one of its own."""

    def place(name: str) -> str:
        return str(Path(name).absolute()) if Path(name).exists() else name

    return case.placed(place)


def _no_room(machines: Sequence[Mapping[str, float]], threads: int, memory: str | None) -> str:
    """Why no machine of a cluster can run a task, in words."""
    processors, room = (max((has.get(name, 0) for has in machines), default=0) for name in ("CPU", "memory"))
    both = f"{threads} processors" + ("" if memory is None else f" and {memory} of memory for a task")
    most = f"{processors:.0f} processors" + ("" if memory is None else f", {size(room)} of memory")
    fewer = "--threads" if memory is None else "--threads or less with --memory"
    return f"no machine of the Ray cluster has {both} (the most that one has: {most}): use fewer with {fewer}"


_runner: Runner | None = None
"""Of this process, so that a model that is ready stays for the next task."""


def _compute(trial: Trial, threads: int, version: str) -> Sent:
    """Compute a row, in a process of Ray."""
    global _runner
    if version != _version():
        raise AcdcError(f"a machine of the Ray cluster has acdc {_version()}, and this is acdc {version}")
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _runner = _runner or Runner(folder)
        _runner.folder = folder
        row = _runner.compute(trial)
        paths = [path.parent for path in folder.rglob("circuit.json")]
        return row, {str(path.relative_to(folder)): Circuit.load(path) for path in paths}


def _version() -> str:
    return metadata.version("acdc-circuits")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
