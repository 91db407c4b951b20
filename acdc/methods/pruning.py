"""A circuit that is pruned from coarse to fine, with every decision measured and every circuit on the way kept in mind.

What goes is proposed by a quadratic model of the distance around the circuit as it is, and tested exactly before it
goes: shares of all edges while they are cheap, then smaller ones until the budget is spent. At last every edge is
tested alone. A group's loss is counted with what dangles without it.
"""

from __future__ import annotations

import bisect
from itertools import pairwise

import numpy as np

from acdc.circuit import selection
from acdc.engine.measure import Measure, Measures
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.graph import BoolArray, FloatArray, IntArray
from acdc.methods.aggregates import Estimates
from acdc.methods.attribution import weight_gradient
from acdc.methods.groups import Group, Groups
from acdc.methods.quadratic import Quadratic

HALF, LITTLE = 0.5, 0.05
"""Of the edges left, how many are tried as one group at first, and what they may cost, as a share of their part."""
LARGEST_SHARE, SMALLEST_SHARE = 0.2, 1 / 80
"""How many are tried after that, where they may cost their part, and how many at last."""
LAST_SHARE = 0.1
"""The same where a share may take all that is left of the budget."""
RANKED_SHARE = 0.1
"""So many of the edges left will do before that, the best by their scores, where they are within the budget."""
AT_ONCE = 0.06
"""Of the edges left, how many of those that were measured may go at once."""
JOINT = 1.25
"""They go at once if that costs at most so many times what each costs alone."""
FIRST_CERTIFIED = 16
"""The cheapest edges, which are certified first."""
AS_NEAR = 1.25
"""A ranking's circuit may be so many times as far as one of components, which was chosen by its distance."""
ONE_BY_ONE = 32
"""So few edges go one by one, whichever costs least when it is tested: the model is of small changes."""
ADDITIONS, TRIED, REMOVALS = 8, 3, 8
"""Edges that are measured as additions, with how many of the best removals are tried, and of how many edges."""
ALPHAS = (0.02, 0.3)
"""Where the gradients that choose additions are taken: edges outside the circuit carry this share."""

RUNS_BETWEEN_NOTES, RUNS_OF_A_MODEL = 32, 8
"""Batches of tests after which activations are made anew, which costs little then; and so many is a quadratic model."""

SHARES, RANKING, SHRINK, CERTIFY, CERTIFIED = range(5)


def refuse_beyond(budget: float, distance: float) -> None:
    """Refuse to go on from a circuit that is farther from the full model than the budget.

    Raises:
        AcdcError: with both numbers.
    """
    if distance > budget:
        raise AcdcError(
            f"the circuit is {distance:.4g} from the full model, which is more than the budget of {budget:.4g}: to "
            "find a larger circuit, search again"
        )


class Pruning:
    """The state of a search.

    Attributes:
        inside: edges that may be kept.
        scores: of every edge from attribution.
        search: the circuit as it is, with its activations.
        rise: `[n_destinations, n_sources]` rise of the distance without each edge: when it was last tested, or as the
            quadratic model has it; infinite where neither was asked.
        fresh: edges that were tested in the circuit as it is.
        gone: the step at which each edge went; 0 where it is kept.
        distances: `[n_edges + 1]` least distance of a circuit on the way with so many edges; infinite without one.
    """

    def __init__(
        self,
        problem: Problem,
        measures: Measures,
        budget: float,
        scores: Estimates,
        inside: BoolArray | None = None,
    ) -> None:
        self.problem, self.measures, self.graph = problem, measures, problem.graph
        self.inside: BoolArray = problem.graph.valid if inside is None else inside
        self.budget, self.scores = budget, scores
        assert scores.absolute is not None
        assert scores.rms is not None
        self.weakness: FloatArray = scores.absolute
        self.rms: FloatArray = scores.rms
        shape = self.graph.valid.shape
        self.rise = np.full(shape, np.inf)
        self.fresh = np.zeros(shape, dtype=bool)
        self.gone = np.zeros(shape, dtype=np.int64)
        self.distances = np.full(self.graph.n_edges + 1, np.inf)
        self.phase, self.share = SHARES, HALF
        self.circuit, self.without = np.zeros(shape, dtype=bool), np.zeros(shape)  # once it is certified
        self.prunable = problem.dangling_is_free
        self.search: Groups
        self._anew = True  # whether activations were made from the kept edges, and not carried on
        self._runs = 0  # since then, beside those of the search itself

    # ---- beginning, and going on -------------------------------------------------------------------------------

    def start(self, circuits: list[tuple[BoolArray, float]]) -> None:
        """Go on from the last of some shrinking circuits, or from as many of the best edges by their scores.

        The best edges are taken if they are about as near (`AS_NEAR`) when they are as many as matter in the circuit.

        Args:
            circuits: the whole model, then ever fewer edges; each with its distance.
        """
        kept, distance = circuits[-1]
        ranked = self._connected(self._best(int(self._connected(kept).sum())))
        if len(circuits) > 1 and self.measures.distance(ranked) < AS_NEAR * distance:
            circuits = [circuits[0], (self._best(int(kept.sum())), np.inf)]
        circuits = [(self._connected(circuit), distance) for circuit, distance in circuits]
        self.search = Groups(self.measures, kept=circuits[-1][0])
        if self.search.distance > self.budget:  # rounding, or nothing may go
            circuits = circuits[:1]
            self.search = Groups(self.measures)
        for (larger, distance), (smaller, _) in pairwise(circuits):
            self._leave(larger & ~smaller)
            self._note_distance(larger, distance)
        self._note_distance(self.kept, self.search.distance)
        self._note_before()
        self.note()

    def start_inside(self) -> None:
        """Go on from the circuit that the search is inside of.

        Raises:
            AcdcError: it is farther from the full model than the budget.
        """
        self.search = Groups(self.measures, kept=self._connected(self.inside))
        refuse_beyond(self.budget, self.search.distance)
        self._note_distance(self.kept, self.search.distance)
        self.phase, self.share = RANKING, LAST_SHARE
        self.note()

    def _connected(self, kept: BoolArray) -> BoolArray:
        """The edges of a circuit that matter in it."""
        return self.graph.prune(kept) if self.prunable else kept

    def _best(self, count: int) -> BoolArray:
        """So many edges, the best by their scores."""
        return selection.top(self.graph, np.where(self.inside, self.weakness, 0.0), count, prune=False)

    def _note_before(self) -> None:
        """Note distances of the front's circuits that are larger than the one the search goes on from."""
        order, n = self.order(), 2 * int(self.kept.sum())
        while 0 < n < self.graph.n_edges:
            circuit = selection.top_pruned(self.graph, order, n)
            self._note_distance(circuit, self.measures.distance(circuit))
            n *= 2

    @classmethod
    def resumed(
        cls, problem: Problem, measures: Measures, budget: float, inside: BoolArray | None = None
    ) -> Pruning | None:
        """The search that was noted last; None if none was."""
        shape, n_edges = problem.graph.valid.shape, problem.graph.n_edges
        saved = problem.resume.load(
            {name: (shape, np.float64) for name in ("values", "absolute", "rms", "rise")}
            | {name: (shape, np.float64) for name in ("without", "without_in_search")}
            | {name: (shape, np.bool_) for name in ("kept", "fresh", "circuit")}
            | {"gone": (shape, np.int64), "distances": ((n_edges + 1,), np.float64)}
            | {"numbers": ((3,), np.float64)},
            endless=("rise", "distances"),
        )
        if not saved:
            return None
        self = cls(problem, measures, budget, Estimates(saved["values"], saved["absolute"], saved["rms"]), inside)
        for name in ("rise", "fresh", "gone", "distances", "circuit", "without"):
            setattr(self, name, saved[name].copy())
        phase, self.share, runs = saved["numbers"].tolist()
        self.phase, self._runs = int(phase), int(runs)
        self.search = Groups(measures, kept=saved["kept"])
        self.search.without = saved["without_in_search"].copy()
        return self

    def note(self, *, anew: bool = False) -> None:
        """Note how far the search is, where its activations are those that a search that goes on from here has.

        They are made anew from time to time, whether or not anything is noted: a removal carries them on, with rounding
        of its own, and an interrupted search is to end as one that was not, to the bit.

        Args:
            anew: make them anew now, since much has been done since the last time.
        """
        if not self._anew and (anew or self._runs + self.search.runs >= RUNS_BETWEEN_NOTES):
            changes = self._changes()
            self.search, self._anew, self._runs = Groups(self.measures, kept=self.kept), True, 0
            self.search.without = np.where(self.kept, self.search.value + changes, 0.0)
        if self._anew:
            self.problem.resume.save(
                values=self.scores.values, absolute=self.weakness, rms=self.rms, rise=self.rise,
                kept=self.search.kept, fresh=self.fresh, gone=self.gone, distances=self.distances,
                circuit=self.circuit, without=self.without, without_in_search=self.search.without,
                numbers=np.array([self.phase, self.share, self._runs + self.search.runs]),
            )  # fmt: skip

    def _changes(self) -> FloatArray:
        """How the metric changes without each kept edge, when that was last tested."""
        return np.where(self.kept, self.search.without - self.search.value, 0.0)

    def say(self, text: str) -> None:
        kept = int(self.search.kept.sum())
        self.problem.progress(0, None, f"{text}: {kept:,} edges, distance {self.search.distance:.3g}")

    # ---- what was found ----------------------------------------------------------------------------------------

    @property
    def kept(self) -> BoolArray:
        return self.search.kept

    def removal(self) -> FloatArray:
        """How much worse the metric gets without each edge of the certified circuit alone; NaN elsewhere."""
        change = self.without
        better = self.measures.outcome.higher_is_better
        return np.where(self.circuit, 0.0 - change if better else change, np.nan)

    def order(self, kept: BoolArray | None = None) -> FloatArray:
        """Larger where an edge went later, largest where it is kept (and in `kept`, if given): the front as a ranking.

        Edges that went together are in the order of their scores.
        """
        last = int(self.gone.max()) + 1
        step = np.where(self.gone > 0, self.gone, last).astype(np.float64)
        step = np.where(self.kept | (self.gone > 0), step, 0.0)
        if kept is not None:
            step = np.where(kept, last + 1 + np.where(self.gone > 0, self.gone, last) / (last + 1), step)
        size = self.weakness / (self.weakness.max() or 1.0)
        return np.where(self.graph.valid, step + 1e-6 * size, 0.0)

    def front(self) -> FloatArray:
        """`[point, 2]`: edges and distance of the circuits on the way that none with fewer edges is as near as."""
        sizes = np.flatnonzero(np.isfinite(self.distances))
        below = np.minimum.accumulate(np.concatenate(([np.inf], self.distances[sizes][:-1])))
        better = self.distances[sizes] < below
        return np.column_stack([sizes[better], self.distances[sizes[better]]])[::-1].astype(np.float64)

    # ---- steps -------------------------------------------------------------------------------------------------

    def shares(self, floor: int) -> None:
        """Shares of all edges go at once while that is cheap, or until few enough are left.

        Cheap is what costs no more of the budget that is left than the edges' share of all; of half of them, far less,
        since the model is of small changes.
        """
        model: Quadratic | None = None
        while self.phase == SHARES:
            n = int(self.kept.sum())
            if self.share < SMALLEST_SHARE or n <= floor:
                self.phase, self.share = RANKING, LAST_SHARE
                self.note()
                return
            self.say("shares of all edges")
            model = model or self._model()
            group = np.sort(model.goes(min(int(self.share * n), n - floor)))
            distance = self.search.distance_without(group) if len(group) > 1 else np.inf
            part = (self.budget - self.search.distance) * len(group) / n
            if distance - self.search.distance <= (LITTLE * part if self.share > LARGEST_SHARE else part):
                self._take(group)
                model = None
                self.note()
            else:
                self.share = min(self.share / 2, LARGEST_SHARE)

    def to_budget(self) -> None:
        """Smaller shares go until the budget is spent, or the search goes on from the ranking where that is smaller.

        Whole components that went first are gone for good, and where all matter a little that is dear. So the ranking
        is asked after the smaller shares, and before them if it leaves them little to do (`RANKED_SHARE`).
        """
        if self.phase == RANKING:
            self.phase = SHRINK
            self._go_on_from_ranking(int(RANKED_SHARE * self.kept.sum()))
            self.note()
        while self.phase == SHRINK:
            self.shrink(self.budget)
            if not self._go_on_from_ranking(int(self.kept.sum()) - 1):
                self.phase = CERTIFY
            self.note()

    def _go_on_from_ranking(self, most: int) -> bool:
        """Prune the fewest of the best edges by their scores that are within the budget, if at most so many are."""

        def ranked(count: int) -> BoolArray:
            return self._connected(self._best(count))

        def within(count: int) -> bool:
            return self.measures.distance(ranked(count)) <= self.budget

        if most < 1 or not within(most):
            return False
        kept = ranked(1 + bisect.bisect_left(range(1, most), True, key=within))
        self._leave(self.kept & ~kept)
        self.gone[kept] = 0
        self.search, self._anew, self._runs = Groups(self.measures, kept=kept), True, 0
        self.fresh[:], self.share = False, LAST_SHARE
        self._note_distance(kept, self.search.distance)
        return True

    def shrink(self, limit: float, *, floor: int = 0) -> None:
        """Shares of all edges go by the quadratic model while the distance stays in the limit."""
        model: Quadratic | None = None
        while (n := int(self.kept.sum())) > floor:
            self.say("shares within the budget")
            if n <= ONE_BY_ONE and limit == np.inf:
                edges = np.flatnonzero(self.kept)
                self._measure(edges)
                self._take(edges[[np.argmin(self.rise.ravel()[edges])]])
                self.note()
                continue
            if model is None:
                model = self._model()
                self.rise.flat[model.edges] = model.alone
            group = np.sort(model.goes(min(max(1, int(self.share * n)), n - floor)))
            if self.search.distance_without(group) <= limit:
                self._take(group)
                model = None
                self.note()
            elif self.share > SMALLEST_SHARE and len(group) > 1:
                self.share /= 2
            else:
                return

    # ---- certifying --------------------------------------------------------------------------------------------

    def certify(self, *, swaps: int) -> None:
        """Until no edge can go within the budget, nor any of `_parts`; then one edge in and two out, where that fits.

        Args:
            swaps: of circuits of at most so many edges.
        """
        while self.phase == CERTIFY:
            self._certify()
            if self.kept.sum() > swaps or not self._swap():
                self.phase, self.share, self.circuit = CERTIFIED, LAST_SHARE, self.kept.copy()
                self.without = self._changes()
            self.note(anew=True)

    def _certify(self) -> None:
        """Test every edge in the circuit as it is, those that were cheapest first; let go what fits in the budget."""
        while True:
            edges = np.flatnonzero(self.kept & ~self.fresh)
            if len(edges):
                ahead = max(FIRST_CERTIFIED, int(self.fresh.sum()))
                self._measure(edges[np.argsort(self.rise.ravel()[edges], kind="stable")[:ahead]])
                self.say("certifying edge by edge")
                group = self._fitting(np.flatnonzero(self.kept & self.fresh))
                if len(group):
                    self._take(group)
                self.note()
                continue
            groups = self._parts()
            if not groups:
                return
            rises = self._rises(groups)
            fitting = np.flatnonzero(self.search.distance + rises <= self.budget)
            if not len(fitting):
                return
            self._take(groups[max(fitting, key=lambda i: (len(self._lost(groups[i])), -rises[i]))])
            self.note()

    def _fitting(self, tested: IntArray) -> Group:
        """The cheapest of the tested edges that fit in the budget, several if together they cost little more."""
        rises = self.rise.ravel()[tested]
        order = np.argsort(rises, kind="stable")
        tested, sums = tested[order], np.cumsum(rises[order])
        most = max(1, int(AT_ONCE * self.kept.sum()))
        count = int((self.search.distance + sums[:most] <= self.budget).sum())
        while count > 1:
            group, alone = np.sort(tested[:count]), float(sums[count - 1])
            distance = self.search.distance_without(group)
            little = JOINT * alone if alone > 0 else alone / JOINT
            if distance <= self.budget and distance - self.search.distance <= little:
                return group
            count //= 2
        return tested[:count]

    def _parts(self) -> list[Group]:
        """What may go at once though no edge of it can.

        The outputs of a component, the cheapest inputs of a destination, which may cancel, and all that dangles.
        """
        S = self.graph.n_sources
        groups = [np.flatnonzero(self.kept & ~self.graph.prune(self.kept))]
        groups += [np.flatnonzero(self.kept[:, s]) * S + s for s in np.flatnonzero(self.kept.any(axis=0))]
        for d in np.flatnonzero(self.kept.any(axis=1)):
            sources = np.flatnonzero(self.kept[d])
            sources = sources[np.argsort(self.rise[d, sources], kind="stable")]
            groups += [np.sort(d * S + sources[:n]) for n in range(2, len(sources) + 1)]
        return [group for group in groups if len(group) > 1]

    def _swap(self) -> bool:
        """One edge in and two out, where that fits: whether the circuit became smaller."""
        before, distance = self.kept.copy(), self.search.distance
        additions = self._additions(before)
        if not additions:
            return False
        self.say("one edge in, two out")
        distances = self.measures.distances(additions)
        saved = self.search, self.rise.copy(), self.fresh, self.gone.copy(), self.distances.copy()
        anew = self._anew
        for i in np.argsort(distances, kind="stable")[:TRIED]:
            if distances[i] >= distance:
                break
            self.search, self._anew = Groups(self.measures, kept=additions[i]), True
            self.gone[additions[i]] = 0
            self.fresh = np.zeros_like(before)
            self._remove_while_it_fits()
            if self.kept.sum() < before.sum():
                return True
            self.search, self.rise, self.fresh, self.gone, self.distances = (
                saved[0], saved[1].copy(), saved[2], saved[3].copy(), saved[4].copy(),
            )  # fmt: skip
            self._anew = anew
        return False

    def _remove_while_it_fits(self) -> None:
        while self.kept.any():
            edges = np.flatnonzero(self.kept)
            cheapest = edges[np.argsort(self.rise.ravel()[edges], kind="stable")[:REMOVALS]]
            self._measure(cheapest)
            rises = self.rise.ravel()[cheapest]
            if self.search.distance + rises.min() > self.budget:
                return
            self._take(cheapest[[np.argmin(rises)]])

    def _additions(self, kept: BoolArray) -> list[BoolArray]:
        """The circuit with one more edge, for those that gradients say lower the distance most."""
        outside = ~kept & self.inside
        found: dict[int, BoolArray] = {}
        for alpha in ALPHAS:
            shares = np.where(kept, 1.0, np.where(outside, alpha, 0.0))
            gradient = weight_gradient(self.measures, shares, Measure.distance)
            change = np.where(outside, gradient, np.inf).ravel()
            for edge in np.argsort(change, kind="stable")[:ADDITIONS]:
                more = kept.copy()
                more.flat[edge] = True
                if change[edge] < 0 and (not self.prunable or self.graph.prune(more).flat[edge]):
                    found[int(edge)] = more
        return list(found.values())

    # ---- testing and removing ----------------------------------------------------------------------------------

    def _model(self) -> Quadratic:
        """The distance around the circuit as it is."""
        self._runs += RUNS_OF_A_MODEL
        return Quadratic.around(self.measures, self.kept, self.budget, self.weakness)

    def _rises(self, groups: list[Group]) -> FloatArray:
        return self.search.measure_without(groups)[0] - self.search.distance

    def _measure(self, edges: IntArray) -> None:
        """Test each of the edges alone, in the circuit as it is."""
        if len(edges):
            distances, values = self.search.measure_without([edges[i : i + 1] for i in range(len(edges))])
            self.rise.flat[edges] = distances - self.search.distance
            self.search.without.flat[edges] = values
            self.fresh.flat[edges] = True

    def _lost(self, group: Group) -> IntArray:
        """The edges of a group and what dangles without them."""
        left = self.kept.copy()
        left.flat[group] = False
        return np.flatnonzero(self.kept & ~self.graph.prune(left)) if self.prunable else group

    def _take(self, group: Group) -> None:
        """Remove a group, and what dangles then."""
        lost = self._lost(group)
        self._anew = False
        self.search.remove(group)
        if len(lost) > len(group):
            self.search.drop(lost)
        removed = np.zeros_like(self.kept)
        removed.flat[lost] = True
        self._leave(removed)
        self.fresh[:] = False
        self._note_distance(self.kept, self.search.distance)

    def _leave(self, edges: BoolArray) -> None:
        """Note that these edges go now."""
        if edges.any():
            self.gone[edges] = self.gone.max() + 1

    def _note_distance(self, kept: BoolArray, distance: float) -> None:
        n = int(kept.sum())
        self.distances[n] = min(self.distances[n], distance)
