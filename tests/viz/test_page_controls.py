"""What a reader can do with the page, in a headless Chromium: its address, roles, keyboard, files, and extremes."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from acdc.circuit import Circuit, Provenance, Scores
from acdc.graph import Graph
from acdc.viz import Findings
from page_reader import between, lines, node, nodes, record, saved, slide, state, wait_for

HOSTILE = (
    '</script><script>window.hit=1</script><img src=x onerror="window.hit=1">\u202e"\'🙂\nnew\x00 ' + "y" * 300
)
Open = Callable[..., Any]


# ---- changing the view ------------------------------------------------------------------------------------------


def test_the_address_holds_the_view(open_page: Open, found: Any, browser: Any) -> None:
    page = open_page(file=found[2])
    page.select_option("#compare", label="eap")
    page.uncheck("#ports")
    page.check("#stable")
    page.click(node("a1.h1"))
    page.click("text=pin")
    page.click("#zoom-in")
    wait_for(page, "location.hash.includes('zoom')")
    page.click("#theme")
    wanted = state(page)
    assert wanted.keys() == {"b", "ports", "stable", "sel", "tab", "pins", "zoom", "theme"}
    again = open_page(file=found[2], address=page.evaluate("location.hash"))
    assert state(again) == wanted
    assert again.get_attribute("#nodes", "transform") == page.get_attribute("#nodes", "transform")
    assert record(again)["edges"] == record(page)["edges"]
    assert again.get_attribute("html", "data-theme") == "dark"
    again.evaluate("location.hash = 'n=5'")
    wait_for(again, "document.getElementById('size-number').value === '5'")
    assert state(again) == {"n": 5}


@pytest.mark.parametrize(
    "address", ["#n=-3&a=7&b=x&sel=5&zoom=[0]&roles=[1]", "#%%%", "#sel=%22%3Cscript%3E%22&tab=%22x%22"]
)
def test_a_damaged_address_is_no_error(open_page: Open, found: Any, address: str) -> None:
    page = open_page(file=found[2], address=address)
    assert sorted(lines(page)) == sorted(found[0]["eap-ig"].edge_names())


def test_hiding_pinning_folding_naming_and_roles(open_page: Open, found: Any) -> None:
    page = open_page(file=found[2])
    page.click(node("m1"))
    page.click(".actions >> text=hide")
    assert "m1" not in nodes(page)
    assert not [name for name in lines(page) if "m1" in name]
    page.click("#tab-circuit")
    page.click("#show-all")
    assert "m1" in nodes(page)
    page.click(node("m1"))
    page.fill("#rename", "the last MLP")
    page.press("#rename", "Enter")
    assert page.text_content(f"{node('m1')} text") == "the last MLP"
    page.fill("#role", "constructor")  # which every object has
    page.press("#role", "Enter")
    assert state(page)["roles"]["constructor"] == ["m1"]
    page.fill("#role", "writer")
    page.press("#role", "Enter")
    assert "constructor" not in state(page)["roles"]
    assert state(page)["roles"]["writer"] == ["m1"]
    page.click(node("a1.h1"))
    page.click(".actions >> text=fold layer 1")
    assert "a1" in nodes(page)
    assert "a1.h1" not in nodes(page)
    total = sum(edge["stands_for"] for edge in record(page)["edges"])
    assert total == found[0]["eap-ig"].n_edges
    page.click(node("a1"))
    page.click(".actions >> text=unfold")
    page.click("#tab-roles")
    assert page.input_value(".roles li >> nth=0 >> .role-name") == "induction"
    page.click(".roles li >> nth=0 >> text=fold")
    assert "role:induction" in nodes(page)
    page.fill("#new-role", "early")
    page.fill("#new-role-nodes", "m0, a9.h9")
    page.click(".adder button")
    assert "There is no node a9.h9." in page.inner_text(".adder")
    page.fill("#new-role-nodes", "m0")
    page.click(".adder button")
    assert state(page)["roles"]["early"] == ["m0"]
    page.fill("#size-number", "5")
    page.press("#size-number", "Enter")
    gone = next(name for name in ("m0", "a0.h0", "a0.h2") if name not in nodes(page))
    page.evaluate(f"location.hash += '&pins=[\"{gone}\"]'")
    page.wait_for_selector(node(gone), state="attached")


def test_the_keyboard_is_enough(open_page: Open, found: Any) -> None:
    page = open_page(file=found[2])

    def focused() -> str | None:
        return page.evaluate("document.activeElement.dataset.node ?? null")

    for _ in range(20):
        page.keyboard.press("Tab")
        if focused():
            break
    assert focused() == "logits"
    page.keyboard.press("ArrowDown")
    assert focused() == "m1"
    page.keyboard.press("ArrowDown")
    first = focused()
    assert first.startswith("a1.h")
    page.keyboard.press("Enter")
    assert state(page)["sel"] == first
    page.keyboard.press("p")
    assert state(page)["pins"] == [first]
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert not state(page).keys() & {"sel", "pins"}
    page.keyboard.press("f")
    assert focused() == "a1"
    page.keyboard.press("f")
    page.focus(node(first))
    page.keyboard.press("n")
    assert page.evaluate("document.activeElement.id") == "rename"
    page.keyboard.press("Escape")
    page.focus(node(first))
    page.keyboard.press("h")
    assert state(page)["hidden"] == [first]
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    assert not page.is_visible("#help")
    page.focus("#tab-circuit")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#tab-selection", "aria-selected") == "true"


def test_every_control_has_a_name(open_page: Open, found: Any) -> None:
    page = open_page(file=found[2], address='#sel="a1.h1"&tab="selection"')
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, [role=button], [role=img]')]
            .filter((x) => !(x.getAttribute('aria-label') || x.textContent.trim() || x.labels?.length))
            .map((x) => x.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("dark", [False, True])
def test_colours_follow_the_system_until_told_otherwise(open_page: Open, found: Any, dark: bool) -> None:
    page = open_page(file=found[2], dark=dark)

    def lightness() -> float:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 765

    assert (lightness() < 0.5) == dark
    page.click("#theme")
    assert (lightness() < 0.5) != dark


# ---- files ------------------------------------------------------------------------------------------------------


def test_pictures_are_saved_as_shown(open_page: Open, found: Any) -> None:
    circuits, _, path = found
    page = open_page(file=path)
    root = ElementTree.fromstring(saved(page, "svg"))
    edges = [element.get("data-edge") for element in root.iter() if element.get("data-edge")]
    assert sorted(edges) == sorted(circuits["eap-ig"].edge_names())
    assert [e.get("data-node") for e in root.iter() if e.get("data-node")] == nodes(page)
    texts = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert "induction · induction-2l" in texts
    assert any("20 of 110 edges" in text for text in texts) or any("of 110 edges, eap-ig" in text for text in texts)
    png = saved(page, "png")
    assert png.startswith(b"\x89PNG")
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    assert width == pytest.approx(2 * float(root.get("width")), abs=2)
    assert height == pytest.approx(2 * float(root.get("height")), abs=2)
    data = record(page)
    assert {node["name"] for node in data["nodes"]} == set(nodes(page))
    scores = circuits["eap-ig"].edge_scores()
    for name, edge in zip(lines(page), data["edges"], strict=True):
        assert edge["score"] == pytest.approx(scores[name], rel=1e-6)


# ---- extremes ---------------------------------------------------------------------------------------------------


def test_hostile_names_are_text_everywhere_and_run_nowhere(open_page: Open, found: Any) -> None:
    circuits, findings, _ = found
    made = Provenance(
        **dict.fromkeys(("model", "task", "method", "metric", "ablation"), HOSTILE), command=(HOSTILE,)
    )
    hostile = {HOSTILE: dataclasses.replace(circuits["eap-ig"], provenance=made), HOSTILE + "2": circuits["eap"]}
    patterns, lens = findings.patterns, findings.lens
    spoiled = Findings(
        patterns=dataclasses.replace(
            patterns, tokens=tuple(tuple(HOSTILE for _ in row) for row in patterns.tokens)
        ),
        lens=dataclasses.replace(
            lens,
            tokens=tuple(tuple(HOSTILE for _ in row) for row in lens.tokens),
            texts=dict.fromkeys(lens.texts, HOSTILE),
            answers=tuple((HOSTILE,) for _ in lens.answers),
        ),
        direct=findings.direct,
        notes=(HOSTILE,),
    )
    page = open_page(hostile, findings=spoiled, roles={HOSTILE: ("a1.h1",)}, title=HOSTILE)
    shown = page.evaluate("document.body.innerText")
    assert "<script>window.hit=1</script>" in shown
    page.select_option("#compare", "1")
    page.click(node("a1.h1"))
    page.fill("#rename", HOSTILE.replace("\n", " ").replace("\x00", ""))
    page.press("#rename", "Enter")
    page.select_option("#example", "1")
    page.hover(node("a1.h1"))
    for tab in ("lens", "roles", "circuit", "selection"):
        page.click(f"#tab-{tab}")
    page.fill("#search", "script")
    assert page.locator("#found [data-id]").count()
    page.press("#search", "Escape")
    svg = ElementTree.fromstring(saved(page, "svg"))
    assert not [element for element in svg.iter() if "script" in element.tag]
    assert saved(page, "png").startswith(b"\x89PNG")
    assert record(page)["title"] == HOSTILE
    assert page.evaluate("window.hit") is None
    assert page.title() == HOSTILE.replace("\x00", "\ufffd").replace("\n", " ").strip() or "script" in page.title()
    assert page.evaluate("document.querySelectorAll('script').length") == 3
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0


@pytest.mark.parametrize("names", [[], ["input->logits"], ["m0->m1"]])
def test_tiny_circuits(open_page: Open, names: list[str]) -> None:
    page = open_page(Circuit.from_names(Graph(2, 2), names))
    assert lines(page) == names
    assert {"input", "logits"} <= set(nodes(page))
    assert "no ranking" in page.inner_text("#size-says")
    assert page.is_disabled("#size")
    assert page.inner_text("#panel-body").count("of 46") == 1
    assert saved(page, "png").startswith(b"\x89PNG")
    for tab in ("selection", "roles", "circuit"):
        page.click(f"#tab-{tab}")
    assert page.locator("#tab-lens").count() == 0


def test_scores_that_rank_nothing_are_shown_but_not_cut(open_page: Open) -> None:
    graph = Graph(2, 2)
    names = ["input->m0", "m0->m1", "m1->logits"]
    kept = graph.edges_from_names(names)
    page = open_page(Circuit(graph, kept, Scores(graph, kept.astype(float), "acdc")))
    assert sorted(lines(page)) == sorted(names)
    assert page.is_disabled("#size")
    page.mouse.move(*between(page, "m1", "logits"))
    assert "score\n+1" in page.inner_text("#tip")
    assert "helps" not in page.inner_text("#tip")  # what ACDC kept says nothing of signs
    assert "rank" not in page.inner_text("#tip")


def test_everything_is_folded_at_once_and_lines_between_groups_are_one(open_page: Open, found: Any) -> None:
    page = open_page(file=found[2])
    circuit = found[0]["eap-ig"]
    assert page.eval_on_selector_all("#folding option", "all => all.map(one => one.value)") == [
        "nothing", "layers", "roles", "supernodes",
    ]  # fmt: skip
    page.select_option("#folding", "layers")
    assert not [name for name in nodes(page) if ".h" in name]
    drawn = record(page)["edges"]
    ends = [(edge["source"], edge["destination"]) for edge in drawn]
    assert len(ends) == len(set(ends))  # q, k and v are one line into a box of several heads
    assert sum(edge["stands_for"] for edge in drawn) == circuit.n_edges
    layer = next(edge for edge in drawn if edge["destination"] == "a1" and edge["stands_for"] > 1)
    assert layer["size"] >= abs(layer["score"])  # what flows, where scores of both signs cancel
    page.select_option("#folding", "supernodes")
    assert {"role:induction", "role:previous token"} <= set(nodes(page))
    page.click(node("role:induction"))
    page.click(".actions >> text=unfold")
    assert page.input_value("#folding") == "some"
    page.select_option("#folding", "nothing")
    assert "folded" not in state(page)
    assert page.get_attribute(node("a0.h1"), "aria-label").startswith("a0.h1, previous token")
    assert "previous token" in page.text_content(node("a0.h1"))


def test_the_picture_alone_and_its_layers(open_page: Open, found: Any) -> None:
    page = open_page(file=found[2])
    labels = page.locator("#layers text")
    assert labels.all_text_contents() == ["layer 0", "layer 1"]
    first = page.locator(f"{node('a0.h1')} .box").bounding_box()
    beside = labels.nth(0).bounding_box()
    assert abs(beside["y"] + beside["height"] / 2 - first["y"] - first["height"] / 2) < 6
    narrow = page.locator("#stage").bounding_box()["width"]
    page.click("#wide")
    assert not page.is_visible("aside")
    assert not page.is_visible("footer")
    assert page.locator("#stage").bounding_box()["width"] > narrow + 300
    assert state(page)["wide"] is True
    page.keyboard.press("m")
    assert page.is_visible("aside")


def test_picture_and_panel_are_side_by_side_in_a_small_window(open_page: Open, found: Any) -> None:
    page = open_page(file=found[2])
    page.set_viewport_size({"width": 900, "height": 700})
    stage, panel, size = (page.locator(name).bounding_box() for name in ("#stage", "aside", "#size"))
    assert panel["x"] >= stage["x"] + stage["width"] - 1
    assert stage["height"] > 400
    assert size["y"] + size["height"] <= 700
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")


def test_a_circuit_of_32491_edges(open_page: Open) -> None:
    graph = Graph(12, 12)
    scores = Scores(graph, np.random.default_rng(0).lognormal(size=graph.valid.shape))
    page = open_page(Circuit(graph, graph.valid, scores))
    assert "the 2,500 strongest lines drawn, 29,991 weaker ones left out" in page.inner_text("#left-out")
    assert "32,491 of 32,491" in page.inner_text("#panel-body")
    strongest = set(graph.edge_names(scores.top(2500, prune=False).edges))
    assert set(lines(page)) == strongest
    slide(page, 300, graph.n_edges)
    assert sorted(lines(page)) == sorted(scores.top(state(page)["n"], prune=False).prune().edge_names())
    page.click("#tab-roles")
    page.click("#fold-all")
    assert len(nodes(page)) < 26
