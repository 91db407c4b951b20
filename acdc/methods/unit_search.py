"""A search over units that are coarser than edges: one after another goes, if a rule lets it.

A coarse unit (a node) reaches everything downstream, so each test is a run of the circuit. Tests run in batches as in
`search`: row k is the circuit without the next k + 1 candidates, right as long as all of them go.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from acdc.engine.measure import Measures, refuse_non_finite
from acdc.engine.problem import Problem
from acdc.graph import BoolArray, FloatArray, IntArray
from acdc.methods.method import Found, helpfulness
from acdc.methods.search import Accept

MOST_ROWS = 16
"""Candidates of a batch."""


class UnitSearch:
    """Units that are left, and what the circuit of them is worth.

    Attributes:
        kept: `[unit]`.
        distance: mean over the prompts of the metric's distance from the full model; value: of the metric.
    """

    def __init__(self, problem: Problem, measures: Measures, kept: BoolArray | None = None) -> None:
        self.problem, self.units, self.measures = problem, problem.units, measures
        self.kept = self.units.valid.copy() if kept is None else kept.copy()
        ((self.value, self.distance),) = self.run(self.kept[None])

    @torch.no_grad()
    def run(self, switches: BoolArray) -> list[tuple[float, float]]:
        """Means over the prompts of the metric, and of its distance, of some circuits `[C, unit]`."""
        found: list[Tensor] = []
        for patching, measure in self.measures:
            at_once = self.problem.circuits_at_once(len(patching.prompts))
            parts = []
            for start in range(0, len(switches), at_once):
                masks = self.units.mask(switches[start : start + at_once])
                logits = patching.logits(masks, rows=measure.rows)
                parts.append(torch.stack(measure.both(logits)).double().cpu())
            found.append(torch.cat(parts, dim=1))  # [2, C, B]
            refuse_non_finite(found[-1], self.measures.outcome, f"while {self.units.plural} were removed")
        mean = torch.cat(found, dim=-1).mean(-1)
        return list(zip(mean[0].tolist(), mean[1].tolist(), strict=True))

    def sweep(self, order: IntArray, accept: Accept, text: str) -> int:
        """Test each kept unit once, in order; returns how many went."""
        candidates, gone, i, ahead = order[self.kept[order]], 0, 0, 2
        while i < len(candidates):
            batch = candidates[i : i + ahead]
            rows = np.repeat(self.kept[None], len(batch), axis=0)
            rows[:, batch] &= ~np.tri(len(batch), dtype=bool)
            tested = 0
            for unit, (value, distance) in zip(batch, self.run(rows), strict=True):
                tested += 1
                if not accept(distance, self.distance):
                    break
                self.kept[unit], self.value, self.distance = False, value, distance
                gone += 1
            ahead = min(MOST_ROWS, 2 * ahead) if tested == len(batch) else 2
            i += tested
            self.problem.progress(i, len(candidates), text)
        return gone

    def removal(self) -> FloatArray:
        """`[unit]`: how much worse the metric gets without each kept unit alone; NaN elsewhere."""
        units, found = np.flatnonzero(self.kept), np.full(len(self.kept), np.nan)
        for start in range(0, len(units), MOST_ROWS):
            some = units[start : start + MOST_ROWS]
            rows = np.repeat(self.kept[None], len(some), axis=0)
            rows[np.arange(len(some)), some] = False
            found[some] = [value - self.value for value, _ in self.run(rows)]
        return helpfulness(self.problem, found)

    def prune(self, order: IntArray, accept: Accept) -> None:
        """Sweep until no unit can go."""
        text = f"{self.units.plural} within the budget"
        self.sweep(order, accept, text)
        self.connect(accept)
        while self.sweep(order, accept, text):
            pass

    def backwards(self) -> IntArray:
        """The units from the logits backwards."""
        return np.arange(self.units.n)[::-1]

    def connect(self, accept: Accept) -> None:
        """Leave out what dangles, if the rule lets it."""
        pruned = self.units.of_edges(self.units.graph.prune(self.units.mask(self.kept)))
        ((value, distance),) = self.run(pruned[None])
        if accept(distance, self.distance):
            self.kept, self.value, self.distance = pruned, value, distance

    def found(self, scores: FloatArray, how: Mapping[str, float]) -> Found:
        """What was found, with scores `[unit]`."""
        return Found(self.kept, scores, how, self.removal())
