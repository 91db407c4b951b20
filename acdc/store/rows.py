"""Rows of a table that many processes fill together, on one machine or on several that share a folder.

Every row is one file, which is there whole or not at all: there is no file that all write to, and so no lock and no
server. The file's name is the row's key, and its content has a digest: a row that is damaged counts as missing.

Whoever computes a row claims it meanwhile, so that nobody else does the same. A claim is a file `.NAME.claim` that only
one can make; it says which process that is, and is touched as long as that lives. Where the process has ended, or a
claim of another machine has not been touched for a while, the next one takes it over. Should two compute a row all the
same (a process that slept too long), nothing is lost: the row that is there first stays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from acdc.errors import AcdcError
from acdc.store.processes import ended, this_process
from acdc.store.reading import parse_json, read, read_json
from acdc.store.writing import cannot_write, lock, move_to_new, names, temporary_file, write_atomically

Key = Sequence[str | int]

LEASE = 300.0
"""Seconds after which a claim that nobody has touched is anyone's."""
LARGEST = 64 * 2**20
"""Bytes of the largest row that is read."""
_LARGEST_CLAIM = 100_000
_SUFFIX = ".json"


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows in a folder, as JSON objects.

    Attributes:
        folder: holds nothing else.
        made_by: what a row must be made by to be comparable with the others, in words.
        fields: of a row that are its key, in order.
    """

    folder: Path
    made_by: str
    fields: tuple[str, ...]
    _told: set[Path] = dataclasses.field(default_factory=set, compare=False, repr=False)

    def open(self) -> None:
        """Make the folder if need be, and clear the claims of processes that have ended.

        Raises:
            AcdcError: there is something else in its place, or a row that something else made.
            WriteError: it cannot be made.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise AcdcError(f"{str(self.folder)!r} is not a folder of results; choose another folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from None
        for claim in self.folder.glob(".*.claim"):
            with contextlib.suppress(OSError):
                if self._take(claim, _claimer()):
                    claim.unlink()

    def path(self, key: Key) -> Path:
        """The file of a row: its key as far as a file's name can hold it, and a digest of all of it."""
        readable = "--".join(re.sub(r"[^A-Za-z0-9.-]+", "_", str(part)).lstrip(".")[:40] for part in key)
        return self.folder / f"{readable}--{_digest(list(key))[:8]}{_SUFFIX}"

    def get(self, key: Key) -> dict[str, Any] | None:
        """A row; None if there is none, or a damaged one, which a warning says.

        Raises:
            AcdcError: it was made by something else.
        """
        return self._read(self.path(key))

    def all(self) -> list[dict[str, Any]]:
        """The rows that are there, whatever their order; as `get`."""
        found = (self._read(path) for path in sorted(self.folder.glob(f"*{_SUFFIX}")))
        return [row for row in found if row is not None]

    def put(self, row: dict[str, Any], *, instead: bool = False) -> None:
        """Add a row for good; NaN and infinity become null.

        Args:
            instead: replace a row that is there; otherwise that stays, unless it is damaged.

        Raises:
            WriteError: it cannot be written.
        """
        row = json.loads(json.dumps(row), parse_constant=lambda _: None)
        path = self.path([row[field] for field in self.fields])
        content = json.dumps({"made_by": self.made_by, "digest": _digest(row), "row": row}, indent=1) + "\n"
        if not instead and self._read(path) is not None:
            return
        try:
            write_atomically(path, content, replace=instead or path.exists())
        except AcdcError:
            if instead or self._read(path) is None:
                raise

    def remove(self, key: Key) -> None:
        """Remove a row, if it is there.

        Raises:
            WriteError: it cannot be removed.
        """
        path = self.path(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from None

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            value = parse_json(read(path, largest=LARGEST), repr(str(path)))
            made_by, digest, row = value["made_by"], value["digest"], value["row"]
            whole = digest == _digest(row) and path == self.path([row[field] for field in self.fields])
        except (AcdcError, KeyError, TypeError, IndexError):
            whole = False
        if not whole:
            if path not in self._told:
                warnings.warn(
                    f"{str(path)!r} is damaged, or no row of this table: left out, and computed again if it is one",
                    stacklevel=3,
                )
            self._told.add(path)
            return None
        if made_by != self.made_by:
            raise AcdcError(
                f"the results in {str(self.folder)!r} were made by {made_by}, and this is {self.made_by}: their rows "
                "cannot be compared; choose another folder with -o/--out"
            )
        return dict(row)

    # ---- claims -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def claimed(self, key: Key) -> Iterator[bool]:
        """Whether this process alone may compute a row now; the claim ends with the block.

        Raises:
            WriteError: the folder cannot be written to.
        """
        path = self.path(key)
        claim = path.with_name(f".{path.name}.claim")
        claimer = _claimer()
        try:
            mine = self._take(claim, claimer)
        except OSError as error:
            raise cannot_write(claim, error) from None
        if not mine:
            yield False
            return
        done = threading.Event()
        touching = threading.Thread(target=_touch, args=(claim, done), daemon=True)
        touching.start()
        try:
            yield True
        finally:
            done.set()
            touching.join()
            with contextlib.suppress(AcdcError, OSError):
                if read(claim, largest=_LARGEST_CLAIM) == claimer:  # nobody took it over
                    claim.unlink()

    def _take(self, claim: Path, claimer: bytes) -> bool:
        """Make a claim, or take one over that nobody holds any more; False if somebody does."""
        with temporary_file(self.folder, claimer) as whole:
            with contextlib.suppress(FileExistsError):
                move_to_new(whole, claim)
                return True
            now = whole.stat().st_mtime  # by the clock of whoever serves the folder
            with contextlib.suppress(FileNotFoundError), open(claim, "rb") as there:
                if lock(there.fileno()) is False or not names(there.fileno(), claim):
                    return False  # another one is faster
                touched = os.fstat(there.fileno()).st_mtime
                if now - touched > LEASE or _ended(claim):
                    os.replace(whole, claim)
                    return True
        return False


def _claimer() -> bytes:
    return json.dumps(this_process()).encode()


def _ended(claim: Path) -> bool:
    with contextlib.suppress(AcdcError):
        record = read_json(claim, largest=_LARGEST_CLAIM)
        return isinstance(record, dict) and ended(record)
    return False


def _touch(claim: Path, done: threading.Event) -> None:
    """Say again and again that a claim is held."""
    while not done.wait(LEASE / 10):
        with contextlib.suppress(OSError):
            os.utime(claim)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
