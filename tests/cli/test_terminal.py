"""What reaches a terminal can be shown, and a failure is one line whatever it was."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import acdc
from acdc.cli import main as cli
from acdc.cli import terminal
from acdc.cli.failures import explain
from acdc.errors import AcdcError
from command_line import Command

OBEYED = [
    "\x1b[31m",
    "\x07",
    "\r",
    "\x08",
    "\x7f",
    "\x9b31m",
    "\u202e",
    "\u2066",
    "\u200f",
    "\u2028",
    "\ufeff",
    "\udcff",
]


@pytest.mark.parametrize("text", OBEYED)
def test_what_a_terminal_would_obey_is_shown_by_its_number(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say("error", f"before{text}after", "bold")
    terminal.warn(f"before{text}after")
    terminal.print_table((f"a{text}",), [(f"b{text}",)])
    terminal.print_facts([(f"c{text}", f"d{text}")])
    terminal.print_line(f"e{text}")
    with terminal.quiet_libraries():
        print(f"f{text}")
    terminal.print_json({f"g{text}": f"h{text}"})
    out, err = capsys.readouterr()
    assert text[0] not in out + err
    assert json.loads(out[out.index("{") :]) == {f"g{text}": f"h{text}"}
    assert all(letter in out + err for letter in "abcdefgh")


@pytest.mark.parametrize("text", ["naïve", "日本語", "שלום", "👩‍👧", "tab\there", "a → b … ‘c’"])
def test_what_can_be_shown_is_shown_as_it_is(text: str) -> None:
    assert terminal.printable(text) == text


def test_only_a_list_of_lines_has_lines(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say("error", "x: 2 problems\n  line 1\n  line 2\nerror: forged", "bold")
    assert capsys.readouterr().err == "error: x: 2 problems\n  line 1\n  line 2\\nerror: forged\n"


def test_a_log_gets_a_line_of_progress_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0, 10, 31, 31, 40, 70, 70])
    monkeypatch.setattr(terminal, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    with terminal.progress_bar() as progress:
        for done in (1, 2, 3):
            progress(done, 2000, "testing edges")
        progress(0, None, "pruning: 4 edges")
    assert capsys.readouterr().err == "progress: testing edges, 2 of 2,000\nprogress: pruning: 4 edges\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AcdcError("given, expected"), "given, expected"),
        (MemoryError(), "not enough memory.*--batch-size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "not enough memory.*CUDA out of memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory"),
            "not enough",
        ),
        (RecursionError("maximum recursion depth"), "nested too deeply"),
        (UnicodeEncodeError("charmap", "→", 0, 1, "no"), "cannot be encoded"),
        (OSError(28, "No space left on device", "file"), "file: No space left on device"),
        (RuntimeError("CUDA error: device-side assert triggered"), "try --device cpu"),
    ],
)
def test_failures_that_are_not_ours(error: Exception, words: str) -> None:
    failure = explain(error)
    assert failure.status == 2
    assert "\n" not in failure.text
    assert re.search(words, failure.text)


def _main(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return int(exit.value.code or 0)


def test_a_mistake_of_ours_is_called_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(monkeypatch, KeyError("x")) == 70
    err = capsys.readouterr().err
    assert err.startswith("error: this is a bug in acdc, please report it: KeyError: 'x'; ACDC_TRACEBACK=1")
    assert err.count("\n") == 1
    monkeypatch.setenv("ACDC_TRACEBACK", "1")
    with pytest.raises(KeyError):
        _main(monkeypatch, KeyError("x"))


def test_an_output_that_knows_few_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    with terminal.usable_streams():
        terminal.print_line("a → b")
        terminal.print_json({"a": "→ 👩"})
    text = out.buffer.getvalue().decode("cp1252")
    line, _, rest = text.replace("\r", "").partition("\n")
    assert line == r"a \u2192 b"
    assert json.loads(rest) == {"a": "→ 👩"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "| true"])
def test_an_output_that_cannot_be_written_is_one_line(redirection: str) -> None:
    script = "import sys; from acdc.cli import main, terminal; sys.argv = ['acdc', '--version']; main.main()"
    command = f'set -o pipefail; "$PYTHON" -c "$SCRIPT" {redirection}'
    environment = os.environ | {"PYTHON": sys.executable, "SCRIPT": script}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    if redirection != "| true":  # true may end before or after the line is written
        assert done.returncode == 2
        assert done.stderr.startswith(("error: standard output is closed", "error: input or output: No space"))
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_what_fails_after_a_signal_fails_for_that(
    command: Command, monkeypatch: pytest.MonkeyPatch, name: str, status: int
) -> None:
    before = signal.getsignal(getattr(signal, name))

    def swallow(*_: object, **__: object) -> None:
        with contextlib.suppress(KeyboardInterrupt):  # as an import does that an interruption falls into
            signal.raise_signal(getattr(signal, name))
        raise RecursionError

    monkeypatch.setattr(acdc, "discover", swallow)
    result = command("discover", "tracr-reverse")
    assert result.status == status
    assert result.err.splitlines()[-1] == "interrupted: nothing was written"
    assert signal.getsignal(getattr(signal, name)) is before
    monkeypatch.setattr(acdc, "discover", lambda *_, **__: [].pop())
    assert command("discover", "tracr-reverse").status == 70  # no signal this time
