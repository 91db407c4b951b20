"""Plots hold the numbers they were given, on the axes they were given."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from acdc.circuit import Circuit, Scores
from acdc.errors import AcdcError
from acdc.evaluation.curve import Curve
from acdc.graph import Graph
from acdc.viz import plots

GRAPH = Graph(2, 2)
TRUTH = Circuit.from_names(GRAPH, ["input->m0", "m0->m1", "m1->logits"])
PERFECT = Scores(GRAPH, TRUTH.edges.astype(float) * -2)
RANDOM = Scores(GRAPH, np.random.default_rng(0).normal(size=GRAPH.valid.shape))


def lines(ax: object) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_xydata() for line in ax.get_lines() if not line.get_label().startswith("_")}


def test_faithfulness_curves() -> None:
    curve = Curve((0.001, 0.5, 1.0), (0, 20, 46), (0.0, 0.7, 1.0), 0.5, 0.5)
    ax = plots.new_axes()
    assert plots.faithfulness_curves({"eap": curve, "acdc": curve}, ax) is ax
    assert lines(ax)["eap"].tolist() == [[20, 0.7], [46, 1.0]]  # a log axis has no 0
    assert ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["eap", "acdc"]


@pytest.mark.parametrize("total", [46, 2_000, 123_211, 41_000_000])
def test_no_two_labels_of_faithfulness_curves_overlap(total: int) -> None:
    sizes = tuple(sorted({1, 5, 20, total // 100, total // 2, total}))
    curve = Curve(tuple(n / total for n in sizes), sizes, tuple(np.linspace(0, 1, len(sizes))), 0.5, 0.5)
    ax = plots.faithfulness_curves({f"a method of long name {i}": curve for i in range(10)})
    ax.figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
    shown = [box for box in boxes if ax.bbox.x0 - 1 <= (box.x0 + box.x1) / 2 <= ax.bbox.x1 + 1]
    assert len(shown) >= 2
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(shown))
    legend = ax.get_legend().get_window_extent()
    assert not legend.overlaps(ax.bbox)
    assert legend.x1 <= ax.figure.bbox.x1
    looks = {(line.get_color(), line.get_linestyle()) for line in ax.get_lines()[:10]}
    assert len(looks) == 10


def test_roc_and_precision_recall() -> None:
    found = lines(plots.roc({"perfect": PERFECT, "random": RANDOM}, TRUTH))
    assert found["perfect (1.000)"].tolist() == [[0, 0], [0, 1], [1, 1]]
    (name,) = [name for name in found if name.startswith("random")]
    ranks = np.abs(RANDOM.values[GRAPH.valid])
    true = TRUTH.edges[GRAPH.valid]
    wins = (ranks[true][:, None] > ranks[~true]).mean()
    assert name == f"random ({wins:.3f})"
    assert lines(plots.precision_recall({"perfect": PERFECT}, TRUTH.edges))["perfect"][:2].tolist() == [
        [0, 1],
        [1, 1],
    ]


def test_ties_are_one_step() -> None:
    constant = Scores(GRAPH, np.ones(GRAPH.valid.shape))
    assert lines(plots.roc({"constant": constant}, TRUTH))["constant (0.500)"].tolist() == [[0, 0], [1, 1]]


def test_pareto_joins_what_nothing_beats() -> None:
    ax = plots.pareto({"a": (1.0, 0.5), "worse": (2.0, 0.4), "b": (3.0, 0.9)})
    assert ax.get_lines()[-1].get_xydata().tolist() == [[1.0, 0.5], [3.0, 0.9]]
    assert {text.get_text() for text in ax.texts} == {"a", "worse", "b"}


def test_agreement_ignores_sign_and_scale() -> None:
    ax = plots.agreement({"a": RANDOM, "b": Scores(GRAPH, -3 * RANDOM.values)})
    assert [text.get_text() for text in ax.texts] == ["1.00"] * 4
    with pytest.raises(AcdcError, match="different graphs"):
        plots.agreement({"a": RANDOM, "b": Scores(Graph(1, 1), np.zeros(Graph(1, 1).valid.shape))})


def test_heads() -> None:
    nodes = np.arange(GRAPH.n_sources, dtype=float)
    ax = plots.heads(Scores(GRAPH, RANDOM.values, nodes=nodes))
    assert ax.collections[0].get_array().tolist() == [[1, 2, 3], [4, 5, 6]]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "MLP"]
    summed = plots.heads(RANDOM).collections[0].get_array()
    np.testing.assert_allclose(summed.ravel(), RANDOM.values.sum(axis=0)[1:])


def test_heat_map() -> None:
    ax = plots.heat_map(np.array([[1.0, -2.0], [np.nan, 0.5]]), rows=["0", "1"], columns=["$a$", "<b>"])
    mesh = ax.collections[0]
    assert (mesh.norm.vmin, mesh.norm.vmax) == (-2.0, 2.0)
    ax.figure.canvas.draw()
    with pytest.raises(AcdcError, match=r"shape \[1, 2\], got \[2, 2\]"):
        plots.heat_map(np.zeros((2, 2)), rows=["0"], columns=["a", "b"])


def test_attention_has_its_own_scale_and_the_first_query_on_top() -> None:
    pattern = np.array([[0.02, np.nan], [0.01, 0.05]])
    ax = plots.attention(pattern, ["The", " $man$\n"])
    mesh = ax.collections[0]
    assert (mesh.norm.vmin, mesh.norm.vmax) == (0.0, 0.05)
    ax.figure.draw_without_rendering()
    first, last = (label.get_window_extent().y0 for label in ax.get_yticklabels())
    assert first > last
    assert [label.get_text() for label in ax.get_yticklabels()] == ["The", " $man$\\n"]
    with pytest.raises(AcdcError, match=r"shape \[3, 3\], as many as tokens, got \[2, 2\]"):
        plots.attention(pattern, ["a", "b", "c"])


def test_score_distribution() -> None:
    points = lines(plots.score_distribution({"perfect": PERFECT}))["perfect"]
    assert points.tolist() == [[2, 1], [2, 2], [2, 3]]


def test_nothing_to_plot() -> None:
    with pytest.raises(AcdcError, match="at least one scores"):
        plots.roc({}, TRUTH)
