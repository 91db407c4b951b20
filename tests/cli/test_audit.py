"""`acdc audit`: files, status, resuming and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from acdc import Circuit, discover, load
from acdc.auditing.checks import CHECKS
from acdc.circuit import Provenance
from acdc.cli.audit import seconds_of
from acdc.errors import AcdcError
from acdc.store.writing import fields_digest
from acdc.tasks import load as load_task
from command_line import Command


def truth(folder: Path, **made: str) -> Path:
    model, task = load("tracr-hist"), load_task("tracr-hist")
    graph = model.graph()
    known = task.prepare(model).truth
    assert known is not None
    provenance = Provenance(**{"model": "tracr-hist", "task": "tracr-hist", **made})
    return Circuit(graph, known.mask(graph), provenance=provenance).save(folder)


def test_a_true_circuit_passes_and_a_second_call_runs_nothing(command: Command, tmp_path: Path) -> None:
    run = truth(tmp_path / "run")
    first = command("audit", run, "--checks", "held-out,minimality,numbers", "--size", 64)
    assert first.status == 0, first.err
    assert "passes all 3 checks" in first.out
    record = json.loads((run / "audit.json").read_text())
    assert record["complete"]
    assert [f["verdict"] for f in record["findings"]] == ["pass"] * 3
    page = (run / "audit.html").read_text()
    assert "held-out" in page
    assert "http" not in page  # it needs no network
    record["findings"][0]["found"] = "noted before"
    (run / "audit.json").write_text(json.dumps(record | {"sha256": fields_digest(record)}))
    again = command("audit", run, "--checks", "held-out,minimality,numbers", "--size", 64)
    assert "noted before" in again.out, "what was noted is not run again"
    command("audit", run, "--checks", "held-out", "--size", 64)
    kept = json.loads((run / "audit.json").read_text())["findings"]
    assert len(kept) == 3, "what was found before stays"
    forced = command("audit", run, "--checks", "held-out", "--size", 64, "--force")
    assert "noted before" not in forced.out


def test_a_deeper_audit_goes_on_and_a_shallower_one_replaces_nothing(command: Command, tmp_path: Path) -> None:
    run = truth(tmp_path / "run")
    assert command("audit", run, "--checks", "held-out,adversary", "--size", 64, "--quick").status == 0

    def conditions() -> dict[str, str]:
        return {f["check"]: f["conditions"] for f in json.loads((run / "audit.json").read_text())["findings"]}

    quick = conditions()
    usual = command("audit", run, "--checks", "adversary", "--size", 64)
    assert usual.status == 0, usual.err
    assert conditions()["adversary"] != quick["adversary"], "it was run again, deeper"
    assert conditions()["held-out"] == quick["held-out"], "what was found before stays"
    shallower = command("audit", run, "--checks", "adversary", "--size", 64, "--quick")
    assert shallower.status == 2
    assert "deeper audit, of level 'usual'" in shallower.err


def test_a_circuit_is_audited_by_the_metric_and_ablation_that_are_given(command: Command, tmp_path: Path) -> None:
    run = discover(load("tracr-hist"), load_task("tracr-hist")).save(tmp_path / "run")
    given = ("--metric", "probability", "--ablation", "zero")
    for options, expected in (((), ("l2", "resample")), (given, ("probability", "zero"))):
        result = command("audit", run, "--checks", "numbers", "--size", 64, "--force", *options)
        assert result.status == 0, result.err
        record = json.loads((run / "audit.json").read_text())
        assert (record["metric"], record["ablation"]) == expected


def test_searches_that_are_asked_for_later_are_made(command: Command, tmp_path: Path) -> None:
    model, task = load("tracr-hist"), load_task("tracr-hist")
    run = discover(model, task, "eap-ig", edges=4).save(tmp_path / "run")

    def searched() -> int:
        finding = json.loads((run / "audit.json").read_text())["findings"][0]
        return int(finding["details"].get("searches on other prompts", {}).get("searches", 0))

    for options, n in (((), 0), (("--searches", 2), 2), ((), 2)):
        result = command("audit", run, "--checks", "stability", "--size", 64, *options)
        assert result.status == 0, result.err
        assert searched() == n


def test_help_names_the_checks_of_the_registry(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert f"these alone: {', '.join(CHECKS)}." in command("audit", "--help").out


@pytest.mark.filterwarnings("always")
def test_notes_of_other_work_or_damaged_are_not_believed(command: Command, tmp_path: Path) -> None:
    run = truth(tmp_path / "run")
    command("audit", run, "--checks", "held-out", "--size", 64)
    text = (run / "audit.json").read_text()
    other = command("audit", run, "--checks", "held-out", "--size", 64, "--seed", 1)
    assert other.status == 2
    assert "another audit" in other.err
    assert "--force" in other.err
    assert (run / "audit.json").read_text() == text
    edited = text.replace('"verdict": "pass"', '"verdict": "fail"')
    assert edited != text
    (run / "audit.json").write_text(edited)
    changed = command("audit", run, "--checks", "held-out", "--size", 64)
    assert changed.status == 2
    assert "was changed after the audit" in changed.err
    (run / "audit.json").write_text(text[:-30])
    damaged = command("audit", run, "--checks", "held-out", "--size", 64)
    assert damaged.status == 2
    assert "damaged" in damaged.err
    assert (run / "audit.json").read_text() == text[:-30]
    assert command("audit", run, "--checks", "held-out", "--size", 64, "--force").status == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--checks", "held-uot"), "did you mean held-out?"),
        (("--quick", "--full"), "exclude each other"),
        (("--limit", "soon"), "expected a time"),
        (("--faithfulness", "1.5"), "expected a faithfulness"),
        (("--size", "4"), "at least 16"),
        (("--faithfulness", "0.5"), "has exact outputs, and a circuit is held to every one of them"),
        (("--searches", "3", "--quick"), "searches are of the check stability"),
        (("--task", "ioi"), "tokenizer"),
    ],
)
def test_bad_options_are_one_line(command: Command, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    result = command("audit", truth(tmp_path / "run"), *options)
    assert result.status == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_a_circuit_without_a_task_says_so(command: Command, tmp_path: Path) -> None:
    result = command("audit", truth(tmp_path / "run", task=""))
    assert result.status == 2
    assert "--task" in result.err


def test_a_check_past_the_limit_says_how_long_it_takes(command: Command, tmp_path: Path) -> None:
    result = command("audit", truth(tmp_path / "run"), "--checks", "hypotheses", "--limit", "0.001s")
    assert result.status == 0
    assert "it would take about" in result.out
    assert "--checks hypotheses" in result.out


def test_times() -> None:
    assert [seconds_of(text) for text in ("2h", "10min", "1.5m", "90s", "7")] == [7200, 600, 90, 90, 7]
    with pytest.raises(AcdcError, match="expected a time"):
        seconds_of("0")
