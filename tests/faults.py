"""Faults in the middle of a command: it runs in a forked child, in which one file operation goes wrong.

Every operation that changes files is seen: opening for writing, renaming, linking, making and removing, by Python's
audit events; writing and `fsync` by functions in their place. A kill or a full disk in the middle of a write leaves
half of it. What SQLite does itself is not seen.
"""

from __future__ import annotations

import dataclasses
import errno
import gc
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Kind = Literal["kill", "fails", "full", "terminate"]
KINDS: tuple[Kind, ...] = ("kill", "fails", "full", "terminate")
"""The process is killed; the operation fails for want of space; it and all that need space fail from there on; the
process is asked to end (SIGTERM)."""

EVENTS = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
TAKES_SPACE = {"open", "write", "fsync", "os.rename", "os.link", "os.mkdir"}
KILLED = 99


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: exit status; `KILLED` if it was killed.
        err: standard error.
        operations: names of the file operations that were done or tried.
    """

    status: int
    err: str
    operations: tuple[str, ...]


def run(command: Callable[[], int], place: Path, *, at: int | None = None, kind: Kind = "kill") -> Outcome:
    """Run a command in a forked child, in the folder `place`.

    Args:
        command: gives the exit status.
        at: the number of the operation that goes wrong; None: none does.
    """
    notes = [place.with_name(f"{place.name}.{what}") for what in ("err", "operations")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads: none of them is needed in the child
        gc.freeze()  # so that the child's collector touches, and copies, nothing of the parent's
        child = os.fork()
    if child:
        gc.unfreeze()
    else:
        status = 1
        try:
            err, seen = (os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in notes)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(err, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            warnings.simplefilter("default")  # as on the command line
            os.chdir(place)
            _install(place, seen, at, kind)
            status = command()
            sys.stderr.flush()
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    err, operations = (path.read_text() for path in notes)
    for path in notes:
        path.unlink()
    return Outcome(status, err, tuple(operations.split()))


def _install(place: Path, seen: int, at: int | None, kind: Kind) -> None:
    count = 0
    write = os.write

    def wrong(operation: str) -> bool:
        """Count an operation; whether it goes wrong."""
        nonlocal count
        write(seen, f"{operation}\n".encode())
        now, count = count, count + 1
        return at is not None and (now == at or (kind == "full" and now > at and operation in TAKES_SPACE))

    def go_wrong() -> None:
        if kind == "kill":
            os._exit(KILLED)
        if kind == "terminate":
            signal.raise_signal(signal.SIGTERM)
            return
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS:
            return
        if event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        path = arguments[0]
        if isinstance(path, int):
            if event == "open":
                return
        elif not Path(os.fsdecode(path) if isinstance(path, bytes) else path).absolute().is_relative_to(place):
            return
        if wrong(event):
            go_wrong()

    def writing(descriptor: int, data: bytes) -> int:
        if descriptor > 2 and wrong("write"):
            write(descriptor, memoryview(data)[: len(data) // 2])
            go_wrong()
        return write(descriptor, data)

    def syncing(descriptor: int) -> None:
        if wrong("fsync"):  # else nothing: no power fails here
            go_wrong()

    os.write, os.fsync = writing, syncing  # type: ignore[assignment]
    sys.addaudithook(hook)
