"""Diagrams through matplotlib: the same boxes, curves and texts at the same coordinates.

In SVG, nodes and edges of the circuit have the group id `node:NAME` or `edge:NAME`.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path

from acdc.viz.diagram import Diagram
from acdc.viz.elements import DiagramEdge, DiagramNode

_DASHES = {"solid": "-", "dashed": (0, (5, 2)), "dotted": (0, (1.2, 2))}
METADATA = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}
"""What a file says of itself, by format: nothing that changes from one day to the next."""
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "acdc",
    "pdf.fonttype": 42,
    "lines.scale_dashes": False,
}
"""Settings of matplotlib under which the same picture is the same bytes."""
_FONTS = ["Helvetica", "Arial", "Nimbus Sans", "Liberation Sans", "DejaVu Sans"]


def render(diagram: Diagram, format: str, *, dpi: int = 200) -> bytes:
    """The picture as "svg", "pdf" or "png"; the same diagram gives the same bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box is drawn in its place
        make_figure(diagram).savefig(
            buffer, format=format, dpi=dpi, facecolor=diagram.style.background, metadata=METADATA[format]
        )
    return buffer.getvalue()


def make_figure(diagram: Diagram) -> Figure:
    """A figure of the diagram's size that holds it."""
    figure = Figure(figsize=(diagram.width / 72, diagram.height / 72))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_on(axes, diagram)
    return figure


def draw_on(axes: Axes, diagram: Diagram) -> Axes:
    """Draw on axes; their limits are set to the diagram's, in points."""
    axes.set_xlim(diagram.left, diagram.left + diagram.width)
    axes.set_ylim(diagram.bottom, diagram.bottom + diagram.height)
    axes.set_aspect("equal")
    axes.axis("off")
    for edge in sorted(diagram.edges, key=lambda edge: edge.width):
        _edge(axes, edge, diagram)
    for node in diagram.nodes:
        _node(axes, node, diagram)
    for text in diagram.texts:
        axes.text(
            text.x,
            text.y,
            text.text,
            fontsize=text.size,
            color=text.color,
            ha="left" if text.anchor == "left" else "center",
            va="center",
            fontweight="bold" if text.bold else "normal",
            family=_available(),
            parse_math=False,
        )
    return axes


def _available() -> list[str]:
    """Those of our fonts that are installed (asking for others makes matplotlib complain)."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return [font for font in _FONTS if font in installed]


def _edge(axes: Axes, edge: DiagramEdge, diagram: Diagram) -> None:
    codes = [Path.MOVETO] + [Path.CURVE4] * (len(edge.points) - 1)
    curve = PathPatch(
        Path(list(edge.points), codes),
        fill=False,
        edgecolor=edge.color,
        linewidth=edge.width,
        linestyle=_DASHES[edge.dash],
        capstyle="butt",
        zorder=2,
    )
    curve.set_gid(f"edge:{edge.name}" if edge.name else None)
    axes.add_patch(curve)
    if edge.head == "none":
        return
    base, tip = np.array(edge.points[-1]), np.array(edge.tip)
    along = tip - base
    across = np.array([-along[1], along[0]]) * 0.42
    corners = {
        "filled": [base + across, tip, base - across],
        "hollow": [base + across, tip, base - across],
        "diamond": [base, base + along / 2 + across, tip, base + along / 2 - across],
    }[edge.head]
    fill = edge.color if edge.head == "filled" else diagram.style.background
    head = Polygon(
        corners, closed=True, facecolor=fill, edgecolor=edge.color, linewidth=0.8, joinstyle="miter", zorder=3
    )
    head.set_gid(f"arrow:{edge.head}:{edge.name}" if edge.name else None)
    axes.add_patch(head)


def _node(axes: Axes, node: DiagramNode, diagram: Diagram) -> None:
    style, box = diagram.style, node.box
    corner = (box.x - box.width / 2, box.bottom)
    if node.rounded:
        radius = 0.25 * box.height
        shape: FancyBboxPatch | Rectangle = FancyBboxPatch(
            corner, box.width, box.height, boxstyle=f"round,pad=0,rounding_size={radius}"
        )
    else:
        shape = Rectangle(corner, box.width, box.height)
    shape.set(
        facecolor=node.fill,
        edgecolor=node.outline,
        linewidth=0.8 * style.scale,
        linestyle=_DASHES[node.dash],
        zorder=4,
    )
    shape.set_gid(f"node:{node.name}" if node.name else None)
    axes.add_patch(shape)
    axes.text(
        box.x,
        box.y,
        node.label,
        fontsize=style.font_size,
        color=node.text,
        ha="center",
        va="center_baseline",
        family=_available(),
        parse_math=False,
        zorder=5,
    )
