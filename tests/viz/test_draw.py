"""Pictures show every kept edge once, with the right sign and style, whichever program draws them."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from acdc.circuit import Circuit, Provenance, Scores
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.viz import FORMATS, STYLES, draw
from acdc.viz.diagram import make_diagram
from acdc.viz.elements import clean
from acdc.viz.reduce import reduce
from acdc.viz.style import Style, get_style

PAPER = STYLES["paper"]
RENDERERS = [
    pytest.param("graphviz", marks=pytest.mark.skipif(not shutil.which("neato"), reason="needs Graphviz")),
    "matplotlib",
]
GRAPH = Graph(2, 2)
NAMES = ["input->a0.h1<k>", "input->a0.h1<q>", "a0.h1->m1", "a0.h1->a1.h0<v>", "a1.h0->logits", "m1->logits"]


@pytest.fixture
def circuit() -> Circuit:
    values = np.zeros(GRAPH.valid.shape)
    for i, name in enumerate(NAMES):
        values[GRAPH.edge(name)] = (-1) ** i * (i + 1)
    provenance = Provenance(task="ioi", model="gpt2", method="guided")
    return Circuit.from_names(
        GRAPH, NAMES, scores=Scores(GRAPH, values, "guided", provenance), provenance=provenance
    )


def dot_edges(circuit: Circuit, **options: object) -> dict[str, dict[str, str]]:
    """Attributes of the circuit's edges in the DOT text by edge name, each found once."""
    found: dict[str, dict[str, str]] = {}
    for line in draw(circuit, format="dot", **options).content.decode().splitlines():
        attributes = dict(re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|[^\s\]]+)', line))
        if attributes.get("id", "").startswith('"edge:'):
            name = attributes["id"].strip('"').removeprefix("edge:")
            assert name not in found
            assert re.match(r'\s*"?([\w.]+)"? -> "?([\w.]+)', line).groups() == tuple(re.split("->|<", name)[:2])
            found[name] = {key: value.strip('"') for key, value in attributes.items()}
    return found


def svg_ids(content: bytes) -> list[str]:
    return [element.get("id", "") for element in ElementTree.fromstring(content).iter() if element.get("id")]


def svg_text(content: bytes) -> str:
    """All text shown."""
    texts = [e for e in ElementTree.fromstring(content).iter() if e.tag.endswith("}text")]
    return "\n".join("".join(element.itertext()) for element in texts)


def test_dot_edges_have_the_right_look(circuit: Circuit) -> None:
    edges = dot_edges(circuit)
    assert edges.keys() == set(NAMES)
    for i, name in enumerate(NAMES):
        assert edges[name]["color"] == (PAPER.positive if i % 2 == 0 else PAPER.negative)
        port = name[-2] if name.endswith(">") else ""
        assert edges[name]["style"] == {"q": "dashed", "k": "dotted"}.get(port, "solid")
        assert edges[name]["arrowhead"] == "normal"
    widths = [float(edges[name]["penwidth"]) for name in NAMES]
    assert widths == sorted(widths)
    assert widths[-1] == PAPER.line[1]


def test_the_truth_has_a_channel_of_its_own(circuit: Circuit) -> None:
    truth = Circuit.from_names(GRAPH, [*NAMES[:-1], "input->logits"])
    plain, judged = dot_edges(circuit), dot_edges(circuit, truth=truth)
    heads = {name: edge["arrowhead"] for name, edge in judged.items()}
    assert heads == dict.fromkeys(NAMES[:-1], "normal") | {"m1->logits": "odiamond", "input->logits": "onormal"}
    assert judged["input->logits"]["color"] == PAPER.absent
    for name in NAMES:
        for channel in ("color", "style", "penwidth"):
            assert judged[name][channel] == plain[name][channel]
    assert "not in the true circuit" in draw(circuit, format="dot", truth=truth).content.decode()
    assert draw(circuit, truth=truth.edges).content == draw(circuit, truth=truth).content


def node_fills(circuit: Circuit, **options: object) -> dict[str, str]:
    lines = draw(circuit, format="dot", **options).content.decode().splitlines()
    pairs = [re.search(r'fillcolor="(#\w+)".* id="node:([^"]+)"', line) for line in lines]
    return {match[2]: match[1] for match in pairs if match}


def test_roles_share_a_fill_that_the_legend_explains(circuit: Circuit) -> None:
    plain = node_fills(circuit)
    roles = {"movers": ("a1.h0", "m1"), "others": ("a0.h1", "a0.h0"), "absent": ("a1.h1",)}
    coloured = node_fills(circuit, roles=roles)
    assert coloured["a1.h0"] == coloured["m1"] == PAPER.roles[0]
    assert coloured["a0.h1"] == PAPER.roles[1]
    assert {name: coloured[name] for name in ("input", "logits")} == {
        name: plain[name] for name in ("input", "logits")
    }
    shown = svg_text(draw(circuit, roles=roles).content)
    assert "movers" in shown
    assert "absent" not in shown


def test_published_roles_are_shown_unless_told_otherwise() -> None:
    graph = Graph(12, 12)
    made = Provenance(task="ioi", model="gpt2")
    circuit = Circuit.from_names(graph, ["input->a9.h9<v>", "a9.h9->logits"], provenance=made)
    assert node_fills(circuit)["a9.h9"] == PAPER.roles[0]
    assert node_fills(circuit, roles={})["a9.h9"] == PAPER.head_fill
    assert "name mover" in svg_text(draw(circuit).content)


def test_hundreds_of_lines_are_not_led_around_boxes() -> None:
    graph = Graph(12, 12)
    circuit = Circuit(graph, graph.valid, Scores(graph, np.random.default_rng(0).normal(size=graph.valid.shape)))
    diagram = make_diagram(circuit, PAPER, max_edges=1000)
    boxes = max(node.box.x for node in diagram.nodes) - min(node.box.x for node in diagram.nodes)
    assert diagram.width < 1.5 * boxes


@pytest.mark.parametrize("renderer", RENDERERS)
def test_svg_has_every_edge_and_node_once(circuit: Circuit, renderer: str) -> None:
    drawing = draw(circuit, renderer=renderer)
    ids = svg_ids(drawing.content)
    assert sorted(name.removeprefix("edge:") for name in ids if name.startswith("edge:")) == sorted(NAMES)
    assert [name for name in ids if name.startswith("node:")] == [f"node:{name}" for name in circuit.nodes()]
    shown = svg_text(drawing.content)
    words = ["ioi · gpt2", "layer 0", "layer 1", "score > 0", "score < 0", "to queries", "6 of 46 edges, guided"]
    for text in [*words, *circuit.nodes()]:
        assert text in shown
    assert drawing._repr_svg_() == drawing.content.decode()


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("format", ["svg", "pdf", "png"])
def test_files(circuit: Circuit, renderer: str, format: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{format}"
    drawing = draw(circuit, path, renderer=renderer)
    assert (drawing.path, drawing.renderer, drawing.format, drawing.note) == (path, renderer, format, "")
    assert path.read_bytes() == drawing.content
    assert drawing.content.startswith({"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}[format])
    assert list(tmp_path.iterdir()) == [path]
    if (renderer, format) != ("graphviz", "pdf"):  # cairo writes the time into a PDF
        assert draw(circuit, renderer=renderer, format=format).content == drawing.content


def test_both_renderers_place_nodes_alike(circuit: Circuit) -> None:
    lines = [line for line in draw(circuit, format="dot").content.decode().splitlines() if "node:" in line]
    boxes = {node.name: node.box for node in make_diagram(circuit, PAPER).nodes}  # what matplotlib draws
    for line in lines:
        name = re.search(r'id="node:([^"]+)"', line)[1]
        x, y = map(float, re.search(r'pos="([-\d.]+),([-\d.]+)"', line).groups())
        assert (x, y) == pytest.approx((boxes[name].x, boxes[name].y), abs=0.01)
    assert len(lines) == len(circuit.nodes())


def test_without_graphviz_matplotlib_draws_and_says_so(circuit: Circuit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    drawing = draw(circuit)
    assert drawing.renderer == "matplotlib"
    assert "not installed" in drawing.note
    assert drawing.content == draw(circuit, renderer="matplotlib").content
    with pytest.raises(AcdcError, match="install Graphviz"):
        draw(circuit, renderer="graphviz")


HOSTILE = '<script>alert("1")</script> $\\frac{ \\N \\G & {x} </B> \u202egnp.exe 🙂\nnew\x00line ' + "y" * 300


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", [HOSTILE, "<b>bold</b>", "\\", "", "\x1b[31m", '"', "$x$"])
def test_hostile_names_are_shown_as_text(circuit: Circuit, renderer: str, name: str) -> None:
    hostile = Circuit(GRAPH, circuit.edges, None, Provenance(task=name, model=name, method=name))
    content = draw(hostile, renderer=renderer).content
    shown = svg_text(content).replace("\n", " ")
    assert not [element for element in ElementTree.fromstring(content).iter() if "script" in element.tag]
    first = clean(name)[:20].strip()
    assert first in shown
    assert "6 of 46 edges" in shown
    assert draw(hostile, format="png", renderer=renderer, title=name).content.startswith(b"\x89PNG")


def test_clean_text() -> None:
    assert clean("a\n\tb\x00c  d") == "a b c d"
    assert clean("\u202eabc") == "abc"
    assert clean("x" * 300) == "x" * 159 + "…"


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("edges", [[], ["input->logits"], ["m0->m1"]])
def test_tiny_circuits(renderer: str, edges: list[str]) -> None:
    circuit = Circuit.from_names(GRAPH, edges)
    ids = svg_ids(draw(circuit, renderer=renderer).content)
    assert [name for name in ids if name.startswith("edge:")] == [f"edge:{name}" for name in edges]
    assert len([name for name in ids if name.startswith("node:")]) == 2


@pytest.mark.parametrize("renderer", RENDERERS)
def test_large_circuits_are_cut_and_the_caption_says_so(renderer: str) -> None:
    graph = Graph(6, 4)
    values = np.random.default_rng(0).normal(size=graph.valid.shape)
    circuit = Circuit(graph, graph.valid, Scores(graph, values))
    drawing = draw(circuit, renderer=renderer, max_edges=40, fold=0)
    drawn = [name for name in svg_ids(drawing.content) if name.startswith("edge:")]
    assert 20 < len(drawn) <= 40
    assert f"q, k and v merged; only the {len(drawn)} strongest lines drawn" in drawing.caption
    assert drawing.caption in svg_text(drawing.content).replace("\n", " ")


@pytest.mark.parametrize("style", STYLES)
def test_styles(circuit: Circuit, style: str) -> None:
    assert STYLES[style].background in draw(circuit, format="dot", style=style).content.decode()


def test_a_legend_says_each_width_once() -> None:
    """Scores that are nearly all the same, as those of a search by threshold are."""
    graph = Graph(4, 4)
    circuit = Circuit(graph, graph.valid, Scores(graph, np.where(graph.valid, 1.0, 0.0)))
    texts = svg_text(draw(circuit, renderer="matplotlib", max_edges=1000, title="").content).splitlines()
    assert [text for text in texts if text in ("1", "|score| 1")] == ["|score| 1"]


def test_no_legend_and_no_title(circuit: Circuit) -> None:
    shown = svg_text(draw(circuit, renderer="matplotlib", legend=False, title="").content)
    assert "score > 0" not in shown
    assert "gpt2" not in shown


def test_of_many_lines_the_strong_stand_out_and_a_folded_box_says_what_it_is() -> None:
    graph = Graph(8, 8)
    values = np.random.default_rng(0).lognormal(sigma=3, size=graph.valid.shape)
    circuit = Scores(graph, values, "").top(150)
    diagram = make_diagram(circuit, get_style("paper"), max_edges=300, fold=6)
    lines = {edge.name: edge for edge in diagram.edges if edge.name}
    scores = {edge.name: edge.score for edge in reduce(circuit, None, "port", 300, 6).edges}
    order = sorted(lines, key=lambda name: -abs(scores[name]))
    widths = [lines[name].width for name in order]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 1.3 * widths[len(widths) // 2]
    light = [sum(int(lines[name].color[i : i + 2], 16) for i in (1, 3, 5)) for name in order]
    assert light == sorted(light)
    assert light[0] < light[-1]
    boxes = {node.name: node.label for node in diagram.nodes if node.name}
    folded = reduce(circuit, None, "port", 300, 6).folded
    assert folded
    assert all(boxes[name] == f"{name} ×{len(heads)}" for name, heads in folded.items())
    assert f"n heads of few lines ({sum(map(len, folded.values()))} in all)" in diagram.caption
    assert "×" not in make_diagram(circuit, get_style("paper"), max_edges=300).caption


def deep(n: int, *, layers: int = 30, heads: int = 9) -> Circuit:
    """The n strongest edges of a deep model, of which most go from MLP to MLP."""
    graph = Graph(layers, heads)
    values = np.random.default_rng(0).lognormal(sigma=2, size=graph.valid.shape)
    mlps = np.array([name.startswith("m") for name in graph.sources])
    return Scores(graph, values * np.where(mlps, 50.0, 1.0), "").top(n)


@pytest.mark.parametrize("n", [100, 300])
def test_a_circuit_of_a_deep_model_is_a_page(n: int) -> None:
    circuit = deep(n)
    page, strip = (make_diagram(circuit, PAPER, fold=fold) for fold in (None, 0))
    assert page.height < 860
    assert 0.5 < page.width / page.height < 2
    assert strip.height > 1.3 * page.height
    assert "weaker nodes" in page.caption
    assert "weaker nodes" not in strip.caption
    for node in page.nodes:  # its label has room in it
        if node.name:
            shown = TextPath((0, 0), node.label, size=PAPER.font_size, prop=FontProperties(family="DejaVu Sans"))
            assert shown.get_extents().width < node.box.width, node.label
    assert any(text.text.startswith("layers 0–") for text in page.texts)
    assert any("–" in node.label and "×" in node.label for node in page.nodes)


def test_arrowheads_into_a_head_are_apart() -> None:
    graph = Graph(6, 1)
    names = [f"{source}->a5.h0<{port}>" for source in ("m0", "m1", "m2", "m3") for port in "qkv"]
    diagram = make_diagram(Circuit.from_names(graph, names), PAPER, legend=False)
    tips = sorted(edge.tip[0] for edge in diagram.edges if edge.name)
    assert min(np.diff(tips)) > 4.4


def test_neurons_that_stay_are_marks_below_their_mlp() -> None:
    graph = Graph(2, 2)
    circuit = Circuit.from_names(graph, ["input->m0", "m0->logits"])
    kept = np.isin(np.arange(40), (0, 20, 39))
    diagram = make_diagram(circuit, get_style("paper"), neurons={"m0": kept, "m1": kept}, legend=False)
    (box,) = [node.box for node in diagram.nodes if node.name == "m0"]
    marks = [edge for edge in diagram.edges if not edge.name]
    places = [(mark.tip[0] - (box.x - box.width / 2)) / box.width for mark in marks]
    np.testing.assert_allclose(places, [0.5 / 40, 20.5 / 40, 39.5 / 40], atol=0.01)
    assert all(mark.points[0][1] == box.bottom > mark.tip[1] for mark in marks)
    assert "the 3 of 40 units that stay (m0 3)" in diagram.caption


def test_tikz_is_balanced_and_escaped(circuit: Circuit) -> None:
    hostile = Circuit(GRAPH, circuit.edges, circuit.scores, Provenance(task=r"\input{x} % & $ # _ ^ ~ } {"))
    text = draw(hostile, format="tikz").content.decode()
    assert text.count(r"\begin{tikzpicture}") == text.count(r"\end{tikzpicture}") == 1
    assert text.count(r"\draw[") == len(NAMES) + len([e for e in make_diagram(hostile, PAPER).edges if not e.name])
    assert r"\input{" not in text
    unescaped = re.sub(r"\\[{}%]", "", text)
    assert unescaped.count("{") == unescaped.count("}")
    for name in NAMES:
        assert len(re.findall(rf"% {re.escape(name)}$", text, re.MULTILINE)) == 1


def test_bad_requests(circuit: Circuit, tmp_path: Path) -> None:
    with pytest.raises(AcdcError, match="did you mean svg"):
        draw(circuit, format="svgg")
    with pytest.raises(AcdcError, match="unknown picture format 'jpg'"):
        draw(circuit, tmp_path / "x.jpg")
    with pytest.raises(AcdcError, match="did you mean paper"):
        draw(circuit, style="papr")
    with pytest.raises(AcdcError, match="did you mean graphviz"):
        draw(circuit, renderer="graphvis")
    with pytest.raises(AcdcError, match="cannot write"):
        draw(circuit, tmp_path / "missing" / "x.svg")
    assert set(FORMATS) >= {"svg", "pdf", "png", "dot"}


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_texts_are_within_the_picture(circuit: Circuit, style: Style) -> None:
    removal = np.where(circuit.edges, 1.0, np.nan)
    removal[GRAPH.edge(NAMES[0])] = -1.0
    assert circuit.scores is not None
    measured = dataclasses.replace(circuit, scores=dataclasses.replace(circuit.scores, removal=removal))
    title = "little till fill " * 12 + "mammoth swum women " * 12
    diagram = make_diagram(measured, style, detail="head", title=title)
    assert "both or neither" in [text.text for text in diagram.texts]  # q and k, drawn as one line
    for text in diagram.texts:
        if text.anchor == "left":
            font = FontProperties(family="DejaVu Sans", weight="bold" if text.bold else "normal")
            drawn = TextPath((0, 0), text.text, size=text.size, prop=font)
            assert text.x + drawn.get_extents().width < diagram.left + diagram.width, text.text


@pytest.mark.parametrize("made", ["measured", "ranked"])
def test_drawing_and_exporting_take_no_torch(made: str, tmp_path: Path) -> None:
    """Half of what a command costs that only looks at a circuit would be its import."""
    run = Path(__file__).parents[1] / "circuit" / "version-1.1" / "run"
    if made == "ranked":
        graph = Graph(1, 2)
        values = np.where(graph.valid, np.arange(graph.valid.size).reshape(graph.valid.shape) - 3.0, 0.0)
        run = Scores(graph, values, "eap-ig", signs="estimated").top(6).save(tmp_path / "run")
    script = (
        "import sys; from acdc import Circuit, formats, viz; c = Circuit.load(sys.argv[1]); viz.draw(c); "
        "viz.write_page(c); formats.export(c, 'csv'); assert not {'torch', 'transformers'} & {*sys.modules}"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, run], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
