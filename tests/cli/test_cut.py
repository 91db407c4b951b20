"""`acdc cut`: another size of circuit from a run."""

from __future__ import annotations

import json
from pathlib import Path

import acdc
from command_line import Command

FOUND = ("discover", "induction-2l", "--size", 16, "--random-circuits", 0, "--faithfulness", 0.95)


def test_a_run_of_another_size_is_a_run_like_any_other(command: Command) -> None:
    assert command(*FOUND, "-o", "runs/wide").status == 0
    result = command("cut", "runs/wide", "--faithfulness", 0.6, "--json")
    record = json.loads(result.out)
    assert (result.status, record["folder"]) == (0, "runs/wide-0.6")
    assert 0.5 < record["discovery_faithfulness"] < 0.95
    wide, part = acdc.Circuit.load("runs/wide"), acdc.Circuit.load("runs/wide-0.6")
    assert not (part.edges & ~wide.edges).any()
    assert part.provenance.task_options == wide.provenance.task_options
    assert part.provenance.measured["faithfulness"] == record["faithfulness"]
    _, *arguments = part.provenance.command
    assert command(*arguments, "-o", "again").status == 0
    assert acdc.Circuit.load("again") == part
    judged = json.loads(command("evaluate", "runs/wide-0.6", "--random-circuits", 0, "--json").out)
    assert judged["faithfulness"] == record["faithfulness"]
    claims = command("certify", "runs/wide-0.6").out
    assert "no single edge can go within the budget" in " ".join(claims.split())
    smaller = command("cut", "runs/wide-0.6", "--edges", 5, "-o", "few")
    assert "5 of" in smaller.out
    assert Path("few/circuit.svg").is_file()


def test_a_ranking_is_cut_to_other_sizes(command: Command) -> None:
    ranking = ("discover", "induction-2l", "--size", 16, "--random-circuits", 0, "--method", "eap")
    assert command(*ranking, "--edges", 30, "-o", "thirty").status == 0
    assert command(*ranking, "--edges", 9, "--aggregate", "rms", "-o", "nine").status == 0
    assert command("cut", "thirty", "--edges", 9, "--aggregate", "rms").status == 0
    assert acdc.Circuit.load("thirty-9") == acdc.Circuit.load("nine")
    for amounts, message in (
        ((), "say how much to keep: --edges, --threshold or --faithfulness"),
        (("--edges", 3, "--threshold", 0.1), "expected one of edges, threshold and faithfulness"),
        (("--faithfulness", 2), "expected a faithfulness above 0 and at most 1"),
        (("--edges", 5, "-o", "nine"), "nine exists"),
    ):
        refused = command("cut", "thirty", *amounts)
        assert (refused.status, message in refused.err) == (2, True), refused.err
    assert command("cut", "nowhere", "--edges", 3).status == 2
