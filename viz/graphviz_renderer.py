"""Diagrams through Graphviz: DOT with every position given, drawn by `neato -n2`, which then moves nothing.

Texts and the legend are nodes without outline; their lines run between invisible points. Nodes and edges of the
circuit have the attribute `id`, `node:NAME` or `edge:NAME`, which Graphviz passes on to SVG.
"""

from __future__ import annotations

import html

import graphviz

from acdc.graph import split_destination, split_edge
from acdc.viz.diagram import Diagram
from acdc.viz.elements import DiagramEdge, DiagramNode, DiagramText, text_width

_HEADS = {"none": "none", "filled": "normal", "hollow": "onormal", "diamond": "odiamond"}


def to_dot(diagram: Diagram, **attributes: str) -> str:
    """The diagram as DOT, for `neato -n2`, with further attributes of the graph."""
    style = diagram.style
    dot = graphviz.Digraph("circuit", engine="neato")
    dot.attr(
        "graph", bgcolor=style.background, outputorder="edgesfirst", splines="true", pad="0", fontname=style.font
    )
    dot.attr("graph", **attributes)
    dot.attr("node", fontname=style.font, margin="0", fixedsize="true", penwidth=f"{0.8 * style.scale:g}")
    for i, (x, y) in enumerate(_corners(diagram)):  # so that the page has the diagram's size
        dot.node(f"corner {i}", **_invisible(x, y))
    for i, node in enumerate(diagram.nodes):
        _node(dot, node, node.name or f"legend node {i}", diagram)
    for i, edge in enumerate(diagram.edges):
        if edge.name:
            source, destination = split_edge(edge.name)
            _edge(dot, edge, source, split_destination(destination)[0])
        else:
            dot.node(f"legend {i} a", **_invisible(*edge.points[0]))
            dot.node(f"legend {i} b", **_invisible(*edge.tip))
            _edge(dot, edge, f"legend {i} a", f"legend {i} b")
    for i, text in enumerate(diagram.texts):
        _text(dot, text, f"text {i}", diagram)
    content: str = dot.source
    return content


def render(diagram: Diagram, format: str) -> bytes:
    """The picture as "svg", "pdf" or "png".

    Raises:
        graphviz.ExecutableNotFound, graphviz.CalledProcessError: Graphviz is missing, or cannot make this format.
    """
    source = graphviz.Source(to_dot(diagram, **({"dpi": "200"} if format == "png" else {})), engine="neato")
    content: bytes = source.pipe(format=format, neato_no_op=2, quiet=True)
    return content


def _corners(diagram: Diagram) -> tuple[tuple[float, float], tuple[float, float]]:
    return (diagram.left, diagram.bottom), (diagram.left + diagram.width, diagram.bottom + diagram.height)


def _position(x: float, y: float) -> str:
    return f"{x:.2f},{y:.2f}"


def _invisible(x: float, y: float) -> dict[str, str]:
    return {"pos": _position(x, y), "style": "invis", "width": "0.01", "height": "0.01", "label": ""}


def _node(dot: graphviz.Digraph, node: DiagramNode, name: str, diagram: Diagram) -> None:
    style = diagram.style
    look = ["filled", *["rounded"] * node.rounded, *[node.dash] * (node.dash != "solid")]
    dot.node(
        name,
        label=graphviz.escape(node.label),
        pos=_position(node.box.x, node.box.y),
        width=f"{node.box.width / 72:.4f}",
        height=f"{node.box.height / 72:.4f}",
        shape="box",
        style=",".join(look),
        fillcolor=node.fill,
        color=node.outline,
        fontcolor=node.text,
        fontsize=f"{style.font_size:g}",
        **({"id": f"node:{node.name}"} if node.name else {}),
    )


def _edge(dot: graphviz.Digraph, edge: DiagramEdge, source: str, destination: str) -> None:
    end = "" if edge.head == "none" else f"e,{_position(*edge.tip)} "
    points = [*edge.points] if edge.head != "none" else [*edge.points[:-1], edge.tip]
    length = edge.tip[1] - edge.points[-1][1] or edge.tip[0] - edge.points[-1][0]
    dot.edge(
        source,
        destination,
        pos=end + " ".join(_position(*point) for point in points),
        color=edge.color,
        penwidth=f"{edge.width:.2f}",
        style=edge.dash,
        arrowhead=_HEADS[edge.head],
        arrowsize=f"{length / 10:.2f}",
        tooltip=graphviz.escape(edge.tooltip),
        **({"id": f"edge:{edge.name}"} if edge.name else {}),
    )


def _text(dot: graphviz.Digraph, text: DiagramText, name: str, diagram: Diagram) -> None:
    left = text.anchor == "left"
    # A box at least as wide as the text, so that text aligned in it begins at its left side.
    width = min(1.2 * text_width(text.text, text.size), diagram.left + diagram.width - text.x) if left else 0.01
    if text.bold:
        content = html.escape(text.text).replace("\\", "&#92;")
        align = "LEFT" if left else "CENTER"
        cell = f'<TD WIDTH="{width:.0f}" ALIGN="{align}"><B>{content}</B></TD>'
        label = f'<<TABLE BORDER="0" CELLBORDER="0" CELLPADDING="0" CELLSPACING="0"><TR>{cell}</TR></TABLE>>'
    else:
        label = graphviz.escape(text.text) + "\\l" * left
    dot.node(
        name,
        label=label,
        pos=_position(text.x + width / 2 * left, text.y),
        width=f"{width / 72:.4f}",
        height=f"{text.size / 72:.4f}",
        shape="plaintext",
        fontcolor=text.color,
        fontsize=f"{text.size:g}",
    )
