"""Slots that are processes of this machine, each with the rows of one case after another (`worker`).

A process is started when its first row comes, and again after it has ended. What it is asked and what it answers are
lines of JSON through pipes. It ends at once when the driver does, however that ends, since its pipe is closed then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from acdc.benchmarks.table import Row
from acdc.benchmarks.trials import ProcessEnded, Slot, Trial
from acdc.errors import AcdcError, WriteError

WORKER = (sys.executable, "-m", "acdc.benchmarks.worker")


@contextlib.contextmanager
def processes(
    n: int, folder: str | Path, *, threads: int = 1, command: Sequence[str] = WORKER
) -> Iterator[list[Slot]]:
    """So many slots for `run`; the processes end with the block.

    Args:
        folder: of the table, below which circuits are saved.
        threads: of each process.
        command: that starts a process; the folder and the threads are added.

    Raises:
        AcdcError: there is to be none.
    """
    if n < 1:
        raise AcdcError(f"expected at least one process, got {n}")
    with ThreadPoolExecutor(n) as threads_here:
        slots = [_Process([*command, str(folder), str(threads)], threads_here) for _ in range(n)]
        try:
            yield list(slots)
        finally:
            for slot in slots:
                slot.close()


class _Process:
    """A process that is there when it is needed; a thread waits for what it answers."""

    def __init__(self, command: Sequence[str], threads: ThreadPoolExecutor) -> None:
        self.command, self.threads = command, threads
        self.process: subprocess.Popen[str] | None = None
        self.messages: IO[str] | None = None
        self.changing = threading.Lock()
        self.closed = False

    def submit(self, trial: Trial) -> Future[Row]:
        return self.threads.submit(self._compute, trial)

    def close(self) -> None:
        with self.changing:
            self.closed = True
            if self.process is not None:
                self.process.kill()
                self._end()

    def _compute(self, trial: Trial) -> Row:
        process = self.process or self._start()
        answer = _ask(process, json.dumps(dataclasses.asdict(trial)))
        if answer is None:
            with self.changing:
                raise ProcessEnded(self._end())
        if "cannot_write" in answer:
            raise WriteError(answer["cannot_write"])
        return Row(**answer["row"])

    def _start(self) -> subprocess.Popen[str]:
        with self.changing:
            if self.closed:
                raise ProcessEnded("the work was given up")
            self.messages = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
            pipe = subprocess.PIPE
            self.process = process = subprocess.Popen(
                self.command, stdin=pipe, stdout=pipe, stderr=self.messages, text=True
            )
        if _answer(process) is None:
            with self.changing:
                how = f"a process for the benchmark did not start: {self._end()}"
            killed = process.returncode is not None and process.returncode < 0
            raise ProcessEnded(how) if killed else AcdcError(how)
        return process

    def _end(self) -> str:
        """Clear up after a process that has ended or was killed; how it ended, in words."""
        process, messages = self.process, self.messages
        if process is None or messages is None:
            return "the work was given up"
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        status = process.wait()
        messages.seek(0)
        lines = [line.strip() for line in messages if line.strip()]
        messages.close()
        self.process = self.messages = None
        how = (
            f"the process was ended by signal {-status}"
            if status < 0
            else f"the process ended with status {status}"
        )
        return ": ".join([how, *lines[-1:]])


def _ask(process: subprocess.Popen[str], question: str) -> dict[str, Any] | None:
    assert process.stdin is not None
    try:
        process.stdin.write(question + "\n")
        process.stdin.flush()
    except (OSError, ValueError):  # it has ended, or was closed
        return None
    return _answer(process)


def _answer(process: subprocess.Popen[str]) -> dict[str, Any] | None:
    """What a process answers; None if it ends without a whole line."""
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
    except (OSError, ValueError):
        return None
    if not line.endswith("\n"):
        return None
    found: dict[str, Any] = json.loads(line)
    return found
