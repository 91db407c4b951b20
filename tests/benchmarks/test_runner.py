"""The runner computes each missing row once, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

import acdc
from acdc.benchmarks import runner
from acdc.benchmarks.runner import Subject, circuit_folder, run, run_row
from acdc.benchmarks.suites import Case, Suite
from acdc.benchmarks.table import Row, Table, unpacked
from acdc.errors import AcdcError
from acdc.methods import METHODS as METHODS_OF_ACDC


def tracr(name: str, **options: object) -> Case:
    return Case(name, f"tracr-{name}", f"tracr-{name}", options, inputs="split", gradient_metric="projection")


TINY = Suite("tiny", "two small programs", (tracr("caesar"), tracr("hist")))
METHODS = ("acdc", "eap")


def keys(rows: list[Row]) -> set[tuple[str, str]]:
    return {(row.case, row.method) for row in rows}


def circuit_of(folder: Path, row: Row) -> acdc.Circuit:
    return acdc.Circuit.load(folder / circuit_folder(*row.key))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The (case, method) of every row that is computed, in order; computing is replaced by something quick."""
    done: list[tuple[str, str]] = []

    def quick(suite: str, subject: Subject, method: str, *, folder: Path, memory: str | None) -> Row:
        done.append((subject.case.name, method))
        return Row(suite, subject.case.name, method, subject.seed, f1=1.0)

    monkeypatch.setattr(runner, "run_row", quick)
    return done


ALL = {(case, method) for case in ("caesar", "hist") for method in (*METHODS, "random")}


def test_a_row_has_all_figures_and_its_circuit_is_saved(tmp_path: Path) -> None:
    rows = run(Suite("tiny", "", TINY.cases[1:]), tmp_path, methods=["acdc", "guided", "eap"])
    found = {row.method: row for row in rows}
    assert list(found) == ["acdc", "eap", "guided", "random"]
    for row in rows:
        assert row.error is None
        assert (row.truth, row.ablation, row.metric, row.n_true) == ("resample/varied", "resample", "l2", 4)
        assert json.loads(row.versions or "").keys() >= {"torch", "python", "acdc-circuits"}
        assert row.seconds is not None
        assert row.peak_bytes is not None
        assert circuit_of(tmp_path, row).n_edges == row.n_edges
    best = found["acdc"]
    assert (best.hamming, best.f1, best.edge_auc, best.recovered_at_some_threshold) == (0, 1.0, 1.0, True)
    assert best.faithfulness == pytest.approx(1)
    assert best.reasons is None
    assert [found[name].ranking for name in ("acdc", "eap", "guided")] == ["sweep", "scores", "front"]
    assert found["guided"].edge_auc == found["guided"].average_precision == 1  # what went last is the truth
    assert (found["guided"].cpr, found["guided"].cmd is not None) == (None, True)
    assert (found["eap"].method_metric, found["eap"].metric) == ("projection", "l2")
    assert found["eap"].ranking_backward == 1
    assert found["random"].edge_auc is not None
    assert found["random"].edge_auc < 1
    graph = acdc.load("tracr-hist").graph(inputs="split")
    assert (unpacked(best.kept or "", graph.n_edges) == circuit_of(tmp_path, best).edges[graph.valid]).all()


def test_costs_but_not_figures_may_change_from_run_to_run(tmp_path: Path) -> None:
    subject = Subject.prepare(TINY.cases[1], 0)
    first, second = (run_row("tiny", subject, "eap", folder=tmp_path) for _ in range(2))
    differs = {name for name in vars(first) if getattr(first, name) != getattr(second, name)}
    assert differs <= {prefix + name for prefix in ("", "ranking_") for name in ("seconds", "processor_seconds")}


def test_rows_that_are_there_are_not_computed_again(tmp_path: Path, computed: list[tuple[str, str]]) -> None:
    assert keys(run(TINY, tmp_path, methods=METHODS)) == ALL
    assert len(computed) == len(ALL) == len(set(computed))
    computed.clear()
    assert keys(run(TINY, tmp_path, methods=METHODS)) == ALL
    assert computed == []
    run(TINY, tmp_path, methods=["eap-ig"])
    assert set(computed) == {("caesar", "eap-ig"), ("hist", "eap-ig")}
    run(TINY, tmp_path, methods=["eap"], seeds=[0, 1])
    assert len(computed) == 2 + 4


def test_an_interruption_loses_nothing(
    tmp_path: Path, computed: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = runner.run_row

    def interrupted(*args: object, **kwargs: object) -> Row:
        if len(computed) == 3:
            raise KeyboardInterrupt
        return quick(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "run_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(TINY, tmp_path, methods=METHODS)
    monkeypatch.setattr(runner, "run_row", quick)
    assert keys(Table(tmp_path).rows()) == set(computed)
    assert keys(run(TINY, tmp_path, methods=METHODS)) == ALL
    assert len(computed) == len(set(computed)) == len(ALL)


def test_what_fails_is_a_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    broken = Case("broken", "tracr-no-such-model", "tracr-hist")
    without = Case("without", "tracr-caesar", "tracr-caesar")  # no metric for gradients at the clean prompt
    rows = run(Suite("mixed", "", (broken, without)), tmp_path, methods=["eap"])
    errors = {(row.case, row.method): row.error for row in rows}
    assert "tracr-no-such-model" in (errors["broken", "eap"] or "")
    assert "tracr-no-such-model" in (errors["broken", "random"] or "")
    assert "gradient of 'l2' is zero" in (errors["without", "eap"] or "")
    assert errors["without", "random"] is None


def test_errors_are_computed_again_when_asked(
    tmp_path: Path, computed: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **kwargs: object) -> Row:
        raise ZeroDivisionError("of all things")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_row", fails)
        rows = run(TINY, tmp_path, methods=["eap"])
    assert {row.error for row in rows} == {"ZeroDivisionError: of all things"}
    run(TINY, tmp_path, methods=["eap"])
    assert computed == []
    rows = run(TINY, tmp_path, methods=["eap"], retry=True)
    assert len(computed) == len(rows) == 4
    assert all(row.error is None for row in rows)


def test_two_processes_share_a_table(tmp_path: Path) -> None:
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from acdc.benchmarks.runner import run\nfrom acdc.benchmarks.suites import Case, Suite\n"
        "case = Case('hist', 'tracr-hist', 'tracr-hist', gradient_metric='projection')\n"
        "run(Suite('tiny', '', (case,)), sys.argv[1], methods=['eap'], seeds=[0, 1])"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    rows = Table(tmp_path).rows()
    assert len(rows) == 4
    assert [row.error for row in rows] == [None] * 4


def test_a_search_that_misses_the_truth_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acdc.methods.acdc.DEFAULT_SHARE", 0.5)  # so large a τ that true edges go
    row = run_row("tiny", Subject.prepare(tracr("reverse"), 0), "acdc", folder=tmp_path)
    assert row.missed
    why = json.loads(row.reasons or "")
    assert why["allowed"] > 0
    assert len(why["edges"]) + why["more"] == row.hamming
    missed = [edge for edge in why["edges"] if edge["kind"] == "missed"]
    assert any(edge["in_circuit"] <= why["allowed"] for edge in missed)
    assert any(edge["alone"] > 0 for edge in missed)


def test_a_model_without_a_truth_has_faithfulness_only(tmp_path: Path) -> None:
    case = Case("induction", "induction-2l", "induction", {"size": 4})
    row = run_row("trained", Subject.prepare(case, 0), "eap", folder=tmp_path)
    assert (row.truth, row.edge_auc, row.hamming) == (None, None, None)
    assert row.cpr is not None
    assert row.faithfulness is not None
    assert row.kl is not None
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=4)
    graph, data = model.graph(), task.prepare(model)
    scores = acdc.score(model, data, "eap")
    assert row.kl_at_half is None  # half a percent of its edges is none
    for value, share in ((row.kl_at_2, 0.02), (row.kl_at_10, 0.1)):
        edges = acdc.circuit.selection.top_pruned(graph, scores.sizes(), int(share * graph.n_edges))
        judged = acdc.evaluate(model, data, acdc.Circuit(graph, edges, provenance=scores.provenance))
        assert value == pytest.approx(judged.kl, abs=1e-6)


def test_a_mask_is_trained_once_for_its_circuit_and_its_ranking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = dataclasses.replace(METHODS_OF_ACDC["eap-ig"], trains=True)
    monkeypatch.setattr(runner, "METHODS", {"eap-ig": trained})
    monkeypatch.setattr(runner, "score", None)  # never called
    row = run_row("tiny", Subject.prepare(TINY.cases[1], 0), "eap-ig", folder=tmp_path)
    assert row.ranking == "scores"
    assert row.ranking_backward == row.backward
    assert row.cpr is not None
    assert row.found_without_witnesses is None


def test_masks_are_trained_only_where_they_are_named(tmp_path: Path, computed: list[tuple[str, str]]) -> None:
    run(TINY, tmp_path)
    assert {method for _, method in computed} == {
        name for name, method in METHODS_OF_ACDC.items() if not method.trains
    }
    computed.clear()
    run(TINY, tmp_path, methods=["ugs"])
    assert set(computed) == {("caesar", "ugs"), ("hist", "ugs")}


def test_unknown_methods_are_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(AcdcError, match="unknown method 'eapp': did you mean eap"):
        run(TINY, tmp_path, methods=["eapp"])
    assert not list(tmp_path.iterdir())
