"""Rows computed by other processes: each once, the same as here, whoever is killed on the way."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import sys
import warnings
from collections import Counter
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path

import pytest

import acdc
from acdc.benchmarks import on_ray, runner
from acdc.benchmarks.processes import WORKER, processes
from acdc.benchmarks.runner import circuit_folder, run
from acdc.benchmarks.suites import Case, Suite
from acdc.benchmarks.table import Row, Table
from acdc.benchmarks.trials import MOST_TRIES, Key, Trial, hand_out
from acdc.errors import AcdcError, WriteError

FAULTY = """
import json, os, signal, sys, types
from pathlib import Path
from acdc.benchmarks import worker
from acdc.benchmarks.table import Row
from acdc.errors import WriteError

class Runner:
    def __init__(self, folder):
        self.folder = folder
        if (folder / "alive").exists():
            os.open(folder / "alive", os.O_WRONLY)

    def compute(self, trial):
        case, seed = trial["case"]["name"], trial["seed"]
        with open(self.folder / "begun", "a") as notes:
            notes.write(f"{case} {seed}\\n")
        begun = (self.folder / "begun").read_text().splitlines().count(f"{case} {seed}")
        if "kills" in case and (begun == 1 or "always" in case):
            print("too large", file=sys.stderr, flush=True)
            os.kill(os.getppid() if "driver" in case else os.getpid(), signal.SIGKILL)
            signal.pause()
        if "full" in case:
            raise WriteError("cannot write 'circuits': No space left on device")
        return Row(trial["suite"], case, trial["method"], seed, f1=1.0)

worker._trial = json.loads
sys.modules["torch"] = types.SimpleNamespace(set_num_threads=lambda n: None)
sys.modules["acdc.benchmarks.runner"] = types.SimpleNamespace(Runner=Runner)
worker.main(*sys.argv[1:])
"""
"""A process whose rows cost nothing, and end it, or its driver, where the case's name says so."""
QUICK = (sys.executable, "-c", FAULTY)


def suite(*names: str) -> Suite:
    return Suite("quick", "", tuple(Case(name, "none", "none") for name in names))


def begun(folder: Path) -> Counter[str]:
    return Counter((folder / "begun").read_text().splitlines())


def rows_of(folder: Path) -> list[tuple[str, int, str | None]]:
    return [(row.case, row.seed, row.error) for row in Table(folder).rows()]


def test_a_worker_killed_midway_loses_no_row_and_doubles_none(tmp_path: Path) -> None:
    with processes(2, tmp_path, command=QUICK) as slots:
        run(suite("one", "kills", "three"), tmp_path, methods=["random"], seeds=[0, 1, 2], slots=slots)
    expected = [(case, seed, None) for case in ("kills", "one", "three") for seed in (0, 1, 2)]
    assert rows_of(tmp_path) == expected
    assert begun(tmp_path) == {f"{case} {seed}": 1 + (case == "kills") for case, seed, _ in expected}
    assert not list((tmp_path / "rows").glob(".*"))  # no claim is left


def test_a_row_that_ends_every_process_becomes_an_error_and_the_rest_goes_on(tmp_path: Path) -> None:
    with processes(1, tmp_path, command=QUICK) as slots:
        rows = run(suite("always kills", "one"), tmp_path, methods=["random"], slots=slots)
    (bad, good) = rows
    assert good.f1 == 1
    assert f"ended by signal {signal.SIGKILL.value}: too large; {MOST_TRIES} processes have ended" in (
        bad.error or ""
    )
    assert begun(tmp_path)["always kills 0"] == MOST_TRIES


def test_a_driver_killed_midway_leaves_nothing_running_and_the_next_one_goes_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "alive")  # held open by every process that was started
    alive = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)

    def drive() -> None:
        with processes(2, tmp_path, command=QUICK) as slots:
            run(suite("kills driver", "one", "two"), tmp_path, methods=["random"], seeds=[0], slots=slots)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads, of which it needs none
        driver = os.fork()
    if not driver:
        try:
            drive()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1]) == -signal.SIGKILL
    os.set_blocking(alive, True)
    assert os.read(alive, 1) == b""  # the last of them has ended
    os.close(alive)
    (tmp_path / "alive").unlink()
    before = rows_of(tmp_path)
    drive()
    assert rows_of(tmp_path) == [(case, 0, None) for case in ("kills driver", "one", "two")]
    again = begun(tmp_path)
    assert again["kills driver 0"] == 2
    assert all(again[f"{case} {seed}"] == 1 for case, seed, _ in before)


def test_where_nothing_can_be_written_all_work_ends(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="No space left"), processes(2, tmp_path, command=QUICK) as slots:
        run(suite("full", "one"), tmp_path, methods=["random"], slots=slots)


def test_a_process_that_does_not_start_is_no_error_of_a_row(tmp_path: Path) -> None:
    broken = [sys.executable, "-c", "raise SystemExit('no torch here')"]
    with (
        pytest.raises(AcdcError, match="did not start: the process ended with status 1: no torch here"),
        processes(1, tmp_path, command=broken) as slots,
    ):
        run(suite("one"), tmp_path, methods=["random"], slots=slots)
    assert Table(tmp_path).rows() == []
    with pytest.raises(AcdcError, match="at least one process, got 0"), processes(0, tmp_path):
        pass


def test_a_process_that_is_killed_while_it_starts_is_started_again(tmp_path: Path) -> None:
    notes = tmp_path / "started"
    starting = "\n".join(
        ["import os, signal, sys", f"notes = open({str(notes)!r}, 'a')", "notes.write('x'); notes.flush()",
         f"if os.path.getsize({str(notes)!r}) == 1: os.kill(os.getpid(), signal.SIGKILL)", FAULTY]
    )  # fmt: skip
    with processes(1, tmp_path, command=[sys.executable, "-c", starting]) as slots:
        run(suite("one"), tmp_path, methods=["random"], slots=slots)
    assert rows_of(tmp_path) == [("one", 0, None)]
    assert notes.read_text() == "xx"


TINY = Suite("tiny", "", (Case("hist", "tracr-hist", "tracr-hist", inputs="split", gradient_metric="projection"),))
COSTS = {"seconds", "processor_seconds", "ranking_seconds", "ranking_processor_seconds"}


def test_the_rows_of_processes_are_those_of_one_process(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    alone = run(TINY, here, methods=["eap"])
    with processes(1, there, command=WORKER) as slots:
        others = run(TINY, there, methods=["eap"], slots=slots)
    assert_the_same(alone, others, here, there)


def assert_the_same(alone: list[Row], others: list[Row], here: Path, there: Path) -> None:
    assert [row.error for row in alone] == [None] * 2
    for one, other in zip(alone, others, strict=True):
        differs = {name for name in vars(one) if getattr(one, name) != getattr(other, name)}
        assert differs <= COSTS
        for method in (one.method, "truth"):
            where = circuit_folder(one.suite, one.case, method, one.seed)
            assert (acdc.Circuit.load(here / where).edges == acdc.Circuit.load(there / where).edges).all()
            assert {path.name for path in (here / where).iterdir()} == {
                path.name for path in (there / where).iterdir()
            }


# ---- who gets which row -----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Instant:
    """A slot that has its row at once."""

    got: list[Trial]

    def submit(self, trial: Trial) -> Future[Row]:
        self.got.append(trial)
        done: Future[Row] = Future()
        done.set_result(Row(*trial.key))
        return done


def test_a_slot_keeps_the_subject_that_it_has_ready() -> None:
    trials = [Trial("s", Case(case, "", ""), method, 0) for method in "uvw" for case in "abcd"]
    slots, added = [Instant([]), Instant([])], list[Key]()
    hand_out(
        trials,
        slots,
        lambda _: nullcontext(True),
        lambda row: added.append(row.key),
        lambda key: key not in added,
        lambda *_: None,
    )
    assert sorted(added) == sorted(trial.key for trial in trials)
    for slot in slots:
        subjects = [trial.subject for trial in slot.got]
        changes = sum(a != b for a, b in itertools.pairwise(subjects))
        assert changes == len(set(subjects)) - 1


def test_rows_of_others_are_waited_for_and_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process holds two rows: it finishes one, and ends without the other."""
    trials = [Trial("s", Case(case, "", ""), "m", 0) for case in "abc"]
    slot, added, looks = Instant([]), list[Key](), list[str]()
    monkeypatch.setattr("acdc.benchmarks.trials.time.sleep", lambda _: looks.append("pause"))

    def lacks(key: Key) -> bool:
        return key not in added and not (key[1] == "a" and looks)

    hand_out(
        trials,
        [slot],
        lambda key: nullcontext(key[1] == "c" or len(looks) >= 2),
        lambda row: added.append(row.key),
        lacks,
        lambda *_: None,
    )
    assert [key[1] for key in added] == ["c", "b"]
    assert len(looks) == 2


# ---- Ray --------------------------------------------------------------------------------------------------------


def test_files_are_found_from_rays_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("{}")
    found = on_ray._located(Case("own", "induction-2l", "pairs.jsonl", truth="none"))
    assert found == Case("own", "induction-2l", str(tmp_path / "pairs.jsonl"), truth="none")


def test_what_no_machine_has_is_said() -> None:
    said = on_ray._no_room([{"CPU": 2.0, "memory": 4e9}, {}], 1, "900GB")
    assert said.startswith("no machine of the Ray cluster has 1 processors and 900GB of memory for a task")
    assert "2 processors, 4 GB of memory" in said


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_rows_of_ray_are_those_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from acdc.benchmarks.on_ray import ray_slots

    here, there = tmp_path / "here", tmp_path / "there"
    alone = run(TINY, here, methods=["eap"])
    with ray_slots("local", there, at_once=2) as slots:
        assert len(slots) == 2
        others = run(TINY, there, methods=["eap"], slots=slots)
    assert_the_same(alone, others, here, there)


def end_once(suite: str, subject: object, method: str, *, folder: Path, memory: str | None) -> Row:
    """A row that costs nothing; one of them ends its process, the first time."""
    seed: int = subject.seed  # type: ignore[attr-defined]
    notes = Path(os.environ["ACDC_TEST_NOTES"])
    with open(notes, "a") as file:
        file.write(f"{seed}\n")
    if seed == 7 and notes.read_text().split().count("7") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return Row(suite, "one", method, seed, f1=1.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_worker_of_ray_killed_midway_loses_no_row_and_doubles_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    from acdc.benchmarks.on_ray import ray_slots

    monkeypatch.setenv("ACDC_TEST_NOTES", str(tmp_path / "notes"))
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error",
        runtime_env={"worker_process_setup_hook": faulty_worker},
    )  # fmt: skip
    try:
        with ray_slots("local", tmp_path) as slots:
            rows = run(suite("one"), tmp_path, methods=["random"], seeds=range(20), slots=slots)
    finally:
        ray.shutdown()
    assert [(row.seed, row.error) for row in rows] == [(seed, None) for seed in range(20)]
    assert Counter((tmp_path / "notes").read_text().split()) == {str(s): 1 + (s == 7) for s in range(20)}


def faulty_worker() -> None:
    runner.Subject.prepare = lambda case, seed: type("Ready", (), {"case": case, "seed": seed})  # type: ignore
    runner.run_row = end_once  # type: ignore[assignment]
