"""Circuit metrics: how well a circuit does what the full model does. Pure functions of measured numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MIB_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Circuit sizes of the MIB benchmark, as shares of all edges."""


def faithfulness(circuit: float, *, full: float, empty: float) -> float:
    """Share of the full model's behaviour that the circuit has: (m(C) − m(∅)) / (m(M) − m(∅)); not clipped.

    Args:
        circuit, full, empty: mean metric of the circuit, the full model, and the circuit without edges.

    Returns:
        NaN if the full model is no different from the empty circuit.
    """
    return float("nan") if full == empty else (circuit - empty) / (full - empty)


def cpr(shares: Sequence[float], values: Sequence[float]) -> float:
    """Integrated circuit performance ratio (MIB): ∫ f dk over the share k of kept edges, trapezoid, linear in k."""
    return float(np.trapezoid(values, shares))


def cmd(shares: Sequence[float], values: Sequence[float]) -> float:
    """Integrated circuit-model distance (MIB): ∫ |1 − f| dk over the share k of kept edges, trapezoid, linear in
    k."""
    return float(np.trapezoid(np.abs(1 - np.asarray(values)), shares))
