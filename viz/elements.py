"""What diagrams are made of: boxes, curves and texts, and the looks that stand for scores, ports and verdicts."""

from __future__ import annotations

import dataclasses
import unicodedata
from typing import Literal

from acdc.viz.layout import Box, Point
from acdc.viz.reduce import Verdict
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


def line_width(score: float | None, strongest: float, style: Style) -> float:
    """The square root of the score's size: weak edges stay visible beside strong ones."""
    thin, thick = style.line
    if score is None or not strongest:
        return thin + 0.15 * (thick - thin)
    return thin + (thick - thin) * (abs(score) / strongest) ** 0.5


def make_node(
    name: str, kind: str, verdict: Verdict, box: Box, style: Style, *, fill: str | None = None
) -> DiagramNode:
    """The box of a component; its fill is that of its kind, or that of its role if it has one."""
    fills = {"input": style.end_fill, "logits": style.end_fill, "mlp": style.mlp_fill}
    fill = fill or fills.get(kind, style.head_fill)
    return DiagramNode(
        name=name,
        label=name,
        box=box,
        rounded=kind == "head",
        fill=style.background if verdict == "missed" else fill,
        outline=style.absent if verdict == "missed" else style.outline,
        dash=OUTLINES[verdict],
        text=style.quiet if verdict == "missed" else style.text,
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
            0.35 if character in " .,:;|!'()[]fijlrt" else 0.8 if character.isupper() or character in "mw" else 0.63
        )

    return sum(map(width, text)) * size


def number(value: float) -> str:
    """Two digits of a score, without an exponent where it can be read without."""
    return f"{float(f'{value:.2g}'):g}" if 1e-4 <= abs(value) < 1e5 else f"{value:.1e}"
