"""The page's file: what is in it is what was measured, and nothing in it is code but our own."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import acdc
from acdc.circuit import Circuit, Provenance, Scores
from acdc.cli import main as cli
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.tracing import PositionalCircuit
from acdc.viz.layout import Spacing, place
from acdc.viz.page import bundle, investigate, measuring, page_sizes, write_page, write_positional_page

FOLDER = Path(bundle.__file__).parent
GRAPH = Graph(2, 2)
HOSTILE = '</script><script>document.title="hit"</script><!-- " \' & \u202e 🙂 \u2028\nnew\x00 ' + "y" * 300


class Elements(html.parser.HTMLParser):
    """The elements of a page: name, attributes, text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes), ""))

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}", {}, ""))

    def handle_data(self, data: str) -> None:
        if self.found:
            tag, attributes, text = self.found[-1]
            self.found[-1] = (tag, attributes, text + data)

    def of(self, name: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, text) for tag, attributes, text in self.found if tag == name]


def data_of(content: str) -> dict[str, Any]:
    (text,) = [text for attributes, text in Elements(content).of("script") if attributes.get("id") == "data"]
    return json.loads(text)


def unpacked(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def scored(graph: Graph = GRAPH, seed: int = 0, **provenance: Any) -> Circuit:
    made = Provenance(**{"model": "m", "task": "t", "method": "eap"} | provenance)
    values = np.random.default_rng(seed).normal(size=graph.valid.shape)
    return Scores(graph, values, made.method, made).top(20, select="greedy")


def test_a_ranking_of_nodes_is_cut_by_nodes() -> None:
    values = np.where(GRAPH.valid, np.arange(GRAPH.n_sources, dtype=float) + 1, 0.0)
    circuits = {unit: Scores(GRAPH, values, "exact", unit=unit).top(8) for unit in ("edge", "node")}  # type: ignore[arg-type]
    shown = {c["name"]: c for c in data_of(write_page(circuits).content)["circuits"]}
    assert len(unpacked(shown["edge"]["order"], "<u4")) == GRAPH.n_edges
    assert unpacked(shown["node"]["order"], "<u4").tolist() == [*range(GRAPH.n_sources)][::-1]
    assert shown["node"]["unit"] == "node"
    assert shown["node"]["asked"] == GRAPH.n_sources


def test_a_circuit_with_positions_leads_to_where_what_is_read_is_used() -> None:
    graph = Graph(2, 2)
    kept = np.zeros((3, *graph.valid.shape), dtype=bool)
    for i, names in enumerate((["input->a0.h1<v>", "a0.h1->a1.h0<k>"], ["a0.h1->a1.h0<q>"], ["a1.h0->logits"])):
        kept[i] = graph.edges_from_names(names)
    circuit = PositionalCircuit(graph, "span", ("S", "end", "rest"), kept, model="m", task="t")
    content = write_positional_page(circuit, tokens=["Anna", "to", "…"], roles={"mover": ("a1.h0",)}).content
    data = data_of(content)
    drawn = data["graph"]
    ends = zip(unpacked(drawn["edgeSource"], "<u2"), unpacked(drawn["edgeDestination"], "<u2"), strict=True)
    assert {(drawn["sources"][s], drawn["destinations"][d]) for s, d in ends} == {
        ("input@S", "a0.h1@S<v>"), ("a0.h1@S", "a1.h0@end<k>"), ("a0.h1@S", "a1.h0@rest<k>"),
        ("input@S", "a0.h1@end<v>"), ("a0.h1@end", "a1.h0@end<q>"), ("a1.h0@rest", "logits@rest"),
    }  # fmt: skip
    assert {(node["label"], node["place"]) for node in drawn["nodes"] if node["kind"] == "logits"} == {
        ("logits", 2)
    }
    assert data["places"][0] == {"label": "S", "tokens": "Anna"}
    assert data["roles"] == {"mover": ["a1.h0@end", "a1.h0@rest"]}
    with pytest.raises(AcdcError, match="tokens of each of 3 places, got 1"):
        write_positional_page(circuit, tokens=["Anna"])


def test_neurons_that_stay_are_with_their_mlp() -> None:
    kept = np.isin(np.arange(32), (3, 17))
    content = write_page(scored(), neurons={"m0": kept}).content
    nodes = {node["name"]: node for node in data_of(content)["graph"]["nodes"]}
    assert nodes["m0"]["neurons"] == {"hidden": 32, "kept": [3, 17]}
    assert "neurons" not in nodes["m1"]


def test_edges_scores_and_ranks_are_those_of_the_circuit() -> None:
    circuit = scored(Graph(2, 4, n_kv_heads=2, group_kv=True, inputs="split"))
    data = data_of(write_page(circuit).content)
    graph, (drawn,) = data["graph"], data["circuits"]
    ends = zip(unpacked(graph["edgeSource"], "<u2"), unpacked(graph["edgeDestination"], "<u2"), strict=True)
    names = [f"{graph['sources'][s]}->{graph['destinations'][d]}" for s, d in ends]
    assert names == circuit.graph.edge_names(circuit.graph.valid)
    assert [names[i] for i in unpacked(drawn["kept"], "<u4")] == circuit.edge_names()
    assert drawn["asked"] == circuit.n_edges
    top = circuit.scores.top(30)
    asked = data_of(write_page(top).content)["circuits"][0]["asked"]
    assert asked > top.n_edges == 30
    assert top.scores.top(asked, prune=False).prune().n_edges >= 30
    assert top.scores.top(asked - 1, prune=False).prune().n_edges < 30
    scores = circuit.scores.values[circuit.graph.valid]
    np.testing.assert_array_equal(unpacked(drawn["scores"], "<f4"), scores.astype(np.float32))
    for n in (1, 7, 60):
        first = [names[i] for i in unpacked(drawn["order"], "<u4")[:n]]
        assert set(first) == set(circuit.scores.top(n, prune=False).edge_names())


def test_rows_and_columns_are_those_of_the_picture() -> None:
    circuit = scored(Graph(2, 4, n_kv_heads=2, group_kv=True, inputs="split"))
    graph = data_of(write_page(circuit).content)["graph"]
    nodes = {node["name"]: node for node in graph["nodes"]}
    boxes = place([circuit.graph.nodes[name] for name in nodes], {}, Spacing())
    heights = sorted({box.y for box in boxes.values()})
    assert {name: heights[node["row"]] for name, node in nodes.items()} == {
        name: box.y for name, box in boxes.items()
    }
    for height in heights:
        row = sorted((name for name in nodes if boxes[name].y == height), key=lambda name: boxes[name].x)
        assert [nodes[name]["column"] for name in row] == list(range(len(row)))
    assert (nodes["a1.g1"]["kind"], nodes["a1.h2"]["kind"], nodes["a1.h2"]["sublayer"]) == ("group", "head", "a1")
    assert [f"{node}<{port}>" if port else node for node, port in graph["ends"]] == graph["destinations"]
    assert nodes.keys() == {*graph["sources"], *(node for node, _ in graph["ends"])}


def test_only_our_scripts_may_run() -> None:
    content = write_page(scored(model=HOSTILE, task=HOSTILE, method=HOSTILE), title=HOSTILE).content
    elements = Elements(content)
    scripts = elements.of("script")
    assert [attributes.get("type") for attributes, _ in scripts] == ["application/json", None, None]
    (policy,) = [a["content"] for a, _ in elements.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    assert rules["default-src"] == ["'none'"]
    for _, script in scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rules["script-src"]
    assert len(rules["script-src"]) == 2
    assert not any(word in policy for word in ("unsafe", "http:", "https:", "*"))
    assert data_of(content)["title"] == HOSTILE
    assert not [a for _, a, _ in elements.found if any(name.startswith("on") or name == "src" for name in a)]


def test_a_number_that_is_not_known_is_left_out() -> None:
    page = write_page(scored(measured={"faithfulness": float("nan"), "kl": None, "n_prompts": 3}))
    assert data_of(page.content)["circuits"][0]["measured"] == {"n_prompts": 3}


def test_a_page_is_the_same_every_time() -> None:
    assert write_page(scored()).content == write_page(scored()).content


def test_thirty_thousand_scored_edges_and_every_pattern_fit_in_five_megabytes() -> None:
    graph = Graph(12, 12)
    assert graph.n_edges == 32491
    circuits = {f"method {i}": scored(graph, seed=i) for i in range(3)}
    heads = tuple(name for name in graph.sources if name.startswith("a"))
    random = np.random.default_rng(0)
    patterns = acdc.inspection.AttentionPatterns(
        heads, (("token",) * 50,) * 4, random.random((144, 50, 50)), random.random((144, 4, 50, 50)), 9
    )
    page = write_page(circuits, findings=acdc.viz.Findings(patterns=patterns))
    assert len(page.content.encode()) < 5_000_000
    shown = data_of(page.content)["patterns"]["mean"]
    assert 90 < len(shown) < 144
    assert {name for c in circuits.values() for name in c.nodes() if name.startswith("a")} <= shown.keys()
    assert any("144 heads" in note for note in page.notes)


def test_a_graph_of_millions_of_edges_is_cut_to_the_strongest() -> None:
    graph = Graph(24, 40)
    circuit = scored(graph)
    page = write_page(circuit)
    data = data_of(page.content)
    assert len(page.content.encode()) < 5_000_000
    assert data["graph"]["total"] == graph.n_edges > 600_000
    assert any("of the" in note and "edges" in note for note in page.notes)
    sources, destinations = (
        unpacked(data["graph"]["edgeSource"], "<u2"),
        unpacked(data["graph"]["edgeDestination"], "<u2"),
    )
    kept = unpacked(data["circuits"][0]["kept"], "<u4")
    assert [graph.edge_name(destinations[i], sources[i]) for i in kept] == circuit.edge_names()
    best = np.argmax(np.abs(circuit.scores.values))
    first = unpacked(data["circuits"][0]["order"], "<u4")[0]
    assert (destinations[first], sources[first]) == np.unravel_index(best, graph.valid.shape)


def test_what_is_measured_is_in_the_page() -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=8).prepare(acdc.load("induction-2l"))
    circuit = acdc.discover(model, task, "eap", edges=12)
    found = investigate(model, task, {"eap": circuit}, sizes=[5, 40], examples=2)
    curve = acdc.curve(model, task, circuit.scores, shares=[5.5 / 110, 40.5 / 110], aggregate=None, confidence=None)
    assert found.curves["eap"].faithfulness == pytest.approx(curve.faithfulness)
    data = data_of(write_page({"eap": circuit}, findings=found).content)
    (drawn,) = data["circuits"]
    assert drawn["curve"]["sizes"] == [5, 40]
    assert drawn["curve"]["faithfulness"] == pytest.approx(curve.faithfulness, rel=1e-5)
    effects = acdc.inspection.removal_effects(model, task, circuit)
    edges = circuit.graph.edge_names(circuit.graph.valid)
    names = [edges[i] for i in unpacked(drawn["effects"]["edges"], "<u4")]
    changes = dict(zip(names, unpacked(drawn["effects"]["changes"], "<f4").tolist(), strict=True))
    assert changes == pytest.approx(effects.changes, rel=1e-5)
    measured = acdc.evaluate(model, task, circuit, random_circuits=0, confidence=None)
    assert drawn["measured"]["faithfulness"] == pytest.approx(measured.faithfulness, rel=1e-5)
    mean = acdc.inspection.attention_patterns(model, task).head("a1.h1")
    shown = unpacked(data["patterns"]["mean"]["a1.h1"], "<u1") / 255
    np.testing.assert_allclose(shown.reshape(mean.shape), np.nan_to_num(mean), atol=0.002)
    lens = acdc.inspection.logit_lens(model, task, examples=2)
    assert data["lens"]["examples"][1]["answerProbability"] == pytest.approx(lens.answer_probability[1], rel=1e-4)
    top = unpacked(data["lens"]["examples"][1]["top"], "<u4").reshape(lens.top[1].shape)
    assert [data["lens"]["texts"][i] for i in top[-1, :, 0]] == [lens.texts[i] for i in lens.top[1, -1, :, 0]]
    assert "forward passes" in data["notes"][-1]
    heads = acdc.inspection.head_roles(model, task).groups()
    assert data["roles"] == {
        role: [name for name in names if name in circuit.nodes()]
        for role, names in heads.items()
        if set(circuit.nodes()) & set(names)
    }
    assert data["roles"]


def test_sizes() -> None:
    assert page_sizes(110) == (1, 2, 5, 10, 20, 50, 110)
    assert page_sizes(1) == (1,)
    assert page_sizes(32491)[-3:] == (10000, 20000, 32491)
    model = acdc.load("tracr-reverse")
    with pytest.raises(AcdcError, match="sizes between 0 and all 77 edges"):
        investigate(
            model, acdc.tasks.load("tracr-reverse"), {"x": Circuit(model.graph(), model.graph().valid)}, sizes=[78]
        )


def test_a_large_model_has_fewer_edges_removed_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_MULTIPLICATIONS", 1.0)
    model, task = acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse")
    circuit = acdc.discover(model, task, "eap-ig", edges=30)
    found = investigate(model, task, {"eap-ig": circuit}, sizes=[], examples=1)
    strongest = sorted(circuit.edge_names(), key=lambda name: -abs(circuit.edge_scores()[name]))[:10]
    assert found.effects["eap-ig"].changes.keys() == set(strongest)
    assert f"for 10 of the {circuit.n_edges} edges" in found.notes[0]
    assert not found.curves


def test_circuits_of_other_graphs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AcdcError, match="'b' is a circuit of another graph than 'a'"):
        write_page({"a": scored(), "b": scored(Graph(2, 3))})
    with pytest.raises(AcdcError, match="at least one circuit"):
        write_page({})
    with pytest.raises(AcdcError, match="cannot write"):
        write_page(scored(), tmp_path / "missing" / "x.html")


def test_roles_of_a_published_circuit() -> None:
    data = data_of(write_page(scored(Graph(12, 12), model="openai-community/gpt2", task="ioi")).content)
    assert data["roles"]["name mover"] == ["a9.h9", "a10.h0", "a9.h6"]
    assert "Wang" in data["rolesFrom"]


# Machado, Oliveira and Fernandes 2009: linear RGB as seen without one kind of cone.
COLOUR_VISION = {
    "all cones": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.41246, 0.35758, 0.18044], [0.21267, 0.71515, 0.07218], [0.01933, 0.11919, 0.95030]])


def lab(colour: str, vision: Any) -> np.ndarray:
    """A colour as it is seen, in CIE L*a*b*, where 2 is the least difference that can be noticed."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(XYZ @ np.clip(np.asarray(vision) @ linear, 0, 1) / (0.95047, 1.0, 1.08883))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", COLOUR_VISION)
@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("names", [("positive", "negative", "unsigned"), ("both", "only-a", "only-b")])
def test_every_kind_of_colour_vision_tells_lines_apart(names: tuple[str, ...], theme: int, vision: str) -> None:
    text = (FOLDER / "style.css").read_text()
    colours = [re.findall(rf"--{name}: (#\w+);", text)[theme] for name in (*names, "ground")]
    seen = [lab(colour, COLOUR_VISION[vision]) for colour in colours]
    assert min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]) > 25


def test_scripts_are_modules_of_readable_size() -> None:
    for path in (FOLDER / "js").glob("*.js"):
        text = path.read_text()
        assert text.count("\n") < 300
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
        assert text.startswith("//")


def test_modules_are_bundled_in_the_order_they_need() -> None:
    script = bundle.bundle_modules("main")
    order = re.findall(r'^modules\["(\w+)"\] = ', script, re.MULTILINE)
    assert order[-1] == "main"
    assert set(order) == {path.stem for path in (FOLDER / "js").glob("*.js")}
    for name in re.findall(r'= modules\["(\w+)"\];', script):
        assert script.index(f'modules["{name}"] = (') < script.index(f'= modules["{name}"];')
    assert not re.search(r"^(import|export) ", script, re.MULTILINE)


def test_the_vendored_library_is_the_recorded_one() -> None:
    recorded = (FOLDER / "vendor/VERSIONS").read_text()
    content = (FOLDER / "vendor/d3.min.js").read_bytes()
    assert hashlib.sha256(content).hexdigest() in recorded
    assert re.search(r"d3 (\S+)", recorded)[1] in content[:80].decode()
    assert "Permission to use, copy, modify" in (FOLDER / "vendor/LICENSE-d3").read_text()


def test_a_notebook_shows_picture_and_numbers_without_scripts() -> None:
    circuit = scored(model=HOSTILE, measured={"faithfulness": 0.9, "kl": 0.01})
    elements = Elements(circuit._repr_html_())
    ((image, _),) = elements.of("img")
    assert b"<svg" in base64.b64decode(image["src"].removeprefix("data:image/svg+xml;base64,"))
    texts = [text for _, _, text in elements.found]
    assert f"{circuit.n_edges} of 46" in texts
    assert "0.900" in texts
    assert not elements.of("script")
    page = write_page(circuit)
    ((frame, _),) = Elements(page._repr_html_()).of("iframe")
    assert frame["srcdoc"] == page.content
    assert "allow-same-origin" not in frame["sandbox"]


# ---- the command ------------------------------------------------------------------------------------------------

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    opened: list[str] = []

    def run(*arguments: object) -> tuple[int, str, str]:
        opened.clear()
        monkeypatch.setattr(sys, "argv", ["acdc", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capfd.readouterr()
        return int(exit.value.code or 0), out, "\n".join([err, *opened])

    return run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    model, task = acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse")
    return acdc.discover(model, task, "eap-ig", edges=10).save(tmp_path / "run")


def test_view_writes_a_page_and_opens_it(command: Command, run_folder: Path) -> None:
    status, out, err = command("view", run_folder, "--sizes", "5,20", "--prompts", 2)
    path = run_folder / "circuit.html"
    assert (status, out.strip()) == (0, str(path))
    assert path.as_uri() in err
    data = data_of(path.read_text())
    assert [circuit["name"] for circuit in data["circuits"]] == ["eap-ig", "true circuit"]
    assert data["circuits"][0]["curve"]["sizes"] == [5, 20]
    assert len(data["patterns"]["tokens"]) == 2
    truth = acdc.tasks.load("tracr-reverse").prepare(acdc.load("tracr-reverse")).truth
    assert len(unpacked(data["circuits"][1]["kept"], "<u4")) == truth.mask(acdc.load("tracr-reverse").graph()).sum()


def test_draw_writes_the_same_page(command: Command, run_folder: Path) -> None:
    status, out, err = command("draw", run_folder, "-o", "page.html")
    assert (status, out.strip()) == (0, "page.html")
    assert "file://" not in err
    assert data_of(Path("page.html").read_text())["direct"] is not None
    assert command("draw", run_folder, "--format", "html")[1].strip() == str(run_folder / "circuit.html")
    assert "exists" in command("draw", run_folder, "-o", "page.html")[2]


def test_compared_runs_have_names_of_their_own(command: Command, run_folder: Path, tmp_path: Path) -> None:
    other = Circuit.load(run_folder)
    made = other.provenance.having(model="another")
    dataclasses.replace(other, provenance=made).save(tmp_path / "other")
    status, out, _ = command(
        "view", run_folder, "--compare", tmp_path / "other", "--no-open", "--json", "--effects", 0
    )
    assert status == 0
    result = json.loads(out)
    assert any("eap-ig (other), which is of another model" in note for note in result["notes"])
    data = data_of(Path(result["page"]).read_text())
    assert [c["name"] for c in data["circuits"]] == ["eap-ig (run)", "eap-ig (other)", "true circuit"]
    assert [c["curve"] is None for c in data["circuits"]] == [False, True, True]


def test_without_the_model_the_page_says_what_is_missing(command: Command, run_folder: Path) -> None:
    status, out, _ = command("view", run_folder, "--no-model", "--no-open", "-o", "bare.html")
    assert status == 0
    data = data_of(Path(out.strip()).read_text())
    assert (data["patterns"], data["direct"], data["lens"]) == (None, None, None)
    assert data["notes"] == ["Made without the model, so nothing was measured for it."]
    circuit = Circuit.load(run_folder)
    lost = dataclasses.replace(circuit, provenance=circuit.provenance.having(model="./lost"))
    lost.save("lost")
    status, out, err = command("view", "lost", "--no-open")
    assert status == 0
    assert "warning: the page goes without what needs the model" in err
    assert "lost" in data_of(Path(out.strip()).read_text())["notes"][0]


def test_what_was_measured_of_another_question_is_measured_anew(command: Command, run_folder: Path) -> None:
    """Beside a circuit's numbers stand no numbers of another metric, ablation or task."""
    circuit = Circuit.load(run_folder)
    wrong = {"faithfulness": 0.123, "kl": -1e-9}
    asked = circuit.provenance.having(measured=wrong)
    dataclasses.replace(circuit, provenance=asked).save("asked")
    dataclasses.replace(circuit, provenance=asked.having(ablation="zero")).save("zero")
    fewer = asked.having(task_options={"size": 7})  # prompts, for the same question
    assert fewer.question() == asked.question() != asked.having(task_options={"distribution": "fixed"}).question()
    given = ("view", "asked", "--compare", "zero", "--no-open", "--sizes", "none", "--effects")
    _, out, err = command(*given, 2, "-o", "page.html")
    own, other, _ = data_of(Path(out.strip()).read_text())["circuits"]
    assert own["measured"] == {"faithfulness": 0.123, "kl": 0.0}
    assert other["measured"]["faithfulness"] == pytest.approx(evaluated(circuit), abs=1e-5)
    assert "eap-ig (zero) was found for tracr-reverse by" in err
    _, out, _ = command(*given, 0, "-o", "bare.html")
    assert data_of(Path(out.strip()).read_text())["circuits"][1]["measured"] == {}


def evaluated(circuit: Circuit) -> float:
    model, task = acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse")
    return acdc.evaluate(model, task, circuit, random_circuits=0, confidence=None).faithfulness


def test_a_page_without_example_prompts_has_the_rest(command: Command, run_folder: Path) -> None:
    status, out, err = command("view", run_folder, "--prompts", 0, "--no-open", "--sizes", 5, "-o", "page.html")
    assert (status, "goes without" in err) == (0, False)
    data = data_of(Path(out.strip()).read_text())
    assert data["circuits"][0]["curve"]["sizes"] == [5, data["graph"]["total"]]
    assert data["patterns"]["tokens"] == []


def test_options_of_pictures_are_no_options_of_a_page(command: Command, run_folder: Path) -> None:
    status, _, err = command("draw", run_folder, "-o", "page.html", "--prompt", 2, "--truth")
    assert (status, Path("page.html").exists()) == (2, False)
    assert "--truth, --prompt: for pictures" in err
    assert "no circuit at 'nowhere'" in command("view", "nowhere")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "ten"], "comma-separated numbers of edges"),
        (["--sizes", "100000"], "sizes of at most"),
        (["--compare", "nowhere"], "no circuit at 'nowhere'"),
    ],
)
def test_bad_options_are_one_line(command: Command, run_folder: Path, arguments: list[str], message: str) -> None:
    status, out, err = command("view", run_folder, "--no-open", *arguments)
    assert (status, out) == (2, "")
    assert message in err
