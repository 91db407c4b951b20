"""`acdc benchmark --model --task --truth`: one's own case in the table that suites are in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import acdc
from acdc.benchmarks.table import Table
from acdc.circuit import Circuit, Provenance
from acdc.metrics import ground_truth
from command_line import Command, write_prompts


def test_ones_own_task_and_truth_are_a_case(tmp_path: Path, command: Command) -> None:
    model, graph = acdc.load("induction-2l"), acdc.load("induction-2l").graph()
    write_prompts(tmp_path / "pairs.jsonl", right=12, wrong=0)
    true = graph.valid & (np.random.default_rng(0).random(graph.valid.shape) < 0.1)
    true[-1, 0] = True
    Circuit(graph, graph.prune(true)).save(tmp_path / "truth")
    out = tmp_path / "out"
    given = ["--model", "induction-2l", "--task", str(tmp_path / "pairs.jsonl"), "--truth", str(tmp_path / "truth")]
    found = command("benchmark", *given, "--methods", "eap", "-o", str(out), "--json")
    assert found.status == 0, found.err
    rows = {row["method"]: row for row in json.loads(found.out)["rows"]}
    assert set(rows) == {"eap", "random"}
    assert rows["eap"]["error"] is None
    scores = acdc.score(model, acdc.tasks.load(str(tmp_path / "pairs.jsonl")), "eap")
    kept = Circuit.load(tmp_path / "truth").edges[graph.valid]
    auc = ground_truth.roc_auc(scores.sizes()[graph.valid], kept)
    assert rows["eap"]["edge_auc"] == pytest.approx(auc)
    assert rows["eap"]["cpr"] is not None
    assert (out / "report.md").exists()
    again = command("benchmark", *given, "--methods", "eap", "-o", str(out))
    assert again.status == 0
    assert len(Table(out).rows("own")) == 2
    Circuit(graph, graph.valid).save(tmp_path / "truth", force=True)  # rows of another truth are not its own
    other = command("benchmark", *given, "--methods", "eap", "-o", str(out), "--json")
    assert len(Table(out).rows("own")) == 4
    assert [row["n_true"] for row in json.loads(other.out)["rows"]] == [graph.n_edges] * 2
    (tmp_path / "truth" / "audit.json").write_text("{}")  # beside it, and not of it
    write_prompts(tmp_path / "pairs.jsonl", right=16, wrong=0)
    assert command("benchmark", *given, "--methods", "eap", "-o", str(out)).status == 0
    assert len(Table(out).rows("own")) == 6
    assert command("benchmark", *given, "--methods", "eap", "-o", str(out)).status == 0
    (tmp_path / "truth" / "audit.json").unlink()
    assert command("benchmark", *given, "--methods", "eap", "-o", str(out)).status == 0
    assert len(Table(out).rows("own")) == 6


def test_prompts_metric_ablation_and_loading_are_ones_own(tmp_path: Path, command: Command) -> None:
    write_prompts(tmp_path / "pairs.jsonl", right=40, wrong=0)
    rows = (tmp_path / "pairs.jsonl").read_text().splitlines()
    (tmp_path / "some.jsonl").write_text("\n".join(rows[:24]))
    (tmp_path / "others.jsonl").write_text("\n".join(rows[24:]))
    own = ["--model", "induction-2l", "--task", str(tmp_path / "some.jsonl"), "--methods", "random"]
    own += ["-o", str(tmp_path / "out"), "--json"]
    given = ["--size", 20, "--held-out", str(tmp_path / "others.jsonl"), "--metric", "kl", "--ablation", "zero"]
    found = command("benchmark", *own, *given, "--dtype", "float64", "--workers", 2)
    assert found.status == 0, found.err
    (row,) = json.loads(found.out)["rows"]
    assert (row["metric"], row["ablation"], row["error"]) == ("kl", "zero", None)
    task = acdc.tasks.load(
        tmp_path / "some.jsonl", size=20, held_out=tmp_path / "others.jsonl", metric="kl", ablation="zero"
    )
    model = acdc.load("induction-2l", dtype="float64")
    saved = Circuit.load(next((tmp_path / "out").rglob("random-0")))
    judged = acdc.evaluate(model, task, saved)
    assert row["faithfulness"] == pytest.approx(judged.faithfulness, rel=1e-12)
    assert row["discovery_faithfulness"] == pytest.approx(judged.discovery_faithfulness, rel=1e-12)
    assert saved.provenance.dtype == "float64"
    fewer = "\n".join(rows[28:])  # other prompts are another case, under whatever name
    (tmp_path / "others.jsonl").write_text(fewer)
    assert len(json.loads(command("benchmark", *own, *given, "--dtype", "float64").out)["rows"]) == 1
    assert len(Table(tmp_path / "out").rows("own")) == 2
    refused = command("benchmark", "smoke", "--size", 8, "--device", "cuda")
    assert refused.status == 2
    assert "takes --model and --task, and no suite or cases; got --size, --device" in refused.err


def test_what_every_row_would_say_is_said_once(tmp_path: Path, command: Command) -> None:
    graph = acdc.load("tracr-hist").graph()
    Circuit(graph, graph.valid).save(tmp_path / "truth")
    write_prompts(tmp_path / "pairs.jsonl", right=12, wrong=0)
    task = str(tmp_path / "pairs.jsonl")
    found = command(
        "benchmark",
        "--model",
        "induction-2l",
        "--task",
        task,
        "--truth",
        str(tmp_path / "truth"),
        "-o",
        str(tmp_path / "o"),
    )
    assert found.status == 2
    assert "is not of the graph of induction-2l: n_layers=" in found.err


def test_a_graph_that_the_model_does_not_have_is_refused_before_any_row(tmp_path: Path, command: Command) -> None:
    model = acdc.load("tiny-tasks-gqa")  # rotary
    graph = dataclasses.replace(model.graph(), inputs="split")
    Circuit(graph, graph.valid).save(tmp_path / "truth")
    given = ["--model", "tiny-tasks-gqa", "--task", "ioi", "--truth", str(tmp_path / "truth")]
    found = command("benchmark", *given, "--methods", "random", "-o", str(tmp_path / "o"))
    assert found.status == 2
    assert 'inputs="split" needs position embeddings' in found.err
    assert not Table(tmp_path / "o").rows("own")


@pytest.mark.filterwarnings("default")
def test_a_truth_of_other_weights_is_warned_of(tmp_path: Path, command: Command) -> None:
    graph = acdc.load("induction-2l").graph()
    write_prompts(tmp_path / "pairs.jsonl", right=12, wrong=0)
    made = Provenance(model="another", dtype="float32", weights_sha256="0" * 64)
    Circuit(graph, graph.valid, provenance=made).save(tmp_path / "truth")
    given = ["--model", "induction-2l", "--task", str(tmp_path / "pairs.jsonl"), "--truth", str(tmp_path / "truth")]
    found = command("benchmark", *given, "--methods", "random", "-o", str(tmp_path / "o"))
    assert found.status == 0
    assert "may be of another model: the weights of induction-2l differ from those" in found.err
    (row,) = Table(tmp_path / "o").rows("own")
    assert "the weights of induction-2l differ" in (row.warnings or "")


@pytest.mark.parametrize(
    "given",
    [["--model", "tracr-hist"], ["--task", "tracr-hist"], ["tracr", "--model", "tracr-hist", "--task", "tracr-hist"],
     ["--model", "tracr-hist", "--task", "tracr-hist", "--truth", "nowhere"]],
    ids=["no task", "no model", "a suite too", "no truth there"],
)  # fmt: skip
def test_what_is_not_a_case_is_refused(given: list[str], command: Command) -> None:
    found = command("benchmark", *given)
    assert found.status == 2
    assert "Traceback" not in found.err
