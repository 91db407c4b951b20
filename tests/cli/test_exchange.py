"""A circuit that another program found is judged like one of acdc's own, in two commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import acdc
from acdc.circuit import Circuit
from acdc.cli import main as cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["acdc", *map(str, arguments)])
    with pytest.raises(SystemExit) as error:
        cli.main()
    return int(error.value.code or 0)


@pytest.mark.parametrize("format", ["mib", "mib-submission", "csv", "circuit-tracer"])
def test_a_foreign_circuit_is_judged_in_two_commands(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction")
    circuit = acdc.score(model, task, "eap").top(20, aggregate="signed")
    circuit.save(tmp_path / "ours")
    out = tmp_path / "theirs"
    assert run(monkeypatch, "export", tmp_path / "ours", "--to", format, "-o", out) == 0
    if format == "mib-submission":
        out /= "induction_induction-2l"
    given = ["--model", "induction-2l", "--task", "induction", "-o", tmp_path / "run"]
    assert run(monkeypatch, "import", out, "--from", format, *given, "--edges", 20) == 0
    back = Circuit.load(tmp_path / "run")
    assert back == circuit
    assert (back.provenance.task, back.provenance.metric) == ("induction", "logit-difference")
    capsys.readouterr()
    assert run(monkeypatch, "evaluate", tmp_path / "run", "--json", "--random-circuits", 0) == 0
    found = json.loads(capsys.readouterr().out)
    expected = acdc.evaluate(model, acdc.tasks.load("induction"), circuit, random_circuits=0)
    assert found["faithfulness"] == pytest.approx(expected.faithfulness, rel=1e-6)
    assert run(monkeypatch, "audit", tmp_path / "run", "--checks", "numbers", "--size", 16) == 0
    assert "numbers" in capsys.readouterr().out


def test_a_circuit_of_our_own_comes_back_with_its_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, task = (
        acdc.load("induction-2l"),
        acdc.tasks.load("induction", size=12, metric="kl", ablation="mean", seed=3),
    )
    ours = acdc.discover(model, task, "eap-ig", edges=20, seed=3)
    ours.save(tmp_path / "ours")
    assert run(monkeypatch, "export", tmp_path / "ours", "--to", "mib", "-o", tmp_path / "file") == 0
    given = ["import", tmp_path / "file", "--from", "mib", "--model", "induction-2l", "--task", "induction"]
    assert run(monkeypatch, *given, "-o", tmp_path / "same") == 0
    same, made = Circuit.load(tmp_path / "same").provenance, ours.provenance
    for name in ("metric", "ablation", "task_options", "seed", "n_prompts", "command"):
        assert getattr(same, name) == getattr(made, name)
    assert run(monkeypatch, *given, "--metric", "logit-difference", "-o", tmp_path / "other") == 0
    other = Circuit.load(tmp_path / "other").provenance
    assert (other.metric, other.ablation, other.n_prompts) == ("logit-difference", "mean", None)
    capsys.readouterr()
    given[5] = "tiny-tasks-gqa"
    assert run(monkeypatch, *given, "-o", tmp_path / "bad") == 2
    assert "says that it is of induction on induction-2l" in capsys.readouterr().err


def test_a_table_of_some_edges_is_of_the_models_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "few.csv"
    path.write_text("source,destination,score,kept\ninput,m1,0.5,true\nm1,logits,1,true\n", "utf-8")
    given = ["import", path, "--from", "csv", "--model", "induction-2l"]
    assert run(monkeypatch, *given, "-o", tmp_path / "run") == 0
    assert Circuit.load(tmp_path / "run").edge_names() == ["input->m1", "m1->logits"]
    path.write_text("source,destination,score,kept\nfoo,m1,0.5,true\n", "utf-8")
    capsys.readouterr()
    assert run(monkeypatch, *given, "-o", tmp_path / "bad") == 2
    assert "foo" in capsys.readouterr().err


def test_a_circuit_of_another_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = acdc.Graph(1, 1)
    path = tmp_path / "c.json"
    path.write_text(acdc.formats.export(Circuit(graph, graph.valid), "mib"), "utf-8")
    given = ["--from", "mib", "--model", "induction-2l", "-o", tmp_path / "run"]
    assert run(monkeypatch, "import", path, *given) == 2
    assert "its graph has n_layers=1 instead of 2" in capsys.readouterr().err
    assert run(monkeypatch, "import", tmp_path / "none.json", *given) == 2
    assert run(monkeypatch, "import", path, "--from", "mibb", "--model", "induction-2l", "-o", tmp_path / "x") == 2
    assert not (tmp_path / "run").exists()
