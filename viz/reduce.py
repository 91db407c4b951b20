"""What of a circuit is drawn: its edges at some level of detail, and no more of them than an eye can follow.

Levels of detail, from fine to coarse: "port" (q, k and v apart), "head" (q, k and v merged), "layer" (all heads of
a layer merged). Edges that become one are one edge with the sum of their scores.
"""

from __future__ import annotations

import bisect
import dataclasses
from typing import Literal

import networkx as nx
import numpy as np

from acdc.circuit import Circuit
from acdc.errors import AcdcError, check_whole, unknown
from acdc.graph import LOGITS, BoolArray, Graph
from acdc.methods.signs import Signs, edge_signs
from acdc.viz.folding import Folding, fold_few, fold_weak

Detail = Literal["port", "head", "layer"]
DETAILS = ("port", "head", "layer")
Verdict = Literal["", "hit", "false", "missed"]


@dataclasses.dataclass(frozen=True)
class DrawnEdge:
    """An edge of the picture.

    Attributes:
        source, destination: components like `a0.h1`, `m2`, or `a0` at the detail "layer".
        port: "q", "k", "v", or "" where there are none.
        score: None if it has none.
        kept: whether it is in the circuit (otherwise only in the truth).
        verdict: against the truth: "hit", "false" (in the circuit only), "missed" (in the truth only); "" without.
        count: how many edges of the graph it stands for.
        sign: 1 or -1; 0 where there is none, or where the measured signs of the edges it stands for differ.
    """

    source: str
    destination: str
    port: str
    score: float | None
    kept: bool
    verdict: Verdict
    count: int
    sign: int = 0

    @property
    def name(self) -> str:
        return f"{self.source}->{self.destination}" + f"<{self.port}>" * bool(self.port)


@dataclasses.dataclass(frozen=True)
class Reduced:
    """The edges to draw, and what was done to have so few.

    Attributes:
        nodes: verdict of each box, in execution order.
        left_out: number of drawn-level edges left out, the weakest.
        folding: which nodes each box stands for.
        inside: number of edges between nodes of one box, which are not drawn.
        signs: where the edges' signs are from (`acdc.methods.signs.Signs.source`).
    """

    edges: tuple[DrawnEdge, ...]
    nodes: dict[str, Verdict]
    detail: Detail
    left_out: int
    folding: Folding
    inside: int = 0
    signs: str = ""

    @property
    def folded(self) -> dict[str, tuple[str, ...]]:
        """Names of the nodes that a box stands for, of boxes that stand for several."""
        return {name: members for name, members in self.folding.members.items() if name in self.nodes}


def reduce(
    circuit: Circuit, truth: Circuit | BoolArray | None, detail: Detail, max_edges: int, fold: int | None = 0
) -> Reduced:
    """The edges to draw: coarser than asked for, then folded, then the strongest only, if there are over `max_edges`.

    Args:
        fold: heads with at most so many edges are one box with the others of their layer that have as few; None: the
            weakest nodes of a deep model, or of many lines, are one box with their neighbours (`acdc.viz.folding`).
    """
    if detail not in DETAILS:
        raise unknown("detail", str(detail), DETAILS)
    check_whole("max_edges", max_edges, least=1)
    if fold is not None:
        check_whole("a number of edges to fold by", fold, least=0)
    true, graph = _truth(circuit, truth), circuit.graph
    folding = Folding.none(graph, by_sublayer=detail == "layer")
    if fold is None:
        folding = fold_weak(circuit, true, folding)
    elif fold and detail != "layer":
        folding = fold_few(circuit, true, fold)
    edges, inside = _edges(circuit, true, detail, folding)
    if len(edges) > max_edges and detail == "port":
        detail = "head"
        edges, inside = _edges(circuit, true, detail, folding)
    if len(edges) > max_edges and fold is None:
        whole = Folding.none(graph, by_sublayer=detail == "layer")
        most_lines = max_edges if true is None else None  # a line of several edges is no verdict on any
        folding = fold_weak(circuit, true, whole, heads=True, most_lines=most_lines)
        edges, inside = _edges(circuit, true, detail, folding)
    if len(edges) > max_edges and circuit.scores is None and detail == "head":
        detail, folding = "layer", Folding.none(graph, by_sublayer=True)  # nothing says which edges matter
        if fold is None:
            folding = fold_weak(circuit, true, folding)
        edges, inside = _edges(circuit, true, detail, folding)
    drawn = edges if len(edges) <= max_edges else _strongest(graph, edges, max_edges)
    nodes = _nodes(folding, drawn, true is not None) if drawn else _ends(graph)
    left_out = len(edges) - len(drawn)
    return Reduced(tuple(drawn), nodes, detail, left_out, folding, inside, edge_signs(circuit).source)


def _ends(graph: Graph) -> dict[str, Verdict]:
    """What a picture without edges shows: the inputs and the logits."""
    return {row.name: "" for row in graph.components if not row.ports or not row.writes}


def _strongest(graph: Graph, edges: list[DrawnEdge], most: int) -> list[DrawnEdge]:
    """As many of the strongest edges as leave at most `most` on paths from the input to the logits."""
    order = sorted(range(len(edges)), key=lambda i: (not edges[i].kept, -abs(edges[i].score or 0.0)))

    def on_paths(n: int) -> list[DrawnEdge]:
        chosen = [edges[i] for i in sorted(order[:n])]
        network = nx.DiGraph((edge.source, edge.destination) for edge in chosen)
        inputs = [name for name in graph.names("input") if name in network]
        below = set(inputs).union(*(nx.descendants(network, name) for name in inputs))
        above = nx.ancestors(network, LOGITS) | {LOGITS} if LOGITS in network else set()
        return [edge for edge in chosen if edge.source in below and edge.destination in above]

    # on_paths grows with n: the first n that gives too many, less one
    n = bisect.bisect_right(range(len(edges) + 1), most, key=lambda n: len(on_paths(n))) - 1
    return on_paths(n) or [edges[i] for i in sorted(order[:most])]


def _truth(circuit: Circuit, truth: Circuit | BoolArray | None) -> BoolArray | None:
    if truth is None:
        return None
    edges = truth.edges if isinstance(truth, Circuit) else np.asarray(truth, dtype=bool)
    if edges.shape != circuit.edges.shape or (isinstance(truth, Circuit) and truth.graph != circuit.graph):
        raise AcdcError("the true circuit is of another graph than the circuit: make both with the same options")
    return edges & circuit.graph.valid


def _edges(
    circuit: Circuit, true: BoolArray | None, detail: Detail, folding: Folding
) -> tuple[list[DrawnEdge], int]:
    """All edges at a level of detail, in array order of the first edge each stands for; and how many are in boxes."""
    graph, values = circuit.graph, circuit.scores.values if circuit.scores is not None else None
    signs = edge_signs(circuit)
    groups: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    n_inside = 0
    for d, s in np.argwhere(circuit.edges if true is None else circuit.edges | true):
        end = graph.destination_nodes[d]
        source, destination = folding.shown_as[graph.sources[s]], folding.shown_as[end]
        if source == destination:
            n_inside += 1
            continue
        apart = detail == "port" and destination == end
        key = (source, destination, graph.destination_ports[d] if apart else "")
        groups.setdefault(key, []).append((int(d), int(s)))
    drawn = []
    for (source, destination, port), members in groups.items():
        inside = [index for index in members if circuit.edges[index]]
        verdict: Verdict = ""
        if true is not None:
            verdict = "missed" if not inside else "hit" if any(true[index] for index in inside) else "false"
        score = None if values is None or not inside else float(sum(values[index] for index in inside))
        sign = _sign(signs, inside, score)
        count = len(inside or members)
        drawn.append(DrawnEdge(source, destination, port, score, bool(inside), verdict, count, sign))
    return drawn, n_inside


def _sign(signs: Signs, edges: list[tuple[int, int]], score: float | None) -> int:
    """The sign of a line that stands for these edges."""
    own = {int(signs.values[index]) for index in edges}
    if not signs.measured:
        return int(np.sign(score or 0.0)) if own - {0} else 0
    return own.pop() if len(own) == 1 else 0  # alone is not together, unless they agree


def _nodes(folding: Folding, edges: list[DrawnEdge], judged: bool) -> dict[str, Verdict]:
    """The boxes at the ends of edges, in execution order, and whether circuit and truth have them."""
    found: dict[str, set[Verdict]] = {}
    for edge in edges:
        for name in (edge.source, edge.destination):
            found.setdefault(name, set()).add(edge.verdict)

    def verdict(seen: set[Verdict]) -> Verdict:
        if not judged:
            return ""
        in_circuit, in_truth = seen & {"hit", "false"}, seen & {"hit", "missed"}
        return "missed" if not in_circuit else "hit" if in_truth else "false"

    return {name: verdict(found[name]) for name in sorted(found, key=lambda name: folding.boxes[name].order)}
