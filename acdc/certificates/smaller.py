"""Whether a smaller connected circuit would do: all of them are run, and one is enough to refute it."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from acdc.certificates.subsets import TooMany, connected_circuits_up_to
from acdc.engine.circuits import CIRCUITS_AT_ONCE
from acdc.engine.measure import Measures
from acdc.engine.problem import Problem
from acdc.engine.stages import stages_of
from acdc.errors import AcdcError
from acdc.graph import BoolArray, FloatArray

MOST_CIRCUITS = 300_000
"""Circuits that are run to prove that no smaller one will do."""
MOST_EDGES = 25
"""Edges of a circuit above which there are too many smaller ones."""


def smaller_circuit(
    problem: Problem, allowed: BoolArray, most: int, budget: float, *, strength: str
) -> tuple[BoolArray | None, int]:
    """A connected circuit of at most `most` of the allowed edges within the budget, or None; and how many were run.

    Raises:
        AcdcError: dangling edges may matter under this ablation, or there are too many circuits.
    """
    coupled = any(stage.coupled for stage in stages_of(problem.model, problem.graph))
    if problem.ablation != "resample" or coupled:
        raise AcdcError(
            f"strength {strength!r} is of connected circuits, and in this model under {problem.ablation} ablation "
            "parts that nothing feeds, or reads, can matter too: ask for pairs"
        )
    if most + 1 > MOST_EDGES:
        raise AcdcError(
            f"strength {strength!r} is for circuits of at most {MOST_EDGES} edges, not {most + 1}: ask for pairs"
        )
    circuits = connected_circuits_up_to(problem.graph, allowed, most, limit=MOST_CIRCUITS)
    measures = Measures(problem.outcome, problem.searched())
    tested = 0
    try:
        while some := list(itertools.islice(circuits, CIRCUITS_AT_ONCE)):
            stack = np.stack(some)
            distances = stacked_distances(measures, stack)
            tested += len(some)
            problem.progress(tested, None, "smaller circuits")
            if (distances <= budget).any():
                return stack[int(distances.argmin())], tested
    except TooMany:
        raise AcdcError(
            f"strength {strength!r} takes more than {MOST_CIRCUITS:,} smaller circuits of this graph: ask for "
            f"{'subset' if strength == 'cardinal' else 'pairs'}"
        ) from None
    return None, tested


@torch.no_grad()
def stacked_distances(measures: Measures, stack: BoolArray) -> FloatArray:
    """`[C]` mean distance of circuits, run together."""
    found = [
        measure.distance(patching.logits(stack, rows=measure.rows)).double().cpu().numpy()
        for patching, measure in measures
    ]
    return np.asarray(np.concatenate(found, axis=-1).mean(axis=-1))
