"""`acdc models`, `acdc tasks` and `acdc methods`: what they list, and what they say of a model and its task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from acdc.auditing.checks import CHECKS
from acdc.methods import METHODS
from acdc.metrics import OUTCOMES
from acdc.tasks.registry import GENERATORS
from command_line import Command, write_prompts


def test_lists(command: Command) -> None:
    listed = json.loads(command("models", "--json").out)
    assert "induction-2l" in listed["models"]
    assert "smollm2-135m-q4" in listed["pretrained"]
    assert "ioi" in {row["name"] for row in json.loads(command("tasks", "--json").out)}
    assert {"guided", "acdc", "eap"} <= {row["name"] for row in json.loads(command("methods", "--json").out)}
    for what, name in (("models", "tracr-reverse"), ("tasks", "greater-than"), ("methods", "eap-ig")):
        assert name in command(what).out


def test_fetching_a_model_says_what_is_missing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACDC_CACHE", str(tmp_path / "cache"))
    for arguments, message in (
        (("models", "fetch", "smollm2"), "did you mean smollm2-135m-q4"),
        (("models", "fetch", "gemma-3-270m-q4"), "https://ai.google.dev/gemma/terms"),
        (("discover", "smollm2-135m-q4", "--task", "ioi"), "acdc models fetch smollm2-135m-q4"),
    ):
        failed = command(*arguments)
        assert failed.status == 2
        assert message in failed.err
        assert failed.err.count("\n") == 1


def test_a_task_is_checked_before_anyone_looks_for_its_circuit(command: Command) -> None:
    good = command("tasks", "check", "induction-2l", "--size", 8)
    assert good.status == 0
    assert "usable" in good.out
    write_prompts(Path("mine.jsonl"), right=1, wrong=3)
    check = ("tasks", "check", "induction-2l", "mine.jsonl", "--json")
    bad = command(*check)
    assert bad.status == 1
    report = json.loads(bad.out)
    assert not report["usable"]
    assert "does not do this task" in report["problems"][0]
    right = command(*check, "--only-correct")
    assert right.status == 0
    assert json.loads(right.out)["discovery"]["n_prompts"] == 1


def test_a_circuit_found_on_correct_prompts_is_judged_on_those(command: Command) -> None:
    write_prompts(Path("mine.jsonl"), right=3, wrong=2)
    found = command("discover", "induction-2l", "--task", "mine.jsonl", "--only-correct", "-o", "run", "--json")
    assert found.status == 0
    assert (
        json.loads(found.out)["n_prompts"] == json.loads(command("evaluate", "run", "--json").out)["n_prompts"] == 3
    )


def test_all_about_one_method_and_one_task(command: Command) -> None:
    shown = command("methods", "eap-ig").out
    for part in ("steps", "a whole number", "5", "arXiv 2403.17806", "first-order"):
        assert part in shown
    assert "--faithfulness" in command("methods", "guided").out
    assert "gradients are taken" in command("methods", "guided").out
    assert all(meaning for method in METHODS.values() for meaning in method.option_meanings.values())
    assert json.loads(command("methods", "acdc", "--json").out)["types"]
    assert "did you mean eap-ig" in command("methods", "eap-i").err
    found = json.loads(command("tasks", "show", "ioi", "--json").out)
    assert found["options"].keys() == {"order", "corruption"}
    assert command("tasks", "ioi").out == command("tasks", "show", "ioi").out
    assert "one of both, abba, baba" in command("tasks", "ioi").out
    assert "one of fixed, mixed, permuted, varied" in command("tasks", "tracr-reverse").out
    assert all(option.meaning for task in GENERATORS.values() for option in task.options.values())
    assert "witnesses" in command("tasks", "tracr-reverse").out
    assert "did you mean ioi" in command("tasks", "iio").err
    assert command("tasks", "iio").status == 2


def test_every_check_of_an_audit_is_in_its_help(command: Command) -> None:
    shown = command("audit", "--help").out
    assert [name for name in CHECKS if name not in shown] == []


def test_every_metric_is_listed(command: Command) -> None:
    shown = command("metrics").out
    assert all(name in shown for name in OUTCOMES)
    assert {row["name"] for row in json.loads(command("metrics", "--json").out)} == set(OUTCOMES)


def test_flags_have_no_type_and_shells_complete(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # tests may be run from no shell
    for words in (("discover",), ("compare",), ("ablate",), ("tasks", "check"), ("models",), ("models", "fetch")):
        shown = command(*words, "--help").out
        assert "<bool>" not in shown
        assert "<list" not in shown
        assert "--json" in shown or "--accept-terms" in shown
    whole = command("--help").out
    assert "<bool>" not in whole
    assert "Find and judge" in whole
    assert "complete" in command("--show-completion", "bash").out


def test_tasks_of_language_models_come_first(command: Command) -> None:
    lines = command("tasks").out.splitlines()
    names = [line.split()[0] for line in lines if line.strip()]
    assert names.index("ioi") < names.index("tracr-hist")


def test_a_command_that_lacks_something_says_where_to_look(command: Command) -> None:
    for words, name in ((("discover",), "discover"), (("models", "fetch"), "models fetch"), (("nonsense",), "")):
        result = command(*words)
        assert result.status == 2
        assert result.err.strip().endswith(f"; {' '.join(['acdc', name]).strip()} --help shows how")
