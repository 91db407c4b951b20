"""Where things are in a diagram: rows from the input at the bottom to the logits at the top, and curves between.

Each layer has a row of heads and above it its MLP; rows without nodes are left out. Every edge goes up. It leaves
and enters vertically, and in between keeps clear of the boxes of the rows it passes: where it would cut one, it is
led through a gap near by, edges side by side. Units are points; the same coordinates serve every renderer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

from acdc.graph import Node

Point = tuple[float, float]
MOST_LED = 450
"""More edges than this are not led around boxes but drawn behind them: their lanes would be wider than the boxes."""


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle around (x, y)."""

    x: float
    y: float
    width: float
    height: float

    @property
    def top(self) -> float:
        return self.y + self.height / 2

    @property
    def bottom(self) -> float:
        return self.y - self.height / 2


@dataclasses.dataclass(frozen=True)
class Spacing:
    """Sizes of a layout, in points."""

    width: float = 40.0
    height: float = 17.0
    column: float = 64.0
    row: float = 48.0
    clearance: float = 5.0
    lane: float = 4.5
    arrow: float = 6.0

    @classmethod
    def for_rows(cls, rows: Sequence[Sequence[Node]]) -> Spacing:
        """Many rows are nearer to each other, and what is in them further apart, so that the whole is about a page."""
        default = cls()
        row = min(default.row, max(0.8 * default.row, 12 * default.row / max(len(rows), 1)))
        widest = max(map(len, rows), default=1)
        column = min(1.6 * default.column, max(default.column, 0.5 * row * len(rows) / widest))
        return dataclasses.replace(default, row=row, column=column if len(rows) > 12 else default.column)

    def scaled(self, factor: float) -> Spacing:
        return Spacing(*(getattr(self, field.name) * factor for field in dataclasses.fields(self)))


def rows_of(nodes: Iterable[Node]) -> list[list[Node]]:
    """Nodes by row from bottom to top (inputs, then per layer heads and MLP, then logits), each from left to right."""
    rows: dict[tuple[int, int], list[Node]] = {}
    for node in sorted(nodes, key=lambda node: node.order):
        rows.setdefault(node.row, []).append(node)
    return [rows[key] for key in sorted(rows)]


def place(
    nodes: Iterable[Node], degree: Mapping[str, int], spacing: Spacing, labels: Mapping[str, str] | None = None
) -> dict[str, Box]:
    """A box for each node, by name, in the rows of `rows_of`.

    Args:
        degree: the larger of the numbers of edges in and out; boxes widen with it.
        labels: what stands in the boxes; None: their names.
    """
    rows = rows_of(nodes)
    boxes = {}
    y = 0.0
    widest = max(map(len, rows), default=1) * spacing.column
    for row in rows:
        widths = [
            _width(
                (labels or {}).get(node.name, node.name),
                node.kind,
                degree.get(node.name, 0),
                spacing,
                widest / len(row),
            )
            for node in row
        ]
        x = -(sum(widths) + (spacing.column - spacing.width) * (len(row) - 1)) / 2
        for node, width in zip(row, widths, strict=True):
            boxes[node.name] = Box(x + width / 2, y, width, spacing.height)
            x += width + spacing.column - spacing.width
        y += spacing.row
    return boxes


def _width(label: str, kind: str, degree: int, spacing: Spacing, room: float) -> float:
    """Wide enough for the label and, within limits, for all edges to enter side by side."""
    least = spacing.width * (1.0 + 0.15 * max(0, len(label) - 7))
    alone = kind != "head"
    most = max(least, 0.9 * room) if alone else 1.8 * least
    return min(most, max(least, 1.25 * spacing.lane * degree))


def route(edges: Sequence[tuple[str, str, str]], boxes: Mapping[str, Box], spacing: Spacing) -> list[list[Point]]:
    """A curve for each edge (source, destination, port): Bézier points `[start, (control, control, end)…]`.

    Each ends an arrow's length below its destination.
    """
    levels: dict[float, list[Box]] = {}
    for box in boxes.values():
        levels.setdefault(box.y, []).append(box)
    for row in levels.values():
        row.sort(key=lambda box: box.x)
    starts, ends = _ports(edges, boxes)
    taken: dict[float, list[float]] = {}
    curves: list[list[Point]] = [[] for _ in edges]
    spans = [boxes[d].y - boxes[s].y for s, d, _ in edges]
    for i in sorted(range(len(edges)), key=lambda i: (spans[i], i)):
        source, destination, _ = edges[i]
        start = (starts[i], boxes[source].top)
        end = (ends[i], boxes[destination].bottom - spacing.arrow)
        led = len(edges) <= MOST_LED
        between = {y: row for y, row in levels.items() if led and boxes[source].y < y < boxes[destination].y}
        curves[i] = _curve(start, end, between, taken, spacing)
    return curves


def _ports(
    edges: Sequence[tuple[str, str, str]], boxes: Mapping[str, Box]
) -> tuple[dict[int, float], dict[int, float]]:
    """Where each edge leaves and enters: spread over the side of the box, in the order of where it leads.

    Queries, keys and values enter at the left, middle and right third.
    """

    def lean(i: int) -> float:
        source, destination = boxes[edges[i][0]], boxes[edges[i][1]]
        return (destination.x - source.x) / (destination.y - source.y)

    def spread(members: list[int], middle: float, width: float) -> dict[int, float]:
        gap = min(width / max(len(members), 1), 9.0)
        return {i: middle + gap * (k - (len(members) - 1) / 2) for k, i in enumerate(members)}

    starts: dict[int, float] = {}
    ends: dict[int, float] = {}
    for name, box in boxes.items():
        out = sorted((i for i, edge in enumerate(edges) if edge[0] == name), key=lambda i: (lean(i), i))
        starts |= spread(out, box.x, 0.8 * box.width)
        into = [i for i, edge in enumerate(edges) if edge[1] == name]
        for port in {edges[i][2] for i in into}:
            here = sorted((i for i in into if edges[i][2] == port), key=lambda i: (-lean(i), i))
            third = {"q": -1, "k": 0, "v": 1}.get(port, 0) * box.width / 3.1
            ends |= spread(here, box.x + third, 0.85 * box.width if not port else 0.26 * box.width)
    return starts, ends


def _curve(
    start: Point,
    end: Point,
    between: Mapping[float, list[Box]],
    taken: dict[float, list[float]],
    spacing: Spacing,
) -> list[Point]:
    """From start to end, straight up through a gap in every row where the curve would cut a box."""
    half = spacing.height / 2
    through = {start[1]: start[0], end[1]: end[0]}
    led: set[float] = set()
    while True:
        curve = _smooth(through)
        cut = [y for y, row in sorted(between.items()) if y not in led and _cuts(curve, y, row, spacing)]
        if not cut:
            return curve
        for y in cut:
            below = through[max(height for height in through if height < y)]
            above = through[min(height for height in through if height > y)]
            through[y - half] = through[y + half] = _gap(below, above, between[y], taken.setdefault(y, []), spacing)
            led.add(y)


def _smooth(through: Mapping[float, float]) -> list[Point]:
    """The curve through points (y: x), vertical at its ends and without overshoot, as Bézier points."""
    y = np.array(sorted(through))
    x = np.array([through[value] for value in y])
    slope = np.zeros(len(y))
    if len(y) > 2:
        slope[1:-1] = PchipInterpolator(y, x).derivative()(y[1:-1])
    points: list[Point] = [(float(x[0]), float(y[0]))]
    for i in range(len(y) - 1):
        third = (y[i + 1] - y[i]) / 3
        if len(y) == 2:
            third *= 1.35  # a single stretch may turn more sharply
        for px, py in (
            (x[i] + slope[i] * third, y[i] + third),
            (x[i + 1] - slope[i + 1] * third, y[i + 1] - third),
            (x[i + 1], y[i + 1]),
        ):
            points.append((float(px), float(py)))
    return points


def _cuts(curve: list[Point], y: float, row: list[Box], spacing: Spacing) -> bool:
    """Whether an upward curve comes too near a box of the row at height y."""
    heights = np.linspace(y - spacing.height / 2, y + spacing.height / 2, 9)
    x = _at(curve, heights)
    low, high = np.minimum(x[:-1], x[1:]), np.maximum(x[:-1], x[1:])
    reach = spacing.clearance - 0.01
    return any(((high > b.x - b.width / 2 - reach) & (low < b.x + b.width / 2 + reach)).any() for b in row)


def _at(curve: list[Point], heights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """x of an upward curve at heights."""
    t = np.linspace(0, 1, 33)
    weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    pieces = [np.array(curve[i : i + 4]).T @ weights for i in range(0, len(curve) - 1, 3)]
    xs, ys = np.concatenate(pieces, axis=1)
    return np.interp(heights, ys, xs)


def _gap(below: float, above: float, row: list[Box], taken: list[float], spacing: Spacing) -> float:
    """The free place in a row that is least out of the way between two x's; later edges go beside earlier ones."""
    sides = []  # the x beside a box, the direction away from it, the room until the next box
    for i, box in enumerate(row):
        left, right = (box.x + sign * (box.width / 2 + spacing.clearance) for sign in (-1, 1))
        room_left = left - (row[i - 1].x + row[i - 1].width / 2 + spacing.clearance) if i else np.inf
        room_right = row[i + 1].x - row[i + 1].width / 2 - spacing.clearance - right if i + 1 < len(row) else np.inf
        sides += [(left, -1, room_left), (right, 1, room_right)]
    beside, away, room = min(
        sides, key=lambda side: (abs(side[0] - below) + abs(above - side[0]), abs(2 * side[0] - below - above))
    )
    n_lanes = 1 + int(min(max(room, 0.0) / spacing.lane, len(taken)))
    lanes = [beside + away * spacing.lane * k for k in range(n_lanes)]
    straight = [below] if 0 <= (below - beside) * away <= room else []
    free = [x for x in straight + lanes if all(abs(x - other) > 0.9 * spacing.lane for other in taken)]
    x = free[0] if free else lanes[len(taken) % len(lanes)]
    taken.append(x)
    return x
