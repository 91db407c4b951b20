"""`acdc benchmark`: what it prints and writes, that it resumes, and how it fails."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from acdc.benchmarks import runner
from acdc.benchmarks.runner import Subject
from acdc.benchmarks.table import Row, Table
from acdc.cli import main as cli
from acdc.errors import WriteError
from acdc.methods import METHODS

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run `acdc benchmark …` in an empty folder, with rows that cost nothing; status, output and messages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def quick(suite: str, subject: Subject, method: str, *, folder: Path, memory: str | None) -> Row:
        return Row(
            suite, subject.case.name, method, subject.seed, truth="t", f1=0.5, hamming=1, n_true=4,
            n_edges=1011, n_edges_total=1200,
        )  # fmt: skip

    monkeypatch.setattr(runner, "run_row", quick)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["acdc", "benchmark", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capfd.readouterr()
        return int(exit.value.code or 0), out, err

    return run


def test_a_table_and_a_report_are_written_and_the_leaderboard_shown(command: Command) -> None:
    status, out, _ = command("--suite", "smoke", "--cases", "hist,rev*", "--methods", "eap,acdc", "--seeds", "0,1")
    assert status == 0
    assert all(name in out for name in ("eap", "acdc", "random", "report.html"))
    assert all(re.search(rf"^{name} .* 1,011 \(84\.2%\) ", out, re.MULTILINE) for name in ("eap", "random"))
    folder = Path("runs/benchmark-smoke")
    assert {"rows", "report.html", "report.md"} <= {path.name for path in folder.iterdir()}
    assert {(row.case, row.seed) for row in Table(folder).rows()} == {
        (case, seed) for case in ("hist", "reverse") for seed in (0, 1)
    }
    assert "acdc benchmark --suite smoke --cases" in (folder / "report.html").read_text()


def test_json_is_all_there_is_on_standard_output(command: Command) -> None:
    status, out, _ = command("smoke", "--cases", "hist", "--methods", "eap", "-o", "here", "--json")
    assert status == 0
    result = json.loads(out)
    assert {row["method"] for row in result["rows"]} == {"eap", "random"}
    assert {line["method"] for line in result["leaderboard"]} == {"eap", "random"}
    assert result["files"]["html"] == "here/report.html"


def test_an_interruption_says_how_to_go_on(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> Row:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_row", interrupted)
    status, out, err = command("smoke", "--cases", "hist", "-o", "here")
    assert (status, out) == (130, "")
    assert "finished rows are in here; the same command goes on from there" in err
    assert "nothing was written" not in err


def remove_the_folder(_: pytest.MonkeyPatch) -> None:
    shutil.rmtree("here")


def remove_the_table(_: pytest.MonkeyPatch) -> None:
    shutil.rmtree("here/rows")


def fill_the_disk(patch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(os, "fsync", full)


def fill_the_disk_for_circuits(_: pytest.MonkeyPatch) -> None:
    raise WriteError("cannot write 'circuits': No space left on device")


@pytest.mark.parametrize("fault", [remove_the_folder, remove_the_table, fill_the_disk, fill_the_disk_for_circuits])
def test_when_nothing_can_be_written_any_more_it_stops_in_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]
) -> None:
    quick = runner.run_row
    asked = ("smoke", "--cases", "hist", "--methods", "eap,exact,guided", "-o", "here")
    with monkeypatch.context() as patch:

        def row(suite: str, subject: Subject, method: str, *, folder: Path, memory: str | None) -> Row:
            if len(list(Path("here/rows").glob("*.json"))) == 2:
                fault(patch)
            return quick(suite, subject, method, folder=folder, memory=memory)

        patch.setattr(runner, "run_row", row)
        status, out, err = command(*asked)
    assert (status, out, err.count("\n")) == (2, "", 1)
    kept = fault in (fill_the_disk, fill_the_disk_for_circuits)
    assert kept or not Path("here/rows").exists()
    rows = Table("here").rows()
    assert len(rows) == 2 * kept
    assert not any(row.error for row in rows)
    assert command(*asked)[0] == 0


def test_files_that_no_benchmark_made_are_not_replaced(command: Command) -> None:
    for name in ("report.html", "report.md", "results.csv"):
        Path("here").mkdir(exist_ok=True)
        Path("here", name).write_text("mine")
        status, _, err = command("smoke", "--cases", "hist", "--methods", "eap", "-o", "here")
        assert (status, err.count("\n")) == (2, 1)
        assert Path("here", name).read_text() == "mine"
        assert [path.name for path in Path("here").iterdir()] == [name]
        Path("here", name).unlink()
    for _ in range(2):  # its own are
        assert command("smoke", "--cases", "hist", "--methods", "eap", "-o", "here")[0] == 0
    shutil.rmtree("here/rows")
    assert command("smoke", "--cases", "hist", "--methods", "eap", "-o", "here")[0] == 0


def test_all_is_every_method_those_too_that_train_masks(command: Command) -> None:
    assert command("smoke", "--cases", "hist", "--methods", "all", "-o", "runs")[0] == 0
    assert {row.method for row in Table("runs").rows()} == set(METHODS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smok"], "unknown suite 'smok': did you mean smoke?"),
        (["smoke", "--suite", "tracr"], "expected one suite, got 'smoke' and --suite 'tracr'"),
        (["smoke", "--cases", "hits"], "did you mean hist?"),
        (["smoke", "--methods", "eapp"], "unknown method 'eapp'"),
        (["smoke", "--methods", ","], "expected comma-separated names, got ','"),
        (["smoke", "--seeds", "one"], "whole numbers as seeds, like 0,1,2, got 'one'"),
        (["smoke", "--workers", "0"], "Invalid value for '--workers'"),
        (["smoke", "--ray", "local"], "Ray is not installed: python -m pip install 'acdc-circuits[ray]'"),
        (["smoke", "--ray", "local", "--slurm", "job.sh"], "--ray runs the rows and --slurm writes a script"),
        (["smoke", "--slurm", "no/such/job.sh"], "there is no folder no/such"),
        (["smoke", "--slurm", "job.sh", "--methods", "eapp"], "unknown method 'eapp'"),
        (["smoke", "--slurm", "job.sh", "--seeds", "one"], "whole numbers as seeds"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    command: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    status, out, err = command(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("how", [(), ("--json",)])
def test_nothing_but_errors_is_a_failure(
    command: Command, monkeypatch: pytest.MonkeyPatch, how: tuple[str, ...]
) -> None:
    def fails(*_: object, **__: object) -> Row:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(runner, "run_row", fails)
    status, out, err = command("smoke", "--cases", "hist", "--methods", "eap", "-o", "out", *how)
    assert (status, "of all things" in out + err) == (2, True)
    assert "every row ended in an error" in err


def test_a_script_for_slurm_runs_the_same_benchmark_in_an_array(command: Command, tmp_path: Path) -> None:
    asked = ("smoke", "--cases", "hist", "--workers=5", "--threads", "2", "--memory", "4GB", "-o", "my runs")
    status, _, err = command(*asked, "--slurm", "job.sh")
    assert (status, "sbatch job.sh" in err) == (0, True)
    assert [path.name for path in tmp_path.iterdir()] == ["job.sh"]
    lines = Path("job.sh").read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    assert {"#SBATCH --array=0-4", "#SBATCH --cpus-per-task=2", "#SBATCH --requeue"} <= set(lines)
    assert "#SBATCH --mem=5863M" in lines  # 4 GB and 2 GiB
    command_line = shlex.split(next(line for line in lines if line.startswith("exec ")))
    arguments = command_line[command_line.index("acdc") + 1 :]
    assert arguments == [
        "benchmark", "smoke", "--cases", "hist", "--threads", "2", "--memory", "4GB",
        "--out", str(tmp_path / "my runs"),
    ]  # fmt: skip
    assert command(*arguments[1:])[0] == 0  # as each job runs it
    assert Table("my runs").rows()
    assert command(*asked, "--slurm", "job.sh")[0] == 0  # its own script is replaced
    Table("my runs").add(Row("smoke", "hist", "eap", 7, error="no luck"))
    assert command(*asked, "--seeds", "7", "--retry", "--slurm", "job.sh")[0] == 0
    assert not Table("my runs").has(("smoke", "hist", "eap", 7))  # now, and not by each job again
    assert "--retry" not in Path("job.sh").read_text()
    Path("job.sh").write_text("mine")
    status, _, err = command(*asked, "--slurm", "job.sh")
    assert (status, Path("job.sh").read_text()) == (2, "mine")
    assert "job.sh exists" in err
