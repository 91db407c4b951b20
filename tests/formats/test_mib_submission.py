"""MIB's submission folders: what is written is what is read, at MIB's sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attribution_graph
from acdc.circuit import Circuit, Provenance, Scores
from acdc.errors import AcdcError
from acdc.formats import export, export_folder, import_circuit
from acdc.formats.mib_submission import SHARES
from acdc.graph import Graph, units_of

GRAPH = Graph(4, 4, inputs="token")
MADE = Provenance(task="arc", model="meta-llama/Llama-3.1-8B", d_model=8)


def example(seed: int = 0, **made: Any) -> Circuit:
    values = np.random.default_rng(seed).normal(size=GRAPH.valid.shape)
    return Scores(GRAPH, values, "eap-ig", MADE.having(**made)).top(20)


def written(folder: Path, circuit: Circuit, format: str) -> Path:
    name, files = export_folder(circuit, format)
    (folder / name).mkdir()
    for file, text in files.items():
        (folder / name / file).write_text(text, "utf-8")
    return folder / name


def test_importances_come_back(tmp_path: Path) -> None:
    folder = written(tmp_path, example(), "mib-submission")
    assert folder.name == "arc-easy_llama3"
    assert [path.name for path in folder.iterdir()] == ["importances.json"]
    back = import_circuit(folder, "mib-submission")
    assert back == import_circuit(folder.parent, "mib-submission")
    assert back.scores is not None
    np.testing.assert_array_equal(back.scores.values, example().scores.values)  # type: ignore[union-attr]


def test_nine_circuits_are_of_at_most_their_shares(tmp_path: Path) -> None:
    folder = written(tmp_path, example(), "mib-circuits")
    assert len(list(folder.iterdir())) == len(SHARES)
    largest = None
    for share in SHARES:
        value = json.loads((folder / f"{share:g}.json").read_text())
        kept = {name for name, edge in value["edges"].items() if edge["in_graph"]}
        assert len(kept) <= share * GRAPH.n_edges
        largest = kept
    with pytest.warns(UserWarning, match=r"of the 9 circuits in .* the largest is taken, 0.5.json of 239 edges"):
        back = import_circuit(folder, "mib-circuits")
    assert set(back.edge_names()) == largest
    assert back.scores is not None
    assert back.scores.values[back.edges].min() >= 1


def test_circuits_of_nodes_are_of_at_most_their_shares_of_the_edges() -> None:
    nodes = units_of(GRAPH, "node")
    scored = np.random.default_rng(0).normal(size=nodes.shape)
    scored[: GRAPH.n_inputs] = 9.0  # without an input nothing connects
    values = np.where(GRAPH.valid, scored[None, :], 0.0)
    scores = Scores(GRAPH, values, "nap", MADE, unit="node")
    _, files = export_folder(scores.top(5), "mib-circuits")
    before = 0
    for share in SHARES:
        edges = json.loads(files[f"{share:g}.json"])["edges"].values()
        kept = sum(edge["in_graph"] for edge in edges)
        assert before <= kept <= share * GRAPH.n_edges
        before = kept
    assert before > 0.2 * GRAPH.n_edges


@pytest.mark.parametrize(("task", "model"), [("ioi", "gpt2"), ("my_task", "some_model"), ("mine.jsonl", "gpt2")])
def test_names_part_task_and_model_by_the_only_underscore(task: str, model: str) -> None:
    name, _ = export_folder(example(task=task, model=model), "mib-submission")
    assert name == f"{task.replace('_', '-').removesuffix('.jsonl')}_{model.replace('_', '-')}"


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AcdcError, match="does not know them"):
        export_folder(example(task=""), "mib-submission")
    bare = Circuit(GRAPH, GRAPH.valid, provenance=MADE)
    for format in ("mib-submission", "mib-circuits"):
        with pytest.raises(AcdcError, match="has none: export it to mib"):
            export_folder(bare, format)
    with pytest.raises(AcdcError, match="expected a folder"):
        import_circuit(tmp_path / "missing", "mib-submission")
    with pytest.raises(AcdcError, match="has neither"):
        import_circuit(tmp_path, "mib-submission")


def test_neurons_that_are_left_out_are_warned_of() -> None:
    value = json.loads(export(example(), "mib"))
    value["nodes"]["m0"]["neurons"] = [True, False]
    with pytest.warns(UserWarning, match="single neurons"):
        import_circuit(json.dumps(value), "mib")


# ---- the attribution-graph schema of Neuronpedia ----------------------------------------------------------------


def kept_everywhere(graph: Graph) -> Circuit:
    return Circuit(graph, graph.valid)


@pytest.mark.filterwarnings("ignore:the format circuit-tracer does not hold")
@pytest.mark.parametrize(
    "circuit",
    [
        example(),
        kept_everywhere(Graph(1, 2, inputs="split")),
        kept_everywhere(Graph(2, 4, n_kv_heads=2, group_kv=True)),
        kept_everywhere(Graph(2, 2, mixers=(1,))),
        Circuit(Graph(1, 1), Graph(1, 1).valid & False),
    ],
)
def test_circuit_tracer_files_are_of_the_published_schema(circuit: Circuit) -> None:
    value = json.loads(export(circuit, "circuit-tracer"))
    attribution_graph.check(value)
    assert value["qParams"]["linkType"] == "both"
    assert {"logits"} <= {node["clerp"] for node in value["nodes"]}


@pytest.mark.filterwarnings("ignore:the format circuit-tracer does not hold")
def test_what_queries_and_keys_read_stands_beside_the_links() -> None:
    circuit = example()
    value = json.loads(export(circuit, "circuit-tracer"))
    names = {node["node_id"]: node["clerp"] for node in value["nodes"]}
    found = {}
    for node in value["nodes"]:
        traced = node.get("qk_tracing_results", {})
        for port in ("q", "k"):
            for source, weight in traced.get(f"top_{port}_marginal_contributors", []):
                found[f"{names[source]}->{node['clerp']}<{port}>"] = weight
    scores = circuit.edge_scores()
    assert found == {name: score for name, score in scores.items() if name.endswith(("<q>", "<k>"))}
    assert found


@pytest.mark.filterwarnings("ignore:the format circuit-tracer does not hold")
def test_supernodes_are_roles_and_of_the_other_heads_layers() -> None:
    circuit = kept_everywhere(Graph(2, 3))
    value = json.loads(export(circuit, "circuit-tracer", roles={"mover": ("a0.h1", "a1.h0"), "alone": ("a1.h2",)}))
    attribution_graph.check(value)
    names = {node["node_id"]: node["clerp"] for node in value["nodes"]}
    groups = {name: {names[node] for node in nodes} for name, *nodes in value["qParams"]["supernodes"]}
    assert groups == {
        "mover": {"a0.h1", "a1.h0"}, "alone": {"a1.h2"}, "heads of layer 0": {"a0.h0", "a0.h2"},
    }  # fmt: skip
    assert set(value["qParams"]["pinnedIds"]) == names.keys()
    with pytest.raises(AcdcError, match="csv has no groups of components; circuit-tracer has"):
        export(circuit, "csv", roles={"mover": ("a0.h1",)})
