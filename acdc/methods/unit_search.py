"""A search over units that are coarser than edges: one after another goes, if a rule lets it.

A coarse unit (a node) is a group of edges, so a test is a partial run of the circuit without the group (`Groups`).
Tests run in batches as in `search`: rows are made by a guess, that all go or that all stay, and those up to the first
unit that does otherwise are the tests that would have been made one by one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from acdc.engine.measure import Measures
from acdc.engine.problem import Problem
from acdc.graph import BoolArray, FloatArray, IntArray
from acdc.methods.groups import Group, Groups
from acdc.methods.method import Found, helpfulness
from acdc.methods.search import Accept
from acdc.store.resume import ResumeFile

MOST_ROWS = 16
"""Candidates of a batch."""
LEAST_ROWS = 2


class UnitSearch:
    """Units that are left.

    Args:
        scores: `[unit]`; units are tested from the smallest absolute score up.
        kept: `[unit]` to start from; None: all.
        resume: where it notes how far it is.

    Attributes:
        search: the circuit of the kept units, and what it is worth.
        sweeps: sweeps that are over; done: units of `order` that the present one has come to.
    """

    def __init__(
        self,
        problem: Problem,
        measures: Measures,
        scores: FloatArray,
        *,
        kept: BoolArray | None = None,
        resume: ResumeFile,
    ) -> None:
        self.problem, self.units, self.measures = problem, problem.units, measures
        self.scores, self.resume = scores, resume
        self.kept = self.units.valid.copy() if kept is None else kept.copy()
        self.order = np.argsort(np.abs(scores), kind="stable")
        self.sweeps = self.done = self.gone = 0
        self.search = Groups(measures, kept=self.units.mask(self.kept))

    # ---- going on ----------------------------------------------------------------------------------------------

    @classmethod
    def resumed(cls, problem: Problem, measures: Measures) -> UnitSearch | None:
        """The search that was noted last; None if none was."""
        shape, resume = problem.units.shape, problem.resume
        saved = resume.load({"scores": (shape, np.float64), "kept": (shape, np.bool_), "numbers": ((3,), np.int64)})
        if not saved:
            return None
        self = cls(problem, measures, saved["scores"], kept=saved["kept"], resume=resume)
        self.sweeps, self.done, self.gone = saved["numbers"].tolist()
        return self

    def note(self) -> None:
        """Note how far the search is."""
        numbers = np.array([self.sweeps, self.done, self.gone])
        self.resume.save(scores=self.scores, kept=self.kept, numbers=numbers)

    # ---- searching ---------------------------------------------------------------------------------------------

    def prune(self, accept: Accept, text: str, *, once: bool = False) -> None:
        """Sweep until no unit can go, or `once`; what dangles after the first sweep goes if the rule lets it."""
        self.note()
        while self.sweeps == 0 or not once:
            self._sweep(accept, text)
            if self.sweeps == 0:
                self._connect(accept)
            elif not self.gone:
                return
            self.sweeps, self.done, self.gone = self.sweeps + 1, 0, 0
            self.note()

    def _sweep(self, accept: Accept, text: str) -> None:
        """Test each kept unit once, in order."""
        go, ahead = True, LEAST_ROWS
        place = np.argsort(self.order)
        while len(left := self._left()):
            batch = left[:ahead]
            rows = np.repeat(self.kept[None], len(batch), axis=0)
            rows[:, batch] &= ~(np.tri(len(batch), dtype=bool) if go else np.eye(len(batch), dtype=bool))
            tested, last, distance = 0, None, self.search.distance
            for new in self.search.measure_without(self._groups(rows))[0].tolist():
                goes = accept(new, distance)
                if goes:
                    last, distance = tested, new
                tested += 1
                if goes != go:
                    break
            if last is not None:
                self.gone += int((self.kept & ~rows[last]).sum())
                self._keep(rows[last])
            right = goes == go
            go, ahead = goes, min(MOST_ROWS, 2 * ahead) if right else LEAST_ROWS
            self.done = int(place[batch[tested - 1]]) + 1
            self.note()
            self.problem.progress(self.done, len(self.order), text)

    def _left(self) -> IntArray:
        """The kept units that this sweep has still to test."""
        left = self.order[self.done :]
        return left[self.kept[left]]

    def _connect(self, accept: Accept) -> None:
        """Leave out what dangles, if the rule lets it."""
        connected = self.units.of_edges(self.units.graph.prune(self.units.mask(self.kept)))
        (group,) = self._groups(connected[None])
        if accept(self.search.distance_without(group), self.search.distance):
            self._keep(connected)

    def _groups(self, rows: BoolArray) -> list[Group]:
        """What has to go for each of some smaller circuits, `[row, unit]`."""
        return [self.search.group_without(circuit) for circuit in self.units.mask(rows)]

    def _keep(self, kept: BoolArray) -> None:
        """Go on with a smaller circuit."""
        circuit = self.units.mask(kept)
        self.search.remove(self.search.group_without(circuit))
        self.search.drop(np.flatnonzero(self.search.kept & ~circuit))
        self.kept = kept

    # ---- what was found ----------------------------------------------------------------------------------------

    def removal(self) -> FloatArray:
        """`[unit]`: how much worse the metric gets without each kept unit alone; NaN elsewhere."""
        alone, units = Groups(self.measures, kept=self.units.mask(self.kept)), np.flatnonzero(self.kept)
        found = np.full(len(self.kept), np.nan)
        rows = np.repeat(self.kept[None], len(units), axis=0)
        rows[np.arange(len(units)), units] = False
        groups = [alone.group_without(circuit) for row in rows for circuit in self.units.mask(row[None])]
        found[units] = alone.measure_without(groups)[1] - alone.value
        return helpfulness(self.problem, found)

    def found(self, scores: FloatArray, how: Mapping[str, float]) -> Found:
        """What was found, with scores `[unit]`."""
        return Found(self.kept, scores, how, self.removal())
