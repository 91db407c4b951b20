"""A diagram as data: boxes, curves and texts at coordinates, ready for any renderer.

One visual channel has one meaning. Edges: colour is the sign (`acdc.methods.signs`), width the size of the score, line
style the port (q, k, v), arrowhead the verdict against a true circuit. Nodes: shape is the kind, fill the role (without
one, a shade for the kind), outline the verdict.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Collection, Mapping

import numpy as np

from acdc.circuit import Circuit
from acdc.graph import BoolArray, Graph, units_of
from acdc.shown import counted
from acdc.viz.elements import (
    DASHES,
    HEADS,
    DiagramEdge,
    DiagramNode,
    DiagramText,
    Weights,
    clean,
    make_node,
    text_width,
)
from acdc.viz.layout import Box, Point, Spacing, place, route, rows_of
from acdc.viz.legend import make_legend
from acdc.viz.prompt import ShownPrompt, answer_text, token_boxes
from acdc.viz.reduce import Detail, DrawnEdge, Reduced, reduce
from acdc.viz.style import Style, role_fills

MOST_NAMED = 8
"""MLPs whose neurons are counted one by one."""


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
    fold: int | None = None,
    title: str | None = None,
    legend: bool = True,
    roles: Mapping[str, Collection[str]] | None = None,
    neurons: Mapping[str, BoolArray] | None = None,
    prompt: ShownPrompt | None = None,
) -> Diagram:
    """The diagram of a circuit; arguments as for `acdc.viz.draw`."""
    reduced = reduce(circuit, truth, detail, max_edges, fold)
    style = style.for_lines(len(reduced.edges))
    drawn = {name: reduced.folding.boxes[name] for name in reduced.nodes}
    spacing = Spacing.for_rows(rows_of(drawn.values())).scaled(style.scale)
    labels = {name: _label(name, reduced.folded.get(name, ())) for name in drawn}
    boxes = place(drawn.values(), _degrees(reduced.edges), spacing, labels)
    curves = route([(e.source, e.destination, e.port) for e in reduced.edges], boxes, spacing)
    weights = Weights.of(e.score for e in reduced.edges)
    edges = [_edge(e, curve, weights, style, spacing) for e, curve in zip(reduced.edges, curves, strict=True)]
    known = _roles(circuit, roles)
    all_fills = role_fills(known, style)
    role_of = {name: role for role, names in known.items() for name in names}
    for name, members in reduced.folded.items():  # of one role, if all its members are
        roles_inside = {role_of.get(member) for member in members}
        if len(roles_inside) == 1 and (role := roles_inside.pop()) is not None:
            role_of[name] = role
    present = {role_of[name] for name, verdict in reduced.nodes.items() if name in role_of and verdict != "missed"}
    fills = {role: fill for role, fill in all_fills.items() if role in present}
    nodes = [
        make_node(
            name,
            drawn[name].kind,
            verdict,
            boxes[name],
            style,
            fill=fills.get(role_of.get(name, "")),
            label=labels[name],
        )
        for name, verdict in reduced.nodes.items()
    ]

    xs = [x for box in boxes.values() for x in (box.x - box.width / 2, box.x + box.width / 2)]
    xs += [x for curve in curves for x, _ in curve]
    left, right = (min(xs), max(xs)) if xs else (0.0, 0.0)
    rows = _layers(circuit.graph, reduced, boxes)
    indent = max([4.2 * style.font_size, *(text_width(row, style.font_size) for row in rows)])
    left -= 0.6 * spacing.width
    texts = [DiagramText(row, left - indent, y, style.font_size, style.quiet) for row, y in rows.items()]
    if weights.ranked:  # rows are many: a line leads from a label to its row
        edges = _guides(texts, boxes, style) + edges
    left = left - indent if texts else left + 0.6 * spacing.width
    inside = {name: units for name, units in (neurons or {}).items() if name in boxes}
    edges += [mark for name, units in inside.items() for mark in _neuron_marks(units, boxes[name], style)]
    heights = [y for box in boxes.values() for y in (box.top, box.bottom)] or [0.0]
    least = max(37 * style.font_size, 0.5 * (max(heights) - min(heights) + 12 * style.font_size))
    if right - left < least:
        left, right = left - (least - (right - left)) / 2, right + (least - (right - left)) / 2

    top, y = max(heights), min(heights) - 1.6 * style.font_size
    if prompt is not None:
        below = min(boxes.values(), key=lambda box: box.y, default=Box(0.0, 0.0, 0.0, 0.0))
        ends = [box for name, box in boxes.items() if drawn[name].kind == "logits"]
        answers = [text for box in ends for text in answer_text(prompt, box, style)]
        texts += answers
        right = max([right, *(text.x + 1.2 * text_width(text.text, text.size) for text in answers)])
        tokens, y = token_boxes(
            prompt,
            middle=(left + right) / 2,
            top=below.bottom - 0.5 * style.font_size,
            width=right - left,
            style=style,
        )
        nodes, y = nodes + tokens, y - style.font_size
    if legend:
        entries = make_legend(reduced, weights, style, left=left, right=right, top=y, roles=fills)
        texts, edges, nodes, y = texts + entries.texts, edges + entries.edges, nodes + entries.nodes, entries.y
    caption = _caption(circuit, reduced)
    if inside:
        caption += f"; {_neurons_said(inside)}"
    for line in _wrapped(caption, right - left, style.font_size):
        y -= 1.35 * style.font_size
        texts.append(DiagramText(line, left, y, style.font_size, style.quiet))
    title = _default_title(circuit) if title is None else clean(title)
    title_lines = _wrapped(title, right - left, 1.15 * style.title_size)  # bold is wider
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


def _roles(circuit: Circuit, roles: Mapping[str, Collection[str]] | None) -> Mapping[str, Collection[str]]:
    """The roles given, or else those of the published circuit of this task in this model."""
    if roles is not None:
        return roles
    from acdc.evaluation.published import published  # which imports torch

    known = published(circuit.provenance.model, circuit.provenance.task)
    return {} if known is None else known.roles


def _wrapped(text: str, width: float, size: float) -> list[str]:
    """Lines that are no wider; one of the fewest letters may be."""
    if not text:
        return []
    most = max(8, int(width * len(text) / text_width(text, size)))
    while most > 8 and any(text_width(line, size) > width for line in textwrap.wrap(text, most)):
        most -= 1
    return textwrap.wrap(text, most)


def _default_title(circuit: Circuit) -> str:
    made = circuit.provenance
    return " · ".join(dict.fromkeys(filter(None, [clean(made.task, most=80), clean(made.model, most=80)])))


def _caption(circuit: Circuit, reduced: Reduced) -> str:
    made = circuit.provenance
    units, said = units_of(circuit.graph, circuit.unit), f"{circuit.n_edges:,} of {circuit.graph.n_edges:,} edges"
    if circuit.unit != "edge":
        said = f"{circuit.n_units:,} of {units.n:,} {units.plural}, {said}"
    parts = [said + f", {clean(made.method)}" * bool(made.method)]
    merged = {"port": "", "head": "q, k and v merged", "layer": "heads of a layer merged"}[reduced.detail]
    if merged and (reduced.detail == "layer" or circuit.graph.qkv == "split"):
        parts.append(merged)
    where = {"circuit": "circuit", "model": "full model"}.get(reduced.signs)
    if where is not None and any(edge.sign for edge in reduced.edges):
        parts.append(f"helps, hinders: measured by removing the edge alone from the {where}")
    if reduced.folded:
        folded = sum(map(len, reduced.folded.values()))
        inside = f", {counted(reduced.inside, 'edge')} inside" * bool(reduced.inside)
        parts.append(f"a box with ×n stands for n {reduced.folding.of} ({folded} in all{inside})")
    if reduced.left_out:
        drawn = counted(len(reduced.edges), "strongest line")
        parts.append(f"only the {drawn} drawn, {counted(reduced.left_out, 'weaker one')} left out")
    if any(reduced.folding.boxes[name].shared for name in reduced.nodes):
        parts.append("g: keys and values shared by a group of heads")
    return "; ".join(parts)


def _degrees(edges: tuple[DrawnEdge, ...]) -> dict[str, int]:
    """How many lines must find room along each box: of its queries, keys and values each has a third of it."""
    into: dict[tuple[str, str], int] = {}
    degrees: dict[str, int] = {}
    for edge in edges:
        degrees[edge.source] = degrees.get(edge.source, 0) + 1
        into[edge.destination, edge.port] = into.get((edge.destination, edge.port), 0) + 1
    for (name, port), n in into.items():
        degrees[name] = max(degrees.get(name, 0), 10 * n // 3 if port else n)
    return degrees


def _edge(edge: DrawnEdge, curve: list[Point], weights: Weights, style: Style, spacing: Spacing) -> DiagramEdge:
    x, y = curve[-1]
    return DiagramEdge(
        name=edge.name,
        points=tuple(curve),
        tip=(x, y + spacing.arrow),
        color=weights.faded(_color(edge, style), edge.score, style),
        width=weights.width(edge.score, style),
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
    return {1: style.positive, -1: style.negative, 0: style.unsigned}[edge.sign]


def _guides(labels: list[DiagramText], boxes: dict[str, Box], style: Style) -> list[DiagramEdge]:
    """A faint line from each label to the first box of its row."""
    found = []
    color = Weights.toward(style.absent, style.background, 0.35)
    for label in labels:
        start = label.x + text_width(label.text, label.size) + 0.5 * style.font_size
        end = min(box.x - box.width / 2 for box in boxes.values() if box.y == label.y) - 0.5 * style.font_size
        points = tuple((start + (end - start) * k / 3, label.y) for k in range(4))
        if end > start:
            found.append(DiagramEdge("", points, points[-1], color, 0.5 * style.scale, "solid", "none"))
    return found


def _neurons_said(inside: Mapping[str, BoolArray]) -> str:
    """ "35 of 768 neurons stay: m0 21, m3 14", for the caption."""
    kept = {name: int(units.sum()) for name, units in inside.items()}
    said = f"marks below a box: the {sum(kept.values()):,} of {sum(map(len, inside.values())):,} units that stay"
    return said + f" ({', '.join(f'{name} {n:,}' for name, n in kept.items())})" * (len(kept) <= MOST_NAMED)


def _neuron_marks(units: BoolArray, box: Box, style: Style) -> list[DiagramEdge]:
    """Neurons that stay as marks below their MLP's box, which is as wide as all of them."""
    places = (np.flatnonzero(units) + 0.5) / len(units) * box.width
    xs = np.unique(np.round(places, 1)) + box.x - box.width / 2
    found = []
    for x in xs.tolist():
        points = tuple((x, box.bottom - 0.35 * style.font_size * k / 3) for k in range(4))
        found.append(DiagramEdge("", points, points[-1], style.positive, 0.6 * style.scale, "solid", "none"))
    return found


def _label(name: str, members: tuple[str, ...]) -> str:
    """What stands in a box."""
    return f"{name} ×{len(members)}" if members else name


def _layers(graph: Graph, reduced: Reduced, boxes: Mapping[str, Box]) -> dict[str, float]:
    """ "layer 3", or "layers 4–7" where one box has several, and the height of the first row of each."""
    rows: dict[int, float] = {}
    last: dict[int, int] = {}
    for name, box in boxes.items():
        layer = reduced.folding.boxes[name].layer
        if 0 <= layer < graph.n_layers:
            rows[layer] = min(rows.get(layer, box.y), box.y)
            inside = [graph.nodes[member].layer for member in reduced.folded.get(name, ())]
            if box.y == rows[layer]:
                last[layer] = max([layer, *inside])
    return {f"layer {n}" if last[n] == n else f"layers {n}–{last[n]}": y for n, y in rows.items()}
