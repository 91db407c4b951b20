"""The `acdc` command: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers

import acdc
import families
import tiny_gguf
from acdc import formats, viz
from acdc.cli import main as cli
from acdc.methods.search import Search
from acdc.store import resume as resuming
from command_line import Command, write_prompts

COMMANDS = ("discover", "evaluate", "draw", "export", "models", "models fetch", "tasks", "tasks check", "methods")


QUICK = ("discover", "tracr-reverse", "--method", "eap-ig", "--edges", 10, "--random-circuits", 2)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `acdc discover`, made once."""
    folder = tmp_path_factory.mktemp("run") / "reverse"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["acdc", *map(str, QUICK), "-o", str(folder)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
    assert not exit.value.code
    return folder


# ---- the main job -----------------------------------------------------------------------------------------------


def test_a_newcomer_needs_no_option(command: Command) -> None:
    first = command("discover", "tracr-reverse")
    assert first.status == 0
    for fact in ("edges kept", "faithfulness", "held-out", "random circuits", "true edges found", "seconds"):
        assert fact in first.out
    folder = Path("runs/tracr-reverse-guided")
    assert str(folder) in first.out
    assert (folder / "circuit.svg").stat().st_size > 0
    assert acdc.Circuit.load(folder).n_edges > 0

    again = command("discover", "tracr-reverse", "--json")
    assert again.status == 0
    assert json.loads(again.out)["folder"] == "runs/tracr-reverse-guided-2"


def test_json_is_all_there_is_on_standard_output(command: Command) -> None:
    result = command(*QUICK, "-o", "here", "--json")
    record = json.loads(result.out)
    circuit = acdc.Circuit.load("here")
    assert record["edges"] == circuit.edge_scores()
    assert record["n_edges_total"] == circuit.graph.n_edges
    assert 0.9 < record["faithfulness"] <= 1.1
    assert record["truth"]["true_positives"] > 0
    assert Path(record["picture"]).is_file()


def test_the_stored_command_line_gives_the_same_circuit(command: Command, run_folder: Path) -> None:
    stored = acdc.Circuit.load(run_folder)
    program, *arguments = stored.provenance.command
    assert program == "acdc"
    arguments[arguments.index("-o") + 1] = "again"
    assert command(*arguments).status == 0
    assert acdc.Circuit.load("again") == stored
    assert Path("again/scores.safetensors").read_bytes() == (run_folder / "scores.safetensors").read_bytes()


def test_a_model_and_prompts_of_ones_own(command: Command) -> None:
    rows = [
        {
            "clean_tokens": [0, a, b, c, a],
            "corrupted_tokens": [0, a, c, b, a],
            "answer_tokens": b,
            "wrong_tokens": c,
        }
        for a, b, c in ((5, 9, 7), (11, 3, 8), (20, 31, 40), (51, 17, 60), (33, 71, 2))
    ]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("discover", "induction-2l", "--task", "mine.jsonl", "--method", "eap", "--edges", 30)
    whole = command(*arguments)
    assert whole.status == 0
    assert "on 5 discovery prompts" in whole.out
    split = command(*arguments, "--split", 0.4, "--json")
    assert json.loads(split.out)["prompts"] == "held-out"
    assert json.loads(split.out)["n_prompts"] == 2
    assert json.loads(split.out)["folder"] == "runs/induction-2l-mine-eap-2"
    judged = command("evaluate", "runs/induction-2l-mine-eap-2", "--json")
    assert json.loads(judged.out)["n_prompts"] == 2


def test_prompts_of_ones_own_as_a_table_or_an_array(command: Command) -> None:
    write_prompts(Path("mine.jsonl"), right=10, wrong=0)
    rows = [json.loads(line) for line in Path("mine.jsonl").read_text().splitlines()]
    rows, every = rows[:6], rows
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("mine.json").write_text(json.dumps(rows, indent=1))
    for name, some in (("mine.csv", rows), ("all.csv", every)):
        with open(name, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(some)
    found = {}
    for name in ("mine.jsonl", "mine.json", "mine.csv"):
        options = ("--method", "eap", "--edges", 30, "--held-out", "all.csv", "-o", name[4:], "--json")
        result = command("discover", "induction-2l", "--task", name, *options)
        assert result.status == 0, result.err
        found[name] = {k: v for k, v in json.loads(result.out).items() if k not in ("folder", "task", "seconds")}
    assert found["mine.csv"]["n_prompts"] == 4  # held out are those that are no discovery prompts
    assert len({str(value["edges"]) for value in found.values()}) == 1
    Path("mine.csv").write_text("clean;corrupted\n")
    wrong = command("tasks", "check", "induction-2l", "mine.csv")
    assert (wrong.status, wrong.err.count("\n")) == (2, 1)
    assert "expected columns parted by commas, got ';'" in wrong.err


def test_options_of_methods_and_tasks(command: Command) -> None:
    result = command(*QUICK, "--option", "steps=2", "--task-option", "distribution=fixed", "--size", 8, "-o", "x")
    assert result.status == 0
    made = acdc.Circuit.load("x").provenance
    assert made.options["steps"] == 2
    assert made.task_options == {"distribution": "fixed", "size": 8}


# ---- what exists is not lost ------------------------------------------------------------------------------------


def test_an_existing_folder_is_kept_unless_forced(command: Command) -> None:
    assert command(*QUICK, "-o", "x").status == 0
    Path("x/notes.txt").write_text("mine")
    before = Path("x/circuit.json").read_text()
    refused = command(*QUICK, "-o", "x", "--seed", 1)
    assert refused.status == 2
    assert "--force" in refused.err
    assert Path("x/circuit.json").read_text() == before
    assert command(*QUICK, "-o", "x", "--seed", 1, "--force").status == 0
    assert Path("x/circuit.json").read_text() != before
    assert Path("x/notes.txt").read_text() == "mine"


def test_force_replaces_runs_only(command: Command) -> None:
    Path("x").mkdir()
    Path("x/thesis.tex").write_text("mine")
    result = command(*QUICK, "-o", "x", "--force")
    assert result.status == 2
    assert [path.name for path in Path("x").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("where", ["search", "picture"])
def test_an_interrupted_run_leaves_nothing(command: Command, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(*{"search": (acdc, "discover"), "picture": (viz, "draw")}[where], interrupt)
    result = command(*QUICK, "-o", "deep/x")
    assert result.status == 130
    assert result.err.splitlines()[-1] == "interrupted: nothing was written"
    assert not list(Path().rglob("*circuit*"))
    assert not list(Path().glob("deep/.*"))


# ---- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["discovr", "x"], "discover"),
        (["discover"], "model"),
        (["discover", "tracr-revers"], "tracr-reverse"),
        (["discover", "induction-3l", "--task", "induction"], "induction-2l"),
        (["discover", "./no/such/folder"], "--task"),
        (["discover", "tracr-reverse", "--task", "inductoin"], "induction"),
        (["discover", "induction-2l", "--task", "none.jsonl"], "none.jsonl"),
        (["discover", "tracr-reverse", "--method", "guded"], "guided"),
        (["discover", "tracr-reverse", "--metric", "kll"], "kl"),
        (["discover", "tracr-reverse", "--ablation", "zro"], "zero"),
        (["discover", "tracr-reverse", "--option", "stps=3"], "steps"),
        (["discover", "tracr-reverse", "--option", "steps"], "steps=10"),
        (["discover", "tracr-reverse", "--option", "steps=many"], "whole number"),
        (["discover", "tracr-reverse", "--method", "eap-ig", "--option", "steps=1.5"], "whole number"),
        (
            ["discover", "tracr-reverse", "--method", "acdc", "--edges", "3", "--option", "taus=3"],
            "list of numbers",
        ),
        (["discover", "tracr-reverse", "--seed", "-1"], "seed of at least 0"),
        (["evaluate", "RUN", "--seed", "-1"], "seed of at least 0"),
        (["discover", "tracr-reverse", "--threshold", "nan"], "threshold of at least 0, got nan"),
        (
            ["discover", "tracr-reverse", "--method", "acdc", "--threshold", "nan"],
            "threshold of at least 0, got nan",
        ),
        (["discover", "tracr-reverse", "--task-option", "distribution=mixt"], "mixed"),
        (["discover", "tracr-reverse", "--task-option", "distribution=3"], "mixed"),
        (["discover", "induction-2l", "--task-option", "length=long"], "like 24"),
        (["discover", "tracr-reverse", "--edges", "few"], "--edges"),
        (["discover", "tracr-reverse", "--edges", "5", "--faithfulness", "0.9"], "one of"),
        (["discover", "tracr-reverse", "--device", "cdua"], "cuda"),
        (["discover", "tracr-reverse", "--dtype", "flot32"], "float32"),
        (["discover", "tracr-reverse", "--qkv", "splt"], "split"),
        (["positions", "induction-2l", "--method", "gim"], "Invalid value for '--method': 'gim' is not one of"),
        (["discover", "induction-2l", "--method", "gim", "--option", "gates=true"], "is of gated MLPs"),
        (["discover", "induction-2l", "--method", "eap-ig", "--option", "steps=0"], "steps of at least 1, got 0"),
        (
            ["discover", "induction-2l", "--method", "information-flow", "--edges", "9", "--select", "pnr"],
            "one sign",
        ),
        (["evaluate", "nowhere"], "nowhere"),
        (["export", "RUN", "--to", "graphm"], "graphml"),
        (["export", "RUN", "--to", "eap-pt"], "not written"),
        (["draw", "RUN", "-o", "picture.gif"], "gif"),
        (["draw", "RUN", "-o", "no/folder/picture.svg"], "no/folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    command: Command, run_folder: Path, arguments: list[str], words: str
) -> None:
    result = command(*(str(run_folder) if x == "RUN" else x for x in arguments))
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert len(result.err.splitlines()) == 1
    assert words in result.err


@pytest.mark.filterwarnings("always::UserWarning")
def test_an_empty_circuit_is_an_error_with_the_way_out(command: Command) -> None:
    found = command("discover", "tracr-reverse", "--method", "eap-ig", "--threshold", 1e9, "-o", "x")
    assert (found.status, found.out, len(found.err.splitlines())) == (2, "", 1)
    assert found.err.startswith("error: the circuit is empty: eap-ig keeps no edge at threshold 1e+09; l2 is 0 for")
    assert "a lower threshold" in found.err
    assert not Path("x").exists()
    nothing = ("discover", "tracr-length", "--task-option", "distribution=fixed", "-o", "x")
    for more in (("--method", "exact"), ("--method", "guided"), ("--method", "acdc"), ("--method", "eap-ig")):
        undefined = command(*nothing, *more)
        assert (undefined.status, undefined.out) == (2, "")
        assert "l2 is 0 for the full model and 0 without any edge, so" in undefined.err.splitlines()[-1]


@pytest.mark.filterwarnings("always::UserWarning")
def test_fewer_edges_than_asked_for_are_one_line(command: Command) -> None:
    found = command("discover", "tracr-length", "--method", "exact", "--edges", 50, "-o", "x")
    assert found.status == 0
    assert "warning: 8 edges are kept instead of 50: the graph has no more" in found.err
    found = command("discover", "tracr-reverse", "--method", "exact", "--edges", 1, "-o", "y")
    assert found.status == 2
    assert re.search(r"error: no circuit of 1 edges: .*; ask for at least \d", found.err)


def test_every_command_takes_an_empty_circuit(command: Command) -> None:
    graph = acdc.load("tracr-reverse").graph()
    made = acdc.Provenance(model="tracr-reverse", task="tracr-reverse", metric="l2", ablation="resample", seed=0)
    scores = acdc.Scores(graph, np.ones(graph.valid.shape), "eap-ig", made)
    acdc.Circuit(graph, np.zeros_like(graph.valid), scores, made).save("x")
    judged = command("evaluate", "x", "--curve", "--completeness", "--minimality")
    assert judged.status == 0
    assert "nan" not in judged.out
    assert command("draw", "x", "--truth", "-o", "x.svg").status == 0
    for format in ("mib", "node-link", "graphml", "dot", "csv", "circuit-tracer"):
        assert command("export", "x", "--to", format).status == 0


def test_all_bad_lines_of_a_file_are_shown(command: Command) -> None:
    good = {"clean_tokens": [1, 2], "corrupted_tokens": [2, 1], "answer_tokens": 3, "wrong_tokens": 4}
    Path("bad.jsonl").write_text("\n".join(['{"clean": 3}', json.dumps(good), "{}", "nonsense"]))
    result = command("discover", "induction-2l", "--task", "bad.jsonl")
    assert result.status == 2
    first, *lines = result.err.splitlines()
    assert first.startswith("error: bad.jsonl")
    assert [line.split(":")[0].strip() for line in lines] == ["line 1", "line 3", "line 4"]


# ---- the other commands -----------------------------------------------------------------------------------------


def test_evaluate_measures_what_discover_measured(command: Command, run_folder: Path) -> None:
    made = acdc.Circuit.load(run_folder).provenance
    again = json.loads(command("evaluate", run_folder, "--json", "--random-circuits", 2).out)
    assert {key: again[key] for key in made.measured if key != "seconds"} == {
        key: value for key, value in made.measured.items() if key != "seconds"
    }
    other = json.loads(command("evaluate", run_folder, "--json", "--ablation", "zero", "--size", 8).out)
    assert other["ablation"] == "zero"
    assert other["n_prompts"] == 8
    assert other["prompts"] == "discovery"  # with nothing resampled, a prompt is its clean tokens


def test_evaluate_says_whether_the_circuit_was_found_on_the_prompts(command: Command, run_folder: Path) -> None:
    assert "on prompts it was found on" in command("evaluate", run_folder, "--metric", "l2").out
    assert "found on" not in command("evaluate", run_folder, "--seed", 7).out


def test_evaluate_shows_curve_completeness_and_minimality_when_asked(command: Command, run_folder: Path) -> None:
    asked = ("--curve", "--completeness", "--minimality", "--random-circuits", 1)
    kept = acdc.Circuit.load(run_folder).n_edges
    found = json.loads(command("evaluate", run_folder, "--json", *asked).out)
    assert found["curve"]["faithfulness"][-1] == pytest.approx(1)
    assert found["completeness"]["largest"] >= 0
    assert len(found["minimality"]["edges"]) == kept
    shown = command("evaluate", run_folder, *asked).out
    assert "CPR" in shown
    assert "incompleteness" in shown
    assert f"of {kept} edges" in shown
    assert "CPR" not in command("evaluate", run_folder, "--random-circuits", 1).out


@pytest.mark.parametrize("format", [name for name, record in formats.FORMATS.items() if record.write is not None])
def test_export_writes_to_standard_output_or_a_file(command: Command, run_folder: Path, format: str) -> None:
    expected = formats.export(acdc.Circuit.load(run_folder), format)
    assert command("export", run_folder, "--to", format).out == expected
    assert command("export", run_folder, "--to", format, "-o", "file").out == ""
    assert Path("file").read_text() == expected
    assert command("export", run_folder, "--to", format, "-o", "file").status == 2
    assert command("export", run_folder, "--to", format, "-o", "file", "--force").status == 0


def test_draw_goes_by_the_ending_of_the_file(command: Command, run_folder: Path) -> None:
    for name, start in (("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")):
        assert command("draw", run_folder, "-o", name).out == f"{name}\n"
        assert Path(name).read_bytes().startswith(start)
    refused = command("draw", run_folder, "-o", "a.png")
    assert refused.status == 2


def test_draw_marks_the_true_circuit_where_it_is_known(command: Command, run_folder: Path) -> None:
    assert command("draw", run_folder, "--truth", "-o", "truth.svg").status == 0
    assert command("draw", run_folder, "-o", "plain.svg").status == 0
    assert Path("truth.svg").read_bytes() != Path("plain.svg").read_bytes()
    assert command("discover", "induction-2l", "--method", "random", "--edges", 20, "-o", "x").status == 0
    assert "not known" in command("draw", "x", "--truth").err


def test_without_graphviz_the_picture_is_drawn_all_the_same(
    command: Command, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    result = command("draw", run_folder, "-o", "a.svg")
    assert result.status == 0
    assert "matplotlib" in result.err
    assert Path("a.svg").stat().st_size > 0


def test_an_interrupted_search_goes_on_from_where_it_was(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    search = ("discover", "tracr-reverse", "--method", "acdc", "--random-circuits", 0, "--json", "-o", "run")
    stages = iter(range(100))

    def interrupt(*_: object, **__: object) -> None:
        if next(stages) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(resuming, "LEAST_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Search, "_remove", interrupt)
        result = command(*search)
    assert result.status == 130
    assert "the same command goes on from there" in result.err
    assert not Path("run").exists()
    earlier = resuming.spent_before(Path(".run.progress"))
    assert 0 < earlier.processor_seconds < 100
    monkeypatch.setattr(resuming, "_spent", lambda _: resuming.Spent(1000.0, 1000.0))  # as if it had taken so long
    result = command(*search)
    assert result.status == 0
    assert not list(Path().glob(".*"))
    assert json.loads(result.out)["seconds"] > 1000


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_to_end_interrupts_as_ctrl_c_does(
    command: Command, monkeypatch: pytest.MonkeyPatch, name: str, status: int
) -> None:
    search = ("discover", "tracr-reverse", "--method", "acdc", "--random-circuits", 0, "-o", "run")
    number = getattr(signal, name)

    def stop(*_: object, **__: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(resuming, "LEAST_SECONDS", 0.0)
    for place, words in (
        ((acdc, "discover"), "nothing was written"),
        ((acdc, "evaluate"), "the same command goes on"),
    ):
        with monkeypatch.context() as patch:  # before anything is noted, and when the search is done but not judged
            patch.setattr(*place, stop)
            result = command(*search)
        assert result.status == status
        assert words in result.err.splitlines()[-1]
        assert not Path("run").exists()
    assert signal.getsignal(number) is signal.SIG_DFL
    with monkeypatch.context() as patch:  # what was noted is enough: nothing is searched again
        patch.setattr(Search, "_remove", stop)
        assert command(*search).status == 0
    assert os.listdir() == ["run"]


def test_what_acdc_did_not_make_in_a_run_is_not_replaced(command: Command, run_folder: Path) -> None:
    shutil.copytree(run_folder, "x")
    for arguments, name in (
        (["draw", "x"], "circuit.svg"),
        (["draw", "x", "--format", "dot"], "circuit.dot"),
        (["view", "x", "--no-model", "--no-open"], "circuit.html"),
    ):
        path = Path("x", name)
        path.write_text("mine")
        refused = command(*arguments)
        assert (refused.status, refused.out, refused.err.count("\n")) == (2, "", 1)
        assert path.read_text() == "mine"
        assert command(*arguments, "--force").status == 0
        assert path.read_text() != "mine"
    assert command("draw", "x").status == 0  # its own picture and page are
    assert command("view", "x", "--no-model", "--no-open").status == 0


def test_a_file_that_appears_while_another_is_made_is_not_replaced(
    command: Command, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = formats.export

    def slowly(*arguments: Any, **options: Any) -> str:
        Path("x.csv").write_text("mine")
        return export(*arguments, **options)

    monkeypatch.setattr(formats, "export", slowly)
    result = command("export", run_folder, "--to", "csv", "-o", "x.csv")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert Path("x.csv").read_text() == "mine"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(command: Command, name: str) -> None:
    result = command(*name.split(), "--help")
    assert result.status == 0
    assert f"Example: acdc {name}" in result.out
    assert ("a2.h3<k>" in result.out) == (name in ("ablate", "patch-path"))  # which Markdown takes for a tag


def test_help_lists_every_command_and_loads_nothing_heavy(command: Command) -> None:
    assert all(name.split()[0] in command().out for name in COMMANDS)
    heavy = "{'torch', 'transformers', 'numpy', 'networkx', 'matplotlib'} & {*sys.modules}"
    script = f"import sys, acdc.cli.main; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_tokenizer_by_name_is_kept_with_the_result(command: Command, tmp_path: Path) -> None:
    families.module("llama").save_pretrained(tmp_path / "model")
    words = {word: i for i, word in enumerate(["?", "a", "b", "c", "d", "e"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained("words")
    pair = {"clean": "a b c a", "corrupted": "a c b a", "answers": " c", "wrong_answers": " b"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    given = ("discover", "model", "--task", "pairs.jsonl", "--method", "eap", "--edges", 20, "-o", "run")
    assert "tokenizer" in command(*given).err
    assert command(*given, "--tokenizer", "words").status == 0
    assert acdc.Circuit.load(tmp_path / "run").provenance.tokenizer == "words"
    assert command("evaluate", "run").status == 0


def test_a_gguf_file_says_that_it_was_quantised(command: Command, tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.llama(), quantised=True)
    pair = {"clean_tokens": [1, 5, 9], "corrupted_tokens": [1, 6, 9], "answer_tokens": 7, "wrong_tokens": 8}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    found = command("discover", "tiny.gguf", "--task", "pairs.jsonl", "--method", "eap", "--edges", 20, "-o", "run")
    assert found.status == 0
    assert "8-bit weights (Q8_0), dequantised" in found.err
    again = command("evaluate", "run")
    assert again.status == 0
    assert "8-bit weights (Q8_0), dequantised" in again.err


@pytest.mark.parametrize(("size", "said"), [("1", "1 prompt is few"), ("8", "8 prompts are few"), ("32", "")])
def test_few_prompts_are_warned_of(size: str, said: str, command: Command) -> None:
    error = command("discover", "induction-2l", "--size", size, "--random-circuits", "0").err
    assert (said in error) if said else ("few for a search" not in error)
