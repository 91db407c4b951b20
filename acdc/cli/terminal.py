"""What the command line needs of a terminal: messages, progress, JSON, signals.

Results go to standard output and everything else to standard error, so that a result can be piped. Names and messages
come from files that others wrote, so nothing is shown as it is: what a terminal would obey, or show in another order
than it stands there, is shown as its number (`printable`).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from acdc.errors import AcdcError
from acdc.shown import UNSAFE, printable

if TYPE_CHECKING:
    from acdc.engine.problem import Progress as ProgressCallback

messages = Console(stderr=True, highlight=False, soft_wrap=True)
EVERY = 30.0
"""Seconds between lines of progress where there is no terminal for a bar."""


# ---- messages ---------------------------------------------------------------------------------------------------


def say(kind: str, message: object, style: str) -> None:
    """A line on standard error; only a list of bad lines has a line each, further in."""
    text = re.sub(r"\n(?!  )", r"\\n", str(message).strip())
    messages.print(Text.assemble((f"{kind}: ", style), printable(text)))


def warn(message: object) -> None:
    say("warning", " ".join(str(message).split()), "yellow")


def quiet_bars() -> None:
    """Libraries' bars need a terminal; they are asked as they are imported, so it has to be said before."""
    if not messages.is_terminal:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Libraries' prints go to standard error, and each warning becomes one line, once."""
    quiet_bars()
    shown: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            warn(message)

    with contextlib.redirect_stdout(_Shown(sys.stderr)), warnings.catch_warnings():
        warnings.showwarning = show
        yield


class _Shown(io.TextIOBase):
    """A stream that passes on what can be shown."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(printable(text.replace("\r", "\n")))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()


@contextlib.contextmanager
def usable_streams() -> Iterator[None]:
    """Streams that take every text whatever their encoding, and whose failure is an error and not a trace at the end.

    Raises:
        AcdcError: there is no standard output.
        OSError: it is full, or nobody reads it.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        raise AcdcError("standard output is closed: send it to a file, or to /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except OSError:
        try:
            sys.stdout.flush()
        except OSError as error:  # it would fail again when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise OSError(error.errno, error.strerror, "standard output") from None
        raise


@contextlib.contextmanager
def progress_bar() -> Iterator[ProgressCallback]:
    """A bar with the time left, on a terminal, and elsewhere (a log) a line now and then.

    It leaves a line that says how long checking the model took.
    """
    from acdc.model.check import count_seconds

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    shown = Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal)
    with count_seconds() as checking, shown as bars:
        bar = bars.add_task("", total=None)
        current, largest, said = "", 0.0, time.monotonic()
        from acdc.engine.problem import NeedText

        def progress(done: int, total: int | None, text: str) -> None:
            nonlocal current, largest, said
            if isinstance(text, NeedText):
                if text.bytes > largest:
                    largest = text.bytes
                    say("memory", text, "bold")
                return
            if text != current:  # another stage has another speed
                current = text
                bars.reset(bar, description=escape(printable(text)))
            bars.update(bar, completed=done, total=total)
            if not messages.is_terminal and time.monotonic() - said >= EVERY:
                said = time.monotonic()
                far = f", {done:,}" * bool(done or total) + (f" of {total:,}" if total else "")
                say("progress", f"{text or 'working'}{far}", "bold")

        yield progress
    if checking.total:
        say("checked", f"against the plain model in {checking.total:.2g} s", "bold")


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
    """JSON on standard output, in ASCII where the output is no Unicode."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json.dumps(plain(value), indent=1, ensure_ascii=not unicode)
    sys.stdout.write(UNSAFE.sub(lambda match: json.dumps(match[0])[1:-1], text) + "\n")


def print_line(text: object) -> None:
    """A line on standard output."""
    sys.stdout.write(printable(text).replace("\n", "\\n") + "\n")


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table on standard output; its last column takes the width that is left."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(Text(printable(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    output().print(table)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Names and values, aligned, on standard output."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    for name, value in facts:
        table.add_row(Text(printable(name), style="bold"), Text(printable(value)))
    output().print(table)


def output() -> Console:
    """Standard output as it is now; as wide as the text when it isn't a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


# ---- files and signals ------------------------------------------------------------------------------------------


def check_new_file(
    path: Path, *, force: bool, own: bytes | None = None, option: str | None = "-o/--out", forcible: bool = True
) -> bool:
    """Refuse a file that exists, or a folder that does not, before the work.

    Args:
        own: what a file holds if acdc made it; such a file is replaced without `force`.
        option: what the user gives a file with; None: it has one name only.
        forcible: whether there is a --force beside it.

    Returns:
        Whether a file may be replaced when the new one is written.

    Raises:
        AcdcError: the file exists and may not be replaced, or its folder doesn't exist.
    """
    given = f", with {option}" if option is not None else ""
    if path.is_dir():
        raise AcdcError(f"{path} is a folder; expected a file to write{given}")
    if path.exists() and not path.is_file():
        raise AcdcError(f"{path} is not a regular file; expected a file to write{given}")
    from acdc.store.writing import clear_leftovers

    clear_leftovers(path.parent)
    replaced = force or (own is not None and path.exists() and own in path.read_bytes())
    if path.exists() and not replaced:
        ways = [f"choose another file with {option}"] * (option is not None) + [
            "replace it with --force"
        ] * forcible
        raise AcdcError(f"{path} exists: {', or '.join(ways)}")
    if not path.parent.is_dir():
        raise AcdcError(f"cannot write {path}: there is no folder {path.parent}")
    return replaced


_stopped_by: signal.Signals | None = None


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """A signal to end, or the end of the terminal, interrupts as ctrl-C does, but once: what follows is clearing up."""
    global _stopped_by
    _stopped_by = None

    def stop(number: int, _: object) -> None:
        global _stopped_by
        _stopped_by = _stopped_by or signal.Signals(number)
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    every = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *every) if main}
    own = (signal.SIG_DFL, signal.default_int_handler)
    caught = {number: handler for number, handler in before.items() if handler in own}  # not under nohup
    for number in caught:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)


def interrupted() -> bool:
    """Whether a signal came: what fails after it, as an import that it fell into, fails for that."""
    return _stopped_by is not None


def interrupted_status() -> int:
    """The exit status of a command that was interrupted: 130 by ctrl-C, 143 by SIGTERM."""
    return 128 + (_stopped_by or signal.SIGINT)


@contextlib.contextmanager
def going_on(progress: Path) -> Iterator[None]:
    """Work that notes its progress in a file: an interruption says so, and ends the command."""
    try:
        yield
    except KeyboardInterrupt:
        if not progress.exists():
            raise
        say("interrupted", f"the same command goes on from there, by {progress}", "bold")
        sys.exit(interrupted_status())
