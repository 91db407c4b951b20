"""Diagrams as a TikZ picture, to paste into a LaTeX document that says `\\usepackage{tikz}`.

Fonts are the document's own; lengths are points.
"""

from __future__ import annotations

from acdc.viz.diagram import Diagram
from acdc.viz.elements import DiagramEdge, DiagramNode, DiagramText

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "…": r"\ldots{}",
    "→": r"$\rightarrow$",
    "␣": r"\textvisiblespace{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def escape(text: str) -> str:
    """Text that LaTeX shows as it is."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def to_tikz(diagram: Diagram) -> str:
    """The diagram as a `tikzpicture`."""
    colors = _colors(diagram)
    lines = [f"% {' '.join(escape(diagram.caption).split())}", r"\begin{tikzpicture}[x=1bp,y=1bp]"]
    lines += [rf"  \definecolor{{{name}}}{{HTML}}{{{color[1:].upper()}}}" for color, name in colors.items()]
    lines += [_edge(edge, diagram, colors) for edge in sorted(diagram.edges, key=lambda edge: edge.width)]
    lines += [_node(node, diagram, colors) for node in diagram.nodes]
    lines += [_text(text, colors) for text in diagram.texts]
    return "\n".join([*lines, r"\end{tikzpicture}", ""])


def _colors(diagram: Diagram) -> dict[str, str]:
    used = [edge.color for edge in diagram.edges]
    used += [color for node in diagram.nodes for color in (node.fill, node.outline, node.text)]
    used += [text.color for text in diagram.texts] + [diagram.style.background]
    return {color: f"acdc{i}" for i, color in enumerate(dict.fromkeys(used))}


def _at(point: tuple[float, float]) -> str:
    return f"({point[0]:.2f},{point[1]:.2f})"


def _edge(edge: DiagramEdge, diagram: Diagram, colors: dict[str, str]) -> str:
    path = _at(edge.points[0])
    for i in range(1, len(edge.points), 3):
        first, second, end = edge.points[i : i + 3]
        path += f" .. controls {_at(first)} and {_at(second)} .. {_at(end)}"
    line = rf"  \draw[{colors[edge.color]},line width={edge.width:.2f}bp,{edge.dash}] {path};"
    if edge.head == "none":
        return line + f" % {edge.name}" * bool(edge.name)
    (x, y), (dx, dy) = edge.points[-1], (edge.tip[0] - edge.points[-1][0], edge.tip[1] - edge.points[-1][1])
    side = (-0.42 * dy, 0.42 * dx)
    middle = (x + dx / 2, y + dy / 2) if edge.head == "diamond" else (x, y)
    corners = [(middle[0] + side[0], middle[1] + side[1]), edge.tip, (middle[0] - side[0], middle[1] - side[1])]
    corners += [(x, y)] if edge.head == "diamond" else []
    fill = colors[edge.color if edge.head == "filled" else diagram.style.background]
    head = rf" \filldraw[draw={colors[edge.color]},fill={fill}] " + " -- ".join(map(_at, corners)) + " -- cycle;"
    return line + head + f" % {edge.name}" * bool(edge.name)


def _node(node: DiagramNode, diagram: Diagram, colors: dict[str, str]) -> str:
    box = node.box
    corners = ",rounded corners=3bp" * node.rounded
    size = f"minimum width={box.width:.2f}bp,minimum height={box.height:.2f}bp,inner sep=0pt"
    look = f"draw={colors[node.outline]},fill={colors[node.fill]},text={colors[node.text]},{node.dash}{corners}"
    font = (
        rf"font=\sffamily\fontsize{{{diagram.style.font_size:g}}}{{{diagram.style.font_size * 1.2:g}}}\selectfont"
    )
    return rf"  \node[{look},{size},{font}] at {_at((box.x, box.y))} {{{escape(node.label)}}};"


def _text(text: DiagramText, colors: dict[str, str]) -> str:
    font = rf"\sffamily\fontsize{{{text.size:g}}}{{{text.size * 1.2:g}}}\selectfont" + r"\bfseries" * text.bold
    anchor = "anchor=west," if text.anchor == "left" else ""
    at = _at((text.x, text.y))
    return rf"  \node[{anchor}inner sep=0pt,text={colors[text.color]},font={font}] at {at} {{{escape(text.text)}}};"
