"""How sure a measured figure is: confidence intervals over prompts that hold the true value as often as they say.

Three kinds of figures have an interval each, chosen by simulation on real scores (docs/intervals.md): a mean, a ratio
of means such as faithfulness, and a proportion. No method is right for few prompts with a heavy tail, where what
decides the mean has often not been drawn; there is no interval then, and the range over prompts is what can be said.

Prompts stay whole: what was measured on one prompt (full model, empty circuit, circuit) is one draw, so that the noise
they share cancels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from acdc.errors import AcdcError, check_number

FloatArray = npt.NDArray[np.float64]
Interval = tuple[float, float]

CONFIDENCE = 0.95
"""Of intervals, unless told otherwise."""
NO_INTERVAL: Interval = (float("nan"), float("nan"))
FEWEST = 8
"""Prompts below which there is no interval of a mean."""
FEWEST_SKEWED = 64
"""The same for values of one sign that spread widely, such as divergences: fewer do not show their tail."""
WIDE = 1 / 3
"""Standard deviation in means from which values of one sign count as widely spread."""
MOST_SKEW = 1 / 3
"""Skewness of the prompts, in √n, above which one or two of them make up the mean, and there is no interval."""
SAME = 1e-6
"""Values that differ by less, as a share of the largest, are one value: single precision tells them no further."""


def mean_interval(
    values: npt.ArrayLike,
    *,
    confidence: float = CONFIDENCE,
    within: Interval = (-np.inf, np.inf),
) -> Interval:
    """Confidence interval of a mean over prompts.

    Student's t; for values of one sign that spread widely, with the skewness removed by Hall's transformation (Hall
    1992, J. R. Statist. Soc. B 54, 221–228).

    Args:
        values: `[prompt]`; finite.
        confidence: share of such intervals that hold the true value.
        within: the range that the values can have; the interval is cut to it.

    Returns:
        (low, high); both are the value if all prompts have the same. NaN if there is no interval: for fewer than two
        prompts, and where simulation shows that none would hold the true value as often as it should (`FEWEST`,
        `FEWEST_SKEWED`, `MOST_SKEW`).
    """
    x = _prompts(values, confidence)
    n = len(x)
    if n < 2 or not np.isfinite(x).all():
        return NO_INTERVAL
    mean, spread = float(x.mean()), float(x.std(ddof=1))
    if _are_one(x):
        return mean, mean
    skewed = bool((x > 0).all() or (x < 0).all()) and spread > WIDE * abs(mean)
    if n < (FEWEST_SKEWED if skewed else FEWEST) or _depends_on_few(x):
        return NO_INTERVAL
    t = float(stats.t.ppf((1 + confidence) / 2, n - 1)) / np.sqrt(n)
    moves = _without_skew(np.array([t, -t]), float(stats.skew(x)), n) if skewed else np.array([t, -t])
    low, high = np.clip(mean - spread * moves, *within).tolist()
    return low, high


def is_above_zero(values: npt.ArrayLike, *, confidence: float = CONFIDENCE) -> bool | None:
    """Whether the mean over prompts is told to be above 0, by a one-sided test; None where no interval is to be had.

    Args:
        values: as for `mean_interval`.
    """
    low, _ = mean_interval(
        values, confidence=2 * confidence - 1
    )  # what a two-sided interval leaves out is half below
    return None if np.isnan(low) else bool(low > 0)


def ratio_interval(
    numerator: npt.ArrayLike, denominator: npt.ArrayLike, *, confidence: float = CONFIDENCE
) -> Interval:
    """Confidence interval of a ratio of means over the same prompts, by Fieller's theorem.

    It holds the ratios r for which the mean of numerator − r · denominator could be zero by Student's t.

    Args:
        numerator, denominator: `[prompt]` each; finite.

    Returns:
        (low, high), as for `mean_interval`; from −∞ to ∞ if the denominator's mean could be zero, and NaN if it is.
    """
    a, b = _prompts(numerator, confidence), _prompts(denominator, confidence)
    if a.shape != b.shape:
        raise AcdcError(f"expected as many numerators as denominators, got {len(a)} and {len(b)}")
    n = len(a)
    if n < 2 or not np.isfinite([a, b]).all() or not b.mean():
        return NO_INTERVAL
    ratio = float(a.mean() / b.mean())
    rest = a - ratio * b
    scale = max(float(np.abs(a).max()), abs(ratio) * float(np.abs(b).max()), float(np.finfo(np.float64).tiny))
    if float(np.abs(rest).max()) <= SAME * scale:
        tell = int(np.count_nonzero(b))  # the others have 0 of 0
        return (ratio, ratio) if tell == n or tell >= FEWEST else NO_INTERVAL
    if n < FEWEST or _depends_on_few(rest):
        return NO_INTERVAL
    squared = float(stats.t.ppf((1 + confidence) / 2, n - 1)) ** 2 / n
    (aa, ab), (_, bb) = np.cov(a, b)
    # (mean(a) − r mean(b))² = squared · variance(a − r b), a quadratic equation in r
    second = float(b.mean()) ** 2 - squared * float(bb)
    first = float(a.mean() * b.mean()) - squared * float(ab)
    zeroth = float(a.mean()) ** 2 - squared * float(aa)
    if second <= 0:
        return -np.inf, np.inf
    root = np.sqrt(max(first**2 - second * zeroth, 0.0))
    return float((first - root) / second), float((first + root) / second)


def proportion_interval(successes: int, n: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Confidence interval of a proportion: the binomial one whose tails count the observed number half (mid-P).

    It is defined for any count, with all or none of the prompts too (Agresti and Gottard 2007, Comput. Statist. Data
    Anal. 51, 6447–6458).

    Returns:
        (low, high); NaN for fewer than two prompts.
    """
    if not 0 <= successes <= n:
        raise AcdcError(f"expected between 0 and {n} successes of {n}, got {successes}")
    _check_confidence(confidence)
    if n < 2:
        return NO_INTERVAL
    tail = (1 - confidence) / 2

    def low(k: int) -> float:
        """Where k or more of n become as rare as the tail."""
        if k == 0:
            return 0.0
        return float(
            optimize.brentq(lambda p: stats.binom.sf(k, n, p) + stats.binom.pmf(k, n, p) / 2 - tail, 0.0, 1.0)
        )

    return low(successes), 1 - low(n - successes)


def share_interval(values: npt.ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Confidence interval of a mean of shares between 0 and 1, `[prompt]`: of a proportion, if each is 0 or 1."""
    x = _prompts(values, confidence)
    if np.isin(x, (0, 1)).all():
        return proportion_interval(int(x.sum()), len(x), confidence=confidence)
    return mean_interval(x, confidence=confidence, within=(0, 1))


def faithfulness_interval(
    circuit: npt.ArrayLike, full: npt.ArrayLike, empty: npt.ArrayLike, *, confidence: float = CONFIDENCE
) -> Interval:
    """Confidence interval of faithfulness, a ratio of means: (m(C) − m(∅)) / (m(M) − m(∅)).

    Args:
        circuit, full, empty: `[prompt]` metric of the circuit, the full model, and the circuit without edges, on
            the same prompts.

    Returns:
        As for `ratio_interval`: from −∞ to ∞ if the prompts do not even tell the full model from the empty circuit.
    """
    measured = _same_prompts(circuit, full, empty)
    m, whole, nothing = measured
    return ratio_interval(m - nothing, whole - nothing, confidence=confidence)


def faithfulness_range(circuit: npt.ArrayLike, full: npt.ArrayLike, empty: npt.ArrayLike) -> Interval:
    """The least and the greatest faithfulness of a prompt alone; arguments as for `faithfulness_interval`.

    Prompts on which the full model and the empty circuit are the same have none; NaN if that is so on all.
    """
    m, whole, nothing = _same_prompts(circuit, full, empty)
    defined = whole != nothing
    if not defined.any():
        return NO_INTERVAL
    each = (m - nothing)[defined] / (whole - nothing)[defined]
    return float(each.min()), float(each.max())


def magnitude_interval(interval: Interval) -> Interval:
    """The interval of |x| from that of x."""
    low, high = interval
    if low < 0 < high:
        return 0.0, max(-low, high)
    return min(abs(low), abs(high)), max(abs(low), abs(high))


# ---- samples ----------------------------------------------------------------------------------------------------


def _are_one(x: FloatArray) -> bool:
    """Whether all values are the same."""
    return float(np.ptp(x)) <= SAME * float(np.abs(x).max())


def _depends_on_few(x: FloatArray) -> bool:
    """Whether the sample is so skewed that a few prompts make up its mean."""
    return abs(float(stats.skew(x, bias=False))) > MOST_SKEW * np.sqrt(len(x))


def _without_skew(t: FloatArray, skewness: float, n: int) -> FloatArray:
    """(mean − true mean) / standard deviation at the quantiles t, for a sample of this skewness.

    Hall's transformation h(w) = w + g w² / 3 + g² w³ / 27 + g / 6n, inverted.
    """
    if abs(skewness) < 1e-6:
        return t
    return np.asarray(3 * (np.cbrt(1 + skewness * (t - skewness / (6 * n))) - 1) / skewness)


def _prompts(values: npt.ArrayLike, confidence: float) -> FloatArray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise AcdcError(f"expected values [prompt], got shape {list(x.shape)}")
    _check_confidence(confidence)
    return x


def numbers(given: npt.ArrayLike, what: str) -> FloatArray:
    """The argument as an array of numbers.

    Raises:
        AcdcError: it is none.
    """
    array = np.asarray(given)
    if array.dtype.kind not in "biuf":
        raise AcdcError(f"expected {what} as an array of numbers, got {type(given).__name__}")
    return array.astype(np.float64)


def _same_prompts(*values: npt.ArrayLike) -> list[FloatArray]:
    measured = [np.asarray(x, dtype=np.float64) for x in values]
    if len({x.shape for x in measured}) > 1 or measured[0].ndim != 1:
        raise AcdcError(
            f"expected a value a prompt of circuit, full and empty, got shapes {[list(x.shape) for x in measured]}"
        )
    return measured


def _check_confidence(confidence: float) -> None:
    check_number("a confidence", confidence)
    if not 0 < confidence < 1:
        raise AcdcError(f"expected a confidence between 0 and 1, such as {CONFIDENCE}, got {confidence}")
