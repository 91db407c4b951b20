"""The page as a reader meets it, in a real headless Chromium: sizes, search, hovering, comparison, heads and lens.

Every test also checks that the browser asked nothing of any network and that the page reported no error.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

import acdc
from acdc.circuit import Circuit, Scores
from acdc.graph import Graph, units_of
from acdc.tracing import PositionalCircuit
from acdc.viz import Findings, write_positional_page
from page_reader import between, lines, node, nodes, record, saved, slide, state, wait_for

Open = Callable[..., Any]


# ---- size -------------------------------------------------------------------------------------------------------


def test_the_slider_shows_the_circuit_of_each_size_and_what_was_measured(open_page: Open, found: Any) -> None:
    circuits, findings, path = found
    page = open_page(file=path)
    assert sorted(lines(page)) == sorted(circuits["eap-ig"].edge_names())
    assert page.get_attribute("#as-found", "aria-pressed") == "true"
    scores, curve = circuits["eap-ig"].scores, findings.curves["eap-ig"]
    for i, size in enumerate((5, 20, 60)):
        slide(page, size, 110)
        n = state(page)["n"]
        assert abs(n - size) <= 1
        assert sorted(lines(page)) == sorted(scores.top(n, prune=False).prune().edge_names())
        page.fill("#size-number", str(size))
        page.press("#size-number", "Enter")
        assert state(page)["n"] == size
        wait_for(page, "document.querySelector('.measures').dataset.exact === 'true'")
        shown = page.inner_text("#size-says").replace("−", "-")
        assert f"faithfulness {float(f'{curve.faithfulness[i]:.3g}'):g}" in shown
        assert "KL" in shown
    page.fill("#size-number", "30")
    page.press("#size-number", "Enter")
    wait_for(page, "document.getElementById('size-says').innerText.includes('as measured at 20 edges')")
    page.click('.dot[data-size="5"]')
    assert state(page)["n"] == 5
    page.click("#as-found")
    assert "n" not in state(page)


def test_the_slider_moves_by_keyboard(open_page: Open, found: Any) -> None:
    page = open_page(file=found[2], address="#n=20")
    before = state(page)["n"]
    page.focus("#size")
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    assert state(page)["n"] > before
    assert page.get_attribute("#size", "aria-valuetext") == f"{state(page)['n']} edges"


@pytest.mark.parametrize(
    "graph",
    [
        Graph(2, 4, n_kv_heads=2, group_kv=True, inputs="split"),
        Graph(2, 2, qkv="merged", parallel=True),
        Graph(3, 2, mlp=False, inputs="token"),
    ],
)
def test_every_kind_of_graph_is_pruned_as_by_the_engine(open_page: Open, graph: Graph) -> None:
    scores = Scores(graph, np.random.default_rng(1).normal(size=graph.valid.shape))
    circuit = scores.top(graph.n_edges // 3)
    page = open_page(circuit)
    assert sorted(lines(page)) == sorted(circuit.edge_names())
    for n in (graph.n_edges // 5, graph.n_edges // 2, graph.n_edges):
        page.fill("#size-number", str(n))
        page.press("#size-number", "Enter")
        assert sorted(lines(page)) == sorted(scores.top(n, prune=False).prune().edge_names())


# ---- finding and reading ----------------------------------------------------------------------------------------


def test_a_circuit_with_positions_has_a_column_for_each_place(open_page: Open, tmp_path: Path) -> None:
    graph = Graph(2, 2)
    kept = np.zeros((3, *graph.valid.shape), dtype=bool)
    for i, names in enumerate((["input->a0.h1<v>", "a0.h1->a1.h0<k>"], ["a0.h1->a1.h0<q>"], ["a1.h0->logits"])):
        kept[i] = graph.edges_from_names(names)
    circuit = PositionalCircuit(graph, "span", ("S", "end", "rest"), kept, model="m", task="t")
    page = open_page(file=write_positional_page(circuit, tmp_path / "p.html", tokens=["Anna", "to", "x"]).path)
    middle = {
        name: (box := page.locator(f"{node(name)} .box").bounding_box())["x"] + box["width"] / 2
        for name in ("a0.h1@S", "a0.h1@end", "a1.h0@end", "a1.h0@rest", "logits@rest")
    }
    assert middle["a0.h1@S"] < middle["a0.h1@end"] < middle["a1.h0@rest"]
    assert abs(middle["a1.h0@end"] - middle["a0.h1@end"]) < 2
    assert page.locator("#places text").all_text_contents() == ["S", "Anna", "end", "to", "rest", "x"]
    assert page.text_content(f"{node('a1.h0@end')} text") == "a1.h0"
    assert "a0.h1@S->a1.h0@end<k>" in lines(page)
    assert b"Anna" in saved(page, "svg")


def test_a_circuit_of_nodes_is_cut_by_nodes(open_page: Open) -> None:
    graph = Graph(2, 3)
    values = np.where(graph.valid, np.random.default_rng(2).normal(size=graph.n_sources), 0.0)
    circuit = Scores(graph, values, "exact", unit="node").top(5)
    units = units_of(graph, "node")
    order = np.argsort(-np.abs(values).max(0), kind="stable")
    page = open_page(circuit)
    assert page.inner_text("#size-total") == f"of {graph.n_sources} nodes"
    for n in (4, 7, 9):
        page.fill("#size-number", str(n))
        page.press("#size-number", "Enter")
        kept = graph.prune(units.mask(np.isin(np.arange(units.n), order[:n])))
        assert sorted(lines(page)) == sorted(graph.edge_names(kept))
    page.click("#as-found")
    assert sorted(lines(page)) == sorted(circuit.edge_names())


def test_edges_are_no_measure_of_a_circuit_of_nodes_beside(open_page: Open) -> None:
    graph = Graph(2, 2)
    values = np.random.default_rng(0).random(graph.valid.shape)
    of_nodes = Scores(graph, values, "exact", unit="node").top(4)
    page = open_page({"edges": Scores(graph, values, "eap").top(8), "nodes": of_nodes}, address="#b=1&n=5")
    kept = [edge for edge in record(page)["edges"] if edge["in"] in ("b", "both")]
    assert sum(edge["stands_for"] for edge in kept) == of_nodes.n_edges
    assert "nodes, as found" in page.inner_text("#panel-body")
    assert "edges, the 5 that rank highest, by |score|" in page.inner_text("#panel-body")


def test_search_finds_selects_and_lights_all_paths(open_page: Open, found: Any) -> None:
    circuits, _, path = found
    page = open_page(file=path)
    page.keyboard.press("/")
    page.keyboard.type("a1.h3")
    assert page.get_attribute("#found [data-id]", "data-id") == "a1.h3"
    page.keyboard.press("Enter")
    assert state(page) == {"sel": "a1.h3", "tab": "selection"}
    assert page.evaluate("document.activeElement.dataset.node") == "a1.h3"
    network = circuits["eap-ig"].to_networkx()
    ports = [name for name in network if name.partition("<")[0] == "a1.h3"]
    near = {"a1.h3"}
    for name in ports:
        near |= {other.partition("<")[0] for other in nx.ancestors(network, name) | nx.descendants(network, name)}
    faint = page.eval_on_selector_all("#nodes .faint", "all => all.map((one) => one.dataset.node)")
    assert set(faint) == set(nodes(page)) - near
    page.fill("#search", "previous")
    assert page.get_attribute("#found [data-id]", "data-id") == "a0.h1"
    page.fill("#search", "a0.h1->")
    assert "->" in page.get_attribute("#found [data-id]", "data-id")
    page.fill("#search", "nothing like it")
    assert "nothing of that name" in page.inner_text("#found")


def test_hovering_tells_score_rank_sign_and_effect(open_page: Open) -> None:
    graph = Graph(2, 1)
    values = np.zeros(graph.valid.shape)
    values[graph.edge("input->logits")], values[graph.edge("input->m1")] = -2.5, 7.0
    circuit = Circuit.from_names(graph, ["input->logits"], scores=Scores(graph, values))
    effects = acdc.inspection.RemovalEffects(
        "logit-difference", "held-out", 8, 4.0, 0.0, 3.0, {"input->logits": 1.0}
    )
    page = open_page({"one": circuit}, findings=Findings(effects={"one": effects}))
    page.mouse.move(*between(page, "input", "logits"))
    tip = page.inner_text("#tip")
    for words in (
        "input → logits",
        "−2.5",
        "measured\nhinders",
        f"2 of {graph.n_edges}",
        "logit-difference +1 (+25%)",
    ):
        assert words in tip
    page.hover(node("input"))
    assert "embedding" in page.inner_text("#tip")
    page.mouse.click(*between(page, "input", "logits"))
    assert state(page)["sel"] == "input->logits"
    assert "hinders" in page.inner_text("#panel-body")
    page.mouse.click(20, 400)
    assert page.is_hidden("#tip")
    assert "sel" not in state(page)


def test_comparison_tells_shared_from_own(open_page: Open, found: Any) -> None:
    circuits, _, path = found
    a, b = circuits.values()
    page = open_page(file=path)
    page.select_option("#compare", label="eap")
    assert state(page)["b"] == 1
    sides = {"both": a & b, "a": a - b, "b": b - a}
    edges = record(page)["edges"]
    for side, expected in sides.items():
        assert sum(edge["in"] == side for edge in edges) == expected.n_edges
    body = page.inner_text("#panel-body")
    for text in ("only in A", "only in B", f"in both\n{(a & b).n_edges}"):
        assert text in body
    page.select_option("#circuit", label="eap")
    assert state(page) == {"a": 1}
    assert sorted(lines(page)) == sorted(b.edge_names())


def test_a_head_shows_where_it_attends(open_page: Open, found: Any) -> None:
    _, findings, path = found
    page = open_page(file=path, address='#sel="a1.h1"&tab="selection"')
    assert "mean of 8 prompts" in page.inner_text("#panel-body")
    page.select_option("#example", "1")
    tokens = [token for token in findings.patterns.tokens[1] if token]
    assert page.eval_on_selector_all(".tokens .token", "all => all.map((one) => one.textContent)") == tokens
    head = findings.patterns.heads.index("a1.h1")
    page.focus(f'.token[data-position="{len(tokens) - 1}"]')
    weights = findings.patterns.examples[head, 1, len(tokens) - 1]
    titles = page.eval_on_selector_all(".tokens .token", "all => all.map((one) => Number(one.title))")
    np.testing.assert_allclose(titles, np.nan_to_num(weights)[: len(tokens)], atol=0.011)
    largest = np.nanmax(findings.patterns.examples[head, 1])  # the scale is the head's own, not from 0 to 1
    low, high = page.eval_on_selector_all(".heat-scale span:not(.heat-bar)", "all => all.map((x) => x.textContent)")
    assert (float(low), float(high)) == (0.0, pytest.approx(largest, abs=0.01))
    names = page.eval_on_selector_all(
        ".pattern text:not([transform])", "all => all.map((x) => [x.getBoundingClientRect().top, x.textContent])"
    )
    assert [name for _, name in sorted(names)] == tokens  # query 0 on top
    box = page.locator(".pattern").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 4, box["y"] + box["height"] - 4)
    assert f"{tokens[-1]} ({len(tokens) - 1}) attends to" in page.inner_text(".readout")
    direct = findings.direct.mean()["a1.h1"]
    assert f"direct effect on answer\n+{float(f'{direct:.3g}'):g}" in page.inner_text("#panel-body")


def test_the_tokens_of_a_prompt_are_below_the_input_and_its_answer_above_the_logits(
    open_page: Open, found: Any
) -> None:
    circuits, findings, path = found
    page = open_page(file=path)

    def shown() -> tuple[list[str], str]:
        tokens = page.eval_on_selector_all(".prompt-line", "all => all.map((one) => one.textContent).join(' ')")
        return tokens.split(" "), page.text_content(".prompt-answer")

    def wanted(i: int) -> tuple[list[str], str]:
        return [token for token in findings.patterns.tokens[i] if token], f"→ {findings.lens.answers[i][0]}"

    assert shown() == wanted(0)
    box = {name: page.locator(name).first.bounding_box() for name in (".prompt-line", ".prompt-answer")}
    ends = {name: page.locator(node(name)).bounding_box() for name in ("input", "logits")}
    assert box[".prompt-line"]["y"] >= ends["input"]["y"] + ends["input"]["height"] - 2
    assert box[".prompt-answer"]["y"] + box[".prompt-answer"]["height"] <= ends["logits"]["y"] + 2
    page.click(".prompt-next")
    assert state(page)["example"] == 1
    assert shown() == wanted(1)
    page.press(".prompt-next", "Enter")
    assert shown() == wanted(2)
    texts = [element.text for element in ElementTree.fromstring(saved(page, "svg")).iter() if element.text]
    assert " ".join([*wanted(2)[0], wanted(2)[1]]) in " ".join(texts)
    page.set_viewport_size({"width": 390, "height": 844})  # no room for all: the middle is left out
    page.wait_for_timeout(50)
    first, last = shown()[0][0], shown()[0][-1]
    assert (first, last) == (wanted(2)[0][0], wanted(2)[0][-1])
    right = [
        page.locator(".prompt-line").nth(i).bounding_box() for i in range(page.locator(".prompt-line").count())
    ]
    assert all(line["x"] >= 0 and line["x"] + line["width"] <= 390 for line in right)
    bare = open_page(circuits)
    assert bare.locator("#prompt text").count() == 0


def test_hovering_a_line_tells_where_its_head_attends(open_page: Open, found: Any) -> None:
    _, findings, path = found
    page = open_page(file=path, address='#only="a0.h3->a1.h1<v>"&example=1')
    x, y = between(page, "a0.h3", "a1.h1")
    for dx in range(-160, 161, 5):  # the line bends
        page.mouse.move(x + dx, y)
        if "a0.h3 → a1.h1" in page.inner_text("#tip"):
            break
    tokens = [token for token in findings.patterns.tokens[1] if token]
    weights = findings.patterns.examples[findings.patterns.heads.index("a1.h1"), 1, len(tokens) - 1, : len(tokens)]
    best = int(weights.argmax())
    told = page.inner_text("#tip")
    assert "a1.h1 attends, prompt 2" in told
    assert f"{tokens[-1]} → {tokens[best]} {weights[best]:.2f}" in told


def test_only_the_paths_through_a_node_are_drawn_and_all_again(open_page: Open, found: Any) -> None:
    circuits, _, path = found
    page = open_page(file=path, address='#sel="a0.h1"&tab="selection"')
    page.click("text=only its paths")
    network = nx.DiGraph()
    for name in circuits["eap-ig"].edge_names():
        source, _, destination = name.partition("->")
        network.add_edge(source, destination.partition("<")[0])
    through = nx.ancestors(network, "a0.h1") | nx.descendants(network, "a0.h1") | {"a0.h1"}
    above, below = nx.descendants(network, "a0.h1") | {"a0.h1"}, nx.ancestors(network, "a0.h1") | {"a0.h1"}
    expected = [
        name
        for name in circuits["eap-ig"].edge_names()
        for source, destination in [(name.partition("->")[0], name.partition("->")[2].partition("<")[0])]
        if {source, destination} <= above or {source, destination} <= below
    ]
    assert sorted(lines(page)) == sorted(expected)
    assert set(nodes(page)) <= through
    assert len(expected) < circuits["eap-ig"].n_edges
    assert state(page)["only"] == "a0.h1"
    page.click("#only-off")
    assert sorted(lines(page)) == sorted(circuits["eap-ig"].edge_names())


def test_the_logit_lens_shows_what_each_layer_would_say(open_page: Open, found: Any) -> None:
    _, findings, path = found
    page = open_page(file=path)
    page.click("#tab-lens")
    page.select_option("#lens-example", "2")
    rows = page.eval_on_selector_all(
        ".lens-table tbody tr",
        "rows => rows.map((row) => [...row.querySelectorAll('td')].map((cell) => cell.textContent))",
    )
    lens = findings.lens
    assert rows == [[lens.texts[i] for i in layer] for layer in lens.top[2, ::-1, :, 0].tolist()]
    assert f"answer: {lens.answers[2][0]}" in page.inner_text("#panel-body")
