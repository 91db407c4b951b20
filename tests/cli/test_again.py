"""Runs used again: on other prompts, with other options, and from another folder than they were made in."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

import acdc
from acdc.cli.again import unseen
from acdc.model.load import BUILTIN
from command_line import Command, write_prompts

FOUND = ("--method", "eap", "--edges", 10, "--random-circuits", 0)


@pytest.fixture
def lines(command: Command) -> list[str]:
    """Forty prompts, of which `run` was found on those in p.jsonl: the first twenty."""
    write_prompts(Path("all.jsonl"), right=40, wrong=0)
    rows = Path("all.jsonl").read_text().splitlines()
    Path("p.jsonl").write_text("\n".join(rows[:20]))
    assert command("discover", "induction-2l", "--task", "p.jsonl", *FOUND, "-o", "run").status == 0
    return rows


def test_prompts_are_those_it_was_found_on_if_they_are_the_same_whatever_file_they_are_in(
    command: Command, lines: list[str]
) -> None:
    Path("same.json").write_text(json.dumps([json.loads(line) for line in lines[:20]]))
    Path("some.jsonl").write_text("\n".join(lines[12:4:-1]))
    Path("new.jsonl").write_text("\n".join(lines[20:]))
    for file, said, n in (
        ("same.json", "20 discovery prompts, which it was found on", 20),
        ("some.jsonl", "8 discovery prompts, which it was found on", 8),
        ("new.jsonl", "20 other prompts", 20),
        ("all.jsonl", "20 other prompts", 20),
    ):
        result = command("evaluate", "run", "--task", file, "--random-circuits", 0)
        assert (result.status, f"on {said}" in result.out) == (0, True), (file, result)
        assert ("20 of 40 prompts are among those that the circuit was found on" in result.err) == (
            file == "all.jsonl"
        )
        assert f"on {n} " in result.out


def test_discovery_prompts_stay_beside_held_out_ones_whatever_they_were_to_the_circuit() -> None:
    data = acdc.tasks.load("induction", size=16).prepare(acdc.load("induction-2l"))
    assert data.held_out is not None
    known = data.discovery[:8]  # half of them: constants of optimal ablation are of all sixteen
    assert unseen(data, known) == (data, False)
    judged, found_here = unseen(dataclasses.replace(data, discovery=known, held_out=data.discovery), known)
    assert found_here
    assert judged.discovery is known
    assert judged.held_out is not None
    assert judged.held_out.clean.tolist() == data.discovery[8:].clean.tolist()


def test_prompts_that_cannot_be_compared_are_said_to_be_unknown(command: Command, lines: list[str]) -> None:
    Path("new.jsonl").write_text("\n".join(lines[20:]))
    Path("p.jsonl").unlink()
    result = command("evaluate", "run", "--task", "new.jsonl", "--random-circuits", 0)
    assert result.status == 0
    assert "it is not known whether the circuit was found on these prompts: no such file: 'p.jsonl'" in result.err
    assert "on 20 given prompts" in result.out
    audit = command("audit", "run", "--checks", "held-out", "--task", "new.jsonl", "-o", "a")
    assert "prompts of which it is not known whether it was found on them" in audit.out
    assert json.loads(Path("a/audit.json").read_text())["findings"][0]["verdict"] == "not applicable"


def test_an_audit_on_new_prompts_holds_it_to_them(command: Command, lines: list[str]) -> None:
    result = command("audit", "run", "--checks", "held-out", "--task", "all.jsonl", "-o", "there/audit")
    assert result.status == 0
    record = json.loads(Path("there/audit/audit.json").read_text())
    assert (record["prompts"], record["n_prompts"]) == ("held-out prompts", 20)
    assert record["findings"][0]["verdict"] in ("pass", "fail")
    again = command("audit", "run", "--checks", "held-out", "--task", "p.jsonl", "-o", "there/audit")
    assert again.status == 2
    assert "another audit (of the prompts of all.jsonl)" in again.err
    own = command("audit", "run", "--checks", "held-out", "--task", "p.jsonl", "-o", "own")
    assert "prompts it was found on" in own.out
    Path("p.jsonl").write_text("\n".join(lines[20:]))  # no longer what the run was found on
    changed = command("audit", "run", "--checks", "held-out", "-o", "changed")
    assert "those of 'p.jsonl', which the run names, have changed" in changed.err
    assert "prompts of which it is not known whether" in changed.out


def test_held_out_prompts_that_are_given_go_before_those_that_the_run_names(
    command: Command, lines: list[str]
) -> None:
    assert command("discover", "induction-2l", "--task", "p.jsonl", "--split", 0.4, *FOUND, "-o", "s").status == 0
    Path("new.jsonl").write_text("\n".join(lines[20:]))
    result = command("evaluate", "s", "--held-out", "new.jsonl", "--random-circuits", 0)
    assert result.status == 0, result.err
    assert "on 20 held-out prompts" in result.out
    assert command("evaluate", "s", "--split", 0.5, "--held-out", "new.jsonl").status == 2


def test_the_size_that_is_recorded_is_what_there_was(command: Command, lines: list[str]) -> None:
    result = command("discover", "induction-2l", "--task", "p.jsonl", "--size", 500, *FOUND, "-o", "big")
    assert "20 prompts are used instead of 500" in result.err
    assert acdc.Circuit.load("big").provenance.task_options["size"] == 20
    assert "which it was found on" in command("evaluate", "big", "--random-circuits", 0).out


def test_relative_paths_of_a_run_are_found_from_the_folders_above_it(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(BUILTIN / "induction-2l", work / "m")
    monkeypatch.chdir(work)
    write_prompts(Path("p.jsonl"), right=20, wrong=0)
    write_prompts(Path("h.jsonl"), right=30, wrong=0)
    made = command("discover", "m", "--task", "p.jsonl", "--held-out", "h.jsonl", *FOUND, "-o", "runs/a")
    assert made.status == 0, made.err
    monkeypatch.chdir(tmp_path)
    for name, *more in (
        ("evaluate", "--random-circuits", 0),
        ("certify", "--budget", 100),
        ("audit", "--checks", "held-out"),
    ):
        result = command(name, "work/runs/a", *more)
        assert result.status == 0, result.err
    shutil.move("work/m", "elsewhere")
    lost = command("evaluate", "work/runs/a")
    assert lost.status == 2
    assert "(the run names 'm': if that was a local folder, a path is taken from the current folder" in lost.err
    shutil.move("work/p.jsonl", "elsewhere")
    assert "or else from the folders above the run" in command("certify", "work/runs/a", "--force").err


def test_inside_is_refused_where_no_neurons_are_looked_for(command: Command) -> None:
    for inside in ("heads", "mlps"):
        result = command("discover", "induction-2l", "--inside", inside, *FOUND)
        assert (result.status, f"--inside {inside} is of --units neuron" in result.err) == (2, True)


def test_neurons_that_are_not_taken_into_account_are_said(command: Command, lines: list[str]) -> None:
    judging: dict[str, tuple[object, ...]] = {
        "evaluate": ("--random-circuits", 0),
        "audit": ("--checks", "held-out"),
        "certify": ("--budget", 100),
        "view": ("--no-open", "--sizes", "none", "--effects", 0, "--prompts", 0),
        "run": ("5 6 7",),
    }
    said = "neurons.json is not taken into account"
    assert said not in command("evaluate", "run", *judging["evaluate"]).err
    Path("run/neurons.json").write_text("{}")
    for name, more in judging.items():
        assert command(name, "run", *more).err.count(said) == 1, name


def test_an_empty_text_is_called_so(command: Command, lines: list[str]) -> None:
    for given in (["", "--top", 3], ["5 6 7", "--corrupted", " "]):
        result = command("run", "run", *given)
        assert (result.status, " is empty: give a prompt" in result.err) == (2, True)
