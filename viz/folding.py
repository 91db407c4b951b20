"""Which nodes of a picture are one box: all of a sublayer, heads of few lines, or what is weak in a deep model.

A model of thirty layers has sixty rows, more than a page. So the weakest nodes are folded until the rows fit: a run of
rows in which every node is weak becomes one box in a row of its own, `m1–m7 ×7`, and where there are still too
many lines, the weak heads of a row that is kept become one box in it, `a23 ×2`, and so on until the lines can be
followed: a line that is left out is not seen, one that leads into a box is. Both hold neighbours alone, so that every
line still goes up.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from acdc.circuit import Circuit
from acdc.graph import BoolArray, Graph, Node

MOST_ROWS = 20
"""More rows than this are folded, unless told otherwise: they are what a page holds in print that can be read."""
MOST_IN_ROW = 12
"""Of more boxes than this in a row, the weakest are folded."""
LEAST_BOXES = 8
"""The strongest nodes stay as they are where lines are too many: a picture is of these, and of what is around them."""


@dataclasses.dataclass(frozen=True)
class Folding:
    """What stands for what.

    Attributes:
        shown_as: the box of each node of the graph, by name.
        boxes: all boxes by name, as nodes.
        members: names of those that a box stands for, of boxes that stand for several.
        of: what those are, for the caption.
    """

    shown_as: Mapping[str, str]
    boxes: Mapping[str, Node]
    members: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    of: str = ""

    @classmethod
    def none(cls, graph: Graph, *, by_sublayer: bool = False) -> Folding:
        """Each node as itself, or as its sublayer."""
        return cls(
            {name: node.sublayer if by_sublayer else name for name, node in graph.nodes.items()}, graph.nodes
        )

    def with_groups(self, groups: Iterable[Sequence[Node]], of: str) -> Folding:
        """Each group of two boxes or more is one box; those of a group follow each other in execution order."""
        became, boxes, members = dict[str, str](), dict(self.boxes), dict[str, tuple[str, ...]]()
        for group in groups:
            if len(group) > 1:
                box = _one(group, self.boxes)
                boxes[box.name] = box
                members[box.name] = tuple(node.name for node in group)
                became |= dict.fromkeys(members[box.name], box.name)
        shown_as = {name: became.get(shown, shown) for name, shown in self.shown_as.items()}
        return Folding(shown_as, boxes, members, of)


def fold_few(circuit: Circuit, true: BoolArray | None, most: int) -> Folding:
    """Heads with at most so many edges are one box with the others of their layer that have as few."""
    graph, degree = circuit.graph, dict[str, int]()
    for d, s in np.argwhere(circuit.edges if true is None else circuit.edges | true):
        for name in (graph.sources[s], graph.destination_nodes[d]):
            degree[name] = degree.get(name, 0) + 1
    few: dict[str, list[Node]] = {}
    for name, node in graph.nodes.items():
        if node.kind == "head" and not node.shared and 0 < degree.get(name, 0) <= most:
            few.setdefault(node.sublayer, []).append(node)
    return Folding.none(graph).with_groups(few.values(), "heads of few lines")


def fold_weak(
    circuit: Circuit,
    true: BoolArray | None,
    folding: Folding,
    *,
    heads: bool = False,
    most_rows: int = MOST_ROWS,
    most_lines: int | None = None,
) -> Folding:
    """The weakest boxes are folded until there are at most so many rows, and `MOST_IN_ROW` in each; as few as do.

    A box is as strong as its edges' scores together, in size; without scores, as it has edges.

    Args:
        folding: what is one box already.
        heads: weak heads of a row that is kept are one box too.
        most_lines: fold on until there are at most so many lines between boxes, but for the `LEAST_BOXES` strongest.
    """
    graph = circuit.graph
    edges = circuit.edges if true is None else circuit.edges | true
    sizes = np.ones(edges.shape) if circuit.scores is None else np.abs(np.nan_to_num(circuit.scores.values))
    strength: dict[str, float] = {}
    pairs: list[tuple[str, str]] = []
    for (d, s), size in zip(np.argwhere(edges), sizes[edges], strict=True):
        pairs.append((folding.shown_as[graph.sources[s]], folding.shown_as[graph.destination_nodes[d]]))
        for shown in pairs[-1]:
            strength[shown] = strength.get(shown, 0.0) + float(size)
    drawn = sorted((folding.boxes[name] for name in strength), key=lambda node: node.order)
    rows = [list(row) for _, row in itertools.groupby(drawn, key=lambda node: node.row)]
    inside = [node for node in drawn if node.kind not in ("input", "logits")]
    weakest = sorted(inside, key=lambda node: (strength[node.name], node.order))
    too_many = {node.name for row in rows for node in _beyond(row, strength)}
    lines = set(pairs)

    def grouped(n: int) -> tuple[list[list[Node]], int]:
        weak = too_many | {node.name for node in weakest[:n]}
        return _groups(rows, weak, weak if heads else too_many)

    def few_lines(n: int) -> bool:
        box = {node.name: i for i, group in enumerate(grouped(n)[0]) for node in group}
        ends = {(box.get(a, a), box.get(b, b)) for a, b in lines}
        return sum(a != b for a, b in ends) <= (most_lines or 0)

    # what is one box for fewer weak nodes is within one for more: rows and lines get fewer
    n = bisect.bisect_left(range(len(weakest)), True, key=lambda n: grouped(n)[1] <= most_rows)
    most = len(weakest) - LEAST_BOXES
    if most_lines is not None and n < most:
        n = bisect.bisect_left(range(most), True, lo=n, key=few_lines)
    return folding.with_groups(grouped(n)[0], "weaker nodes")


def _beyond(row: Sequence[Node], strength: Mapping[str, float]) -> list[Node]:
    """The weakest of a row that has too many."""
    order = sorted(row, key=lambda node: -strength[node.name])
    return order[MOST_IN_ROW - 1 :] if len(row) > MOST_IN_ROW else []


def _groups(rows: Sequence[Sequence[Node]], weak: set[str], within: set[str]) -> tuple[list[list[Node]], int]:
    """Neighbours that are one box, and how many rows there are then.

    Args:
        weak: names; rows of these alone that follow each other are one.
        within: names that are one with others of a row that is kept.
    """
    groups: list[list[Node]] = []
    n_rows = 0
    for all_weak, run in itertools.groupby(rows, key=lambda row: all(node.name in weak for node in row)):
        own = list(run)
        if all_weak:
            groups.append([node for row in own for node in row])
            n_rows += 1
        else:
            groups += [[node for node in row if node.name in within] for row in own]
            n_rows += len(own)
    return groups, n_rows


def _one(group: Sequence[Node], boxes: Mapping[str, Node]) -> Node:
    """The box that stands for several: a sublayer's where all are of one, else named after the first and the last."""
    first, last = group[0], group[-1]
    if first.row == last.row and first.sublayer in boxes:
        return boxes[first.sublayer]
    kinds = {node.kind for node in group}
    return dataclasses.replace(
        first, name=f"{first.name}–{last.name}", kind=kinds.pop() if len(kinds) == 1 else "several", shared=False
    )
