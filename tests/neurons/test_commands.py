"""`acdc discover --units neuron` and `acdc neurons`: from coarse to fine in one go, or of a finished run."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import Command


def test_a_run_says_which_neurons_stay(command: Command) -> None:
    whole = command("discover", "tracr-hist", "--units", "neuron", "-o", "run", "--json")
    assert whole.status == 0, whole.err
    kept = json.loads(whole.out)["neurons"]
    file = json.loads(Path("run/neurons.json").read_text())
    assert {mlp: x["kept"] for mlp, x in file["mlps"].items()} == {mlp: x["kept"] for mlp, x in kept.items()}
    judged = file["evaluation"]
    assert judged["faithfulness"] > 0.99 > max(judged["random_faithfulness"])
    again = command("neurons", "run")
    assert again.status == 2
    assert "exists" in again.err
    none = command("neurons", "run", "--force", "--one-by-one", "--runs", "0")
    assert none.status == 2
    assert "runs is 0, which cuts the ranking: choose one" in none.err
    again = command("neurons", "run", "--force", "--one-by-one")
    assert again.status == 0, again.err
    assert "of 12" in again.out
    assert "random neurons" in again.out
    assert command("evaluate", "run").status == 0
    both = command("neurons", "run", "--force", "--inside", "both", "--json")
    assert both.status == 0, both.err
    kept = json.loads(both.out)["neurons"]
    assert {node[0] for node in kept} == {"a", "m"}
    heads = json.loads(Path("run/neurons.json").read_text())["heads"]
    assert heads
    assert all(kept[node]["kept"] == x["kept"] for node, x in heads.items())


def test_mistakes_are_one_line(command: Command) -> None:
    none = command("neurons", "nowhere")
    assert none.status == 2
    assert "--units neuron" in none.err
    assert len(none.err.strip().splitlines()) == 1
    said = command("discover", "tracr-first", "--units", "neuron", "-o", "run")
    assert said.status == 0
    assert "keeps no MLP" in said.err
    assert command("neurons", "run").status == 2
