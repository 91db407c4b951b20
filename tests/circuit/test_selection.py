"""Selections equal the obvious loops, break ties in array order, and refuse what cannot be ranked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acdc.circuit import selection
from acdc.errors import AcdcError
from acdc.graph import Graph
from strategies import graphs


@st.composite
def scored(draw: st.DrawFn) -> tuple[Graph, np.ndarray]:
    """A graph with scores, many of them tied."""
    graph = draw(graphs())
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = (
        random.integers(-3, 4, size=graph.valid.shape)
        if draw(st.booleans())
        else random.normal(size=graph.valid.shape)
    )
    return graph, np.where(graph.valid, values, np.nan)  # what is no edge must not matter


def goodness(values: np.ndarray, by: str) -> np.ndarray:
    return np.abs(values) if by == "absolute" else values


def naive_greedy(graph: Graph, values: np.ndarray, n: int, by: str) -> np.ndarray:
    """One edge at a time: the best edge whose destination feeds a component that is in."""
    good = goodness(values, by)
    edges = np.zeros_like(graph.valid)
    inside = {graph.n_sources}  # the logits
    for _ in range(n):
        open_ = [
            (-good[d, s], d, s)
            for d, s in np.argwhere(graph.valid & ~edges)
            if inside & set(graph.port_source[graph.port_destination == d].tolist())
        ]
        if not open_:
            break
        _, d, s = min(open_)
        edges[d, s] = True
        inside.add(int(s))
    return edges


def assert_connected(graph: Graph, rule: Callable[..., np.ndarray], values: np.ndarray, n: int, by: str) -> None:
    """`rule` takes the shortest prefix with `n` connected edges, and of it what the obvious loop leaves."""

    def first(k: int) -> np.ndarray:
        return rule(graph, values, k, by=by, prune=False)

    length = next((k for k in range(graph.n_edges + 1) if graph.prune(first(k)).sum() >= n), graph.n_edges)
    expected = graph.prune(first(length))
    order = [index for k in range(length) for index in np.argwhere(first(k + 1) & ~first(k)).tolist()]
    for d, s in reversed(order):  # the worst go if enough are left without them
        fewer = expected.copy()
        fewer[d, s] = False
        fewer = graph.prune(fewer)
        expected = fewer if fewer.sum() >= n else expected
    if expected.sum() <= n:
        assert (rule(graph, values, n, by=by) == expected).all()
        return
    try:
        found = rule(graph, values, n, by=by)
    except AcdcError as error:
        least = int(str(error).rpartition(" ")[2])
        assert least > n
        assert rule(graph, values, least, by=by).sum() == least
    else:
        assert 0 < found.sum() <= n
        assert (found == graph.prune(found)).all()


@given(scored(), st.integers(0, 40), st.sampled_from(selection.RANKINGS))
def test_greedy_equals_the_naive_loop(case: tuple[Graph, np.ndarray], n: int, by: str) -> None:
    graph, values = case
    expected = naive_greedy(graph, values, n, by)
    assert (selection.greedy(graph, values, n, by=by, prune=False) == expected).all()
    assert_connected(graph, selection.greedy, values, n, by)


@given(scored(), st.integers(0, 60), st.sampled_from(selection.RANKINGS))
def test_top_takes_the_best_in_array_order(case: tuple[Graph, np.ndarray], n: int, by: str) -> None:
    graph, values = case
    good = goodness(values, by)
    ranked = sorted(np.argwhere(graph.valid).tolist(), key=lambda index: -good[tuple(index)])  # sorted() is stable
    expected = np.zeros_like(graph.valid)
    for d, s in ranked[:n]:
        expected[d, s] = True
    assert (selection.top(graph, values, n, by=by, prune=False) == expected).all()
    assert (selection.top_pruned(graph, values, n, by=by) == graph.prune(expected)).all()
    assert_connected(graph, selection.top, values, n, by)


@given(scored(), st.integers(-4, 4), st.sampled_from(selection.RANKINGS))
def test_threshold_keeps_what_reaches_it(case: tuple[Graph, np.ndarray], t: int, by: str) -> None:
    graph, values = case
    expected = graph.valid & (goodness(values, by) >= t)
    assert (selection.threshold(graph, values, t, by=by, prune=False) == expected).all()
    assert (selection.threshold(graph, values, t, by=by) == graph.prune(expected)).all()


@given(scored(), st.integers(0, 30), st.integers(0, 30))
def test_selections_are_nested(case: tuple[Graph, np.ndarray], a: int, b: int) -> None:
    graph, values = case
    for rule in (selection.top, selection.greedy):
        small, large = (rule(graph, values, n, prune=False) for n in sorted((a, b)))
        assert (small <= large).all()


def test_all_edges_when_more_are_asked_for() -> None:
    graph = Graph(2, 2)
    values = np.ones(graph.valid.shape)
    for rule in (selection.top, selection.greedy):
        assert (rule(graph, values, 10**9) == graph.valid).all()


def test_bad_input() -> None:
    graph = Graph(1, 2)
    values = np.zeros(graph.valid.shape)
    with pytest.raises(AcdcError, match="expected scores of shape"):
        selection.top(graph, values.T, 3)
    with pytest.raises(AcdcError, match="at least 0, got -1"):
        selection.greedy(graph, values, -1)
    with pytest.raises(AcdcError, match="did you mean absolute"):
        selection.top(graph, values, 3, by="absolut")
    with pytest.raises(AcdcError, match="got NaN"):
        selection.threshold(graph, values, float("nan"))
    values[graph.edge("input->m0")] = np.nan
    for rule in (selection.top, selection.greedy, selection.threshold):
        with pytest.raises(AcdcError, match="NaN, the first that of 'input->m0'"):
            rule(graph, values, 3)
