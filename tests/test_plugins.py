"""Methods, tasks, metrics and families from elsewhere: what a record says is all that the rest of acdc asks for."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import acdc
from acdc.benchmarks.runner import run
from acdc.benchmarks.suites import Case, Suite
from acdc.errors import AcdcError
from acdc.methods import METHODS, Method
from acdc.metrics import OUTCOMES
from acdc.model.supported import FAMILIES
from acdc.registry import Registry
from acdc.tasks.registry import GENERATORS
from command_line import Command

REGISTRIES: tuple[Registry, ...] = (METHODS, GENERATORS, OUTCOMES, FAMILIES)

MODULE = '''
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import acdc
from acdc.methods import METHODS, Estimates, Found, Method, Target
from acdc.metrics import Outcome
from acdc.model.reading import decoder
from acdc.tasks import Generator
from acdc.tasks.tokenise import TokenPair


def latest(problem, *, weight: float = 1.0, layers: list[int] | None = None):
    """Edges of later sources score more."""
    order = weight * np.arange(1.0, problem.graph.n_sources + 1)
    return Estimates(np.where(problem.graph.valid, order, 0.0))


def everything(problem, target: Target, *, spare: int = 0):
    valid = problem.graph.valid
    return Found(valid, valid.astype(float), {"budget": 0.0})


RANKING = Method(name="latest-first", description="later is more", cost="nothing", score=latest)
SEARCH = Method(
    name="keep-all", description="keeps everything", cost="nothing", search=everything,
    targets={"threshold": "of nothing"}, gradient="path",
)


def pairs(model, rng, *, length: int = 4):
    while True:
        row = [rng.randrange(1, 20) for _ in range(length)]
        yield TokenPair((*row, row[0]), (row[0], *row[2:], row[1], row[0]), (row[1],), (row[2],))


TASK = Generator("echo", "the token after the first", "first-row", pairs)
METRIC = Outcome(
    "first-row", lambda logits: logits[..., 0], "vocabulary", True, False, False, False, "a logit, whatever it says"
)


class MineConfig(GPT2Config):
    model_type = "mine"


class Mine(GPT2LMHeadModel):
    config_class = MineConfig


decompose = decoder.decompose
'''

POINTS = """
[acdc.methods]
latest-first = brought:RANKING
keep-all = brought:SEARCH
[acdc.tasks]
echo = brought:TASK
[acdc.metrics]
first-row = brought:METRIC
[acdc.families]
mine = brought:decompose
"""

BROKEN = """
[acdc.methods]
missing = no_such_module:RANKING
eap = brought:RANKING
again = brought:RANKING
odd = brought:METRIC
[acdc.tasks]
failing = failing
"""


def install(folder: Path, name: str, points: str) -> None:
    """A package `name` as an installer leaves it: the module, and its metadata with the entry points."""
    (folder / "brought.py").write_text(MODULE)
    (folder / "failing.py").write_text("raise OSError('no licence\\nfor this')")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which Python imports, for `install`."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    for registry in REGISTRIES:
        registry.reload()
    yield folder
    monkeypatch.undo()
    for name in ("brought", "my_package"):
        sys.modules.pop(name, None)
    for registry in REGISTRIES:
        registry.reload()


@pytest.fixture
def added(packages: Path) -> Iterator[None]:
    """The same two methods, registered by hand."""
    install(packages, "unused", "")
    import brought  # type: ignore[import-not-found]

    for record in (brought.RANKING, brought.SEARCH):
        METHODS.add(record)
    yield
    for record in (brought.RANKING, brought.SEARCH):
        METHODS.remove(record.name)


def try_everywhere(command: Command, tmp_path: Path) -> None:
    model, task = acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse", size=8)
    kept = acdc.discover(model, task, "keep-all")
    assert kept.n_edges == kept.graph.n_edges
    ranked = acdc.discover(model, task, "latest-first", edges=20, weight=2)
    assert 0 < ranked.n_edges <= 20
    assert acdc.score(model, task, "latest-first").values.max() == ranked.graph.n_sources

    listed = {row["name"]: row for row in json.loads(command("methods", "--json").out)}
    assert (listed["latest-first"]["gives"], listed["keep-all"]["gives"]) == ("scores", "circuit")
    assert listed["latest-first"]["options"] == {"weight": 1.0, "layers": None}
    assert listed["keep-all"]["targets"] == {"threshold": "of nothing"}

    suite = Suite("tiny", "", (Case("hist", "tracr-hist", "tracr-hist", {"size": 8}, inputs="split"),))
    rows = {row.method: row for row in run(suite, tmp_path / "bench", methods=["keep-all", "latest-first"])}
    assert rows.keys() == {"keep-all", "latest-first", "random"}
    assert [row.error for row in rows.values()] == [None] * 3
    assert (rows["keep-all"].ranking, rows["latest-first"].ranking) == ("circuit", "scores")


@pytest.mark.usefixtures("added")
@pytest.mark.filterwarnings("ignore:.* edges are kept instead of")
def test_a_registered_search_and_a_ranking_work_everywhere(command: Command, tmp_path: Path) -> None:
    try_everywhere(command, tmp_path)
    for method, more in (("keep-all", ()), ("latest-first", ("--option", "layers=[1, 2]", "--edges", 20))):
        sizes = ("--size", 8, "--random-circuits", 0)
        found = command("discover", "tracr-reverse", "--method", method, *sizes, *more, "--json")
        assert found.status == 0, found.err
        assert json.loads(found.out)["n_edges"] > 0


@pytest.mark.filterwarnings("ignore:.* edges are kept instead of", "ignore:.*does not do the task")
def test_another_package_brings_methods_a_task_a_metric_and_a_family(
    packages: Path, command: Command, tmp_path: Path
) -> None:
    install(packages, "acdc-more", POINTS)
    try_everywhere(command, tmp_path)

    import brought  # type: ignore[import-not-found]

    module = brought.Mine(brought.MineConfig(n_layer=1, n_head=2, n_embd=8, vocab_size=30, n_positions=16)).eval()
    assert module.config.model_type in command("models").out
    model = acdc.load(module)
    assert "echo" in {row["name"] for row in json.loads(command("tasks", "--json").out)}
    task = acdc.tasks.load("echo", size=4, length=5)
    data = task.prepare(model)
    assert data.discovery.clean.shape == (4, 6)
    assert data.metric.name == task.metric == "first-row"
    evaluation = acdc.evaluate(model, data, acdc.discover(model, data, "keep-all"), metric="first-row")
    assert evaluation.faithfulness == pytest.approx(1.0, abs=0.01)  # logits of float32 that differ by little


@pytest.mark.filterwarnings("default:entry point")
def test_an_entry_point_that_is_no_good_costs_one_line(packages: Path, command: Command) -> None:
    install(packages, "acdc-broken", BROKEN)
    listed = command("methods")
    assert listed.status == 0
    assert "eap-ig" in listed.out
    lines = [line for line in listed.err.splitlines() if line]
    assert len(lines) == 3
    for line, (name, why) in zip(
        lines,
        [("eap", "name 'latest-first' is taken"), ("missing", "No module named"), ("odd", "expected a Method")],
        strict=True,
    ):
        assert f"entry point '{name}' of package 'acdc-broken' in group 'acdc.methods'" in line
        assert why in line
    assert "latest-first" in listed.out
    tasks = command("tasks")
    assert tasks.status == 0
    assert tasks.err.count("\n") == 1
    assert "OSError: no licence for this" in tasks.err


def test_the_method_that_contributing_shows_is_one(packages: Path) -> None:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    ((language, code), (_, table)) = re.findall(r"^```(python|toml)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert language == "python"
    (packages / "my_package.py").write_text(code)
    install(
        packages,
        "my-package",
        table.replace('project.entry-points."acdc.methods"', "acdc.methods").replace('"', ""),
    )
    circuit = acdc.discover(
        acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse", size=8), "late", threshold=1
    )
    assert circuit.n_edges > 0
    assert METHODS["late"].options == {"power": 1.0}


def test_what_a_record_cannot_do_is_said(packages: Path) -> None:
    install(packages, "acdc-more", POINTS)
    model, task = acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse", size=8)
    for options, message in (
        ({"edges": 3}, "'keep-all' searches, and takes threshold, not edges"),
        ({"metric": "accuracy"}, "'accuracy' has no gradient; .* or use acdc or .*exact"),
        ({"spare": "x"}, "expected spare to be a whole number like 0, got 'x'"),
        ({"spare": True}, "expected spare to be a whole number like 0, got True"),
        ({"select": "greedy"}, "cuts a ranking, and keep-all searches"),
    ):
        with pytest.raises(AcdcError, match=message):
            acdc.discover(model, task, "keep-all", **options)
    with pytest.raises(AcdcError, match=r"expected layers to be a list of whole numbers, got \[1.5\]"):
        acdc.discover(model, task, "latest-first", edges=3, layers=[1.5])
    with pytest.raises(AcdcError, match=r"the name 'eap' is taken"):
        METHODS.add(METHODS["eap"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "expected a ranking"),
        ({"search": print}, "takes no target"),
        ({"search": print, "targets": {"size": "of it"}}, "unknown target of method 'mine' 'size'"),
    ],
)
def test_a_record_that_says_nothing_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(AcdcError, match=message):
        Method(name="mine", description="", cost="", **fields)  # type: ignore[arg-type]


def test_a_method_that_fails_or_returns_something_else_is_named() -> None:
    def wrong(problem: object) -> object:
        return problem

    def failing(problem: object) -> object:
        raise ValueError("no\nluck")

    for name, function, message in (
        ("wrong", wrong, "expected method 'wrong' to return Estimates, got Problem"),
        ("failing", failing, "method 'failing', which is not acdc's own, failed: ValueError: no luck"),
    ):
        METHODS.add(Method(name=name, description="", cost="", score=function))  # type: ignore[arg-type]
        try:
            model, task = acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse", size=8)
            with pytest.raises(AcdcError, match=message):
                acdc.score(model, task, name)
        finally:
            METHODS.remove(name)


@pytest.mark.parametrize("name", ["", "../up", "a b", "x\n", 3])
def test_a_name_that_no_file_or_option_could_have_is_refused(name: Any) -> None:
    with pytest.raises(AcdcError, match="expected a name of letters, digits"):
        METHODS.add(Method(name=name, description="", cost="", score=print))  # type: ignore[arg-type]
