"""Whether an edge helps or hinders: what a picture may say of it.

An edge *helps* if the metric gets worse when the edge alone is removed, and *hinders* if it gets better. That has to be
measured. Searches measure it in the circuit they find, some rankings in the full model. A first-order score only has
the sign of an estimate; of a metric that is a distance from the full model not even that, since the gradient of a
distance vanishes at the full model and says nothing of the way there elsewhere. What the signs of a method's scores
are is a field of its record, and scores keep what that makes of their metric, so that a picture need not ask; those of
a method that is not here count as estimates.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import numpy as np

from acdc.circuit import Circuit, Scores
from acdc.circuit.folder import SignsAre
from acdc.graph import IntArray

if TYPE_CHECKING:
    from acdc.methods.method import Method
    from acdc.metrics import Outcome

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
    match scores.signs or _as_registered(scores):
        case "measured":
            return Signs(signs_of(scores.values), "model")
        case "none":
            return Signs(np.zeros(circuit.edges.shape, dtype=np.int64), "")
    return Signs(np.sign(scores.values).astype(np.int64), "score")


def signs_are(method: Method, metric: Outcome | None) -> SignsAre:
    """What the signs of a method's scores are by this metric; None: a metric that is not known, so no distance."""
    vanishes = method.signs == "estimated" and metric is not None and metric.is_distance
    return "none" if vanishes else method.signs


def _as_registered(scores: Scores) -> SignsAre:
    """What the signs are of scores that do not say so."""
    from acdc.methods.registry import METHODS  # which imports torch, as metrics do
    from acdc.metrics import OUTCOMES

    method = METHODS.get(scores.method)
    return "estimated" if method is None else signs_are(method, OUTCOMES.get(scores.provenance.metric))


def signs_of(changes: np.ndarray) -> IntArray:
    """1 and -1 by the sign of measured changes, 0 where there is none but rounding."""
    return np.where(np.abs(changes) > ROUNDING * np.abs(changes).max(initial=0), np.sign(changes), 0).astype(
        np.int64
    )
