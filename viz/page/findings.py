"""What the page shows beside the circuits themselves, as records: faithfulness over sizes, what each edge is worth,
where heads attend, what nodes write to the answer, and the logit lens; and of which heads, where not all have room.

Nothing here takes the model or torch: `investigate` measures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from acdc.circuit import Circuit, Scores

if TYPE_CHECKING:
    from acdc.evaluation.curve import Curve
    from acdc.inspection import AttentionPatterns, DirectEffects, LogitLens, RemovalEffects


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """Measurements for a page.

    Attributes:
        curves, effects: by the circuit's name.
        notes: what was left out and why, and what measuring cost, a sentence each.
        roles: heads by the first label of theirs (`acdc.inspection.head_roles`).
    """

    curves: Mapping[str, Curve] = dataclasses.field(default_factory=dict)
    effects: Mapping[str, RemovalEffects] = dataclasses.field(default_factory=dict)
    patterns: AttentionPatterns | None = None
    direct: DirectEffects | None = None
    lens: LogitLens | None = None
    notes: tuple[str, ...] = ()
    roles: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


PATTERN_BYTES = 1_200_000
"""Room for attention weights in a page, a byte each."""


def is_ranking(scores: Scores) -> bool:
    """Whether scores rank the edges one by one; those of a search may only say which it kept, and those of nodes rank
    these."""
    return scores.unit == "edge" and len(np.unique(np.abs(scores.values[scores.graph.valid]))) > 2


def heads_first(circuits: Mapping[str, Circuit]) -> list[str]:
    """All heads in the order of what a reader will ask for: those in the circuits, then by their largest score."""
    graph = next(iter(circuits.values())).graph
    inside, weight = np.zeros(graph.n_sources), np.zeros(graph.n_sources)
    for circuit in circuits.values():
        index = graph.source_index
        inside[[index[name] for name in circuit.nodes() if name in index]] = 1
        if circuit.scores is not None:
            sizes = circuit.sizes()
            weight = np.maximum(weight, sizes.max(axis=0) / max(sizes.max(), 1e-300))
    order = np.lexsort((np.arange(graph.n_sources), -weight, -inside))
    heads = set(graph.names("head"))
    return [graph.sources[s] for s in order if graph.sources[s] in heads]
