"""Writing files so that a failure leaves things as they were.

A file gets its content under a temporary name, `.acdc-….tmp` beside it, and takes its own name when it is whole.
Whoever makes something under such a name holds a lock on it, which the system gives up when the process ends, however
it ends: what nobody holds was left by a process that was killed, and the next one that writes there clears it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acdc.errors import AcdcError, WriteError

try:
    import fcntl
except ImportError:  # Windows: nothing is known to be left behind there, and nothing is cleared
    fcntl = None  # type: ignore[assignment]

PREFIX, SUFFIX = ".acdc-", ".tmp"


def fields_digest(fields: dict[str, Any]) -> str:
    """SHA-256 of a JSON record's fields but the digest itself, `sha256`, whatever their order and layout.

    A record carries it so that a changed one is noticed.
    """
    rest = {name: item for name, item in fields.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_atomically(path: str | Path, content: str | bytes, *, replace: bool = True) -> Path:
    """Write a file whole or not at all; through a link into the file that it points to.

    Args:
        replace: whether a file that is there may be replaced.

    Raises:
        WriteError: it cannot be written.
        AcdcError: it exists and may not be replaced, or is something other than a file.
    """
    target = Path(os.path.realpath(path))
    data = content.encode() if isinstance(content, str) else content
    try:
        if target.exists() and not target.is_file():
            raise AcdcError(f"{str(path)!r} is not a regular file; expected a file to write")
        clear_leftovers(target.parent)
        with temporary_file(target.parent, data) as whole:
            if replace:
                os.replace(whole, target)
            else:
                move_to_new(whole, target)
    except FileExistsError:
        raise AcdcError(f"{str(path)!r} exists: choose another file, or replace it with force (--force)") from None
    except OSError as error:
        raise cannot_write(path, error) from None
    return Path(path)


def cannot_write(path: str | Path, error: OSError) -> WriteError:
    """The error for a user."""
    return WriteError(f"cannot write {str(path)!r}: {error.strerror or error}")


def move_to_new(source: Path, target: Path) -> None:
    """Give a file a name that nothing has.

    Raises:
        FileExistsError: something has.
    """
    if os.name == "nt":
        os.rename(source, target)
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links here: take the name first
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        os.replace(source, target)


# ---- temporary names --------------------------------------------------------------------------------------------


def lock(descriptor: int) -> bool | None:
    """Hold a file or folder that was opened until it is closed; False if another process holds it.

    None: it cannot be told, for want of locks on this system.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block of this folder: to change a file that several processes share."""
    descriptor = _opened(folder)
    try:
        if fcntl is not None and descriptor is not None:
            with contextlib.suppress(OSError):  # no locks here
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def names(descriptor: int, path: Path) -> bool:
    """Whether a path still is that of the file or folder that was opened."""
    try:
        there, opened = os.stat(path, follow_symlinks=False), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)


@contextlib.contextmanager
def temporary_file(folder: Path, data: bytes) -> Iterator[Path]:
    """A file with this content under a temporary name, which goes at the end unless it has been renamed."""
    while True:
        path = folder / f"{PREFIX}{secrets.token_hex(6)}{SUFFIX}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if lock(descriptor) is not False and names(descriptor, path):
            break
        os.close(descriptor)  # cleared before it was locked
    try:
        write_all(descriptor, data)
        if os.name == "nt":  # an open file cannot be renamed there
            os.close(descriptor)
            descriptor = -1
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        if descriptor >= 0:
            os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything, down to the disk."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """An empty folder in another, which goes at the end unless it has been renamed."""
    while True:
        path = folder / f"{PREFIX}{secrets.token_hex(6)}{SUFFIX}"
        path.mkdir()
        held = _opened(path)
        if held is None:
            if path.is_dir():
                break
        elif lock(held) is not False and names(held, path):
            break
        else:
            os.close(held)  # cleared before it was locked
    try:
        yield path
    finally:
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)
        if held is not None:
            os.close(held)


def _opened(path: Path) -> int | None:
    """A file or folder opened; None if it is gone, or cannot be (a folder on Windows)."""
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder under temporary names."""
    try:
        found = [e for e in os.scandir(folder) if e.name.startswith(PREFIX) and e.name.endswith(SUFFIX)]
    except OSError:
        return
    for entry in found:
        with contextlib.suppress(OSError):
            path = Path(entry.path)
            held = None if entry.is_symlink() else _opened(path)
            if held is None:
                continue
            try:
                if lock(held):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(held)
