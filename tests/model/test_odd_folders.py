"""Whatever a model folder holds, it loads or is refused in one line, soon, and runs nothing."""

from __future__ import annotations

import collections
import os
import resource
import shutil
import signal
import traceback
import warnings
from pathlib import Path

import pytest

import acdc
import odd_folders

CASES = list(odd_folders.cases())


def outcome(folder: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            acdc.load(folder)
        except acdc.AcdcError as error:
            return "refused" if "\n" not in str(error) else f"refused in several lines: {error}"
    return "loaded"


@pytest.mark.parametrize("number", range(0, len(CASES), len(CASES) // 50), ids=lambda number: CASES[number][0])
def test_a_sample(number: int, tmp_path: Path) -> None:
    _, family, spoil = CASES[number]
    assert outcome(odd_folders.make(family, spoil, tmp_path / "folder", tmp_path)) in ("refused", "loaded")


@pytest.mark.slow
@pytest.mark.parametrize("family", odd_folders.FAMILIES)
def test_every_odd_folder(family: str, tmp_path: Path) -> None:
    """5,524 folders, each in a process of its own, with 20 seconds and 12 GB; all of them held when last run."""
    odd_folders.WITNESS.unlink(missing_ok=True)
    odd_folders.make(family, lambda folder: None, tmp_path / "whole", tmp_path)
    acdc.load(tmp_path / "whole")  # imports, once
    counts, failures = collections.Counter[str](), []
    for name, _, spoil in (case for case in CASES if case[1] == family):
        folder = odd_folders.make(family, spoil, tmp_path / name, tmp_path)
        found = _apart(folder)
        if found not in ("loaded", "refused"):
            failures.append(f"{name}: {found}")
            print(failures[-1], flush=True)
        counts[found.split()[0]] += 1
        shutil.rmtree(folder)
    print(family, dict(counts))
    assert not failures
    assert not odd_folders.WITNESS.exists()


def _apart(folder: Path) -> str:
    """What a child process says, or how it died."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
        signal.alarm(20)
        try:
            said = outcome(folder)
        except BaseException:
            said = traceback.format_exc()[-2000:]
        os.write(writing, said.encode(errors="replace"))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said or f"died with {status}"
