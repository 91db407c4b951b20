"""Whether an edge helps or hinders: what a picture may say of it.

An edge *helps* if the metric gets worse when the edge alone is removed, and *hinders* if it gets better. That has to be
measured. Searches measure it in the circuit they find, some rankings in the full model. A first-order score only has
the sign of an estimate; of a metric that is a distance from the full model not even that, since the gradient of a
distance vanishes at the full model and says nothing of the way there elsewhere. What the signs of a method's scores
are is a field of its record; those of a method that is not here count as estimates.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from acdc.circuit import Circuit
from acdc.graph import IntArray

ROUNDING = 1e-6
"""A change smaller than this share of the largest is none."""


@dataclasses.dataclass(frozen=True, eq=False)
class Signs:
    """What is known of the edges' signs.

    Attributes:
        values: `[n_destinations, n_sources]`: 1, -1, or 0 where an edge has no sign.
        source: what from: "circuit" or "model" if removal from it was measured, so that 1 is an edge that helps and -1
            one that hinders; "score" if the signs are those of scores; "" if there are none.
    """

    values: IntArray
    source: Literal["circuit", "model", "score", ""]

    @property
    def measured(self) -> bool:
        return self.source in ("circuit", "model")


def edge_signs(circuit: Circuit) -> Signs:
    """The signs of a circuit's edges, and of the others where its scores tell them."""
    scores = circuit.scores
    if scores is None:
        return Signs(np.zeros(circuit.edges.shape, dtype=np.int64), "")
    if scores.removal is not None and (np.isfinite(scores.removal) == circuit.edges).all():
        return Signs(signs_of(np.where(circuit.edges, scores.removal, 0.0)), "circuit")
    from acdc.methods.registry import METHODS  # which imports torch, as metrics do
    from acdc.metrics import OUTCOMES

    method, metric = METHODS.get(scores.method), OUTCOMES.get(scores.provenance.metric)
    if method is not None and method.signs == "measured":
        return Signs(signs_of(scores.values), "model")
    if method is not None and (method.signs == "none" or (metric is not None and metric.is_distance)):
        return Signs(np.zeros(circuit.edges.shape, dtype=np.int64), "")
    return Signs(np.sign(scores.values).astype(np.int64), "score")


def signs_of(changes: np.ndarray) -> IntArray:
    """1 and -1 by the sign of measured changes, 0 where there is none but rounding."""
    return np.where(np.abs(changes) > ROUNDING * np.abs(changes).max(initial=0), np.sign(changes), 0).astype(
        np.int64
    )
