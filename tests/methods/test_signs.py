"""What is said of an edge's sign agrees with what the metric does when the edge alone is removed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import acdc
from acdc.circuit import Circuit, Provenance, Scores
from acdc.inspection import removal_effects
from acdc.methods import METHODS
from acdc.methods.signs import ROUNDING, edge_signs
from acdc.metrics import OUTCOMES
from acdc.viz import draw
from acdc.viz.reduce import reduce
from acdc.viz.style import STYLES

CASES = [
    ("tracr-reverse", "tracr-reverse", None),
    ("tracr-hist", "tracr-hist", None),
    pytest.param("induction-2l", "induction", None, marks=pytest.mark.slow),
    pytest.param("tiny-tasks", "ioi", None, marks=pytest.mark.slow),
    pytest.param("tiny-tasks", "ioi", "kl", marks=pytest.mark.slow),
]


def worse_without(model: Any, data: Any, edges: np.ndarray, names: list[str]) -> np.ndarray:
    """How much worse the metric gets without each of the named edges alone."""
    circuit = Circuit(model.graph(), edges)
    found = removal_effects(model, dataclasses.replace(data, held_out=None), circuit, most=None).changes
    return np.array([found[name] for name in names]) * (-1 if data.metric.higher_is_better else 1)


@pytest.mark.filterwarnings("ignore:.* edges are kept instead of")
@pytest.mark.parametrize(("name", "task", "metric"), CASES)
@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.signs != "none" or m.baseline])
def test_what_is_called_helping_or_hindering_is_so(method: str, name: str, task: str, metric: str | None) -> None:
    model = acdc.load(name)
    data = acdc.tasks.load(task, size=8, metric=metric).prepare(model)
    if METHODS[method].gradient == "clean" and data.metric.is_distance:
        method = "eap-ig"
    n = 5 if name.startswith("tracr") else 30
    ways: dict[str, Any] = {} if METHODS[method].search is not None else {"edges": n}
    circuit = acdc.discover(model, data, method, **ways)
    signs = edge_signs(circuit)
    expected = {"guided": "circuit", "acdc": "circuit", "exact": "model", "random": ""}
    estimate = "" if data.metric.is_distance else "score"
    assert signs.source == expected.get(method, estimate)
    if not signs.measured:
        return
    base = circuit.edges if signs.source == "circuit" else circuit.graph.valid
    worse = worse_without(model, data, base, circuit.edge_names())
    said = signs.values[circuit.edges]
    clear = np.abs(worse) > 10 * ROUNDING * np.abs(worse).max()
    assert (said[clear] == np.sign(worse[clear])).all()
    assert clear.sum() > len(clear) / 2


def test_the_edge_that_everything_depends_on_helps() -> None:
    """First order has the wrong sign there: the gradient of a squared distance vanishes at the clean end."""
    circuit = acdc.discover(acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse"))
    assert circuit.scores is not None
    edge = circuit.graph.edge("a3.h0->logits")
    assert circuit.scores.values[edge] < 0
    assert circuit.scores.removal is not None
    assert circuit.scores.removal[edge] > 1
    assert edge_signs(circuit).values[edge] == 1
    picture = draw(circuit, renderer="matplotlib")
    shown = picture.content.decode()
    assert STYLES["paper"].positive in shown
    assert STYLES["paper"].negative not in shown
    assert "removing the edge alone from the circuit" in picture.caption


def scored(method: str = "eap", metric: str = "logit-difference", **fields: Any) -> Circuit:
    graph = acdc.Graph(1, 2)
    edges = graph.edges_from_names(["input->logits", "input->m0", "m0->logits"])
    values = np.where(graph.valid, np.where(np.arange(graph.n_sources) % 2, -2.0, 1.0), 0.0)
    return Circuit(graph, edges, Scores(graph, values, method, Provenance(metric=metric), **fields))


@pytest.mark.parametrize("metric", ["projection", "l2"])
@pytest.mark.parametrize("method", ["eap-ig", "exact", "random"])
def test_scores_say_what_their_signs_are_as_the_records_do(method: str, metric: str, tmp_path: Any) -> None:
    scores = acdc.score(acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse", size=4, metric=metric), method)
    first_order = "estimated" if metric == "projection" else "none"
    assert scores.signs == {"exact": "measured", "random": "none"}.get(method, first_order)
    circuit = Circuit(scores.graph, scores.graph.valid, scores)
    again = Circuit.load(circuit.save(tmp_path / "run"))
    assert again.scores is not None
    assert again.scores.signs == scores.signs
    silent = dataclasses.replace(circuit, scores=dataclasses.replace(scores, signs=None))  # as older files are
    for other in (again, silent):
        assert edge_signs(other).source == edge_signs(circuit).source
        np.testing.assert_array_equal(edge_signs(other).values, edge_signs(circuit).values)


@pytest.mark.parametrize("metric", [name for name, outcome in OUTCOMES.items() if outcome.differentiable])
@pytest.mark.parametrize("method", ["eap-ig", "guided"])
def test_first_order_says_nothing_of_a_distance(method: str, metric: str) -> None:
    signs = edge_signs(scored(method, metric))
    assert signs.source == ("" if OUTCOMES[metric].is_distance else "score")
    assert signs.values.any() != OUTCOMES[metric].is_distance


def test_what_was_measured_belongs_to_the_circuit_it_was_measured_in() -> None:
    bare = scored()
    removal = np.where(bare.edges, np.array([1.0, -1.0, 1e-9, 2.0]), np.nan)
    circuit = scored(removal=removal)
    signs = edge_signs(circuit)
    assert signs.source == "circuit"
    assert (
        signs.values[circuit.edges] == np.sign(np.where(np.abs(removal) < 1e-6, 0, removal))[circuit.edges]
    ).all()
    smaller = Circuit(circuit.graph, circuit.graph.edges_from_names(["input->logits"]), circuit.scores)
    assert edge_signs(smaller).source == edge_signs(circuit & smaller).source == "score"


def test_effects_of_removal_are_saved(tmp_path: Any) -> None:
    circuit = scored(removal=np.where(scored().edges, 0.5, np.nan))
    again = Circuit.load(circuit.save(tmp_path / "run"))
    assert again.scores is not None
    np.testing.assert_array_equal(again.scores.removal, circuit.scores.removal)  # type: ignore[union-attr]
    assert edge_signs(again).source == "circuit"


def test_lines_that_stand_for_edges_of_both_signs_have_none() -> None:
    graph = acdc.Graph(1, 1)
    edges = graph.edges_from_names(["input->a0.h0<q>", "input->a0.h0<k>", "a0.h0->logits"])
    removal = np.where(edges, 1.0, np.nan)
    removal[graph.edge("input->a0.h0<k>")] = -1.0
    circuit = Circuit(graph, edges, Scores(graph, np.where(edges, 1.0, 0.0), "guided", removal=removal))
    signs = {edge.name: edge.sign for edge in reduce(circuit, None, "head", 100).edges}
    assert signs == {"input->a0.h0": 0, "a0.h0->logits": 1}
    apart = {edge.name: edge.sign for edge in reduce(circuit, None, "port", 100).edges}
    assert apart == {"input->a0.h0<q>": 1, "input->a0.h0<k>": -1, "a0.h0->logits": 1}
