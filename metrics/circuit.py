"""Circuit metrics: how well a circuit does what the full model does. Pure functions of measured numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy

from acdc.errors import AcdcError

FloatArray = npt.NDArray[np.float64]

MIB_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Circuit sizes of the MIB benchmark, as shares of all edges."""


# ---- one circuit ------------------------------------------------------------------------------------------------


def faithfulness(circuit: float, *, full: float, empty: float) -> float:
    """Share of the full model's behaviour that the circuit has: (m(C) − m(∅)) / (m(M) − m(∅)); not clipped.

    Args:
        circuit, full, empty: mean metric of the circuit, the full model, and the circuit without edges.

    Returns:
        NaN if the full model is no different from the empty circuit.
    """
    return float("nan") if full == empty else (circuit - empty) / (full - empty)


def normalised_faithfulness(circuit: npt.ArrayLike, *, full: npt.ArrayLike, corrupted: npt.ArrayLike) -> FloatArray:
    """Faithfulness prompt by prompt and between 0 and 1: 1 − min(|(m(M) − m(C)) / (m(M) − m(M'))|, 1).

    A circuit that overshoots is no better than one that falls short, and no prompt makes up for another.

    Args:
        circuit, full, corrupted: `[..., prompt]` metric of the circuit, of the full model, and of the full model on
            the corrupted prompts.

    Returns:
        `[..., prompt]`; take the mean. On a prompt where the full model does not tell clean from corrupted, 1 if
        the circuit does the same and 0 if not.
    """
    m, full, corrupted = (np.asarray(x, dtype=np.float64) for x in (circuit, full, corrupted))
    missing, whole = np.broadcast_arrays(np.abs(full - m), np.abs(full - corrupted))
    share = np.divide(missing, whole, out=np.array(missing > 0, dtype=np.float64), where=whole > 0)
    return 1 - np.minimum(share, 1)


def relative_difference(
    a: npt.ArrayLike, b: npt.ArrayLike, *, full: npt.ArrayLike, empty: npt.ArrayLike
) -> FloatArray:
    """|a − b| as a share of what separates the full model from the empty circuit, |m(M) − m(∅)|.

    Between the full model and the circuit with the same parts knocked out, it is the circuit's *incompleteness*;
    between the circuit with and without a part, that part's *importance* (Wang et al. 2023, who divide by m(M):
    pass `empty=0` for theirs).

    Returns:
        NaN if the full model is no different from the empty circuit.
    """
    a, b, full, empty = (np.asarray(x, dtype=np.float64) for x in (a, b, full, empty))
    difference, whole = np.broadcast_arrays(np.abs(a - b), np.abs(full - empty))
    return np.divide(difference, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def weighted_edge_count(edges: npt.ArrayLike, kept_units: npt.ArrayLike | None = None) -> float:
    """Size of a circuit as MIB counts it: each edge counts with the share of its source's units that are kept.

    Args:
        edges: `[n_destinations, n_sources]` bool.
        kept_units: `[n_sources]` between 0 and 1; None: whole components, so that it is the number of edges.
    """
    leaving = np.asarray(edges).sum(axis=0, dtype=np.float64)  # [n_sources]
    return float(leaving.sum() if kept_units is None else leaving @ np.asarray(kept_units, dtype=np.float64))


# ---- a curve over circuit sizes ---------------------------------------------------------------------------------


def area(shares: npt.ArrayLike, values: npt.ArrayLike, *, log: bool = False) -> FloatArray:
    """Area under a curve over the share k of kept edges, by the trapezoid rule.

    Args:
        shares: `[size]`, rising.
        values: `[..., size]`.
        log: integrate over log k, and divide by the length of that axis: a mean over orders of magnitude, in which
            small circuits count as much as large ones. (MIB's option `log_scale` is the same without the division.)

    Returns:
        `[...]`.
    """
    x, y = np.asarray(shares, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2 or y.shape[-1:] != x.shape:
        raise AcdcError(f"expected values for two sizes or more, got {list(y.shape)} for sizes {list(x.shape)}")
    if not (np.diff(x) > 0).all() or (log and x[0] <= 0):
        raise AcdcError(f"expected rising shares{' above 0' * log}, got {x.tolist()}")
    if log:
        x = np.log(x)
        x = x / (x[-1] - x[0])
    return scipy.integrate.trapezoid(y, x, axis=-1)


def cpr(shares: Sequence[float], values: Sequence[float]) -> float:
    """Integrated circuit performance ratio (MIB): ∫ f dk over the share k of kept edges, trapezoid, linear in k.

    MIB takes circuits by signed score at `MIB_SHARES`, pruned. Small circuits barely count: see `log_cpr`.
    """
    return float(area(shares, values))


def cmd(shares: Sequence[float], values: Sequence[float]) -> float:
    """Integrated circuit-model distance (MIB): ∫ |1 − f| dk over the share k of kept edges, trapezoid, linear in k.

    MIB takes circuits by absolute score at `MIB_SHARES`, pruned.
    """
    return float(area(shares, np.abs(1 - np.asarray(values))))


def log_cpr(shares: Sequence[float], values: Sequence[float]) -> float:
    """Mean faithfulness over the orders of magnitude of circuit sizes; 1 for a perfect ranking."""
    return float(area(shares, values, log=True))


def log_cmd(shares: Sequence[float], values: Sequence[float]) -> float:
    """Mean |1 − faithfulness| over the orders of magnitude of circuit sizes; 0 for a perfect ranking."""
    return float(area(shares, np.abs(1 - np.asarray(values)), log=True))


def kl_area(shares: Sequence[float], divergences: Sequence[float]) -> float:
    """Area under the KL curve: ∫ KL dk in nats, linear in k; unlike CPR no circuit can overshoot."""
    return float(area(shares, divergences))


def log_kl_area(shares: Sequence[float], divergences: Sequence[float]) -> float:
    """Mean KL over the orders of magnitude of circuit sizes, in nats."""
    return float(area(shares, divergences, log=True))
