"""Boxes do not overlap, edges go up and keep clear of boxes."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings

from acdc.circuit import Circuit
from acdc.graph import Graph
from acdc.viz.layout import Box, Spacing, place, route
from acdc.viz.reduce import reduce
from strategies import circuits

SPACING = Spacing()


def laid_out(circuit: Circuit) -> tuple[list[tuple[str, str, str]], dict[str, Box], list]:
    reduced = reduce(circuit, None, "port", 10**6)
    edges = [(edge.source, edge.destination, edge.port) for edge in reduced.edges]
    degree = {name: sum(name in edge[:2] for edge in edges) for name in reduced.nodes}
    boxes = place([circuit.graph.nodes[name] for name in reduced.nodes], degree, SPACING)
    return edges, boxes, route(edges, boxes, SPACING)


def sampled(curve: list) -> np.ndarray:
    """`[point, 2]` points of a Bézier curve."""
    t = np.linspace(0, 1, 41)[:, None]
    pieces = [np.array(curve[i : i + 4]) for i in range(0, len(curve) - 1, 3)]
    return np.concatenate(
        [(1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d for a, b, c, d in pieces]
    )


@settings(max_examples=30)
@given(circuits())
def test_boxes_do_not_overlap_and_rows_follow_execution(circuit: Circuit) -> None:
    _, boxes, _ = laid_out(circuit)
    for (a, box), (b, other) in itertools.combinations(boxes.items(), 2):
        apart = abs(box.x - other.x) >= (box.width + other.width) / 2 + 1
        assert apart or abs(box.y - other.y) >= SPACING.height
        nodes = circuit.graph.nodes
        assert (nodes[a].row < nodes[b].row) == (box.y < other.y)


@settings(max_examples=30)
@given(circuits())
def test_edges_go_up_from_box_to_box_and_cut_no_other(circuit: Circuit) -> None:
    edges, boxes, curves = laid_out(circuit)
    for (source, destination, _), curve in zip(edges, curves, strict=True):
        points = sampled(curve)
        assert (np.diff(points[:, 1]) >= -1e-9).all()
        (x0, y0), (x1, y1) = curve[0], curve[-1]
        assert abs(x0 - boxes[source].x) <= boxes[source].width / 2
        assert abs(x1 - boxes[destination].x) <= boxes[destination].width / 2
        assert y0 == boxes[source].top
        assert y1 == boxes[destination].bottom - SPACING.arrow
        for name, box in boxes.items():
            if name not in (source, destination):
                inside = (abs(points[:, 0] - box.x) < box.width / 2) & (abs(points[:, 1] - box.y) < box.height / 2)
                assert not inside.any(), f"{source}->{destination} cuts {name}"


def test_queries_keys_and_values_enter_from_left_to_right() -> None:
    circuit = Circuit.from_names(Graph(1, 1), [f"input->a0.h0<{port}>" for port in "qkv"])
    _, _, curves = laid_out(circuit)
    q, k, v = (curve[-1][0] for curve in curves)
    assert q < k < v


def test_edges_beside_a_box_do_not_lie_on_each_other() -> None:
    graph = Graph(3, 1)
    names = ["input->logits", "m0->logits", "input->m2", "m1->m2", "m0->m1", "m2->logits"]
    edges, boxes, curves = laid_out(Circuit.from_names(graph, names))
    y = boxes["m1"].y
    passing = [c for (s, d, _), c in zip(edges, curves, strict=True) if boxes[s].y < y < boxes[d].y]
    xs = sorted(float(np.interp(y, sampled(curve)[:, 1], sampled(curve)[:, 0])) for curve in passing)
    assert len(xs) == 3
    assert min(np.diff(xs)) > 0.8 * SPACING.lane
