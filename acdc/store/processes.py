"""Who claims something: a record of a process that others, on this machine or another one, can judge later."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """What tells this process from all others, as JSON values."""
    return {
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "host": platform.node(),
        "boot": _boot(),
        "processes": _processes(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def ended(record: dict[str, Any]) -> bool:
    """Whether the process of a record has surely ended: it was of this machine, and is not there any more."""
    beside = bool(_boot()) and (record.get("boot"), record.get("processes")) == (_boot(), _processes())
    return beside and not runs(record)


def same_machine(record: dict[str, Any]) -> bool:
    """Whether the process was one of this machine: by its name, or, in containers, by its kernel."""
    return record.get("host") == platform.node() or (bool(_boot()) and record.get("boot") == _boot())


def _boot() -> str:
    """What tells a running kernel from others; empty where it cannot be told."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def runs(record: dict[str, Any]) -> bool:
    """Whether the process of a record is still there, where locks do not tell."""
    process = record.get("process")
    if not isinstance(process, int) or process <= 0:
        return False
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return record.get("started") == _started(process)


def _processes() -> str:
    """What tells process numbers apart in containers of one machine; empty where it cannot be told."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _started(process: int) -> str:
    """When a process was started, in ticks since the machine was; empty where it cannot be told."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
