"""Do two methods agree? Overlap of circuits as sets of edges, and rank correlation of scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy

from acdc.errors import AcdcError
from acdc.metrics.statistics import numbers


def jaccard(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Edges in both circuits over edges in either: 1 for equal circuits, even empty ones.

    Args:
        a, b: boolean arrays of one shape.
    """
    a, b = _pair(a, b)
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0


def overlap(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Edges in both circuits over edges of the smaller one: 1 if one contains the other; NaN if one is empty."""
    a, b = _pair(a, b)
    smaller = min(int(a.sum()), int(b.sum()))
    return int((a & b).sum()) / smaller if smaller else float("nan")


def kendall(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Kendall's τ-b of two methods' scores: pairs of edges ranked alike minus pairs ranked otherwise.

    Args:
        a, b: scores of one shape, of the valid edges only: where there is no edge, all methods agree.

    Returns:
        NaN if either gives all edges one score.
    """
    a, b = _scores(a, b)
    return float("nan") if _constant(a) or _constant(b) else float(scipy.stats.kendalltau(a, b).statistic)


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Spearman's ρ, the correlation of the ranks of two methods' scores; arguments and NaN as for `kendall`."""
    a, b = _scores(a, b)
    return float("nan") if _constant(a) or _constant(b) else float(scipy.stats.spearmanr(a, b).statistic)


def _constant(values: npt.NDArray[np.float64]) -> bool:
    return not len(values) or bool((values == values[0]).all())


def _pair(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    first, second = np.asarray(a), np.asarray(b)
    if first.dtype != np.bool_ or second.dtype != np.bool_:
        raise AcdcError(f"expected circuits as boolean arrays, got {first.dtype} and {second.dtype}")
    if first.shape != second.shape:
        raise AcdcError(f"expected circuits of one graph, got {list(first.shape)} and {list(second.shape)}")
    return first, second


def _scores(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    first, second = numbers(a, "scores"), numbers(b, "scores")
    if first.shape != second.shape:
        raise AcdcError(f"expected scores of one shape, got {list(first.shape)} and {list(second.shape)}")
    if np.isnan(first).any() or np.isnan(second).any():
        raise AcdcError("some scores are NaN: they cannot be ranked")
    return first.ravel(), second.ravel()
