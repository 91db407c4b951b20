"""Settings for all tests: no network, no display, one thread, the same examples every time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import hypothesis
import pytest
import torch

from acdc.cli import main as cli
from command_line import Command, Result

torch.set_num_threads(1)
hypothesis.settings.register_profile("acdc", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("acdc")


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run `acdc …` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["acdc", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capfd.readouterr()
        return Result(int(exit.value.code or 0), out, err)

    return run
