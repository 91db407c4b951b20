"""How pictures look: colours, sizes and fonts, one record a style.

Signs are blue and orange, which every kind of colour vision tells apart, and differ in lightness too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from acdc.errors import unknown


@dataclasses.dataclass(frozen=True)
class Style:
    """Colours as `#rrggbb`, sizes in points.

    Attributes:
        positive, negative, unsigned: edges by their sign (`acdc.methods.signs`); unsigned without one.
        absent: what is not in the circuit (edges and nodes that the truth has and the circuit misses).
        line: width of the weakest and the strongest edge.
        roles: fills of nodes by role, in turn.
    """

    name: str
    background: str = "#ffffff"
    text: str = "#1a1a1a"
    quiet: str = "#737373"
    positive: str = "#0b62a4"
    negative: str = "#e07b00"
    unsigned: str = "#404040"
    absent: str = "#9a9a9a"
    head_fill: str = "#ffffff"
    mlp_fill: str = "#ececec"
    end_fill: str = "#d9d9d9"
    outline: str = "#333333"
    font: str = "Helvetica,Arial,sans-Serif"
    font_size: float = 8.0
    title_size: float = 10.0
    line: tuple[float, float] = (0.7, 3.0)
    roles: tuple[str, ...] = (
        "#cfe2f5", "#fbdcb4", "#c4e8da", "#f2d0e2", "#f6edaa", "#d9d2ef", "#f5cfc4", "#d5e5b4"
    )  # fmt: skip
    scale: float = 1.0

    def for_lines(self, n: int) -> Style:
        """The same style with thinner lines if there are many."""
        thin, thick = self.line
        return dataclasses.replace(self, line=(thin, thin + (thick - thin) * min(1.0, (40 / max(n, 1)) ** 0.5)))


STYLES: dict[str, Style] = {
    style.name: style
    for style in (
        Style("paper"),
        Style("slides", font_size=13.0, title_size=18.0, line=(1.0, 4.8), scale=1.6),
        Style(
            "dark",
            background="#14171c",
            text="#f0f0f0",
            quiet="#a0a6b0",
            positive="#58aef0",
            negative="#f5a13c",
            unsigned="#d0d0d0",
            absent="#6d7480",
            head_fill="#1e232b",
            mlp_fill="#2b323d",
            end_fill="#3a4350",
            outline="#c8ccd4",
            roles=("#1f4a70", "#69471a", "#1b5a48", "#663a59", "#5c551d", "#463d74", "#6b3d31", "#48571f"),
        ),
    )
}
"""Styles by name: "paper" for print, "slides" for a projector, "dark" for a dark page."""


def role_fills(roles: Iterable[str], style: Style) -> dict[str, str]:
    """A fill for each role."""
    return {role: style.roles[i % len(style.roles)] for i, role in enumerate(roles)}


def get_style(style: str | Style) -> Style:
    """A style by name; a `Style` is returned as it is."""
    if isinstance(style, Style):
        return style
    if style not in STYLES:
        raise unknown("style", style, STYLES)
    return STYLES[style]
