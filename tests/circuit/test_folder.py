"""A saved circuit comes back as it was; a damaged or foreign one is refused with the reason."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import acdc
from acdc.circuit import Circuit, Provenance, Scores
from acdc.errors import AcdcError
from acdc.graph import Graph
from strategies import circuits

GRAPH = Graph(2, 2)
OF_1_1 = {"run": 4, "grouped": 12, "merged": 6}
"""Folders written by the code of version 1.1, and their edges."""


@pytest.fixture
def circuit() -> Circuit:
    random = np.random.default_rng(0)
    provenance = Provenance(model="tiny", task="ioi", method="eap", measured={"faithfulness": 0.91})
    values = random.normal(size=GRAPH.valid.shape)
    return Scores(GRAPH, values, "eap", provenance, random.normal(size=GRAPH.n_sources)).top(20)


def changed(folder: Path, **changes: object) -> None:
    """Edit fields of the saved JSON, the digest with them; `None` removes a field."""
    path = folder / "circuit.json"
    value = json.loads(path.read_text()) | changes
    value = {key: item for key, item in value.items() if item is not None or key == "scores"}
    rest = {key: item for key, item in value.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps(rest | {"sha256": digest}))


@settings(max_examples=40)
@given(circuits())
def test_round_trip(circuit: Circuit) -> None:
    with tempfile.TemporaryDirectory() as folder:
        circuit.save(Path(folder) / "run")
        back = Circuit.load(Path(folder) / "run")
        assert sorted(p.name for p in (Path(folder) / "run").iterdir()) == (
            ["circuit.json"] if circuit.scores is None else ["circuit.json", "scores.safetensors"]
        )
    assert back == circuit
    assert back.provenance == circuit.provenance
    assert (back.scores is None) == (circuit.scores is None)
    if circuit.scores is not None:
        assert back.scores.values.tobytes() == circuit.scores.values.tobytes()
        assert back.scores.method == circuit.scores.method
        assert back.scores.provenance == circuit.scores.provenance
        assert (back.scores.nodes is None) == (circuit.scores.nodes is None)


def test_the_json_says_it_all_in_names(circuit: Circuit, tmp_path: Path) -> None:
    circuit.save(tmp_path)
    value = json.loads((tmp_path / "circuit.json").read_text())
    assert value["edges"] == circuit.edge_scores()
    assert list(value["nodes"]) == circuit.nodes()
    assert value["nodes"]["input"] == circuit.scores.nodes[0]
    assert value["nodes"]["logits"] is None
    assert value["provenance"]["measured"] == {"faithfulness": 0.91}
    assert value["graph"]["n_layers"] == 2


def test_loading_by_the_path_of_the_json(circuit: Circuit, tmp_path: Path) -> None:
    assert Circuit.load(circuit.save(tmp_path / "a" / "b") / "circuit.json") == circuit


def test_an_existing_circuit_is_not_overwritten(circuit: Circuit, tmp_path: Path) -> None:
    circuit.save(tmp_path)
    other = Circuit.from_names(GRAPH, ["input->logits"])
    with pytest.raises(AcdcError, match="already holds a circuit"):
        other.save(tmp_path)
    assert Circuit.load(tmp_path) == circuit
    (tmp_path / "picture.svg").touch()
    other.save(tmp_path, force=True)
    assert Circuit.load(tmp_path) == other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circuit.json", "picture.svg"]


def test_a_failed_save_leaves_nothing_half_written(
    circuit: Circuit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    circuit.save(tmp_path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(AcdcError, match="disk full"):
        Circuit.from_names(GRAPH, ["input->logits"]).save(tmp_path, force=True)
    monkeypatch.undo()
    assert Circuit.load(tmp_path) == circuit
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_in_place_of_the_folder(circuit: Circuit, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AcdcError, match="is a file; expected a folder"):
        circuit.save(tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "2.0"}, "has format version '2.0'; this version of acdc reads 1.x"),
        ({"version": None}, "has format version"),
        ({"format": "else"}, "is not a circuit"),
        ({"edges": None}, "edges: field required"),
        ({"edges": {"m1->m0": None}}, "m1 is not executed before m0"),
        ({"edges": {"input->m7": None}}, "unknown destination 'm7'"),
        ({"edges": {"input->m1": "big"}}, r"edges.input->m1: .*valid number.*got 'big'"),
        ({"egdes": {}}, "egdes: extra inputs are not permitted"),
        ({"graph": {"n_layers": 2}}, "n_heads: field required"),
        ({"graph": {"n_layers": 2, "n_heads": "2"}}, "n_heads: input should be a valid integer"),
        ({"graph": {"n_layers": 2, "n_heads": 2, "n_legs": 4}}, "n_legs"),
        ({"graph": {"n_layers": 2, "n_heads": 2, "qkv": "merge"}}, "qkv: input should be 'split' or 'merged'"),
        ({"graph": {"n_layers": 2_000_000, "n_heads": 2}}, "too large to be true.*1.1e[+]14 bytes"),
        ({"graph": {"n_layers": 10**900, "n_heads": 10**900}}, "too large to be true"),
        ({"graph": {"n_layers": 0, "n_heads": 2}}, "at least one layer"),
        ({"version": 1.0}, "has format version 1.0"),
        ({"version": "¹.0"}, "has format version '¹.0'"),
        ({"version": "1.0 "}, "has format version"),
        ({"version": ["1.0"]}, "has format version"),
        ({"edges": {"input->m1": True}}, "edges.input->m1: .*valid number.*got True"),
        ({"edges": {"input->m1": "1.5"}}, "edges.input->m1: .*valid number.*got '1.5'"),
        ({"edges": {"input->m1": 99.0}}, r"the score of 'input->m1' is 99.0, and scores.safetensors says"),
        ({"edges": {"input->m1": None}}, r"the score of 'input->m1' is None, and scores.safetensors says"),
        ({"nodes": {"m9": None}}, "unknown node of the circuit 'm9'"),
        ({"nodes": {}}, "not among the nodes"),
        ({"scores": {"method": "eap", "provenance": {}, "sha256": "0"}}, "belongs to another circuit"),
        ({"graph": {"n_layers": 3, "n_heads": 2}}, "expected scores of shape"),
    ],
)
def test_damaged_json(circuit: Circuit, tmp_path: Path, changes: dict, words: str) -> None:
    circuit.save(tmp_path)
    changed(tmp_path, **changes)
    with pytest.raises(AcdcError, match=words) as caught:
        Circuit.load(tmp_path)
    assert "circuit.json" in str(caught.value)


def test_a_file_that_was_edited_is_noticed(circuit: Circuit, tmp_path: Path) -> None:
    """Order and layout are nobody's edit."""
    path = circuit.save(tmp_path) / "circuit.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(value.items()))))
    assert Circuit.load(tmp_path).provenance == circuit.provenance
    value["provenance"]["measured"]["faithfulness"] = 0.99
    path.write_text(json.dumps(value))
    with pytest.raises(AcdcError, match="was changed after it was written"):
        Circuit.load(tmp_path)
    del value["sha256"]
    path.write_text(json.dumps(value))
    with pytest.raises(AcdcError, match="sha256: field required"):
        Circuit.load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"edges": {', '"edges": {"input->m0": 1e999,', "1e999 is too large"),
        ('"edges": {', '"edges": {}, "edges": {', "the key 'edges' occurs twice"),
        ('"edges": {', '"edges": {"input->m0": NaN,', "NaN is not JSON"),
    ],
)
def test_text_that_is_no_strict_json(circuit: Circuit, tmp_path: Path, old: str, new: str, words: str) -> None:
    path = circuit.save(tmp_path) / "circuit.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(AcdcError, match=words):
        Circuit.load(tmp_path)


def test_scores_for_edges_of_a_file_without_scores(tmp_path: Path) -> None:
    Circuit.from_names(GRAPH, ["input->logits"]).save(tmp_path)
    changed(tmp_path, edges={"input->logits": 2.5})
    with pytest.raises(AcdcError, match=r"'input->logits' is 2\.5, but there are no scores"):
        Circuit.load(tmp_path)


def test_scores_larger_than_the_graph_can_have_are_not_read(circuit: Circuit, tmp_path: Path) -> None:
    path = circuit.save(tmp_path) / "scores.safetensors"
    with open(path, "r+b") as file:
        file.truncate(10**12)  # takes no room on the disk
    with pytest.raises(AcdcError, match=r"1,000,000,000,000 bytes, and at most"):
        Circuit.load(tmp_path)


def test_a_file_of_version_1_0_is_read() -> None:
    """Written by the code before there was a version 1.1."""
    circuit = Circuit.load(Path(__file__).parent / "version-1.0")
    assert circuit.n_edges == 6
    assert circuit.scores is not None
    assert circuit.edge_scores()["m0->logits"] == 1.5408332347869873
    assert (circuit.provenance.model, circuit.provenance.weights_sha256) == ("tracr-hist", "")
    assert circuit.scores.aggregate == circuit.aggregate == "signed"  # single prompts were not scored then
    assert (circuit.sizes() == abs(circuit.scores.values)).all()


@pytest.mark.parametrize("aggregate", ["mean-absolute", "rms", "signed"])
def test_scores_of_single_prompts_are_kept_with_what_they_were_ranked_by(tmp_path: Path, aggregate: Any) -> None:
    values = np.random.default_rng(0).normal(size=(2, *GRAPH.valid.shape))
    absolute = np.abs(values).mean(0)
    scores = Scores(GRAPH, values.mean(0), "eap", absolute=absolute, rms=np.sqrt(np.square(values).mean(0)))
    chosen = scores.top(6, aggregate=aggregate)
    chosen.save(tmp_path)
    circuit = Circuit.load(tmp_path)
    assert (circuit.aggregate, circuit.provenance.selection["aggregate"]) == (aggregate, aggregate)
    assert circuit.scores is not None
    for again in ("mean-absolute", "rms", "signed"):
        assert circuit.scores.top(6, aggregate=again) == scores.top(6, aggregate=again)
    assert (circuit.sizes() == scores.sizes(aggregate)).all()
    assert circuit.edge_scores() == chosen.edge_scores()  # signed


@pytest.mark.filterwarnings("ignore:the .*prompts of .* differ")  # there are fewer here
@pytest.mark.parametrize(
    ("name", "n_edges"), [("version-1.0", 6), *((f"version-1.1/{x}", n) for x, n in OF_1_1.items())]
)
def test_runs_of_earlier_versions_are_read_judged_and_drawn(name: str, n_edges: int) -> None:
    circuit = Circuit.load(Path(__file__).parent / name)
    made = circuit.provenance
    task = acdc.tasks.load(made.task, size=8)
    judged = acdc.evaluate(acdc.load(made.model), task, circuit, random_circuits=1)
    assert judged.n_edges == circuit.n_edges == n_edges
    if name != "version-1.0":
        assert "weights" not in judged.changed
    assert acdc.viz.draw(circuit).content.startswith(b"<")


def test_a_name_that_is_no_text_can_be_saved(tmp_path: Path) -> None:
    """A file's name may be any bytes; Python has those that are no UTF-8 as lone surrogates."""
    made = Provenance(task="caf\udce9.jsonl", command=("acdc", "\udcff"), task_options={"held_out": Path("\udcff")})
    Circuit.from_names(GRAPH, ["input->logits"], provenance=made).save(tmp_path)
    assert Circuit.load(tmp_path).provenance == made
    assert made.task == r"caf\udce9.jsonl"


def test_fields_of_a_newer_minor_version_are_ignored(circuit: Circuit, tmp_path: Path) -> None:
    circuit.save(tmp_path)
    provenance = circuit.provenance.model_dump(mode="json") | {"moon": "full"}
    changed(tmp_path, version="1.7", colours={"m0": "red"}, provenance=provenance)
    assert Circuit.load(tmp_path) == circuit
    changed(tmp_path, version="1.7", colours={}, edges={"input->m1": "big"})
    with pytest.raises(AcdcError, match="valid number"):
        Circuit.load(tmp_path)


def test_missing_and_broken_files(circuit: Circuit, tmp_path: Path) -> None:
    with pytest.raises(AcdcError, match=r"no circuit at .*expected a folder with a circuit\.json"):
        Circuit.load(tmp_path)
    for name in "dacb":
        circuit.save(tmp_path / "runs" / name)
    with pytest.raises(AcdcError, match=r"Circuit\.save writes it; there are some in it: a, b, c and 1 more$"):
        Circuit.load(tmp_path / "runs")
    circuit.save(tmp_path)
    scores = tmp_path / "scores.safetensors"
    content = scores.read_bytes()
    scores.write_bytes(content[:-1] + b"\x00")
    with pytest.raises(AcdcError, match="damaged, or belongs to another circuit"):
        Circuit.load(tmp_path)
    scores.unlink()
    with pytest.raises(AcdcError, match=r"cannot read .*scores\.safetensors"):
        Circuit.load(tmp_path)
    scores.write_bytes(content)
    path = tmp_path / "circuit.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(AcdcError, match="not valid JSON"):
        Circuit.load(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AcdcError, match="not UTF-8 text"):
        Circuit.load(tmp_path)
