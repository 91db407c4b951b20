"""Against a known true circuit: does a ranking put the true edges first, does a circuit hold them and no others?

Everything is one number or one boolean for each edge, as 1-D arrays over a graph's edges (`values[graph.valid]`),
or for each node. A score says how good an edge is, so rankings by magnitude pass `abs(scores)`. Tied scores are one
step: no figure depends on the order of the arrays.

A truth with no true or no false edge cannot tell rankings apart: every area and best F1 is NaN there.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy
from jaxtyping import Float64

from acdc.errors import AcdcError
from acdc.metrics.statistics import numbers

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, eq=False)
class RocCurve:
    """A point for nothing kept, (0, 0), and one for each distinct score: what scores at least that is kept.

    Attributes:
        false_positive_rate, true_positive_rate: both rise to 1; NaN where the truth has no edge to count.
        thresholds: infinity, then the scores from the highest to the lowest.
    """

    false_positive_rate: Float64[FloatArray, " point"]
    true_positive_rate: Float64[FloatArray, " point"]
    thresholds: Float64[FloatArray, " point"]


@dataclasses.dataclass(frozen=True, eq=False)
class PrecisionRecallCurve:
    """Points as for `RocCurve`; the precision of nothing is 1."""

    precision: Float64[FloatArray, " point"]
    recall: Float64[FloatArray, " point"]
    thresholds: Float64[FloatArray, " point"]


@dataclasses.dataclass(frozen=True)
class Confusion:
    """A circuit against the truth.

    Attributes:
        true_positives, false_positives, missed, true_negatives: numbers of edges.
        precision: NaN if nothing is kept.
        recall: NaN if nothing is true.
        f1: their harmonic mean, 2 TP / (2 TP + FP + missed); NaN if nothing is kept and nothing is true.
        hamming: structural Hamming distance, edges that would have to be added or removed.
    """

    true_positives: int
    false_positives: int
    missed: int
    true_negatives: int
    precision: float
    recall: float
    f1: float
    hamming: int


# ---- rankings ---------------------------------------------------------------------------------------------------


def roc_curve(scores: npt.ArrayLike, truth: npt.ArrayLike) -> RocCurve:
    """The ROC curve of a ranking.

    Args:
        scores: `[edge]`, more is better; infinite is allowed, NaN is not.
        truth: `[edge]` bool.
    """
    true, false, thresholds = _counts(scores, truth)
    return RocCurve(_ratio(false, false[-1]), _ratio(true, true[-1]), thresholds)


def roc_auc(scores: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Area under the ROC curve: the probability that a true edge scores above a false one, a tie counting half.

    Returns:
        NaN if there are no true or no false edges.
    """
    values, true = _ranking(scores, truth)
    positives = int(true.sum())
    negatives = len(true) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = scipy.stats.rankdata(values)  # ties get their mean rank
    wins = float(ranks[true].sum()) - positives * (positives + 1) / 2
    return wins / (positives * negatives)


def precision_recall_curve(scores: npt.ArrayLike, truth: npt.ArrayLike) -> PrecisionRecallCurve:
    """Precision and recall of a ranking; arguments as for `roc_curve`."""
    true, false, thresholds = _counts(scores, truth)
    precision = np.append(1.0, true[1:] / (true + false)[1:])
    return PrecisionRecallCurve(precision, _ratio(true, true[-1]), thresholds)


def average_precision(scores: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Σ (recall step) · precision over the distinct scores, without interpolation.

    Returns:
        NaN if there are no true or no false edges.
    """
    true, false, _ = _counts(scores, truth)
    if not true[-1] or not false[-1]:
        return float("nan")
    return float((np.diff(true) / true[-1] * (true[1:] / (true + false)[1:])).sum())


def best_f1(scores: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """The largest F1 that any threshold on the scores gives.

    Returns:
        NaN if there are no true or no false edges.
    """
    true, false, _ = _counts(scores, truth)
    if not true[-1] or not false[-1]:
        return float("nan")
    return float((2 * true / (true + false + true[-1])).max())


def recovered_at_some_threshold(scores: npt.ArrayLike, truth: npt.ArrayLike) -> bool:
    """Whether some threshold keeps exactly the true edges: all of them score above all others.

    Trivially so if there are no true edges (keep nothing) or no false ones (keep everything).
    """
    true, false, _ = _counts(scores, truth)
    return bool(((true == true[-1]) & (false == 0)).any())


def node_scores(edge_scores: npt.ArrayLike) -> npt.NDArray[np.generic]:
    """Scores of sources from those of edges `[n_destinations, n_sources]`: the best of the edges that leave.

    Given kept edges, the sources that are kept. Edges that don't exist score 0, so pass magnitudes.
    """
    return np.asarray(edge_scores).max(axis=0)


# ---- circuits ---------------------------------------------------------------------------------------------------


def confusion(kept: npt.ArrayLike, truth: npt.ArrayLike) -> Confusion:
    """Count what a circuit hit, made up and missed; `[edge]` bool both."""
    kept, true = _masks(kept, truth)
    hit, made_up, missed = int((kept & true).sum()), int((kept & ~true).sum()), int((~kept & true).sum())
    return Confusion(
        true_positives=hit,
        false_positives=made_up,
        missed=missed,
        true_negatives=len(true) - hit - made_up - missed,
        precision=_divide(hit, hit + made_up),
        recall=_divide(hit, hit + missed),
        f1=_divide(2 * hit, 2 * hit + made_up + missed),
        hamming=made_up + missed,
    )


# ---- protocols of other benchmarks ------------------------------------------------------------------------------


def acdc_auc(kept_list: Sequence[npt.ArrayLike], truth: npt.ArrayLike) -> float:
    """AUC of a sweep by the protocol of the ACDC paper (Conmy et al. 2023).

    Each circuit is a point (false positive rate, true positive rate); (0, 0) and (1, 1) are added; points with
    another to the left of and above them are dropped; and the area is that of the pessimistic staircase,
    Σ (1 − x_{i+1}) (y_{i+1} − y_i). So the chance level is below ½, and more circuits give a larger area.

    Args:
        kept_list: circuits of the sweep, each `[edge]` bool, in any order.

    Returns:
        NaN if there are no true or no false edges.
    """
    points = sorted({(0.0, 0.0), (1.0, 1.0), *_rates(kept_list, truth)})
    if np.isnan(points).any():
        return float("nan")
    front: list[tuple[float, float]] = []
    for x, y in points:
        if all(other_y <= y for other_x, other_y in front if other_x < x):
            front.append((x, y))
    return sum((1 - x) * (y - y_before) for (_, y_before), (x, y) in itertools.pairwise(front))


def mib_auroc(kept_list: Sequence[npt.ArrayLike], truth: npt.ArrayLike) -> float:
    """AUROC by the protocol of the MIB benchmark's InterpBench track (Mueller et al. 2025).

    The trapezoid rule over the points (false positive rate, true positive rate) as they are: no (0, 0) is added,
    and false positive rates are divided by that of the last circuit. It is not the ranking's AUROC (`roc_auc`).

    Args:
        kept_list: circuits `[edge]` bool of `MIB_SHARES` of the edges, smallest first; MIB selects them greedily by
            magnitude.

    Returns:
        NaN if there are no true or no false edges, or not a false one in the last circuit.
    """
    x, y = np.array(_rates(kept_list, truth)).reshape(-1, 2).T
    if len(x) < 2:
        raise AcdcError(f"expected circuits of at least two sizes, got {len(x)}")
    return float(scipy.integrate.trapezoid(y, x / x[-1])) if x[-1] > 0 else float("nan")


# ---- counting ---------------------------------------------------------------------------------------------------


def _counts(scores: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Numbers of true and of false edges kept at each threshold, from infinity down, and the thresholds."""
    values, true = _ranking(scores, truth)
    order = np.argsort(-values, kind="stable")
    values, true = values[order], true[order]
    last = np.append(np.flatnonzero(values[1:] != values[:-1]), len(values) - 1)  # of each run of ties
    hits = np.append(0.0, np.cumsum(true)[last])
    return hits, np.append(0.0, last + 1.0) - hits, np.append(np.inf, values[last])


def _rates(kept_list: Sequence[npt.ArrayLike], truth: npt.ArrayLike) -> list[tuple[float, float]]:
    """(False positive rate, true positive rate) of each circuit."""
    counts = [confusion(kept, truth) for kept in kept_list]
    return [(_divide(c.false_positives, c.false_positives + c.true_negatives), c.recall) for c in counts]


def _ratio(counts: FloatArray, total: float) -> FloatArray:
    return counts / total if total else np.full_like(counts, np.nan)


def _divide(a: int, b: int) -> float:
    return a / b if b else float("nan")


def _ranking(scores: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[FloatArray, BoolArray]:
    """Both arguments as arrays, checked."""
    values, true = numbers(scores, "scores"), _mask(truth, "truth")
    if values.shape != true.shape:
        raise AcdcError(f"expected as many scores as truths, got {list(values.shape)} and {list(true.shape)}")
    if np.isnan(values).any():
        raise AcdcError(f"{int(np.isnan(values).sum())} of {len(values)} scores are NaN: they cannot be ranked")
    return values, true


def _masks(kept: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[BoolArray, BoolArray]:
    mask, true = _mask(kept, "kept"), _mask(truth, "truth")
    if mask.shape != true.shape:
        raise AcdcError(f"expected kept and truth of one length, got {len(mask)} and {len(true)}")
    return mask, true


def _mask(given: npt.ArrayLike, what: str) -> BoolArray:
    mask = np.asarray(given)
    if mask.dtype != np.bool_ or mask.ndim != 1 or not len(mask):
        raise AcdcError(
            f"expected {what} as a 1-D boolean array with an entry for each edge, got {mask.dtype} of shape "
            f"{list(mask.shape)}; take [graph.valid] of a circuit's edges"
        )
    return mask
