"""A kill, a full disk and a request to end, at every file operation of every command that writes.

Whatever happens and wherever, what was there before is whole, and the same command given again succeeds and leaves
nothing behind but its result. CI tries a fixed sample; the full sweep is slow. It has, by command, so many operations,
each with four faults (`faults.KINDS`), 1788 in all:

    discover 27, into a nested folder 31, into the default one 27, a linked one 31, the one it is in 26; forced 31;
    noting progress 57, resumed 45; draw, export and view 5 each, and 5 each when forced, or a default file is replaced;
    benchmark 61, again 31; Circuit.save 13, into an empty folder 16, forced 16

Run and held: all but the last 9 operations of benchmark and benchmark again, 1628 faults in all.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import acdc
import faults
from acdc.benchmarks import report as benchmark_report
from acdc.benchmarks import runner
from acdc.benchmarks.table import Row
from acdc.circuit import Circuit
from acdc.cli import main as cli
from acdc.cli import terminal
from acdc.errors import AcdcError
from acdc.evaluation.evaluate import Evaluation
from acdc.model.model import Model
from acdc.store import folders
from acdc.store import resume as resuming
from acdc.tasks.task import Dataset
from acdc.viz import graphviz_renderer

MODEL = "tracr-caesar"
DISCOVER = ("discover", MODEL, "--edges", "4", "--size", "8", "--random-circuits", "0", "--json")
RANDOM = (*DISCOVER, "--method", "random")
EXACT = (*DISCOVER, "--method", "exact")
BENCHMARK = ("benchmark", "smoke", "--cases", "hist", "--methods", "eap", "-o", "b")
SAMPLE = 3
"""Operations of a command that CI tries, each with one kind of fault; all kinds come in turn."""


def acdc_command(*arguments: str) -> int:
    sys.argv = ["acdc", *arguments]
    try:
        cli.main()
    except SystemExit as exit:
        return int(exit.code or 0)
    raise AssertionError


def circuit(scale: float) -> Circuit:
    graph = acdc.Graph(1, 1)
    return acdc.Scores(
        graph, graph.valid * np.arange(1.0, 1 + graph.valid.size).reshape(graph.valid.shape) * scale
    ).top(5)


def save(folder: str, *, force: bool) -> int:
    """`Circuit.save`, ending as a command would."""
    try:
        with terminal.signals_interrupt():
            circuit(2).save(folder, force=force)
    except AcdcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 143
    return 0


# ---- what there is before a command -----------------------------------------------------------------------------


def nothing() -> None:
    Path("notes.txt").write_text("mine")


def a_run(folder: str = "out") -> None:
    """A run of another seed, and files of one's own in its folder."""
    nothing()
    assert acdc_command(*RANDOM, "--seed", "1", "-o", folder) == 0
    own = Path(folder)
    (own / "circuit").mkdir()
    for name in ("notes.txt", "scores.csv", "circuit.txt", "circuit/x"):
        (own / name).write_text("mine")


def a_default_run() -> None:
    a_run(f"runs/{MODEL}-random")


def a_linked_folder() -> None:
    nothing()
    Path("disk").mkdir()
    Path("out").symlink_to("disk")


def progress() -> None:
    """A command was killed when it had noted progress for the second time."""
    nothing()
    operations = faults.run(lambda: acdc_command(*EXACT, "-o", "out"), Path.cwd()).operations
    shutil.rmtree("out")
    names = [i for i, operation in enumerate(operations) if operation == "os.rename"]
    assert (
        faults.run(lambda: acdc_command(*EXACT, "-o", "out"), Path.cwd(), at=names[1] + 1).status == faults.KILLED
    )
    assert Path(".out.progress").exists()


def files() -> None:
    a_run()
    for name in ("made.svg", "made.dot", "made.csv", "made.html"):
        Path(name).write_text("old")


def a_circuit() -> None:
    nothing()
    circuit(1).save("out")
    Path("out/scores.csv").write_text("mine")


def an_empty_folder() -> None:
    nothing()
    Path("out").mkdir()


def a_benchmark() -> None:
    nothing()
    assert acdc_command(*BENCHMARK) == 0


@dataclasses.dataclass(frozen=True)
class Case:
    """A command, and the state it begins with.

    Attributes:
        made: paths that it writes: folders of circuits, or files.
        replaces: whether they are there already, and are replaced.
    """

    name: str
    command: Callable[[], int]
    before: Callable[[], None]
    made: tuple[str, ...]
    replaces: bool = False


def command(name: str, before: Callable[[], None], made: str, *arguments: str, replaces: bool = False) -> Case:
    return Case(name, functools.partial(acdc_command, *arguments), before, (made,), replaces)


def saving(name: str, before: Callable[[], None], *, force: bool = False) -> Case:
    return Case(name, functools.partial(save, "out", force=force), before, ("out",), replaces=force)


CASES = [
    command("discover", nothing, "out", *RANDOM, "-o", "out"),
    command("discover, nested", nothing, "deep/er/out", *RANDOM, "-o", "deep/er/out"),
    command("discover, default", a_default_run, f"runs/{MODEL}-random-2", *RANDOM),
    command("discover, linked", a_linked_folder, "out", *RANDOM, "-o", "out"),
    command("discover, here", lambda: None, ".", *RANDOM, "-o", "."),
    command("discover, forced", a_run, "out", *RANDOM, "-o", "out", "--force", replaces=True),
    command("discover, noting progress", nothing, "out", *EXACT, "-o", "out"),
    command("discover, resumed", progress, "out", *EXACT, "-o", "out"),
    command("draw", a_run, "made.svg", "draw", "out", "-o", "made.svg"),
    command("draw, default", a_run, "out/circuit.svg", "draw", "out", replaces=True),
    command("draw, forced", files, "made.dot", "draw", "out", "-o", "made.dot", "--force", replaces=True),
    command("export", a_run, "made.csv", "export", "out", "--to", "csv", "-o", "made.csv"),
    command(
        "export, forced", files, "made.csv", "export", "out", "--to", "csv", "-o", "made.csv", "--force", replaces=True
    ),
    command("view", a_run, "made.html", "view", "out", "--no-model", "--no-open", "-o", "made.html"),
    command(
        "view, forced", files, "made.html", "view", "out", "--no-model", "--no-open", "-o", "made.html", "--force",
        replaces=True,
    ),
    command("benchmark", nothing, "b/report.md", *BENCHMARK),
    command("benchmark, again", a_benchmark, "b/report.md", *BENCHMARK, replaces=True),
    saving("save", nothing),
    saving("save, empty folder", an_empty_folder),
    saving("save, forced", a_circuit, force=True),
]  # fmt: skip


# ---- what must hold after a fault -------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder: its bytes, or None for a folder; what is linked is in its own place."""
    found: dict[str, bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        linked = path.is_symlink()
        data = b"->" if linked else None if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(folder))] = data
    return found


def made_of(case: Case, place: Path) -> dict[str, object]:
    """What a command has made, so that it can be compared; times and picture aside."""
    found: dict[str, object] = {}
    for name in case.made:
        path = place / name
        if path.is_dir():
            if not folders.placed(path, "circuit.json").exists():
                continue
            loaded = Circuit.load(path)  # never a damaged one
            assert loaded.scores is not None
            found[name] = (tuple(loaded.edge_names()), loaded.provenance.seed, loaded.scores.values.tobytes())
        elif path.exists():
            found[name] = "report" if name.startswith("b/") else path.read_bytes()
    return found


def hidden(place: Path) -> list[str]:
    return [str(path.relative_to(place)) for path in place.rglob(".*")]


class Sweep:
    """One case with all its faults.

    Attributes:
        before: what is there before; after: what a run without a fault makes of it.
    """

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.start = folder / "start"
        self.start.mkdir(parents=True)
        here = Path.cwd()
        os.chdir(self.start)
        case.before()
        os.chdir(here)
        self.before = content(self.start)
        place = self.copy("whole")
        outcome = faults.run(case.command, place)
        assert outcome.status == 0, outcome.err
        self.operations = outcome.operations
        self.after = content(place)
        self.old, self.new = made_of(case, self.start), made_of(case, place)
        assert self.new
        assert not hidden(place)

    def copy(self, name: str) -> Path:
        place = self.folder / name
        shutil.copytree(self.start, place, symlinks=True)
        return place

    def own(self, name: str) -> bool:
        """Whether a path is of the command's making, or of its bookkeeping."""
        if not self.case.replaces and name not in self.before:
            return True
        made = self.after.get(name) != self.before.get(name)
        return made or name.rpartition("/")[2].startswith(".")

    def check(self, at: int, kind: faults.Kind) -> None:
        place = self.copy(f"{at}-{kind}")
        outcome = faults.run(self.case.command, place, at=at, kind=kind)
        where = f"{self.case.name}, {kind} at {at} ({self.operations[at]}): {outcome.err}"
        expected = {"kill": {faults.KILLED}, "terminate": {143}, "fails": {0, 2}, "full": {0, 2}}[kind]
        assert outcome.status in expected, where
        assert "Traceback" not in outcome.err, where
        if outcome.status == 2:
            assert outcome.err.splitlines()[-1].startswith("error: "), where
        if outcome.status == 143 and not self.case.name.startswith("save"):
            assert outcome.err.splitlines()[-1].startswith("interrupted: "), where
        self.nothing_lost(place, where)
        made = made_of(self.case, place)
        if outcome.status == 0:
            assert made == self.new, where
        assert made in ([self.old, self.new] if self.old else [{}, self.new]), where

        again = faults.run(self.case.command, place)
        where += f"\nagain: {again.status} {again.err}"
        finished = made == self.new and not self.case.replaces
        assert again.status == 0 or (
            finished and again.status == 2 and re.search("exists|already holds", again.err)
        ), where
        self.nothing_lost(place, where)
        assert made_of(self.case, place) == self.new, where
        assert not hidden(place), f"{where}{hidden(place)}"
        extra = {name for name in content(place) if name not in self.after}
        assert not extra or (finished and all(name.startswith(f"runs/{MODEL}-random-3") for name in extra)), where
        shutil.rmtree(place)

    def nothing_lost(self, place: Path, where: str) -> None:
        there = content(place)
        for name, data in self.before.items():
            if not self.own(name):
                assert there.get(name, "lost") == data, f"{name} {where}"


@functools.cache
def measured() -> tuple[Model, Dataset, Evaluation]:
    """Made once: it is not what is tested here."""
    model = acdc.load(MODEL)
    data = acdc.tasks.load(MODEL, size=8).prepare(model)
    found = acdc.discover(model, data, "exact", edges=4)
    return model, data, acdc.evaluate(model, data, found, random_circuits=0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work that costs nothing, around file operations that are those of the commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(resuming, "LEAST_SECONDS", 0.0)
    torch.set_num_threads(1)
    model, data, evaluation = measured()
    monkeypatch.setattr(cli, "load_model", lambda *_, **__: model)
    monkeypatch.setattr(acdc.tasks, "load", lambda *_, **__: SimpleNamespace(prepare=lambda _: data))
    monkeypatch.setattr(acdc, "evaluate", lambda *_, **__: evaluation)
    monkeypatch.setattr(sys.modules["acdc.viz.draw"], "_renderer", lambda _: ("graphviz", ""))
    monkeypatch.setattr(graphviz_renderer, "render", lambda *_: b'<svg id="node:logits"/>' * 100)

    def row(suite: str, subject: runner.Subject, method: str, *, folder: Path, memory: str | None) -> Row:
        name = subject.case.name
        circuit(1).save(folder / runner.circuit_folder(suite, name, method, subject.seed), force=True)
        return Row(suite, name, method, subject.seed, truth="t", f1=0.5, hamming=1, n_true=4)

    monkeypatch.setattr(runner, "run_row", row)
    monkeypatch.setattr(runner.Subject, "prepare", lambda case, seed: SimpleNamespace(case=case, seed=seed))
    monkeypatch.setattr(benchmark_report, "figures", lambda *_: {"roc": "<svg/>"})


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_loses_nothing(case: Case, tmp_path: Path) -> None:
    sweep = Sweep(case, tmp_path / "sweep")
    some = random.Random(case.name).sample(range(len(sweep.operations)), SAMPLE)
    for i, at in enumerate(some):
        sweep.check(at, faults.KINDS[(i + CASES.index(case)) % len(faults.KINDS)])


@pytest.mark.usefixtures("quick")
def test_what_only_reads_writes_nothing(tmp_path: Path) -> None:
    a_run()
    before = content(tmp_path)
    for arguments in (["evaluate", "out"], ["export", "out", "--to", "csv"], ["models"], ["tasks"], ["methods"]):
        outcome = faults.run(functools.partial(acdc_command, *arguments), tmp_path)
        assert (outcome.status, outcome.operations) == (0, ()), outcome.err
    assert content(tmp_path) == before


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault_anywhere_loses_nothing(case: Case, tmp_path: Path) -> None:
    sweep = Sweep(case, tmp_path / "sweep")
    for at in range(len(sweep.operations)):
        for kind in faults.KINDS:
            sweep.check(at, kind)
    print(f"| {case.name} | {len(sweep.operations)} | {len(sweep.operations) * len(faults.KINDS)} |")
