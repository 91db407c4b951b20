"""Tests of hypotheses with p-values that hold at any number of prompts, for values of any distribution.

What an audit asks of a circuit is a mean of bounded scores over prompts: how far it is from the model, in shares of
what separates the model from no circuit at all. Such a mean is tested by betting (Waudby-Smith and Ramdas 2024,
J. R. Statist. Soc. B 86, 1–27): if the mean is at most m, nobody gets rich on bets that it is more, so that a fortune
of K has a probability of at most 1/K. Nothing is assumed but that prompts are drawn independently.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from acdc.errors import AcdcError

FloatArray = npt.NDArray[np.float64]

_BETS = 0.999 * np.array([1.0, 0.7, 0.4, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005])
"""Shares of the largest bet that cannot ruin, among which the fortune is split at first."""


def mean_exceeds(values: npt.ArrayLike, most: float) -> float:
    """p-value of the hypothesis that the mean of values between 0 and 1 is at most `most`.

    Args:
        values: `[prompt]` between 0 and 1.
        most: between 0 and 1. At 0 every value above 0 refutes it.

    Returns:
        The reciprocal of the fortune of a mixture of bets, at most 1; 1 without values.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or ((x < 0) | (x > 1)).any() or not np.isfinite(x).all():
        raise AcdcError("expected values [prompt] between 0 and 1")
    if not 0 <= most <= 1:
        raise AcdcError(f"expected a mean between 0 and 1, got {most}")
    if most == 0:
        return 0.0 if (x > 0).any() else 1.0
    if most == 1 or not len(x):
        return 1.0
    growth = np.log1p(np.outer(_BETS / most, x - most)).sum(axis=1)  # [bet]
    fortune = float(np.logaddexp.reduce(growth)) - np.log(len(_BETS))
    return float(np.exp(min(0.0, -fortune)))


def mean_falls_short(values: npt.ArrayLike, least: float) -> float:
    """p-value of the hypothesis that the mean of values between 0 and 1 is at least `least`; as `mean_exceeds`."""
    return mean_exceeds(1.0 - np.asarray(values, dtype=np.float64), 1.0 - least)


def share_exceeds(successes: int, n: int, most: float) -> float:
    """p-value of the hypothesis that a success has a probability of at most `most` (binomial, exact)."""
    return float(stats.binom.sf(successes - 1, n, most)) if n else 1.0


def share_falls_short(successes: int, n: int, least: float) -> float:
    """p-value of the hypothesis that a success has a probability of at least `least` (binomial, exact)."""
    return float(stats.binom.cdf(successes, n, least)) if n else 1.0


def any_of(p_values: Sequence[float]) -> float:
    """p-value of the hypothesis that all of several hypotheses hold (Bonferroni); 1 for none."""
    return min(1.0, len(p_values) * min(p_values)) if p_values else 1.0


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses are rejected so that any true one is with probability `level` at most (Holm 1979)."""
    rejected = [False] * len(p_values)
    for rank, i in enumerate(np.argsort(p_values, kind="stable").tolist()):
        if p_values[i] > level / (len(p_values) - rank):
            break
        rejected[i] = True
    return rejected


def hsic(a: npt.ArrayLike, b: npt.ArrayLike, *, permutations: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Whether two numbers a prompt depend on each other: the Hilbert–Schmidt independence criterion.

    Gaussian kernels of the median distance (Gretton et al. 2008); the p-value comes from permuting the prompts.

    Args:
        a, b: `[prompt]` each. One that is the same on all prompts depends on nothing.

    Returns:
        The criterion (biased estimate), and the p-value of independence.
    """
    kernels = [_centred_kernel(np.asarray(x, dtype=np.float64)) for x in (a, b)]
    n = len(kernels[0])
    if n < 4 or any(not kernel.any() for kernel in kernels):
        return 0.0, 1.0
    first, second = kernels
    found = float((first * second).sum())
    least = found - 1e-9 * abs(found)  # rounding makes none of two equal sums the smaller
    rng = np.random.default_rng(seed)
    above = 0
    for _ in range(permutations):
        order = rng.permutation(n)
        above += float((first * second[np.ix_(order, order)]).sum()) >= least
    return found / n**2, (1 + above) / (1 + permutations)


def _centred_kernel(x: FloatArray) -> FloatArray:
    distance = np.abs(x[:, None] - x[None])
    off = distance[np.triu_indices(len(x), 1)]
    if not len(off) or not off.any():
        return np.zeros_like(distance)
    width = float(np.median(off)) or float(off[off > 0].mean())
    kernel = np.exp(-((distance / width) ** 2) / 2)
    centred: FloatArray = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    return centred


def quantile_bounded_by_largest(n: int, *, confidence: float = 0.95) -> float:
    """The share of all prompts that are below the largest of n drawn ones, with this confidence: (1 − c)^(1/n)."""
    return float((1 - confidence) ** (1 / n)) if n else 0.0
