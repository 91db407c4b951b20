"""The comparison with other tools: one convention on both sides, and differences that show."""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from acdc.benchmarks.measuring.peers import __main__ as command
from acdc.benchmarks.measuring.peers import compare, environments, report, run_auto_circuit, run_transformer_lens
from acdc.benchmarks.measuring.peers.exchange import Job, Result, read_results, write_results
from acdc.benchmarks.measuring.speed.cases import Case, Shape
from acdc.engine.circuits import measure_circuits
from acdc.engine.measure import bind
from acdc.engine.patching import Patching
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.metrics import OUTCOMES

TINY = Shape("tiny", 2, 2, 16, 40)


@pytest.fixture(scope="module")
def case() -> Case:
    return compare.make_case(TINY, pairs=2, tokens=4)


@pytest.fixture(scope="module")
def job(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Job:
    works = ("eap", "eap-ig", "exact", "acdc")
    return compare.make_job(case, tmp_path_factory.mktemp("job"), works, repeats=1, threads=1)


@pytest.fixture(scope="module")
def mine(case: Case, job: Job) -> dict[str, Result]:
    return compare.ours(case, job)


# ---- exchange ---------------------------------------------------------------------------------------------------


def test_a_job_is_read_as_it_was_written(job: Job) -> None:
    again = Job.read(job.folder)
    for field in dataclasses.fields(Job):
        a, b = getattr(job, field.name), getattr(again, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert (job.model / "model.safetensors").is_file()


def test_results_are_read_as_they_were_written(tmp_path: Path, mine: dict[str, Result]) -> None:
    write_results(tmp_path, "tool", "numpy", mine)
    versions, again = read_results(tmp_path, "tool")
    assert versions["numpy"] == np.__version__
    assert again == mine


def test_what_runs_elsewhere_needs_nothing_of_ours() -> None:
    scripts = [
        "exchange.py",
        "hooked.py",
        "__init__.py",
        *(path.name for path in environments.PACKAGE.glob("run_*")),
    ]
    for script in scripts:
        for node in ast.walk(ast.parse((environments.PACKAGE / script).read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module in ("exchange", "hooked") if node.level else node.module.split(".")[0] != "acdc"  # type: ignore[union-attr]
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] != "acdc" for alias in node.names)


def test_names_of_auto_circuit() -> None:
    def name(source: str, destination: str) -> str:
        edge = SimpleNamespace(src=SimpleNamespace(name=source), dest=SimpleNamespace(name=destination))
        return run_auto_circuit.our_name(edge)

    assert name("Resid Start", "A11.10.Q") == "input->a11.h10<q>"
    assert name("A0.3", "MLP 1") == "a0.h3->m1"
    assert name("MLP 12", "Resid End") == "m12->logits"


def test_names_of_transformer_lens() -> None:
    def name(source: tuple[str, int | None, int | None], destination: tuple[str, int | None, int | None]) -> str:
        ends = (SimpleNamespace(kind=k, layer=layer, head=h) for k, layer, h in (source, destination))
        return run_transformer_lens.our_name(*ends)

    assert name(("embed", None, None), ("v_input", 1, 2)) == "input->a1.h2<v>"
    assert name(("attn_head_out", 0, 3), ("mlp_in", 4, None)) == "a0.h3->m4"
    assert name(("mlp_out", 0, None), ("logits", 1, None)) == "m0->logits"


# ---- our side of the convention ---------------------------------------------------------------------------------


def test_exact_is_what_patching_one_edge_costs(case: Case, mine: dict[str, Result]) -> None:
    graph = case.problem.graph
    problem = dataclasses.replace(case.problem, outcome=OUTCOMES["logit-difference"])
    for name in ("input->logits", "a0.h1->a1.h0<v>"):
        without = graph.valid.copy()
        without[graph.edge(name)] = False
        full, (patched,) = measure_circuits(problem, [without])
        assert mine["exact"].edges[name] == pytest.approx(full - patched, abs=1e-6)


def test_denoising_is_the_gain_of_restoring_an_edge(case: Case, mine: dict[str, Result]) -> None:
    graph = case.problem.graph
    patching = Patching(case.model, graph, case.prompts, direction="denoise")
    measure = bind(OUTCOMES["logit-difference"], patching)
    with case.model.frozen():
        weights = torch.zeros(graph.valid.shape, requires_grad=True)  # nothing restored
        value = measure.value(patching.logits(weights, rows=measure.rows)).mean()
    (gain,) = torch.autograd.grad(value, weights)
    found = mine["eap, denoising"].edges
    expected = dict(zip(graph.edge_names(graph.valid), gain.numpy()[graph.valid].tolist(), strict=True))
    assert found == pytest.approx(expected, abs=1e-5 * max(map(abs, found.values())))


def test_edges_are_listed_in_the_order_of_the_search(job: Job) -> None:
    graph = Graph(2, 2)
    assert set(job.edges) == set(graph.edge_names(graph.valid))
    assert job.edges[:3] == ("m1->logits", "a1.h1->logits", "a1.h0->logits")
    assert job.edges[-1] == "input->a0.h0<q>"


# ---- comparison -------------------------------------------------------------------------------------------------


def test_the_same_scores_agree_and_one_other_edge_shows(mine: dict[str, Result]) -> None:
    found = compare.compare("eap", "tool", mine["eap"], mine["eap"])
    assert found.largest_difference == 0.0
    assert found.rank_correlation == pytest.approx(1.0)
    largest = max(map(abs, mine["eap"].edges.values()))
    other = {
        name: value + (0.01 * largest if name == "m1->logits" else 0) for name, value in mine["eap"].edges.items()
    }
    theirs = dataclasses.replace(mine["eap"], edges=dict(reversed(other.items())))
    assert compare.compare("eap", "tool", mine["eap"], theirs).largest_difference == pytest.approx(0.01)


def test_circuits_are_compared_as_sets() -> None:
    a = Result({"x": 1.0, "y": 1.0, "z": 0.0}, [2.0], [1.0])
    b = Result({"x": 1.0, "y": 0.0, "z": 0.0}, [6.0], [2.0])
    found = compare.compare("acdc in our order", "tool", a, b)
    assert found.kept == (1, 1, 0)
    assert (found.times_faster, found.forwards, found.their_forwards) == (3.0, 2.0, 6.0)


def test_other_edges_are_refused(mine: dict[str, Result]) -> None:
    theirs = dataclasses.replace(mine["eap"], edges={**mine["eap"].edges, "a9.h9->logits": 0.0})
    with pytest.raises(ValueError, match=r"1 edges are in one result only, the first 'a9\.h9->logits'"):
        compare.compare("eap", "tool", mine["eap"], theirs)


def test_report(tmp_path: Path, mine: dict[str, Result]) -> None:
    entries = [("S", compare.compare(work, "tool", mine[work], mine[work])) for work in ("eap", "acdc")]
    report.write(tmp_path, entries, {"tool": {"tool": "1.0"}}, "command", 1)
    text = (tmp_path / "README.md").read_text()
    assert "| eap | tool | S | " in text
    assert "tool 1.0" in text
    assert '"largest_difference": 0.0' in (tmp_path / "peers.json").read_text()


# ---- environments -----------------------------------------------------------------------------------------------


def test_a_tool_that_fails_is_one_line(tmp_path: Path, job: Job) -> None:
    with pytest.raises(AcdcError, match="auto-circuit failed: ModuleNotFoundError: No module named 'auto_circuit'"):
        environments.run(environments.AUTO_CIRCUIT, Path(sys.executable), job.folder)


def test_a_checkout_must_hold_the_papers_code(tmp_path: Path) -> None:
    with pytest.raises(AcdcError, match=r"expected eap/graph\.py"):
        command.environments(command.parse(["--eap", str(tmp_path)]))


def test_reported_command_names_no_folder_of_this_machine() -> None:
    line = command.shown(["--cache", "/home/me/cache", "--eap", "/home/me/eap", "-o", "docs/peers"])
    assert line == "python -m acdc.benchmarks.measuring.peers --eap FOLDER -o docs/peers"


@pytest.mark.slow
@pytest.mark.skipif(
    not all((environments.default_cache() / e.name / "installed.txt").is_file()
            for e in (environments.AUTO_CIRCUIT, environments.TRANSFORMER_LENS)),
    reason="made by python -m acdc.benchmarks.measuring.peers",
)  # fmt: skip
def test_other_tools_agree(tmp_path: Path) -> None:
    command.main(["--pairs", "4", "--tokens", "6", "--repeats", "1", "-o", str(tmp_path)])
    rows = json.loads((tmp_path / "peers.json").read_text())["rows"]
    assert {row["work"] for row in rows} == {"eap", "exact", "acdc", "acdc in our order", "eap, denoising"}
    for row in rows:
        if row["kept"] is None:
            assert row["largest_difference"] < 1e-4
        elif row["work"] == "acdc in our order":
            assert row["kept"][1:] == [0, 0]
