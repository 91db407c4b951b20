"""How sure a measured figure is: bootstrap confidence intervals over prompts, through `scipy.stats.bootstrap`.

Prompts are drawn again with replacement, whole: what was measured on one prompt (full model, empty circuit,
circuit) stays together, so that the noise they share cancels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from acdc.errors import AcdcError

FloatArray = npt.NDArray[np.float64]

RESAMPLES = 2000
"""Draws a bootstrap: enough for two digits of an interval's ends."""


def bootstrap_interval(
    values: npt.ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Confidence interval of a statistic over prompts: bias-corrected and accelerated (BCa).

    Args:
        values: `[prompt]`, or `[array, prompt]` for several measurements of the same prompts.
        statistic: of one array, or of as many as there are, with an argument `axis` like NumPy's functions.
        confidence: share of such intervals that hold the true value.

    Returns:
        (low, high). Where BCa is undefined, quantiles of the draws; so a figure that is the same in every draw has
        an interval of no width. Draws in which the statistic is undefined could be anything and count as −∞ for the
        low and +∞ for the high end. NaN for fewer than two prompts, or if the statistic is never defined.
    """
    arrays = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if arrays.ndim != 2:
        raise AcdcError(f"expected values [prompt] or [array, prompt], got shape {list(arrays.shape)}")
    if not 0 < confidence < 1:
        raise AcdcError(f"expected a confidence between 0 and 1, such as 0.95, got {confidence}")
    n = arrays.shape[1]
    if n < 2:
        return float("nan"), float("nan")
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        result = scipy.stats.bootstrap(
            tuple(arrays),
            _without_rounding_errors(statistic, arrays),
            n_resamples=resamples,
            batch=max(1, 2**22 // n),
            paired=len(arrays) > 1,
            confidence_level=confidence,
            method="BCa",
            random_state=np.random.default_rng(seed),
        )
    low, high = (float(end) for end in result.confidence_interval)
    draws = np.asarray(result.bootstrap_distribution)
    if np.isfinite([low, high]).all() and np.isfinite(draws).all():
        return low, high
    undefined = np.isnan(draws)
    if undefined.all():
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    return (
        float(np.quantile(np.where(undefined, -np.inf, draws), tail, method="lower")),
        float(np.quantile(np.where(undefined, np.inf, draws), 1 - tail, method="higher")),
    )


def _without_rounding_errors(statistic: Callable[..., Any], arrays: FloatArray) -> Callable[..., FloatArray]:
    """The statistic to ten digits of its value on all prompts.

    The same prompts drawn in another order must give the same value: BCa looks at ties with the value on all
    prompts, and with few prompts there are many.
    """
    value = abs(float(statistic(*arrays, axis=-1)))
    scale = value if np.isfinite(value) and value > 0 else 1.0

    def rounded(*samples: FloatArray, axis: int = -1) -> FloatArray:
        return np.round(np.asarray(statistic(*samples, axis=axis)) / scale, 10) * scale

    return rounded


def faithfulness_interval(
    circuit: npt.ArrayLike,
    full: npt.ArrayLike,
    empty: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Confidence interval of faithfulness, a ratio of means: (m(C) − m(∅)) / (m(M) − m(∅)).

    Args:
        circuit, full, empty: `[prompt]` metric of the circuit, the full model, and the circuit without edges, on
            the same prompts.

    Returns:
        (low, high); as wide as −∞ to ∞ if the prompts do not even tell the full model from the empty circuit, and
        NaN if the two are the same on all of them. See `bootstrap_interval`.
    """
    measured = [np.asarray(x, dtype=np.float64) for x in (circuit, full, empty)]
    if len({x.shape for x in measured}) > 1 or measured[0].ndim != 1:
        raise AcdcError(
            f"expected a value a prompt of circuit, full and empty, got shapes {[list(x.shape) for x in measured]}"
        )
    return bootstrap_interval(
        np.stack(measured), mean_faithfulness, confidence=confidence, seed=seed, resamples=resamples
    )


def mean_faithfulness(circuit: FloatArray, full: FloatArray, empty: FloatArray, axis: int = -1) -> FloatArray:
    """Faithfulness as a ratio of means over the prompts on `axis`: a statistic for `bootstrap_interval`."""
    m, whole, nothing = (np.mean(x, axis=axis) for x in (circuit, full, empty))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole == nothing, np.nan, (m - nothing) / (whole - nothing))
