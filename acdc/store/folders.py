"""Folders that a command writes: claimed before the work, and there whole or not at all.

Two things make that so. A claim, `.NAME.claim` beside the folder `NAME`, is a file that the command holds locked as
long as it lives; it says which command that is. One that nobody holds was left by an interrupted command: the same
command takes it over and goes on from `.NAME.progress`, another one does so only if there is no progress to lose.

And files come into place together. They are written to a temporary folder, which becomes `NAME` if there is none;
otherwise it becomes `NAME/.acdc-ready` in one step, and from then on the new files count: readers look there first
(`placed`), and whoever writes there next moves into place what an interruption has left. Only files of the same names
are replaced, and nothing else in the folder is touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acdc.errors import AcdcError, WriteError
from acdc.store.processes import runs, same_machine, this_process
from acdc.store.reading import read
from acdc.store.writing import (
    cannot_write,
    clear_leftovers,
    lock,
    names,
    temporary_folder,
    write_all,
)

READY = ".acdc-ready"
LAST = "circuit.json"
"""Moved into place last: other programs take a folder for a run when it is there."""
OURS = {LAST, "trace.json"}
"""One of these is in every folder that may be replaced."""
_LARGEST_RECORD = 100_000  # bytes
_OCCUPIED = (errno.EEXIST, errno.ENOTEMPTY)


# ---- files that come into place together ------------------------------------------------------------------------


def placed(folder: Path, name: str) -> Path:
    """The path of a file in a folder that may have been interrupted while its files came into place."""
    ready = folder / READY / name
    return ready if ready.exists() else folder / name


@contextlib.contextmanager
def whole_folder(folder: str | Path, *, force: bool = False) -> Iterator[Path]:
    """A folder to write into; its files take their place in `folder` at the end, or leave nothing behind.

    An empty file says that there is to be none of this name.

    Args:
        force: whether files that are there may be replaced.

    Raises:
        WriteError: it cannot be written.
        AcdcError: a file is there already.
    """
    target = Path(os.path.realpath(folder))
    if target.exists() and not target.is_dir():
        raise AcdcError(f"{str(folder)!r} is a file; expected a folder to write")
    try:
        _make_parent(folder)
    except OSError as error:
        raise cannot_write(folder, error) from None
    with _staging(target) as staging:
        yield staging
        try:
            _put(staging, target, force=force)
        except FileExistsError as error:
            raise AcdcError(
                f"{error.filename} exists: choose another folder, or replace it with force (--force)"
            ) from None
        except OSError as error:
            raise cannot_write(folder, error) from None


def _make_parent(folder: str | Path) -> None:
    """Make the folder that a folder is to be in; refuse a path that would not lead there, like `missing/../name`."""
    Path(os.path.realpath(folder)).parent.mkdir(parents=True, exist_ok=True)
    if not Path(folder).parent.is_dir():
        raise AcdcError(f"cannot write {folder}: there is no folder {Path(folder).parent}")


@contextlib.contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A temporary folder in the folder that it is for, or beside it if there is none yet."""
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target if target.is_dir() else target.parent
            clear_leftovers(beside)
            staging = stack.enter_context(temporary_folder(beside))
        except OSError as error:
            raise cannot_write(target, error) from None
        try:
            yield staging
        except WriteError as error:  # the user does not know where it is first written
            raise WriteError(str(error).replace(str(staging), str(target))) from None


def _put(staging: Path, folder: Path, *, force: bool) -> None:
    """Give the files of a temporary folder their place, in one step."""
    if not folder.exists():
        empty = [path for path in staging.iterdir() if not path.stat().st_size]
        try:
            for path in empty:
                path.unlink()
            os.rename(staging, folder)
            return
        except OSError as error:
            if error.errno not in _OCCUPIED:
                raise
        for path in empty:
            path.touch()
    if staging.parent != folder and not force:  # the folder has come to be since
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
    while True:
        finish(folder)
        for name in os.listdir(staging):
            if os.path.lexists(folder / name) and (not force or (folder / name).is_dir()):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder / name))
        try:
            os.rename(staging, folder / READY)
            break
        except OSError as error:
            if error.errno not in _OCCUPIED:
                raise
    finish(folder)


def finish(folder: Path) -> None:
    """Move into place what is ready; any number of processes may, at once."""
    ready = folder / READY
    try:
        waiting = sorted(os.listdir(ready), key=lambda name: (name == LAST, name))
    except FileNotFoundError:
        return
    for name in waiting:
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            if (ready / name).stat().st_size:
                os.replace(ready / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
                (ready / name).unlink()
    with contextlib.suppress(OSError):
        ready.rmdir()


def settle(folder: Path) -> None:
    """Clear what was left by processes that were killed while they wrote a folder, as far as that can be done."""
    with contextlib.suppress(OSError):
        clear_leftovers(folder)
        finish(folder)


# ---- claims -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Claim:
    """A folder that this process alone writes.

    Attributes:
        folder: as the user calls it.
        progress: where long work may note how far it is.
        force: whether a run that is there is to be replaced.
    """

    folder: Path
    progress: Path
    force: bool
    _done: bool = False

    @contextlib.contextmanager
    def whole(self) -> Iterator[Path]:
        """A folder to write the run into; the work is done when its files are in place.

        Should something have come to be in this place meanwhile, `folder` becomes the next free one.
        """
        with _staging(Path(os.path.realpath(self.folder))) as staging:
            yield staging
            for folder in _numbered(self.folder):
                try:
                    _put(staging, Path(os.path.realpath(folder)), force=self.force)
                except FileExistsError as error:
                    if self.force:
                        raise AcdcError(f"{error.filename} is a folder; expected to write a file there") from None
                    continue
                except OSError as error:
                    raise cannot_write(folder, error) from None
                self.folder, self._done = folder, True
                break


@contextlib.contextmanager
def claimed(out: Path | None, *, default: Path, command: str, force: bool) -> Iterator[Claim]:
    """Claim the folder to write before the work: `out`, or the default with a number if that is taken.

    Args:
        command: what tells this command from others.

    Raises:
        AcdcError: another process writes there, or `out` exists and `force` is not given, or an interrupted command
            has left its progress there, or nothing can be written there.
    """
    with contextlib.ExitStack() as stack:
        if out is not None:
            claim = stack.enter_context(_claim(out, command, force))
        else:
            claim = _first(stack, default, command, force)
        yield claim


def _first(stack: contextlib.ExitStack, default: Path, command: str, force: bool) -> Claim:
    """The claim that this command has left at one of the default's numbers, or else the first that can be had."""
    candidates = []
    for folder in _numbered(default):
        candidates.append(folder)
        if not folder.exists() and not _hidden(folder, "claim").exists():
            break
    claim = re.compile(rf"\.({re.escape(default.name)}(?:-\d+)?)\.claim")
    there = sorted(os.listdir(default.parent)) if default.parent.is_dir() else []
    claims = [default.with_name(match[1]) for name in there if (match := claim.fullmatch(name))]
    left = [folder for folder in claims if _record(_hidden(folder, "claim")).get("command") == command]
    for folder in [default] if force else [*left, *candidates]:
        if not force and folder.exists() and not _hidden(folder, "claim").exists():
            continue
        try:
            return stack.enter_context(_claim(folder, command, force))
        except _TakenError:
            if force:
                raise
    return _first(stack, default, command, force)  # others were faster


def _numbered(folder: Path) -> Iterator[Path]:
    yield folder
    for number in itertools.count(2):
        yield folder.with_name(f"{folder.name}-{number}")


class _TakenError(AcdcError):
    """Another command has this place."""


@contextlib.contextmanager
def _claim(folder: Path, command: str, force: bool) -> Iterator[Claim]:
    place = Path(os.path.realpath(folder))
    if os.path.lexists(place) and not place.is_dir():
        raise AcdcError(f"{folder} is a file, or links to itself; expected a folder to write, with -o/--out")
    with contextlib.ExitStack() as stack:
        for parent in reversed(place.parents):
            if not parent.exists():
                stack.callback(_remove_empty, parent)
        try:
            _make_parent(folder)
            path, claim = _hidden(folder, "claim"), Claim(folder, _hidden(folder, "progress"), force)
            stack.callback(os.close, _take(path, claim, command))
            stack.callback(_release, path, claim)
            _make_ready(claim)
        except OSError as error:
            raise AcdcError(f"cannot write {folder}: {error.strerror or error}") from None
        yield claim


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _release(path: Path, claim: Claim) -> None:
    """Give a claim up; but one with progress that its command can go on from stays."""
    if not claim._done and _unfinished(claim):
        return
    parts = claim.progress.parent.glob(f"{glob.escape(claim.progress.name)}.*")  # of processes that worked together
    for file in (*parts, claim.progress, path):
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def _unfinished(claim: Claim) -> bool:
    """Whether there is progress, and it is not of the run that the folder holds."""
    try:
        noted = claim.progress.stat().st_mtime_ns
    except OSError:
        return False
    try:
        return placed(Path(os.path.realpath(claim.folder)), LAST).stat().st_mtime_ns < noted
    except OSError:
        return True


def _hidden(folder: Path, what: str) -> Path:
    """Beside the folder, or in it where nothing can be written beside it."""
    place = Path(os.path.realpath(folder))
    inside = place.is_dir() and not os.access(place.parent, os.W_OK | os.X_OK)
    return (place if inside else place.parent) / f".{place.name}.{what}"


def _make_ready(claim: Claim) -> None:
    """Clear what the dead have left, and refuse a folder that may not be written to."""
    folder = claim.folder
    place = Path(os.path.realpath(folder))
    clear_leftovers(place.parent)
    if not place.exists():
        with temporary_folder(place.parent):
            return
    clear_leftovers(place)
    with temporary_folder(place):
        finish(place)
    own = f".{place.name}.claim", f".{place.name}.progress"
    there = {name for name in os.listdir(place) if not name.startswith(own)}
    if there and not claim.force:
        raise _TakenError(f"{folder} exists: choose another folder with -o/--out, or replace it with --force")
    if there and not there & OURS:
        raise AcdcError(f"{folder} holds neither a circuit nor a trace, and nothing else is replaced with --force")


# ---- the file of a claim ----------------------------------------------------------------------------------------


def _take(path: Path, claim: Claim, command: str) -> int:
    """The claim's file, opened, locked, and with this command's record.

    Raises:
        _TakenError: it may not be taken.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        held = lock(descriptor)
        if held is not None and not held:
            os.close(descriptor)
            raise _TakenError(_being_written(claim.folder, _record(path), path))
        if held is None or names(descriptor, path):
            break
        os.close(descriptor)  # its owner has just gone
    try:
        record = _record(path)
        if record and not claim.force and (not same_machine(record) or (held is None and runs(record))):
            raise _TakenError(_being_written(claim.folder, record, path))
        if record.get("command", command) != command and not claim.force and _unfinished(claim):
            raise _TakenError(
                f"{claim.folder} has the progress of an interrupted command, which goes on when it is given again: "
                "choose another folder with -o/--out, or give that progress up with --force"
            )
        if record.get("command", command) != command:  # given up by force, or nothing to lose
            claim.progress.unlink(missing_ok=True)
        os.ftruncate(descriptor, 0)
        write_all(descriptor, json.dumps({"command": command, **this_process()}).encode())
    except _TakenError:
        os.close(descriptor)
        raise
    except BaseException:
        _release(path, claim)
        os.close(descriptor)
        raise
    return descriptor


def _being_written(folder: Path, record: dict[str, Any], path: Path) -> str:
    who = f"process {record.get('process', '?')} on {record.get('host', '?')}, since {record.get('time', '?')}"
    return (
        f"{folder} is being written by another run ({who}): choose another folder with -o/--out, or, if that run has "
        f"ended, remove {path}"
    )


def _record(path: Path) -> dict[str, Any]:
    """Whose a claim is; empty if there is none that can be read."""
    try:
        record = json.loads(read(path, largest=_LARGEST_RECORD))
    except (AcdcError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
