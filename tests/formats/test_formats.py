"""What is exported can be imported again; files of peers are read as they write them; bad files are refused."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import re
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc.circuit import Circuit, Provenance, Scores
from acdc.circuit.constants import Constants
from acdc.errors import AcdcError, UnknownGraphError
from acdc.formats import FORMATS, export, import_circuit
from acdc.graph import Graph
from strategies import circuits

WHOLE = ("mib", "csv")  # formats that hold every edge
NETWORKS = ("node-link", "graphml")


def example(graph: Graph = Graph(2, 2)) -> Circuit:  # noqa: B008
    values = np.random.default_rng(0).normal(size=graph.valid.shape)
    return Scores(graph, values, "eap", Provenance(task="ioi", method="eap")).top(25)


def check_same(back: Circuit, circuit: Circuit, *, everywhere: bool) -> None:
    assert back == circuit
    if circuit.scores is None:
        assert back.scores is None
    elif everywhere or circuit.n_edges:
        where = circuit.graph.valid if everywhere else circuit.edges
        assert (back.scores.values[where] == circuit.scores.values[where]).all()


@settings(max_examples=40)
@given(circuits(), st.sampled_from(NETWORKS))
def test_networks_round_trip(circuit: Circuit, format: str) -> None:
    back = import_circuit(export(circuit, format), format)
    check_same(back, circuit, everywhere=False)
    assert back.provenance == circuit.provenance


@settings(max_examples=20)
@given(circuits(qkv="split", group_kv=False), st.sampled_from(["single", "token"]))
def test_mib_round_trips(circuit: Circuit, inputs: str) -> None:
    if circuit.graph.inputs == "split":
        with pytest.raises(AcdcError, match="know one graph only"):
            export(circuit, "mib")
        return
    back = import_circuit(export(circuit, "mib"), "mib")
    check_same(back, circuit, everywhere=True)
    assert back.provenance == circuit.provenance
    if circuit.scores is not None and circuit.scores.nodes is not None:
        assert (back.scores.nodes == circuit.scores.nodes).all()


@settings(max_examples=20)
@given(circuits())
def test_csv_round_trips(circuit: Circuit) -> None:
    text = export(circuit, "csv")
    check_same(import_circuit(text, "csv", circuit.graph), circuit, everywhere=True)
    plain = "".join(",".join(line.split(",")[:4]) + "\n" for line in text.splitlines())
    inferred = import_circuit(plain, "csv").graph
    assert inferred.destinations == circuit.graph.destinations
    assert (inferred.valid == circuit.graph.valid).all()


@settings(max_examples=60)
@given(circuits(), st.sampled_from([name for name, record in FORMATS.items() if record.read and record.write]))
def test_every_option_of_the_graph_comes_back_and_what_does_not_is_listed(circuit: Circuit, format: str) -> None:
    if format == "mib" and (circuit.graph.qkv, circuit.graph.group_kv, circuit.graph.inputs == "split") != (
        "split", False, False,
    ):  # fmt: skip
        with pytest.raises(AcdcError, match="know one graph only"):
            export(circuit, format)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        back = import_circuit(export(circuit, format), format)
    assert (back.graph, back.unit) == (circuit.graph, circuit.unit)
    assert back == circuit
    assert back.provenance == circuit.provenance
    said = " ".join(str(warning.message) for warning in caught)
    if circuit.scores is not None and circuit.scores.values.any():
        same = back.scores is not None and (back.scores.values == circuit.scores.values).all()
        assert same or "scores of edges that are not kept" in said
        nodes = None if back.scores is None else back.scores.nodes
        assert nodes is not None or circuit.scores.nodes is None or "node scores" in said


def attribution(circuit: Circuit) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(export(circuit, "circuit-tracer"))
    return value


@pytest.mark.filterwarnings("ignore:the format circuit-tracer does not hold")
def test_an_attribution_graph_is_read_as_it_was_edited() -> None:
    """By links and ids: what was deleted in a page is gone, and labels are nobody's business."""
    circuit = example()
    value = attribution(circuit)
    clerps = {node["node_id"]: node["clerp"] for node in value["nodes"]}
    gone = value["links"].pop(3)
    for node in value["nodes"]:
        node["clerp"] = "a label"
    back = import_circuit(json.dumps(value), "circuit-tracer")
    pair = (clerps[gone["source"]], clerps[gone["target"]])
    left = {
        name: score
        for name, score in circuit.edge_scores().items()
        if (name.partition("->")[0], name.partition("->")[2].partition("<")[0]) != pair
    }
    assert 0 < len(left) < circuit.n_edges
    assert back.edge_scores() == left


@pytest.mark.filterwarnings("ignore:the format circuit-tracer does not hold")
def test_an_attribution_graph_without_our_fields_is_of_the_graph_that_is_given() -> None:
    circuit = example()
    value = attribution(circuit)
    del value["metadata"]["acdc"]
    for node in value["nodes"]:
        node.pop("top_v_marginal_contributors", None)
    text = json.dumps(value)
    with pytest.raises(UnknownGraphError):
        import_circuit(text, "circuit-tracer")
    back = import_circuit(text, "circuit-tracer", circuit.graph)
    assert back == circuit
    assert back.edge_scores() == pytest.approx(circuit.edge_scores())
    value["nodes"][1]["feature_type"] = "cross layer transcoder"
    with pytest.raises(AcdcError, match=r"is of features .'cross layer transcoder'., not of heads and MLPs"):
        import_circuit(json.dumps(value), "circuit-tracer")


@pytest.mark.filterwarnings("ignore:the format circuit-tracer does not hold")
@pytest.mark.parametrize("change", ["weight", "lists", "nan"])
def test_links_that_a_heads_lists_do_not_have_are_refused(change: str) -> None:
    value = attribution(example())
    into = {node["node_id"] for node in value["nodes"] if "top_v_marginal_contributors" in node}
    read = next(link for link in value["links"] if link["target"] in into)
    if change == "lists":
        (node,) = (node for node in value["nodes"] if node["node_id"] == read["target"])
        traced = node.get("qk_tracing_results", {})
        for rows in (
            node["top_v_marginal_contributors"],
            *(traced.get(f"top_{x}_marginal_contributors", []) for x in "qk"),
        ):
            rows[:] = [row for row in rows if row[0] != read["source"]]
    else:
        read["weight"] = 1000.0 if change == "weight" else "nan"
    with pytest.raises(AcdcError, match="what queries, keys and values read have"):
        import_circuit(json.dumps(value), "circuit-tracer")


@pytest.mark.parametrize("format", [name for name, record in FORMATS.items() if record.read and record.write])
def test_a_circuit_of_nodes_comes_back_as_one(format: str) -> None:
    """Cut to another size, it is that of the best nodes; only the scores of those left out may be missing."""
    graph = Graph(2, 2)
    nodes = np.random.default_rng(0).normal(size=graph.n_sources)
    values = np.where(graph.valid, nodes, 0.0)
    scores = Scores(graph, values, "eap", Provenance(task="ioi", method="eap"), nodes, unit="node")
    circuit = scores.top(4)
    back = import_circuit(export(circuit, format), format)
    assert (back, back.unit, back.n_units) == (circuit, "node", 4)
    assert back.scores.unit == "node"
    kept = circuit.edges.any(axis=0)
    assert (back.scores.nodes[kept] == nodes[kept]).all()
    assert (back.scores.nodes == nodes).all() == (format in WHOLE)
    assert (back.scores.values == graph.valid * back.scores.nodes).all()
    assert (back.scores.top(3), back.scores.top(3).unit) == (scores.top(3), "node")
    unknown = re.sub(r"(units\W+)node", r"\1nodes", export(circuit, format))
    with pytest.raises(AcdcError, match=r"the .*: .*did you mean node"):
        import_circuit(unknown, format)


@pytest.mark.parametrize("format", WHOLE)
def test_arrays_that_do_not_come_back_are_listed(format: str) -> None:
    circuit = example()
    some, front = np.abs(circuit.scores.values), np.ones((1, 2))
    scores = dataclasses.replace(circuit.scores, absolute=some, rms=some, removal=some, order=some, front=front)
    with pytest.warns(UserWarning, match="mean absolute.*root mean square.*removing.*order.*front"):
        export(dataclasses.replace(circuit, scores=scores), format)


def test_a_csv_of_ours_that_was_cut_short_is_refused() -> None:
    text = export(example(), "csv")
    for lines in (text.splitlines()[:20], text.splitlines()[:-1]):
        with pytest.raises(AcdcError, match=r"lists \d+ of \d+ edges.* it was cut short"):
            import_circuit("\n".join(lines), "csv")


def test_csv_lists_every_edge() -> None:
    circuit = example()
    rows = list(csv.DictReader(io.StringIO(export(circuit, "csv"))))
    assert list(rows[0]) == ["source", "destination", "score", "kept", "acdc"]
    assert not any(row["acdc"] for row in rows[1:])
    assert len(rows) == circuit.graph.n_edges
    kept = {f"{row['source']}->{row['destination']}" for row in rows if row["kept"] == "true"}
    assert kept == set(circuit.edge_names())


def test_mib_json_is_what_their_code_reads() -> None:
    circuit = example(Graph(2, 2, inputs="token"))
    value = json.loads(export(circuit, "mib"))
    assert value["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 0}
    assert list(value["nodes"]) == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits"]
    assert set(value["edges"]) == set(circuit.graph.edge_names(circuit.graph.valid))
    assert value["edges"]["input->a0.h1<q>"].keys() == {"score", "in_graph"}


def test_mib_json_as_their_code_writes_it() -> None:
    names = Graph(1, 1).edge_names(Graph(1, 1).valid)
    value = {
        "cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": False, "d_model": 8},
        "nodes": {name: {"in_graph": True, "score": float("nan")} for name in ("input", "a0.h0", "m0", "logits")},
        "edges": {name: {"score": -0.5, "in_graph": name == "input->m0"} for name in names},
    }
    circuit = import_circuit(json.dumps(value), "mib")
    assert circuit.graph == Graph(1, 1, inputs="token")
    assert circuit.edge_names() == ["input->m0"]
    assert circuit.scores.values[circuit.graph.valid].tolist() == [-0.5] * len(names)
    assert circuit.scores.nodes is None
    assert import_circuit(json.dumps(value), "mib", Graph(1, 1)).graph == Graph(1, 1)
    with pytest.raises(AcdcError, match="not of the"):
        import_circuit(json.dumps(value), "mib", Graph(2, 1))
    value["nodes"] = {"input": True, "m0": False}  # an older version of theirs
    assert import_circuit(json.dumps(value), "mib") == circuit


def pt_file(**changes: object) -> bytes:
    graph = Graph(2, 2)
    value = {
        "cfg": {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8},
        "src_nodes": list(graph.sources),
        "dst_nodes": list(graph.destinations),
        "edges_scores": torch.arange(7 * 15, dtype=torch.float32).reshape(7, 15),
        "edges_in_graph": torch.from_numpy(graph.valid.T.copy()),
        "nodes_in_graph": torch.ones(7, dtype=torch.bool),
    } | changes
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_pt_files(tmp_path: Path) -> None:
    path = tmp_path / "scores.pt"
    path.write_bytes(pt_file())
    circuit = import_circuit(path, "eap-pt")
    assert circuit.graph == Graph(2, 2, inputs="token")
    assert circuit.n_edges == circuit.graph.n_edges
    d, s = circuit.graph.edge("a0.h1->a1.h0<k>")
    assert circuit.scores.values[d, s] == s * 15 + d


def neurons(*gone: tuple[int, int]) -> torch.Tensor:
    kept = torch.ones(7, 8, dtype=torch.bool)
    for source, neuron in gone:
        kept[source, neuron] = False
    return kept


def test_neurons_that_a_pt_file_leaves_out_are_said() -> None:
    with pytest.warns(UserWarning, match="their nodes are whole"):
        import_circuit(pt_file(neurons_in_graph=neurons((2, 3))), "eap-pt")
    whole = import_circuit(pt_file(neurons_in_graph=neurons()), "eap-pt")
    no_edge = torch.from_numpy(Graph(2, 2).valid.T.copy())
    no_edge[2] = False
    gone = import_circuit(pt_file(neurons_in_graph=neurons((2, 3)), edges_in_graph=no_edge), "eap-pt")
    assert whole.n_edges - gone.n_edges == int(Graph(2, 2).valid[:, 2].sum())


def test_scores_of_nodes_alone_rank_no_edges() -> None:
    nodes = torch.arange(7.0)
    nodes[0] = torch.nan  # unscored
    with pytest.warns(UserWarning, match="of nodes and none of edges"):
        circuit = import_circuit(pt_file(edges_scores=torch.zeros(7, 15), nodes_scores=nodes), "eap-pt")
    assert circuit.scores is None
    scored = import_circuit(pt_file(nodes_scores=torch.arange(7.0).requires_grad_()), "eap-pt").scores
    assert scored is not None
    assert scored.nodes is not None
    assert scored.nodes.tolist() == list(range(7))
    value = json.loads(export(dataclasses.replace(example(), scores=None), "mib"))
    for i, node in enumerate(value["nodes"].values()):
        node["score"] = float(i)
    value.pop("acdc")
    with pytest.warns(UserWarning, match="of nodes and none of edges"):
        assert import_circuit(json.dumps(value), "mib", Graph(2, 2)).scores is None


def test_an_edge_that_is_listed_twice() -> None:
    value = json.loads(export(example(), "circuit-tracer"))
    value["links"].append(value["links"][0] | {"weight": 0.5})
    with pytest.raises(AcdcError, match="is listed twice"):
        import_circuit(json.dumps(value), "circuit-tracer")
    value = json.loads(export(example(), "node-link"))
    edges = next(part for key, part in value.items() if key in ("links", "edges"))
    edge = next(edge for edge in edges if not edge.get("internal"))
    edges.append(edge | {"score": -1.0})
    with pytest.raises(AcdcError, match="is listed twice"):
        import_circuit(json.dumps(value), "node-link")


class Malicious:
    def __reduce__(self) -> tuple:
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no tensors", "damaged, or holds more than tensors"),
        (pt_file(extra=Malicious()), "damaged, or holds more than tensors"),
        (pt_file(edges_scores=torch.zeros(15, 7)), r"edges_scores of shape \[7, 15\] \(sources, destinations\)"),
        (pt_file(edges_in_graph=3), "got int"),
        (pt_file(edges_in_graph=torch.ones(7, 15).to_sparse()), "got a tensor of sparse_coo float32"),
        (pt_file(edges_scores=torch.ones(7, 15, dtype=torch.complex64)), "got a tensor of strided complex64"),
        (pt_file(src_nodes=5), "src_nodes are not those of 2 layers"),
        (pt_file(cfg={"n_layers": 3, "n_heads": 2}), "src_nodes are not those of 3 layers"),
        (pt_file(cfg={"n_layers": None}), "graph options are wrong"),
        (pt_file(edges_scores=torch.full((7, 15), torch.nan)), "NaN"),
    ],
)
def test_bad_pt_files(content: bytes, words: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(AcdcError, match=words):
        import_circuit(content, "eap-pt")
    assert "code ran" not in capsys.readouterr().out


def test_networkx_reads_our_files(tmp_path: Path) -> None:
    circuit = example()
    expected = circuit.to_networkx()
    linked = nx.node_link_graph(json.loads(export(circuit, "node-link")), edges="links")
    path = tmp_path / "circuit.graphml"
    path.write_text(export(circuit, "graphml"))
    for network in (linked, nx.read_graphml(path)):
        assert dict(network.nodes(data=True)) == dict(expected.nodes(data=True))
        assert list(network.edges(data=True)) == list(expected.edges(data=True))


def test_dot_lists_nodes_and_edges_and_is_not_read() -> None:
    circuit = example()
    with pytest.warns(UserWarning, match="does not hold the way back"):
        text = export(circuit, "dot")
    lines = text.splitlines()
    assert sum(" -> " in line and 'internal="true"' not in line for line in lines) == circuit.n_edges
    for name, score in circuit.edge_scores().items():
        source, _, destination = name.partition("->")
        assert any(f'"{source}" -> "{destination}"' in line and f'score="{score}"' in line for line in lines)
    with pytest.raises(
        AcdcError,
        match=r"'dot' but not read from it: .*export it to .*: mib, node-link, graphml, csv, circuit-tracer$",
    ):
        import_circuit(text, "dot")


def test_circuit_tracer_links() -> None:
    value = json.loads(export(example(), "circuit-tracer"))
    ids = [node["node_id"] for node in value["nodes"]]
    assert len(set(ids)) == len(ids)
    assert {link["source"] for link in value["links"]} | {link["target"] for link in value["links"]} <= set(ids)
    clerps = {node["node_id"]: node["clerp"] for node in value["nodes"]}
    weights = {(clerps[link["source"]], clerps[link["target"]]): link["weight"] for link in value["links"]}
    assert len(weights) == len(value["links"])
    total: dict[tuple[str, str], float] = {}
    for name, score in example().edge_scores().items():
        source, _, destination = name.partition("->")
        pair = (source, destination.partition("<")[0])
        total[pair] = total.get(pair, 0) + score
    assert weights == total


HOSTILE = 'x"}]\\"\n// --> ]]> <script>alert(1)</script> <!DOCTYPE &lt; \x00\x1b \u202e 🙂 ' + "y" * 300


@pytest.mark.parametrize("format", [name for name, record in FORMATS.items() if record.write])
def test_hostile_names_stay_text(format: str) -> None:
    circuit = Circuit(Graph(1, 1), Graph(1, 1).valid, provenance=Provenance(task=HOSTILE, model=HOSTILE))
    text = export(circuit, format)
    if format == "graphml":
        ElementTree.fromstring(text)
    if FORMATS[format].read:
        back = import_circuit(text, format)
        assert back == circuit
        assert back.provenance == circuit.provenance


@pytest.mark.parametrize("format", [name for name, record in FORMATS.items() if record.read and record.write])
@pytest.mark.parametrize("graph", [Graph(1, 1), Graph(2, 2, mlp=False)])
def test_empty_circuits(format: str, graph: Graph) -> None:
    circuit = Circuit(graph, np.zeros_like(graph.valid))
    assert import_circuit(export(circuit, format), format) == circuit


@pytest.mark.parametrize("format", [name for name, record in FORMATS.items() if record.read])
@given(data=st.data())
def test_damaged_files_are_refused_or_read(format: str, data: st.DataObject) -> None:
    """Whatever bytes come, the answer is a circuit or one AcdcError."""
    content = export(example(), format).encode() if FORMATS[format].write else pt_file()
    position = data.draw(st.integers(0, len(content)))
    middle = data.draw(st.sampled_from([b"", b"}", b'"', b"<", b"\xff", b"NaN", b"0", b"\n"]))
    skip = data.draw(st.sampled_from([0, 1, 7, 10**6]))
    with contextlib.suppress(AcdcError):
        import_circuit(content[:position] + middle + content[position + skip :], format)


@pytest.mark.parametrize(
    ("format", "text", "words"),
    [
        ("mib", "{", "not valid JSON"),
        ("mib", "{}", "needs the objects"),
        ("mib", '{"cfg": {"n_layers": 1, "n_heads": 1}, "nodes": {}, "edges": {"m0->logits": {}}}', "'in_graph'"),
        ("node-link", '{"links": 3}', "needs a list"),
        ("circuit-tracer", '{"links": []}', "needs the lists of objects 'nodes' and 'links'"),
        ("circuit-tracer", '{"links": [], "nodes": []}', "does not say which graph"),
        (
            "circuit-tracer",
            '{"nodes": [{"node_id": "0_0_0", "feature_type": "logit"}, {"node_id": "9_9_0", "feature_type": "mlp"}], '
            '"links": [], "metadata": {"acdc": {"graph": {"n_layers": 1, "n_heads": 1}}}}',
            "'9_9_0' is no component",
        ),
        (
            "circuit-tracer",
            '{"nodes": [], "links": [{"source": "a", "target": "b", "weight": 1}], '
            '"metadata": {"acdc": {"graph": {"n_layers": 1, "n_heads": 1}}}}',
            "not both nodes",
        ),
        (
            "circuit-tracer",
            '{"nodes": [{"node_id": "E_0_0", "feature_type": "embedding"}], '
            '"links": [{"source": "E_0_0", "target": "E_0_0", "weight": 1}], '
            '"metadata": {"acdc": {"graph": {"n_layers": 1, "n_heads": 1}}}}',
            "input, which reads nothing",
        ),
        ("node-link", '{"links": []}', "does not say which graph"),
        ("graphml", "<graphml", "cannot be read"),
        ("graphml", "<!DOCTYPE x [<!ENTITY a 'b'>]><graphml/>", "document type"),
        ("graphml", "<graphml>" + "<a>" * 1000, "inside one another"),
        (
            "mib",
            '{"cfg": {"n_layers": 1, "n_heads": 1}, "nodes": {}, "edges": {"m0->logits": '
            f'{{"in_graph": true, "score": {10**400}}}}}}}',
            "expected a number",
        ),
        ("csv", "source,target\n", "needs the columns"),
        ("csv", "source,destination,score,kept\ninput,logits,1,maybe\n", "line 2 of the CSV"),
        ("csv", "source,destination,score,kept\ninput,logits,x,true\n", "expected a number, got 'x'"),
        ("csv", "source,destination,score,kept\ninput,m0,1,true\n", "does not list every edge"),
    ],
)
def test_bad_files(format: str, text: str, words: str) -> None:
    with pytest.raises(AcdcError, match=words):
        import_circuit(text, format)


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(AcdcError, match="did you mean graphml"):
        export(example(), "graphm")
    with pytest.raises(AcdcError, match="not written"):
        export(example(), "eap-pt")
    with pytest.raises(AcdcError, match="not read"):
        import_circuit("{}", "dot")
    with pytest.raises(AcdcError, match="cannot read"):
        import_circuit(str(tmp_path / "missing.json"), "mib")


@pytest.mark.parametrize("name", ["mib", "csv", "node-link", "graphml", "circuit-tracer"])
def test_what_signs_are_and_that_there_are_scores_come_back(name: str) -> None:
    graph = Graph(n_layers=1, n_heads=2)
    for value in (1.0, 0.0):
        scores = Scores(graph, np.where(graph.valid, value, 0.0), signs="none")
        found = import_circuit(export(Circuit(graph, graph.valid, scores), name), name)
        assert found.scores is not None
        assert found.scores.signs == "none"
        np.testing.assert_array_equal(found.scores.values, scores.values)
    assert import_circuit(export(Circuit(graph, graph.valid), name), name).scores is None


def test_constants_of_optimal_ablation_are_said_to_be_left_out() -> None:
    graph = Graph(n_layers=1, n_heads=2)
    constants = Constants((np.ones(3),), (np.ones((2, 3)), np.ones((1, 3))))
    scores = Scores(graph, graph.valid.astype(float), constants=constants)
    with pytest.warns(UserWarning, match="what removed edges carry under optimal ablation"):
        export(Circuit(graph, graph.valid, scores), "mib")
