"""Edges at places: scores are first-order changes where they are, circuits run as the engine runs them, files hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import acdc
import attribution_graph
from acdc.engine.measure import bind
from acdc.engine.patching import Patching
from acdc.errors import AcdcError
from acdc.formats import import_circuit
from acdc.graph import Graph
from acdc.metrics import OUTCOMES
from acdc.tasks.task import Dataset
from acdc.tracing import PositionalCircuit, discover_positions, evaluate_positions, score_positions
from acdc.tracing.positional import placing
from command_line import Command
from problems import make_prompts, tiny

INDUCTION = ("induction-2l", "induction")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("method", ["eap", "eap-ig"])
@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_scores_of_all_places_are_the_edges(family: str, method: Any, ablation: str) -> None:
    model, prompts = tiny(family), make_prompts(padding="left", reads=2)
    found = score_positions(model, prompts, method, by="position", ablation=ablation, batch_size=2)
    whole = acdc.score(model, prompts, method, ablation=ablation)
    np.testing.assert_allclose(found.values.sum(0), whole.values, atol=1e-9)
    assert found.places[-1].startswith("-1")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_score_is_what_a_small_removal_there_changes(family: str) -> None:
    model, prompts = tiny(family), make_prompts(shared=2)
    found = score_positions(model, prompts, "eap", by="position")
    patching = Patching(model, model.graph(), prompts)
    measure = bind(OUTCOMES["logit-difference"], patching)
    places = torch.arange(prompts.mask.shape[1]).expand(prompts.mask.shape)
    kept = np.repeat(patching.graph.valid[None].astype(float), prompts.mask.shape[1], 0)
    rng, step = np.random.default_rng(0), 1e-6
    for d, s in rng.permutation(np.argwhere(patching.graph.valid))[:12]:
        for place in (1, 3, 5):
            values = []
            for sign in (1, -1):
                less = kept.copy()
                less[place, d, s] -= sign * step
                with torch.no_grad():
                    logits = patching.logits(torch.as_tensor(less), rows=measure.rows, places=places)
                values.append(float(measure.value(logits).mean()))
            change = (values[0] - values[1]) / (2 * step)
            assert -found.values[place, d, s] == pytest.approx(change, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_an_exact_score_is_the_metric_without_the_unit(family: str, ablation: Any) -> None:
    model, prompts = tiny(family), make_prompts(padding="left", reads=2, shared=2)
    found = score_positions(model, prompts, "exact", by="position", ablation=ablation, batch_size=2)
    patching = Patching(model, model.graph(), prompts, ablation=ablation)
    measure = bind(OUTCOMES["logit-difference"], patching)
    where = placing(model, prompts, "position")
    whole = np.concatenate((np.repeat(patching.graph.valid[None], len(where.labels), 0), [patching.graph.valid]))
    full = measure.value(patching.clean_logits(measure.rows))
    rng = np.random.default_rng(0)
    for d, s in [*rng.permutation(np.argwhere(patching.graph.valid))[:8], (patching.graph.n_destinations - 1, 1)]:
        for place in range(len(where.labels)):
            less = whole.copy()
            less[place, d, s] = False
            with torch.no_grad():
                change = measure.value(patching.logits(less, rows=measure.rows, places=where.numbers)[0]) - full
            assert found.values[place, d, s] == pytest.approx(-float(change.mean()), abs=1e-9)
            assert found.absolute[place, d, s] == pytest.approx(float(change.abs().mean()), abs=1e-9)


def test_a_metric_without_the_gradient_that_a_method_takes_is_refused() -> None:
    model, prompts = tiny("gpt2"), make_prompts()
    with pytest.raises(AcdcError, match=r"gradient of 'kl' is zero at the clean prompt.* use eap-ig or exact"):
        score_positions(model, prompts, "eap", by="position", metric="kl")
    assert score_positions(model, prompts, "eap-ig", by="position", metric="kl").absolute.max() > 1e-6


def test_one_by_one_is_a_plain_loop_from_the_weakest_up() -> None:
    model, task = acdc.load("tracr-hist"), acdc.tasks.load("tracr-hist", distribution="fixed", size=4)
    found = discover_positions(model, task, by="position", faithfulness=0.7, runs=10**6, one_by_one=True)
    scores, prompts = score_positions(model, task, by="position"), task.prepare(model).discovery
    patching = Patching(model, model.graph(), prompts)
    measure = bind(OUTCOMES["l2"], patching)
    where = placing(model, prompts, "position")
    valid = patching.graph.valid
    kept = np.concatenate((np.repeat(valid[None], len(where.labels), 0), [np.zeros_like(valid)]))

    def value(units: Any) -> float:
        with torch.no_grad():
            return float(measure.value(patching.logits(units, rows=measure.rows, places=where.numbers)).mean())

    full, empty = value(kept), value(np.zeros_like(kept))
    for unit in [unit for unit in np.argsort(scores.absolute, axis=None, kind="stable") if kept.flat[unit]]:
        kept.flat[unit] = False
        if (value(kept) - empty) / (full - empty) < 0.7:
            kept.flat[unit] = True
    np.testing.assert_array_equal(found.kept, kept[:-1])
    assert 0 < found.n_units < 20


def test_positions_are_pruned_inside_a_circuit_within_its_own_distance() -> None:
    model, task = acdc.load(INDUCTION[0]), acdc.tasks.load(INDUCTION[1], size=8)
    circuit, data = acdc.discover(model, task, "eap-ig", edges=12), task.prepare(model)
    found = discover_positions(model, task, inside=circuit, runs=60)
    assert not (found.edges & ~circuit.edges).any()
    assert found.n_units <= circuit.n_edges * len(found.places) / 2
    patching = Patching(model, circuit.graph, data.discovery)
    measure = bind(OUTCOMES[data.metric.name], patching)
    numbers = placing(model, data.discovery, "span").numbers
    everywhere = np.repeat(circuit.edges[None], len(found.places), 0)
    full = measure.value(patching.clean_logits(measure.rows))

    def distance(kept: Any) -> float:
        whole = np.concatenate((kept, np.zeros_like(kept[:1])))
        with torch.no_grad():
            return float(
                (measure.value(patching.logits(whole, rows=measure.rows, places=numbers)[0]) - full).abs().mean()
            )

    assert distance(found.kept) <= distance(everywhere) * (1 + 1e-5)
    best = discover_positions(model, task, inside=circuit, units=5)
    assert best.n_units == 5
    assert not (best.edges & ~circuit.edges).any()
    with pytest.warns(UserWarning, match="are kept instead of 1000000: no more have a score"):
        discover_positions(model, task, inside=circuit, units=10**6)
    other = circuit.provenance.having(weights_sha256="0" * 64)
    with pytest.warns(
        UserWarning, match="the weights of induction-2l differ from those the circuit was found with"
    ):
        discover_positions(model, task, inside=dataclasses.replace(circuit, provenance=other), units=5)
    with pytest.raises(AcdcError, match="expected a Circuit"):
        discover_positions(model, task, inside="runs/x")  # type: ignore[arg-type]
    with pytest.raises(AcdcError, match="runs is 0, which cuts the ranking: choose one"):
        discover_positions(model, task, inside=circuit, runs=0, one_by_one=True)
    with pytest.raises(AcdcError, match="leave one_by_one out"):
        discover_positions(model, task, inside=circuit, units=5, one_by_one=True)


def test_the_key_of_an_induction_head_reads_the_token_before_where_the_answer_stands() -> None:
    model, task = acdc.load(INDUCTION[0]), acdc.tasks.load(INDUCTION[1], size=32)
    circuit = discover_positions(model, task, faithfulness=0.9)
    assert "a0.h1->a1.h1<k>@answer" in circuit.names()
    edges = acdc.discover(model, task, "eap-ig", faithfulness=0.9)
    found = evaluate_positions(model, task, circuit)
    assert found.faithfulness > 0.85
    length = int(task.prepare(model).discovery.mask.sum(1).max())
    assert circuit.n_units <= edges.n_edges * length / 2


def test_everything_everywhere_is_the_model_and_nothing_is_not() -> None:
    model, prompts = tiny("gpt2"), make_prompts()
    scores = score_positions(model, prompts, by="position")
    circuit = PositionalCircuit(
        model.graph(), "position", scores.places, np.repeat(model.graph().valid[None], 6, 0)
    )
    assert evaluate_positions(model, prompts, circuit).faithfulness == pytest.approx(1)
    nothing = dataclasses.replace(circuit, kept=np.zeros_like(circuit.kept))
    assert evaluate_positions(model, prompts, nothing).faithfulness == pytest.approx(0)


def test_pruning_keeps_the_target_and_the_ranking_is_cut_without() -> None:
    model, task = acdc.load(INDUCTION[0]), acdc.tasks.load(INDUCTION[1], size=8)
    cut, pruned = (discover_positions(model, task, faithfulness=0.8, runs=runs) for runs in (0, 60))
    assert pruned.n_units <= cut.n_units
    assert (pruned.kept <= cut.kept).all()
    assert discover_positions(model, task, units=7).n_units == 7


def test_a_file_holds_all(tmp_path: Path) -> None:
    model, task = acdc.load(INDUCTION[0]), acdc.tasks.load(INDUCTION[1], size=4)
    circuit = discover_positions(model, task, units=9, method="eap")
    path = circuit.save(tmp_path / "c.json")
    again = PositionalCircuit.load(path)
    assert again.names() == circuit.names()
    assert (again.graph, again.places, again.method, again.seed) == (
        circuit.graph, circuit.places, circuit.method, circuit.seed,
    )  # fmt: skip
    with pytest.raises(AcdcError, match="exists"):
        circuit.save(path)
    record = json.loads(path.read_text())
    for change, message in (
        ({"format": "other"}, "its format is 'other'"),
        ({"version": "2.0"}, "its version is '2.0'"),
        ({"places": ["x"]}, "place by place"),
        ({"edges": [{"place": p, "edges": ["m0->x"]} for p in circuit.places]}, "unknown destination"),
        ({"graph": {"n_layers": 0, "n_heads": 1}}, "at least one layer"),
        ({"seed": None}, "no positional circuit"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(record | change))
        with pytest.raises(AcdcError, match=message):
            PositionalCircuit.load(tmp_path / "bad.json")
    other = acdc.Prompts.from_tokens([[1, 2, 3]], [[1, 3, 3]], [4], [5], spans=[{"x": [1]}])
    with pytest.raises(AcdcError, match="unknown span"):
        evaluate_positions(model, other, circuit)


def test_an_attribution_graph_has_the_prompts_tokens_and_where_each_is_read() -> None:
    graph = Graph(2, 1)
    kept = np.zeros((3, *graph.valid.shape), dtype=bool)
    for name, place in (
        ("input->a0.h0<v>", 0), ("a0.h0->a1.h0<k>", 1), ("input->a1.h0<q>", 2), ("input->a1.h0<v>", 1),
        ("a1.h0->logits", 2),
    ):  # fmt: skip
        kept[(place, *graph.edge(name))] = True
    circuit = PositionalCircuit(graph, "position", ("0 The", "1  cat", "2 \n"), kept, model="m", task="t")
    with pytest.warns(UserWarning, match="does not hold the places of an edge on the way back.*metric.*scores"):
        value = json.loads(circuit.attribution_graph())
    attribution_graph.check(value)
    assert value["metadata"]["prompt_tokens"] == ["The", " cat", "\n"]
    assert value["metadata"]["prompt"] == "The cat\n"
    at = {node["node_id"]: f"{node['clerp']}@{node['ctx_idx']}" for node in value["nodes"]}
    links = {(at[link["source"]], at[link["target"]]): link["weight"] for link in value["links"]}
    assert links == {
        ("input@0", "a0.h0@1"): 1, ("a0.h0@1", "a1.h0@2"): 1, ("input@2", "a1.h0@2"): 1, ("input@1", "a1.h0@2"): 1,
        ("a1.h0@2", "logits@2"): 1,
    }  # fmt: skip
    (head,) = (node for node in value["nodes"] if node["clerp"] == "a1.h0")
    traced = head["qk_tracing_results"]
    assert [at[source] for source, _ in traced["top_q_marginal_contributors"]] == ["input@2"]
    assert [at[source] for source, _ in traced["top_k_marginal_contributors"]] == ["a0.h0@1"]
    with pytest.warns(UserWarning, match="several positions: its edges are kept at all of them"):
        back = import_circuit(json.dumps(value), "circuit-tracer", graph)
    assert (back.edges == kept.any(axis=0)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "all"}, "edges at all positions at once are edges"),
        ({"by": "span"}, "name no spans"),
        ({"method": "acdc"}, "unknown method for edges at positions"),
        ({"units": 5, "faithfulness": 0.9}, "units or faithfulness, got both"),
        ({"faithfulness": 1.5}, "above 0 and at most 1"),
        ({"units": 0}, "a number of units of at least 1"),
        ({"runs": -1}, "a number of runs of at least 0"),
    ],
)
def test_what_cannot_be_found_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AcdcError, match=message):
        discover_positions(tiny("gpt2"), make_prompts(), **{"by": "position"} | options)


def test_on_the_command_line(command: Command) -> None:
    result = command("positions", "induction-2l", "--size", 8, "--units", 12, "-o", "c.json")
    assert result.status == 0
    assert "a0.h1<v>" in result.out
    assert PositionalCircuit.load("c.json").n_units == 12
    record = json.loads(command("positions", "induction-2l", "--size", 8, "--units", 12, "--json").out)
    assert record["units"] == PositionalCircuit.load("c.json").names()
    shown = command("export", "c.json", "--to", "circuit-tracer")
    assert shown.status == 0
    attribution_graph.check(json.loads(shown.out))
    refused = command("export", "c.json", "--to", "csv")
    assert refused.status == 2
    assert "which circuit-tracer holds, and csv does not" in refused.err
    again = command("positions", "induction-2l", "--size", 8, "--units", 12, "-o", "c.json")
    assert again.status == 2
    assert "exists" in again.err
    acdc.Circuit.from_names(acdc.load("induction-2l").graph(), ["input->a1.h1<v>", "a1.h1->logits"]).save("run")
    inside = json.loads(command("positions", "induction-2l", "--size", 8, "--inside", "run", "--json").out)
    assert {unit.split("@")[0] for unit in inside["units"]} <= {"input->a1.h1<v>", "a1.h1->logits"}
    bad = command("positions", "induction-2l", "--size", 8, "--spans", "IO")
    assert bad.status == 2
    assert "unknown span 'IO'" in bad.err.splitlines()[-1]
    assert "Example: acdc positions" in command("positions", "--help").out


def test_discover_goes_on_to_positions(command: Command) -> None:
    whole = command("discover", "tiny-tasks", "--task", "ioi", "--size", 32, "--method", "eap-ig", "--edges", 60,
                    "--metric", "kl", "--units", "position", "-o", "run", "--json")  # fmt: skip
    assert whole.status == 0, whole.err
    said = json.loads(whole.out)
    found = acdc.tracing.PositionalCircuit.load("run/positions.json")
    edges = acdc.Circuit.load("run")
    assert said["at_positions"]["units"] == found.names()
    assert found.by == "span"
    assert not (found.edges & ~edges.edges).any()
    assert found.n_units < edges.n_edges * len(found.places) / 2
    assert said["at_positions"]["kl"] < 1.5 * said["kl"]  # held out: on the prompts of the search it is no more
    assert command("view", "run/positions.json", "--no-open").status == 0


def test_positions_of_prompts_that_have_none_in_common_are_refused_first(command: Command) -> None:
    refused = command("discover", "tracr-hist", "--units", "position", "-o", "run")
    assert refused.status == 2
    assert len(refused.err.strip().splitlines()) == 1
    assert not Path("run").exists()
    with pytest.raises(AcdcError, match="discover_positions"):
        acdc.discover(acdc.load("tracr-hist"), acdc.tasks.load("tracr-hist"), units="position")  # type: ignore[arg-type]


def test_a_position_that_a_circuit_has_no_edge_at_is_refused() -> None:
    model = tiny("gpt2")
    short, long = (
        acdc.Prompts.from_tokens([[3, 1, 4, 1, 5][:n]], [[2, 1, 4, 1, 5][:n]], [[6]], [[7]]) for n in (4, 5)
    )
    data = Dataset("lengths", short, long, OUTCOMES["logit-difference"])
    with pytest.raises(
        AcdcError, match="these prompts have a position '4', at which a circuit of positions 0 to 3"
    ):
        discover_positions(model, data, by="position", units=5)
