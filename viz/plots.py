"""Plots of results with matplotlib: each takes numbers and axes (or makes them), draws, and returns the axes.

Colours are those of Okabe and Ito, which every kind of colour vision tells apart; lines differ in marker too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy import stats

from acdc.circuit import Circuit, Scores
from acdc.errors import AcdcError
from acdc.graph import BoolArray, Component
from acdc.metrics import precision_recall_curve, roc_auc, roc_curve
from acdc.shown import printable
from acdc.viz.style import STYLES

if TYPE_CHECKING:
    from acdc.evaluation.curve import Curve

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000", "#f0e442")
MARKERS = "os^Dv<>P"
SIGNED = LinearSegmentedColormap.from_list("acdc", [STYLES["paper"].negative, "#ffffff", STYLES["paper"].positive])
"""Colour map of signed numbers: orange below 0, white, blue above."""
WEIGHTS = LinearSegmentedColormap.from_list("acdc weights", ["#ffffff", STYLES["paper"].positive, "#052d4d"])
"""Colour map of numbers that are at least 0: white, blue, dark."""

Array = npt.NDArray[np.floating]
T = TypeVar("T")


def new_axes(width: float = 3.4, height: float = 2.6) -> Axes:
    """Axes on a figure of their own, the size of a column of a paper (inches)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def faithfulness_curves(curves: Mapping[str, Curve], ax: Axes | None = None) -> Axes:
    """Faithfulness against circuit size (log scale), one line a method; several are named beside the axes.

    Args:
        curves: by name, from `acdc.curve`.
    """
    longest = max(map(len, _some(curves, "curve")))
    ax = ax or new_axes(3.4 + (0.4 + 0.07 * min(longest, 40) if len(curves) > 1 else 0.0))
    for i, (name, curve) in enumerate(curves.items()):
        size, value = np.array(curve.n_edges), np.array(curve.faithfulness)
        ax.plot(size[size > 0], value[size > 0], label=name, **_line(i))
    for level in (0.0, 1.0):
        ax.axhline(level, color="0.7", linewidth=0.6, zorder=0)
    _finish(ax, "edges", "faithfulness", xscale="log")
    if len(curves) > 1:  # within the axes they would lie on lines
        _legend(ax, loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.0)
    low, high = ax.get_xlim()
    few = high / low < 100  # two decades: then the numbers in between are needed, and few enough to stand apart
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=9))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _short_number(size)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    return ax


def roc(scores: Mapping[str, Scores], truth: Circuit | BoolArray, ax: Axes | None = None) -> Axes:
    """True against false positive rate of edges ranked by |score|; tied edges are one step."""
    ax = ax or new_axes(2.9, 2.9)
    for i, (name, one) in enumerate(_some(scores, "scores").items()):
        ranked = _ranked(one, truth)
        curve = roc_curve(*ranked)
        label = f"{name} ({roc_auc(*ranked):.3f})"
        ax.plot(curve.false_positive_rate, curve.true_positive_rate, label=label, **_line(i, marker=False))
    ax.plot([0, 1], [0, 1], color="0.7", linewidth=0.6, linestyle="--", zorder=0)
    return _finish(ax, "false positive rate", "true positive rate", legend=True)


def precision_recall(scores: Mapping[str, Scores], truth: Circuit | BoolArray, ax: Axes | None = None) -> Axes:
    """Precision against recall of edges ranked by |score|."""
    ax = ax or new_axes(2.9, 2.9)
    for i, (name, one) in enumerate(_some(scores, "scores").items()):
        curve = precision_recall_curve(*_ranked(one, truth))
        precision = np.append(curve.precision[1], curve.precision[1:])  # up to the first edges, that of those
        ax.step(curve.recall, precision, where="pre", label=name, **_line(i, marker=False))
    ax.set_ylim(0, 1.03)
    return _finish(ax, "recall", "precision", legend=len(scores) > 1)


def pareto(points: Mapping[str, tuple[float, float]], ax: Axes | None = None, *, cost: str = "seconds") -> Axes:
    """Quality against cost (log scale), one point a method; the methods that none beats in both are joined.

    Args:
        points: (cost, quality) by name.
    """
    ax = ax or new_axes()
    for i, (name, (x, y)) in enumerate(_some(points, "point").items()):
        ax.plot(x, y, **_line(i) | {"linestyle": "none"})
        ax.annotate(name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7, parse_math=False)
    front: list[tuple[float, float]] = []
    for x, y in sorted(points.values(), key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    ax.step(*zip(*front, strict=True), where="post", color="0.6", linewidth=0.8, zorder=0)
    ax.margins(x=0.25, y=0.15)
    return _finish(ax, cost, "quality", xscale="log")


def agreement(scores: Mapping[str, Scores], ax: Axes | None = None) -> Axes:
    """Rank correlation (Spearman) of |score| between methods, as a matrix."""
    names = list(_some(scores, "scores"))
    first = scores[names[0]]
    if any(one.graph != first.graph for one in scores.values()):
        raise AcdcError("scores of different graphs cannot be compared: make all with the same graph options")
    ranks = np.array([stats.rankdata(np.abs(one.values[one.graph.valid])) for one in scores.values()])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1)
    with np.errstate(invalid="ignore"):  # constant scores agree with nothing
        matrix = centred @ centred.T / np.outer(length, length)
    ax = heat_map(matrix, ax, rows=names, columns=names, limit=1.0, label="rank correlation", numbers=True)
    ax.tick_params(axis="x", rotation=45)
    return ax


def heads(scores: Scores, ax: Axes | None = None) -> Axes:
    """Heads and MLPs by layer: their node score, or the sum over their outgoing edges if there are none."""
    graph = scores.graph
    values = scores.nodes if scores.nodes is not None else scores.values.sum(axis=0)
    rows = [row for row in graph.components if 0 <= row.layer < graph.n_layers and row.writes]
    columns = sorted({_column(row) for row in rows})
    grid = np.full((graph.n_layers, len(columns)), np.nan)  # not every layer has every kind
    for row in rows:
        grid[row.layer, columns.index(_column(row))] = values[graph.source_index[row.name]]
    what = "node score" if scores.nodes is not None else "sum of edge scores"
    named = [name or str(number) for name, number in columns]
    ax = heat_map(grid, ax, rows=[str(n) for n in range(graph.n_layers)], columns=named, label=what)
    ax.set_xlabel("head", fontsize=8)
    ax.set_ylabel("layer", fontsize=8)
    return ax


def _column(row: Component) -> tuple[str, int]:
    """Heads by number, then what a layer has one of."""
    return ("", row.number) if row.kind == "head" else (row.kind.upper(), 0)


def heat_map(
    values: Array,
    ax: Axes | None = None,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    limit: float | None = None,
    label: str = "",
    numbers: bool = False,
) -> Axes:
    """A matrix of signed numbers, the first row at the bottom (layers by heads, layers by positions, …).

    Args:
        values: `[row, column]`; NaN is left white.
        limit: the size of number with the full colour; by default the largest there is.
        numbers: write each number into its cell.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (len(rows), len(columns)):
        raise AcdcError(f"expected values of shape {[len(rows), len(columns)]}, got {list(values.shape)}")
    ax = ax or new_axes(0.9 + 0.28 * max(len(columns), 5), 0.8 + 0.24 * max(len(rows), 4))
    limit = limit or float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    image = ax.pcolormesh(values, cmap=SIGNED, vmin=-limit, vmax=limit)
    _name_cells(ax, rows, columns)
    if numbers:
        for (row, column), value in np.ndenumerate(values):
            color = "white" if abs(value) > 0.6 * limit else "black"
            ax.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    _color_bar(ax, image, label)
    return ax


def _name_cells(ax: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Names of rows and columns of cells, as many as there is room for."""
    for axis, names in ((ax.xaxis, columns), (ax.yaxis, rows)):
        step = -(-len(names) // 24)
        axis.set_ticks(np.arange(0, len(names), step) + 0.5, list(names)[::step], fontsize=7, parse_math=False)
        axis.set_tick_params(length=0)


def _color_bar(ax: Axes, image: ScalarMappable, label: str) -> None:
    bar = ax.figure.colorbar(image, ax=ax)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def attention(pattern: Array, tokens: Sequence[str], ax: Axes | None = None) -> Axes:
    """Where one head attends on one prompt: a row a query, the first on top; a column a key.

    Weights are not signed, and some heads spread theirs thinly, so that colours go from 0 to the largest there is.

    Args:
        pattern: `[query, key]` weights, of `acdc.inspection.attention_patterns`; NaN is left white.
        tokens: of the prompt, one a position.
    """
    values = np.asarray(pattern, dtype=np.float64)
    if values.shape != (len(tokens), len(tokens)):
        raise AcdcError(
            f"expected a pattern of shape {[len(tokens)] * 2}, as many as tokens, got {list(values.shape)}"
        )
    side = 0.19 * max(len(tokens), 5)
    ax = ax or new_axes(1.5 + side, 0.8 + side)
    most = float(np.nanmax(values, initial=0.0)) or 1.0
    image = ax.pcolormesh(values, cmap=WEIGHTS, vmin=0.0, vmax=most)
    names = [printable(token).replace("\n", "\\n") for token in tokens]
    _name_cells(ax, names, names)
    ax.invert_yaxis()
    ax.tick_params(axis="x", rotation=90)
    ax.set_aspect("equal")
    ax.set_xlabel("key", fontsize=8)
    ax.set_ylabel("query", fontsize=8)
    _color_bar(ax, image, "attention")
    return ax


def score_distribution(scores: Mapping[str, Scores], ax: Axes | None = None) -> Axes:
    """How many edges have at least a given |score| (both log): where a natural threshold is, if there is one."""
    ax = ax or new_axes()
    for i, (name, one) in enumerate(_some(scores, "scores").items()):
        sizes = np.sort(np.abs(one.values[one.graph.valid]))[::-1]
        sizes = sizes[sizes > 0]
        ax.plot(sizes, np.arange(1, len(sizes) + 1), label=name, **_line(i, marker=False))
    ax.set_yscale("log")
    return _finish(ax, "|score|", "edges with at least this", legend=len(scores) > 1, xscale="log")


def _ranked(scores: Scores, truth: Circuit | BoolArray) -> tuple[Array, BoolArray]:
    """`[edge]`: |score| of each edge, and whether it is true."""
    edges = truth.edges if isinstance(truth, Circuit) else np.asarray(truth, dtype=bool)
    valid = scores.graph.valid
    if edges.shape != valid.shape:
        raise AcdcError(f"expected true edges of shape {list(valid.shape)}, got {list(edges.shape)}")
    return np.abs(scores.values[valid]), edges[valid]


def _line(i: int, *, marker: bool = True) -> dict[str, Any]:
    style = ("-", "--", ":")[i // len(COLORS) % 3]  # colours and markers come round together
    look: dict[str, Any] = {"color": COLORS[i % len(COLORS)], "linewidth": 1.2, "linestyle": style}
    return look | ({"marker": MARKERS[i % len(MARKERS)], "markersize": 3.5} if marker else {})


def _some(values: Mapping[str, T], what: str) -> Mapping[str, T]:
    if not values:
        raise AcdcError(f"nothing to plot: expected at least one {what}")
    return values


def _finish(ax: Axes, x: str, y: str, *, legend: bool = False, xscale: str = "linear") -> Axes:
    ax.set_xscale(xscale)
    ax.set_xlabel(x, fontsize=8)
    ax.set_ylabel(y, fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=7)
    if legend:
        _legend(ax)
    return ax


def _legend(ax: Axes, **where: Any) -> None:
    for text in ax.legend(frameon=False, fontsize=7, **where).get_texts():
        text.set_parse_math(False)


def _short_number(value: float) -> str:
    """A whole number in few letters: 5,000, 20k, 1M."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= max(unit, 1e4):
            return f"{value / unit:,g}{letter}"
    return f"{value:,.0f}"
