"""What `print` and notebooks show of the public records."""

from __future__ import annotations

import html.parser
from typing import Any

import numpy as np
import pytest

import acdc
from acdc.circuit import Provenance
from acdc.shown import Shown

GRAPH = acdc.Graph(n_layers=1, n_heads=2)


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    model = acdc.load("tracr-hist")
    task = acdc.tasks.load("tracr-hist", size=4)
    scores = acdc.score(model, task, method="random")
    circuit = scores.top(5)
    return {
        "Model": model,
        "Task": task,
        "Dataset": task.prepare(model),
        "Prompts": task.prepare(model).discovery,
        "Scores": scores,
        "Circuit": circuit,
        "Evaluation": acdc.evaluate(model, task, circuit, random_circuits=2),
        "Curve": acdc.curve(model, task, scores),
    }


def test_every_record_has_one_line(shown: dict[str, Any]) -> None:
    for name, record in shown.items():
        line = repr(record)
        assert "\n" not in line
        assert len(line) < 200, line
        assert "tensor(" not in str(record), name
        assert "array(" not in str(record), name


def test_what_is_printed_is_what_is_known(shown: dict[str, Any]) -> None:
    assert "parameters" in str(shown["Model"])
    assert f"{shown['Model'].graph().n_edges}" in str(shown["Model"])
    assert shown["Task"].description in str(shown["Task"])
    assert "random circuits" in str(shown["Evaluation"])
    assert "CPR" in str(shown["Curve"])
    best = max(shown["Scores"], key=lambda edge: abs(shown["Scores"][edge]))
    assert best in str(shown["Scores"])
    assert best in str(shown["Circuit"])


def test_notebooks_get_html_that_holds_names_as_text(shown: dict[str, Any]) -> None:
    made = Provenance(task="<script>alert(1)</script>", model="m\x1b[31m")
    shown = shown | {"odd": acdc.Circuit(GRAPH, GRAPH.valid, provenance=made)}
    for name, record in shown.items():
        if name == "Prompts":
            continue
        found: list[str] = []
        parser = html.parser.HTMLParser()
        parser.handle_starttag = lambda tag, _, found=found: found.append(tag)  # type: ignore[method-assign]
        parser.feed(record._repr_html_())
        assert "table" in found, name
        assert "script" not in found, name
    assert "\x1b" not in repr(shown["odd"]) + str(shown["odd"])


def test_columns_are_aligned() -> None:
    class Two(Shown):
        def _summary(self) -> str:
            return "two"

        def facts(self) -> dict[str, str]:
            return {"a": "1", "longer": "2"}

        def table(self) -> Any:
            return ("name", "n"), [("x", "10"), ("yy", "5")]

    assert str(Two()).split("\n") == ["a       1", "longer  2", "", "name   n", "x     10", "yy     5"]
    assert repr(Two()) == "Two(two)"


def test_scores_by_name(shown: dict[str, Any]) -> None:
    scores = shown["Scores"]
    assert len(scores) == scores.graph.n_edges == len(list(scores))
    for edge in scores:
        assert scores[edge] == scores.values[scores.graph.edge(edge)]
    with pytest.raises(acdc.AcdcError, match="unknown source"):
        scores["a9.h0->logits"]


def test_a_circuit_is_iterated_by_name(shown: dict[str, Any]) -> None:
    circuit = shown["Circuit"]
    assert list(circuit) == circuit.edge_names()
    assert len(circuit) == circuit.n_edges
    assert all(edge in circuit for edge in circuit)
    empty = acdc.Circuit(GRAPH, np.zeros_like(GRAPH.valid))
    assert (len(empty), list(empty), bool(empty)) == (0, [], True)


def test_frames_have_a_row_an_edge(shown: dict[str, Any]) -> None:
    pytest.importorskip("pandas")
    circuit, scores = shown["Circuit"], shown["Scores"]
    frame = circuit.to_frame()
    assert list(frame.columns) == ["edge", "source", "destination", "score", "removal"]
    assert dict(zip(frame.edge, frame.score, strict=True)) == circuit.edge_scores()
    assert (frame.source + "->" + frame.destination == frame.edge).all()
    assert len(scores.to_frame()) == len(scores)
    assert acdc.Circuit(GRAPH, GRAPH.valid).to_frame().score.isna().all()


def test_frames_say_what_they_need(monkeypatch: pytest.MonkeyPatch, shown: dict[str, Any]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(acdc.AcdcError, match="pip install pandas"):
        shown["Circuit"].to_frame()


def test_scores_as_a_network(shown: dict[str, Any]) -> None:
    scores = shown["Scores"]
    network = scores.to_networkx()
    for edge in scores:
        source, _, destination = edge.partition("->")
        assert network.edges[source, destination]["score"] == scores[edge]


def test_all_names_are_listed() -> None:
    assert {"load", "discover", "Circuit", "viz", "formats", "metrics"} <= set(dir(acdc))
    assert {"draw", "plots", "write_page", "terminal"} <= set(dir(acdc.viz))
    assert acdc.viz.plots.__name__ == "acdc.viz.plots"


def test_renamed_names_answer_with_the_new_one() -> None:
    with pytest.raises(AttributeError, match=r"acdc\.io is now acdc\.formats"):
        acdc.io  # noqa: B018
