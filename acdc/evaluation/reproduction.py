"""Is a circuit right, where outputs are exact? It is if it reproduces every output, and no edge of it can go.

A compiled program gives the same output or another one, with nothing in between. So this can be settled without a
true circuit, and for ablations under which there are several: with zeros, an edge that matters to the full model may
matter no more once others are gone, and the edges that matter singly need not be a circuit in which all are needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from acdc.engine.circuits import CIRCUITS_AT_ONCE, measure_prompts
from acdc.engine.problem import Problem
from acdc.graph import BoolArray, FloatArray
from acdc.metrics import OUTCOMES

SAME_OUTPUT = 1e-4
"""Squared distance, mean over the positions read, up to which outputs are the same: attention of a compiled program
that ought to be zero is not quite, and the least that an edge does is a thousand times as much."""


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """What a circuit reproduces of the full model's outputs, on discovery and held-out prompts.

    Attributes:
        n_prompts: how many there are.
        reproduced: on how many all outputs are the full model's.
        removable: an edge without which the circuit reproduces as much; None if there is none, so that every edge is
            needed.
    """

    n_prompts: int
    reproduced: int
    removable: str | None

    @property
    def is_right(self) -> bool:
        """Whether it reproduces everything and every edge is needed."""
        return self.reproduced == self.n_prompts and self.removable is None


def reproduction(problems: Sequence[Problem], edges: BoolArray) -> Reproduction:
    """Run a circuit, and the circuit without each of its edges, on all prompts of some problems.

    Args:
        problems: of one graph; their metric does not matter.
        edges: `[n_destinations, n_sources]`.
    """
    graph = problems[0].graph

    def same(circuits: BoolArray) -> BoolArray:
        """`[C, prompt]`: whether a circuit's outputs are the full model's."""
        distances: list[FloatArray] = [
            measure_prompts(problem, [circuits], [OUTCOMES["l2"]])[0].circuits for problem in problems
        ]
        return np.concatenate(distances, axis=1) <= SAME_OUTPUT

    whole = same(edges[None])[0]
    kept = np.argwhere(edges)
    removable = None
    for start in range(0, len(kept), CIRCUITS_AT_ONCE):
        some = kept[start : start + CIRCUITS_AT_ONCE]
        without = np.repeat(edges[None], len(some), axis=0)
        without[np.arange(len(some)), some[:, 0], some[:, 1]] = False
        as_good = np.flatnonzero((same(without) >= whole).all(axis=1))
        if len(as_good):
            removable = graph.edge_name(*some[as_good[0]])
            break
    return Reproduction(len(whole), int(whole.sum()), removable)
