"""Agreement of methods: as sets of edges, and as orders of edges."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from acdc.errors import AcdcError
from acdc.metrics import jaccard, kendall, overlap, spearman

edges = st.lists(st.booleans(), min_size=6, max_size=6).map(np.array)
scores = st.lists(st.integers(-3, 3).map(float), min_size=6, max_size=6).map(np.array)


@given(edges, edges)
def test_jaccard_and_overlap_are_those_of_sets(a: np.ndarray, b: np.ndarray) -> None:
    first, second = set(np.flatnonzero(a)), set(np.flatnonzero(b))
    common = len(first & second)
    assert jaccard(a, b) == jaccard(b, a) == (common / len(first | second) if first | second else 1)
    if first and second:
        assert overlap(a, b) == overlap(b, a) == common / min(len(first), len(second))
    else:
        assert math.isnan(overlap(a, b))
    assert jaccard(a.reshape(2, 3), b.reshape(2, 3)) == jaccard(a, b)


@given(scores, scores)
def test_rank_correlations_are_their_definitions(a: np.ndarray, b: np.ndarray) -> None:
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(kendall(a, b))
        assert math.isnan(spearman(a, b))
        return
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in itertools.combinations(range(6), 2)]
    untied = [sum(x != 0 for x, _ in signs), sum(y != 0 for _, y in signs)]
    assert kendall(a, b) == pytest.approx(sum(x * y for x, y in signs) / math.sqrt(untied[0] * untied[1]))
    ranks = np.corrcoef(scipy.stats.rankdata(a), scipy.stats.rankdata(b))
    assert spearman(a, b) == pytest.approx(ranks[0, 1])


@given(scores.filter(lambda a: len(set(a)) > 1))
def test_units_do_not_matter_and_direction_does(a: np.ndarray) -> None:
    for correlation in (kendall, spearman):
        assert correlation(a, np.exp(3 * a)) == pytest.approx(1)
        assert correlation(a, -a) == pytest.approx(-1)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(AcdcError, match="boolean arrays, got float64 and bool"):
        jaccard(np.zeros(3), np.zeros(3, dtype=bool))
    with pytest.raises(AcdcError, match=r"of one graph, got \[3\] and \[4\]"):
        overlap(np.zeros(3, dtype=bool), np.zeros(4, dtype=bool))
    with pytest.raises(AcdcError, match=r"of one shape, got \[2\] and \[3\]"):
        kendall([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(AcdcError, match="NaN"):
        spearman([1.0, np.nan], [1.0, 2.0])
