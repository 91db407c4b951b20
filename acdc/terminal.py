"""What the command line needs of a terminal and a disk: messages, progress, JSON, and files that appear whole.

Results go to standard output and everything else to standard error, so that a result can be piped.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from acdc.errors import AcdcError

if TYPE_CHECKING:
    from acdc.problem import Progress as ProgressCallback

messages = Console(stderr=True, highlight=False, soft_wrap=True)


# ---- messages ---------------------------------------------------------------------------------------------------


def say(kind: str, message: object, style: str) -> None:
    """A line on standard error; only a list of bad lines has a line each."""
    messages.print(Text.assemble((f"{kind}: ", style), str(message).strip()))


def warn(message: object) -> None:
    say("warning", " ".join(str(message).split()), "yellow")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Libraries' prints go to standard error, each warning becomes one line, once, and bars need a terminal."""
    if not messages.is_terminal:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    shown: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            warn(message)

    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def progress_bar() -> Iterator[ProgressCallback]:
    """A bar with the time left, on a terminal; it leaves nothing behind."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as bars:
        bar = bars.add_task("", total=None)
        current = ""

        def progress(done: int, total: int | None, text: str) -> None:
            nonlocal current
            if text != current:  # another stage has another speed
                current = text
                bars.reset(bar, description=text)
            bars.update(bar, completed=done, total=total)

        yield progress


# ---- results ----------------------------------------------------------------------------------------------------


def plain(item: Any) -> Any:
    """A value as JSON has it: paths as text, numbers that JSON has no word for as null."""
    if isinstance(item, Mapping):
        return {str(key): plain(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [plain(value) for value in item]
    if isinstance(item, float) and not math.isfinite(item):
        return None
    return str(item) if isinstance(item, Path) else item


def print_json(value: object) -> None:
    """JSON on standard output."""
    sys.stdout.write(json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table on standard output; its last column takes the width that is left."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    output().print(table)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Names and values, aligned, on standard output."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    for name, value in facts:
        table.add_row(Text(name, style="bold"), Text(value))
    output().print(table)


def output() -> Console:
    """Standard output as it is now; as wide as the text when it isn't a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


# ---- files ------------------------------------------------------------------------------------------------------


def free_folder(out: Path | None, *, default: Path, force: bool) -> Path:
    """The folder to write, checked before the work: `out`, or the default with a number if that is taken.

    Raises:
        AcdcError: `out` exists and `force` is not given, or nothing can be written there.
    """
    folder = out or next(p for p in _numbered(default) if force or not p.exists())
    if folder.exists() and not folder.is_dir():
        raise AcdcError(f"{folder} is a file; expected a folder to write, with -o/--out")
    if folder.is_dir() and any(folder.iterdir()):
        if not force:
            raise AcdcError(f"{folder} exists: choose another folder with -o/--out, or replace it with --force")
        if not (folder / "circuit.json").exists():
            raise AcdcError(f"{folder} holds something other than a circuit, which --force will not replace")
    nearest = next(p for p in folder.absolute().parents if p.exists())
    try:
        tempfile.TemporaryDirectory(dir=nearest).cleanup()
    except OSError as error:
        raise AcdcError(f"cannot write {folder}: {error.strerror or error}") from None
    return folder


def _numbered(folder: Path) -> Iterator[Path]:
    yield folder
    number = 2
    while True:
        yield folder.with_name(f"{folder.name}-{number}")
        number += 1


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into; it takes its place when all is written, and leaves nothing behind if that fails."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        yield new
        try:
            if folder.exists():
                os.replace(folder, old)
            os.replace(new, folder)
        except BaseException:
            if old.exists() and not folder.exists():
                os.replace(old, folder)
            raise
        if old.is_dir():  # files that were not a run's own stay
            for path in old.iterdir():
                if path.stem not in ("circuit", "scores"):
                    os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new_file(path: Path, *, force: bool) -> None:
    """Refuse a file that exists, or a folder that does not, before the work.

    Raises:
        AcdcError: the file exists and `force` is not given, or its folder doesn't exist.
    """
    if path.is_dir():
        raise AcdcError(f"{path} is a folder; expected a file to write, with -o/--out")
    if path.exists() and not force:
        raise AcdcError(f"{path} exists: choose another file with -o/--out, or replace it with --force")
    if not path.parent.is_dir():
        raise AcdcError(f"cannot write {path}: there is no folder {path.parent}")
