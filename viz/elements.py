"""What diagrams are made of: boxes, curves and texts, and the looks that stand for scores, ports and verdicts."""

from __future__ import annotations

import bisect
import dataclasses
import unicodedata
from collections.abc import Iterable
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


MOST_BY_SIZE = 60
"""Of more lines than this, width and colour go by rank: by size all but a few would look alike."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """How strong each line looks: by the square root of its score's size, or where there are many, by its rank.

    Attributes:
        sizes: sizes of the scores drawn, the least first.
    """

    sizes: tuple[float, ...]

    @classmethod
    def of(cls, scores: Iterable[float | None]) -> Weights:
        return cls(tuple(sorted(abs(score) for score in scores if score is not None)))

    @property
    def strongest(self) -> float:
        return self.sizes[-1] if self.sizes else 0.0

    @property
    def ranked(self) -> bool:
        return len(self.sizes) > MOST_BY_SIZE

    def strength(self, score: float | None) -> float:
        """From 0 to 1, that of the strongest."""
        if score is None or not self.strongest:
            return 0.15
        if not self.ranked:
            return (abs(score) / self.strongest) ** 0.5  # weak edges stay visible beside strong ones
        at_most = bisect.bisect_right(self.sizes, abs(score))
        return (at_most / len(self.sizes)) ** 3.0

    def width(self, score: float | None, style: Style) -> float:
        thin, thick = style.line
        return thin + (thick - thin) * self.strength(score)

    def faded(self, color: str, score: float | None, style: Style) -> str:
        """The colour, towards the ground where lines are many and this one is weak."""
        if not self.ranked or score is None:
            return color
        return self.toward(color, style.background, 0.35 + 0.65 * self.strength(score) ** 0.5)

    @staticmethod
    def toward(color: str, ground: str, share: float) -> str:
        """A share of a colour, and for the rest the ground."""
        parts = ((int(color[i : i + 2], 16), int(ground[i : i + 2], 16)) for i in (1, 3, 5))
        return "#" + "".join(f"{round(share * own + (1 - share) * other):02x}" for own, other in parts)


def make_node(
    name: str,
    kind: str,
    verdict: Verdict,
    box: Box,
    style: Style,
    *,
    fill: str | None = None,
    label: str | None = None,
) -> DiagramNode:
    """The box of a component; its fill is that of its kind, or that of its role if it has one.

    Args:
        label: what stands in it; None: its name.
    """
    fills = {"input": style.end_fill, "logits": style.end_fill, "mlp": style.mlp_fill, "several": style.mlp_fill}
    fill = fill or fills.get(kind, style.head_fill)
    return DiagramNode(
        name=name,
        label=name if label is None else label,
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
    if value == 0:
        return "0"
    return f"{float(f'{value:.2g}'):g}" if 1e-4 <= abs(value) < 1e5 else f"{value:.1e}"
