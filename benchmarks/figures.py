"""The figures of a report as SVG text that can stand in a page: no fonts of their own, no network, few bytes."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from acdc.benchmarks.summary import Line, mean_curve, mean_roc
from acdc.benchmarks.table import Row
from acdc.circuit import Circuit, Scores
from acdc.viz import draw, plots
from acdc.viz.style import get_style

MOST_EDGES = 40
"""A picture with more edges, found and missed, shows nothing."""


def figures(rows: Sequence[Row], lines: Sequence[Line]) -> dict[str, str]:
    """Every figure that the rows have data for, by name."""
    methods = [line.method for line in lines]
    groups = {name: [row for row in rows if row.method == name and row.error is None] for name in methods}
    found = {
        "roc": _roc(groups),
        "faithfulness": _faithfulness(groups),
        "pareto-circuits": _pareto(lines, "f1", "seconds"),
        "pareto-rankings": _pareto(
            lines, "average_precision" if _have(lines, "average_precision") else "cpr", "ranking_seconds"
        ),
    }
    return {name: to_svg(axes) for name, axes in found.items() if axes is not None}


def picture(circuit: Circuit, truth: Circuit) -> str | None:
    """A circuit against the truth, or None if there are too many edges to see.

    Colour and arrowhead tell hits (blue, full) from false edges (orange, hollow); missed ones are pale.
    """
    if int((circuit.edges | truth.edges).sum()) > MOST_EDGES:
        return None
    verdict = Scores(circuit.graph, np.where(truth.edges, 1.0, -1.0), "")
    shown = dataclasses.replace(circuit, scores=verdict)
    drawing = draw(shown, format="svg", truth=truth, style=_THIN, title="", legend=False)
    svg = re.sub(r" [+−-]1(?:\.0*)?(?=[,<\"])", "", drawing.content.decode())
    return shrink(svg)


def to_svg(axes: Axes) -> str:
    """A plot as SVG, the same bytes each time."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "acdc", "path.simplify_threshold": 0.5}):
        axes.figure.savefig(  # type: ignore[union-attr]
            file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return shrink(file.getvalue().decode())


def shrink(svg: str) -> str:
    """An SVG file as an element of a page: no prologue, comments or unused names, and coordinates to a tenth."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)  # it would hold for the whole page
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r'\sid="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r' (?:d|points)="[^"]*"', lambda path: re.sub(r"-?\d+\.\d+", _tenths, path[0]), svg)
    return re.sub(r">\s+<", "><", re.sub(r"\s+", " ", svg)).strip()


def _tenths(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}".removesuffix(".0")


_THIN = dataclasses.replace(get_style("paper"), line=(1.0, 1.5))


# ---- plots ------------------------------------------------------------------------------------------------------


def _roc(groups: Mapping[str, list[Row]]) -> Axes | None:
    curves = {name: curve for name, rows in groups.items() if (curve := mean_roc(rows)) is not None}
    if not curves:
        return None
    axes = plots.new_axes(4.2, 3.2)
    for i, (name, (x, y)) in enumerate(curves.items()):
        axes.plot(
            x,
            y,
            label=name,
            color=plots.COLORS[i % len(plots.COLORS)],
            linewidth=1.3,
            linestyle=_DASHES[i % len(_DASHES)],
        )
    return _finish(axes, "false positive rate", "true positive rate")


def _faithfulness(groups: Mapping[str, list[Row]]) -> Axes | None:
    axes = plots.new_axes(4.2, 3.2)
    drawn, known = False, any(row.n_true for rows in groups.values() for row in rows)
    for i, (name, every) in enumerate(groups.items()):
        look: dict[str, Any] = {"label": name, "markersize": 3.5, **_mark(i)}
        rows = [row for row in every if bool(row.n_true) == known]  # of others, sizes are shares of something else
        curve = mean_curve(rows)
        if curve is not None:
            axes.plot(*curve, **look, linewidth=1.1)
            drawn = True
        elif rows:  # a circuit without a ranking is one point
            sizes = [(row.n_edges or 0) / (row.n_true or row.n_edges_total or 1) for row in rows]
            axes.plot(
                np.mean(sizes), np.mean([max(row.faithfulness or 0, 0) for row in rows]), **look, linestyle=""
            )
    if not drawn:
        return None
    if not known:
        axes.set_xscale("log")
    return _finish(axes, "edges / edges of the true circuit" if known else "share of all edges", "faithfulness")


def _pareto(lines: Sequence[Line], quality: str, cost: str) -> Axes | None:
    """Quality against cost, one point a method; the methods that none beats in both are joined."""
    points = {
        line.method: (line.costs[cost], line.figures[quality].mean)
        for line in lines
        if line.costs.get(cost) and quality in line.figures
    }
    if not points:
        return None
    axes = plots.new_axes(4.2, 3.2)
    for i, line in enumerate(lines):
        if line.method in points:
            axes.plot(*points[line.method], label=line.method, linestyle="", markersize=5, **_mark(i))
    front: list[tuple[float, float]] = []
    for x, y in sorted(points.values(), key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    axes.step(*zip(*front, strict=True), where="post", color="0.6", linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    return _finish(axes, "seconds a case (median)", _NAMES.get(quality, quality))


_NAMES = {"f1": "F1", "average_precision": "average precision", "cpr": "CPR"}
_DASHES = ("-", "--", "-.", ":", (0, (4, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (7, 2)))


def _have(lines: Sequence[Line], figure: str) -> bool:
    return any(figure in line.figures for line in lines)


def _mark(i: int) -> dict[str, Any]:
    return {"color": plots.COLORS[i % len(plots.COLORS)], "marker": plots.MARKERS[i % len(plots.MARKERS)]}


def _finish(axes: Axes, x: str, y: str) -> Axes:
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(which="both", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    for text in axes.legend(frameon=False, fontsize=7).get_texts():
        text.set_parse_math(False)
    return axes
