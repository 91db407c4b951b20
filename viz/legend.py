"""The legend below a diagram: a sample of each look that occurs in it, with its meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from acdc.viz.elements import (
    DASHES,
    HEADS,
    Dash,
    DiagramEdge,
    DiagramNode,
    DiagramText,
    Head,
    Weights,
    clean,
    make_node,
    number,
    text_width,
)
from acdc.viz.layout import Box, Spacing
from acdc.viz.reduce import Reduced, Verdict
from acdc.viz.style import Style


@dataclasses.dataclass
class Legend:
    """A legend that grows entry by entry, from (x, y) to the right, in lines between left and right."""

    style: Style
    left: float
    right: float
    x: float
    y: float
    texts: list[DiagramText] = dataclasses.field(default_factory=list)
    edges: list[DiagramEdge] = dataclasses.field(default_factory=list)
    nodes: list[DiagramNode] = dataclasses.field(default_factory=list)

    def line(self, meaning: str, color: str, width: float, dash: Dash = "solid", head: Head = "none") -> None:
        """An entry for edges."""
        start, end = self._entry(meaning)
        base = end - (Spacing().arrow * self.style.scale if head != "none" else 0.0)
        points = tuple((start + (base - start) * k / 3, self.y) for k in range(4))
        self.edges.append(DiagramEdge("", points, (end, self.y), color, width, dash, head))

    def box(self, meaning: str, verdict: Verdict, fill: str | None = None) -> None:
        """An entry for nodes."""
        start, end = self._entry(meaning)
        box = Box((start + end) / 2, self.y, end - start, 1.05 * self.style.font_size)
        self.nodes.append(make_node("", "head", verdict, box, self.style, fill=fill))

    def new_line(self) -> None:
        if self.x > self.left:
            self.x, self.y = self.left, self.y - 1.5 * self.style.font_size

    def _entry(self, meaning: str) -> tuple[float, float]:
        """Place a text; returns where its sample begins and ends."""
        size = self.style.font_size
        sample, gap = 2.6 * size, 0.6 * size
        width = sample + gap + text_width(meaning, size)
        if self.x + width > self.right:
            self.new_line()
        start = self.x
        self.texts.append(DiagramText(meaning, start + sample + gap, self.y, size, self.style.text))
        self.x += width + 1.4 * size
        return start, start + sample


def make_legend(
    reduced: Reduced,
    weights: Weights,
    style: Style,
    *,
    left: float,
    right: float,
    top: float,
    roles: Mapping[str, str] | None = None,
) -> Legend:
    """The legend for what is drawn; its `y` is where it ends.

    Args:
        weights: how strong lines look.
        roles: fills of the roles that occur.
    """
    legend = Legend(style, left, right, left, top - 1.2 * style.font_size)
    thin, thick = style.line
    middle = thin + 0.4 * (thick - thin)
    signs = {edge.sign for edge in reduced.edges if edge.kept}
    meanings = ("score > 0", "score < 0") if reduced.signs == "score" else ("helps", "hinders")
    if 1 in signs:
        legend.line(meanings[0], style.positive, middle)
    if -1 in signs:
        legend.line(meanings[1], style.negative, middle)
    if 0 in signs and len(signs) > 1:
        legend.line("no sign" if reduced.signs == "score" else "both or neither", style.unsigned, middle)
    if strongest := weights.strongest:
        legend.line(f"|score| {number(strongest)}", style.unsigned, thick)
        if sum(edge.kept for edge in reduced.edges) > 1:
            middling, least = weights.sizes[len(weights.sizes) // 2], weights.sizes[0]
            shown = {number(size): size for size in ((least, middling) if weights.ranked else (strongest / 25,))}
            for text, weak in sorted(shown.items(), key=lambda entry: -entry[1]):
                if text != number(strongest):
                    color = weights.faded(style.unsigned, weak, style)
                    legend.line(text, color, weights.width(weak, style))
    ports = {edge.port for edge in reduced.edges}
    if ports & {"q", "k"}:
        legend.new_line()
        for port, meaning in (("q", "to queries"), ("k", "to keys")):
            if port in ports:
                legend.line(meaning, style.unsigned, middle, DASHES[port])
        legend.line("to values and others", style.unsigned, middle, DASHES["v"])
    verdicts = {edge.verdict for edge in reduced.edges}
    legend.new_line()
    if "hit" in verdicts:
        legend.line("true", style.unsigned, middle, head=HEADS["hit"])
    if "false" in verdicts:
        legend.line("not in the true circuit", style.unsigned, middle, head=HEADS["false"])
    if "missed" in verdicts:
        legend.line("missed", style.absent, weights.width(None, style), head=HEADS["missed"])
    legend.new_line()
    if "false" in reduced.nodes.values():
        legend.box("node not in the true circuit", "false")
    if "missed" in reduced.nodes.values():
        legend.box("node missed", "missed")
    legend.new_line()
    for role, fill in (roles or {}).items():
        legend.box(clean(role, most=40), "", fill)
    if not legend.texts:
        legend.y = top
    elif legend.x > left:
        legend.y -= 0.5 * style.font_size
    else:
        legend.y += style.font_size
    return legend
