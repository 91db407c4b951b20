"""A diagram as data: boxes, curves and texts at coordinates, ready for any renderer.

One visual channel has one meaning. Edges: colour is the sign of the score, width its size, line style the port (q,
k, v), arrowhead the verdict against a true circuit. Nodes: shape and shade are the kind, outline the verdict.
"""

from __future__ import annotations

import dataclasses
import textwrap
import unicodedata
from typing import Literal

from acdc.circuit import Circuit
from acdc.graph import BoolArray
from acdc.viz.layout import Box, Point, Spacing, place, route, row_key
from acdc.viz.reduce import Detail, DrawnEdge, Reduced, Verdict, reduce
from acdc.viz.style import Style

Dash = Literal["solid", "dashed", "dotted"]
Head = Literal["none", "filled", "diamond", "hollow"]
DASHES: dict[str, Dash] = {"": "solid", "q": "dashed", "k": "dotted", "v": "solid"}
HEADS: dict[Verdict, Head] = {"": "filled", "hit": "filled", "false": "diamond", "missed": "hollow"}
OUTLINES: dict[Verdict, Dash] = {"": "solid", "hit": "solid", "false": "dashed", "missed": "dotted"}


@dataclasses.dataclass(frozen=True)
class DiagramNode:
    """A box with a label; `name` is empty for one of the legend."""

    name: str
    label: str
    box: Box
    rounded: bool
    fill: str
    outline: str
    dash: Dash
    text: str


@dataclasses.dataclass(frozen=True)
class DiagramEdge:
    """A curve; `name` is empty for one of the legend. `points` end where the arrowhead begins, at `tip` it ends."""

    name: str
    points: tuple[Point, ...]
    tip: Point
    color: str
    width: float
    dash: Dash
    head: Head
    tooltip: str = ""


@dataclasses.dataclass(frozen=True)
class DiagramText:
    """A text; x is its left end or its centre."""

    text: str
    x: float
    y: float
    size: float
    color: str
    anchor: Literal["left", "middle"] = "left"
    bold: bool = False


@dataclasses.dataclass(frozen=True)
class Diagram:
    """A whole picture, its lower left corner at (left, bottom)."""

    nodes: tuple[DiagramNode, ...]
    edges: tuple[DiagramEdge, ...]
    texts: tuple[DiagramText, ...]
    left: float
    bottom: float
    width: float
    height: float
    style: Style
    caption: str


def make_diagram(
    circuit: Circuit,
    style: Style,
    *,
    truth: Circuit | BoolArray | None = None,
    detail: Detail = "port",
    max_edges: int = 120,
    title: str | None = None,
    legend: bool = True,
) -> Diagram:
    """The diagram of a circuit; arguments as for `acdc.viz.draw`."""
    spacing = Spacing().scaled(style.scale)
    reduced = reduce(circuit, truth, detail, max_edges)
    boxes = place(reduced.nodes, _degrees(reduced.edges), spacing)
    curves = route([(e.source, e.destination, e.port) for e in reduced.edges], boxes, spacing)
    strongest = max((abs(e.score) for e in reduced.edges if e.score is not None), default=0.0)
    edges = [_edge(e, curve, strongest, style, spacing) for e, curve in zip(reduced.edges, curves, strict=True)]
    nodes = [_node(name, verdict, boxes[name], style) for name, verdict in reduced.nodes.items()]

    xs = [x for box in boxes.values() for x in (box.x - box.width / 2, box.x + box.width / 2)]
    xs += [x for curve in curves for x, _ in curve]
    left, right = (min(xs), max(xs)) if xs else (0.0, 0.0)
    texts = _layer_labels(boxes, left - 0.6 * spacing.width, style)
    if texts:
        left -= 0.6 * spacing.width + 4.2 * style.font_size
    least = 37 * style.font_size
    if right - left < least:
        left, right = left - (least - (right - left)) / 2, right + (least - (right - left)) / 2

    top = max((box.top for box in boxes.values()), default=0.0)
    y = min((box.bottom for box in boxes.values()), default=0.0) - 1.6 * style.font_size
    if legend:
        legend_texts, legend_edges, legend_nodes, y = _legend(reduced, strongest, left, right, y, style)
        texts, edges, nodes = texts + legend_texts, edges + legend_edges, nodes + legend_nodes
    caption = _caption(circuit, reduced)
    for line in _wrapped(caption, right - left, style.font_size):
        y -= 1.35 * style.font_size
        texts.append(DiagramText(line, left, y, style.font_size, style.quiet))
    title = _default_title(circuit) if title is None else clean(title)
    title_lines = _wrapped(title, right - left, style.title_size)
    top += (1.4 * len(title_lines) + 0.3) * style.title_size if title_lines else 0.0
    for i, line in enumerate(title_lines):
        height = top - (0.7 + 1.4 * i) * style.title_size
        texts.append(DiagramText(line, left, height, style.title_size, style.text, bold=True))
    margin = 0.8 * style.font_size
    return Diagram(
        nodes=tuple(nodes),
        edges=tuple(edges),
        texts=tuple(texts),
        left=left - margin,
        bottom=y - 0.5 * style.font_size - margin,
        width=right - left + 2 * margin,
        height=top - y + 0.5 * style.font_size + 2 * margin,
        style=style,
        caption=caption,
    )


def clean(text: str, *, most: int = 160) -> str:
    """A name from outside as one line of printable text, cut if it is long."""
    text = " ".join(
        "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text).split()
    )
    text = "".join(c for c in text if unicodedata.category(c) != "Cf" or c == "\u200d")  # no turning of direction
    return text if len(text) <= most else text[: most - 1] + "…"


def text_width(text: str, size: float) -> float:
    """Roughly how wide a text is in a sans-serif font, rather too wide than too narrow."""

    def width(character: str) -> float:
        if unicodedata.east_asian_width(character) in "WF":
            return 1.05
        return (
            0.32
            if character in " .,:;|!'()[]fijlrt"
            else 0.75
            if character.isupper() or character in "mw"
            else 0.59
        )

    return sum(map(width, text)) * size


def number(value: float) -> str:
    """Two digits of a score, without an exponent where it can be read without."""
    return f"{float(f'{value:.2g}'):g}" if 1e-4 <= abs(value) < 1e5 else f"{value:.1e}"


def _wrapped(text: str, width: float, size: float) -> list[str]:
    wide = text_width(text, size) / max(len(text), 1)
    return textwrap.wrap(text, max(8, int(width / wide))) if text else []


def _default_title(circuit: Circuit) -> str:
    made = circuit.provenance
    return " · ".join(dict.fromkeys(filter(None, [clean(made.task, most=80), clean(made.model, most=80)])))


def _caption(circuit: Circuit, reduced: Reduced) -> str:
    made = circuit.provenance
    parts = [
        f"{circuit.n_edges:,} of {circuit.graph.n_edges:,} edges" + f", {clean(made.method)}" * bool(made.method)
    ]
    merged = {"port": "", "head": "q, k and v merged", "layer": "heads of a layer merged"}[reduced.detail]
    if merged and (reduced.detail == "layer" or circuit.graph.qkv == "split"):
        parts.append(merged)
    if reduced.left_out:
        parts.append(
            f"only the {len(reduced.edges):,} strongest lines drawn, {reduced.left_out:,} weaker ones left out"
        )
    if any(node.partition(".")[2].startswith("g") for node in reduced.nodes):
        parts.append("g: keys and values shared by a group of heads")
    return "; ".join(parts)


def _degrees(edges: tuple[DrawnEdge, ...]) -> dict[str, int]:
    into: dict[str, int] = {}
    out: dict[str, int] = {}
    for edge in edges:
        out[edge.source] = out.get(edge.source, 0) + 1
        into[edge.destination] = into.get(edge.destination, 0) + 1
    return {name: max(into.get(name, 0), out.get(name, 0)) for name in into.keys() | out.keys()}


def _edge(edge: DrawnEdge, curve: list[Point], strongest: float, style: Style, spacing: Spacing) -> DiagramEdge:
    x, y = curve[-1]
    return DiagramEdge(
        name=edge.name,
        points=tuple(curve),
        tip=(x, y + spacing.arrow),
        color=_color(edge, style),
        width=_width(edge.score, strongest, style),
        dash=DASHES[edge.port],
        head=HEADS[edge.verdict],
        tooltip=edge.name
        + (f" {edge.score:+.3g}" if edge.score is not None else "")
        + (f", {edge.verdict}" if edge.verdict else "")
        + (f", {edge.count} edges" if edge.count > 1 else ""),
    )


def _color(edge: DrawnEdge, style: Style) -> str:
    if not edge.kept:
        return style.absent
    if not edge.score:
        return style.unsigned
    return style.positive if edge.score > 0 else style.negative


def _width(score: float | None, strongest: float, style: Style) -> float:
    """The square root of the score's size: weak edges stay visible beside strong ones."""
    thin, thick = style.line
    if score is None or not strongest:
        return thin + 0.15 * (thick - thin)
    return thin + (thick - thin) * (abs(score) / strongest) ** 0.5


def _node(name: str, verdict: Verdict, box: Box, style: Style, label: str | None = None) -> DiagramNode:
    end = name == "logits" or name.startswith("input")
    fill = style.end_fill if end else style.mlp_fill if name.startswith("m") else style.head_fill
    return DiagramNode(
        name=name,
        label=name if label is None else label,
        box=box,
        rounded=name.startswith("a"),
        fill=style.background if verdict == "missed" else fill,
        outline=style.absent if verdict == "missed" else style.outline,
        dash=OUTLINES[verdict],
        text=style.quiet if verdict == "missed" else style.text,
    )


def _layer_labels(boxes: dict[str, Box], x: float, style: Style) -> list[DiagramText]:
    """ "layer 3" at the left of the first row of each layer."""
    rows: dict[int, float] = {}
    for name, box in boxes.items():
        layer, _ = row_key(name)
        if 0 <= layer < 10**9:
            rows[layer] = min(rows.get(layer, box.y), box.y)
    size = style.font_size
    return [DiagramText(f"layer {n}", x - 4.2 * size, y, size, style.quiet) for n, y in rows.items()]


def _legend(
    reduced: Reduced, strongest: float, left: float, right: float, y: float, style: Style
) -> tuple[list[DiagramText], list[DiagramEdge], list[DiagramNode], float]:
    """Samples with their meaning, in lines below the picture; returns the height of the last line too."""
    size = style.font_size
    texts: list[DiagramText] = []
    edges: list[DiagramEdge] = []
    nodes: list[DiagramNode] = []
    thin, thick = style.line
    middle = thin + 0.4 * (thick - thin)
    length = 2.6 * size
    x = left
    y -= 1.2 * size

    def entry(
        text: str, color: str = style.text, width: float = middle, dash: Dash = "solid", head: Head = "none"
    ) -> None:
        nonlocal x, y
        needed = length + 0.6 * size + text_width(text, size) + 1.4 * size
        if x > left and x + needed - 1.4 * size > right:
            x, y = left, y - 1.5 * size
        arrow = Spacing().arrow * style.scale if head != "none" else 0.0
        end = x + length - arrow
        points = ((x, y), (x + (end - x) / 3, y), (end - (end - x) / 3, y), (end, y))
        edges.append(DiagramEdge("", points, (x + length, y), color, width, dash, head))
        texts.append(DiagramText(text, x + length + 0.6 * size, y, size, style.text))
        x += needed

    def new_line() -> None:
        nonlocal x, y
        if x > left:
            x, y = left, y - 1.5 * size

    kept = [edge for edge in reduced.edges if edge.kept]
    if any(edge.score and edge.score > 0 for edge in kept):
        entry("score > 0", style.positive)
    if any(edge.score and edge.score < 0 for edge in kept):
        entry("score < 0", style.negative)
    if strongest:
        entry(f"|score| {number(strongest)}", style.unsigned, thick)
        if len(kept) > 1:
            entry(number(strongest / 25), style.unsigned, _width(strongest / 25, strongest, style))
    ports = {edge.port for edge in reduced.edges}
    if ports & set("qkv"):
        new_line()
        for port, meaning in (("q", "to queries"), ("k", "to keys"), ("v", "to values and others")):
            entry(meaning, style.unsigned, middle, DASHES[port])
    meanings: dict[Verdict, str] = {"hit": "true", "false": "not in the true circuit", "missed": "missed"}
    verdicts = {edge.verdict for edge in reduced.edges}
    if verdicts & meanings.keys():
        new_line()
        for verdict, meaning in meanings.items():
            if verdict in verdicts:
                color = style.absent if verdict == "missed" else style.unsigned
                entry(
                    meaning,
                    color,
                    thin + 0.15 * (thick - thin) if verdict == "missed" else middle,
                    head=HEADS[verdict],
                )
    judged = {verdict for verdict in reduced.nodes.values() if verdict in ("false", "missed")}
    if judged:
        new_line()
        for verdict in ("false", "missed"):
            if verdict in judged:
                meaning = {"false": "node not in the true circuit", "missed": "node missed"}[verdict]
                box = Box(x + length / 2, y, length, 1.05 * size)
                needed = length + 0.6 * size + text_width(meaning, size) + 1.4 * size
                nodes.append(dataclasses.replace(_node("a", verdict, box, style, ""), name=""))
                texts.append(DiagramText(meaning, x + length + 0.6 * size, y, size, style.text))
                x += needed
    return texts, edges, nodes, y - 0.5 * size if edges or nodes else y + 1.2 * size
