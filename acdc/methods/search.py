"""The edge-by-edge search that ACDC and guided pruning share, exact and fast.

Destinations are visited from the logits backwards. When the edges into a destination are tested, nothing upstream
has changed, so a removal changes that destination's input by a known vector, R[s] − A[s], and only the part of the
circuit that lies between it and the logits needs to be recomputed (`propagate`). A destination whose component has
no kept path to the logits needs no run at all.

The tests follow one another, yet run in batches: the search guesses the next decisions, and row k of a batch is the
circuit without candidate k and without the candidates before it that are guessed to go. The rows are walked in order.
As long as the guesses were right, the next row is the true next test; at the first wrong one the rest is not used,
but what each of its edges added there makes the next guesses good. A batch may span all destinations of a stage, which
cannot read each other. The decisions are those of the sequential search, whatever was guessed.

Prompts may come in batches, each with activations of its own. Every test is run on all of them before it is decided,
and what was removed is carried into each batch's activations when the next tests come to it. Where processes share the
batches, each runs the same rows on its own, and the numbers of all prompts decide in every one of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from acdc.engine.attention_stage import take
from acdc.engine.demand import AT_READ, EVERYWHERE, NOWHERE, couple, port_demand, source_demand
from acdc.engine.measure import Measure, Measures, refuse_non_finite
from acdc.engine.patching import Patching
from acdc.engine.propagate import Plan, propagate
from acdc.engine.shelf import Shelf
from acdc.engine.state import Journal, State
from acdc.errors import AcdcError
from acdc.graph import BoolArray, FloatArray, IntArray
from acdc.model.forward import Context

Accept = Callable[[float, float], bool]
"""`(distance without the edge, distance with it) -> whether the edge may go`."""

LEAST_BATCH = 4
"""Rows below which a batch is not worth its overhead."""
ROWS_A_VISIT = 64
"""Most rows that are run on one batch of prompts before the next, where there are several."""


@dataclasses.dataclass(frozen=True)
class _Candidates:
    """Kept edges into the destinations of one stage, in the order in which they are tested.

    Attributes:
        destination, source: `[edge]`.
        level: `[edge]`: where the destination's input is needed.
        need: `[n_ports]`: where each port's is.
    """

    destination: IntArray
    source: IntArray
    level: IntArray
    need: IntArray


@dataclasses.dataclass
class _Rows:
    """Tests that are run together: row k is the circuit without some of the candidates.

    Attributes:
        batch: `[candidate]` indices into `edges`.
        removed: `[row, candidate]`.
        stage: of the candidates' destinations.
    """

    edges: _Candidates
    batch: IntArray
    removed: BoolArray
    stage: int
    plan: Plan


@dataclasses.dataclass
class Part:
    """A batch of prompts as the search keeps it: the activations of its circuit, and R[s] − A[s] of the sources.

    Attributes:
        differences: `[n, B, W, D]` of the sources with kept edges when the sweep began.
    """

    context: Context
    measure: Measure
    state: State
    differences: Tensor | None = None


class Search:
    """A circuit that shrinks: its kept edges, its distance from the full model, and its activations.

    Args:
        prompts: the batches of prompts with the metric bound to each, or a single one, and then `measure`.
        kept: `[n_destinations, n_sources]` edges to start from; None: all.

    Attributes:
        kept: edges that are left.
        distance: mean over the prompts of the metric's distance from the full model; value: of the metric.
        without: `[n_destinations, n_sources]` value without each edge, when it was last tested and stayed.
        tests: edges tested by running them; runs: batches run.
    """

    def __init__(
        self, prompts: Measures | Patching, measure: Measure | None = None, kept: BoolArray | None = None
    ) -> None:
        if isinstance(prompts, Patching):
            assert measure is not None
            prompts = Measures.of(prompts, measure)
        self.measures, batches = prompts, prompts.batches
        self._parts = Shelf[Part](on_disk=batches.offload and len(batches) > 1)
        self._batches = batches
        self._pending: _Rows | None = None  # the removals that the parts have still to be told of
        self._rows: dict[bool, int] = {}  # by whether they change every position: rows to run at once on a part
        values, distances, dense = list[Tensor](), list[Tensor](), True
        with torch.no_grad():
            for patching, bound in prompts:
                if not values:
                    self._model, self.graph = patching.model, patching.graph
                    self.kept = self.graph.valid.copy() if kept is None else kept & self.graph.valid
                    self._device, self._coupled = self._model.device, patching.coupled
                    self._weights = self._port_weights()
                part, logits = self._start(patching, bound)
                for into, found in zip((values, distances), bound.both(logits), strict=True):
                    into.append(found)
                self._parts.add(part)
                dense = dense and patching.context.dense
                self._note_rows(patching)
            both = batches.together([torch.stack(pair) for pair in zip(values, distances, strict=True)])
            self.value, self.distance = (float(found.mean()) for found in both)
        # What rows are run together is the same in all processes.
        ranks = batches.ranks
        self._alone = bool(ranks.least(len(self._parts) == 1))
        self._dense = dense = bool(ranks.least(dense))
        self._rows = {everywhere: int(ranks.least(rows)) for everywhere, rows in self._rows.items()}
        if not dense:
            for part in self._parts:  # a place that some prompts need apart is told apart in all
                part.context = dataclasses.replace(part.context, dense=False)
        self.tests = self.runs = 0
        self.without = np.zeros(self.kept.shape)
        self._values: Tensor  # [row, prompt] of the metric in the last batch
        self._metric: list[float]  # [row], their means
        self._ports = [np.flatnonzero(self.graph.port_destination == d) for d in range(self.graph.n_destinations)]
        self._ahead = 4  # candidates to run next
        self._row: IntArray  # [n_sources] of each source in the parts' differences

    def _port_weights(self) -> Tensor:
        ports = np.ascontiguousarray(self.graph.to_ports(self.kept))
        return torch.as_tensor(ports, device=self._device).to(self._model.dtype)[None]

    def _note_rows(self, patching: Patching) -> None:
        """How many rows fill the machine on the batches so far."""
        B, P = patching.context.read.shape
        W = patching.prompts.clean.shape[1] - patching.start
        for everywhere, tokens in ((False, B * P), (True, B * W)):
            rows = max(1, self.measures.batches.tokens // tokens)
            self._rows[everywhere] = min(rows, self._rows.get(everywhere, rows))

    def _start(self, patching: Patching, measure: Measure) -> tuple[Part, Tensor]:
        """What is kept of a batch of prompts, and the logits of the kept circuit on it."""
        state, logits = self._state(patching, measure)
        return Part(patching.context, measure, state), logits

    def _state(self, patching: Patching, measure: Measure) -> tuple[State, Tensor]:
        graph = self.graph
        if (self.kept == graph.valid).all():
            state = patching.clean_state(writable=True)
            return state, patching.clean_logits(measure.rows)[None]
        state = patching.reference_state(writable=True)
        kept = np.asarray(graph.to_ports(self.kept))
        demand = source_demand(graph, kept, patching.coupled, dense=patching.context.dense)
        journal = Journal(patching.context)
        logits = propagate(
            patching.model, graph, patching.context, state, Plan(self._weights, kept, demand),
            inputs=patching.input_differences(1), rows=measure.rows, journal=journal,
        )  # fmt: skip
        journal.commit(0)
        state.settled = True
        return state, logits

    @torch.no_grad()
    def sweep(
        self,
        accept: Accept,
        *,
        expected: bool = True,
        after: int | None = None,
        save: Callable[[int], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Test every kept edge once, and remove those that `accept` lets go.

        Destinations come from the logits backwards, and the edges into each from the latest source to the earliest.

        Args:
            accept: the rule.
            expected: whether most edges are expected to go; matters for speed alone.
            after: go on after this stage, which an earlier sweep has noted.
            save: called with each stage that is done; `kept` is then what a new search starts from to go on.
            progress: called with (edges done, edges in all).

        Returns:
            Number of edges removed.
        """
        graph = self.graph
        total, done = int(self.kept.sum()), 0
        self._take_differences()
        demand = np.zeros(graph.n_sources, dtype=np.int64)
        plan = Plan(self._weights, np.array(graph.to_ports(self.kept)), demand)
        for stage, destinations in groupby(reversed(range(graph.n_destinations)), self._stage):
            couple(demand, stage, self._coupled)
            need = port_demand(graph, demand)
            if self._dense:
                need[need > NOWHERE] = EVERYWHERE
            edges = self._candidates(list(destinations), need)

            def report(tested: int, done: int = done) -> None:
                if progress is not None:
                    progress(done + tested, total)

            if after is None or stage < after:
                goes = np.full(len(edges.source), expected)
                self._test(edges, goes, stage, plan, accept, report)
                if save is not None:
                    save(stage)
            ports = np.flatnonzero(graph.port_stage == stage)
            np.maximum(demand, (plan.kept[ports] * need[ports][:, None]).max(axis=0), out=demand)
            done += len(edges.source)
        return total - int(self.kept.sum())

    def removal(self) -> FloatArray:
        """`[n_destinations, n_sources]`: how much worse the metric gets without each kept edge alone; NaN elsewhere.

        Right if every kept edge was tested in the circuit as it is.
        """
        change = self.without - self.value
        return np.where(self.kept, 0.0 - change if self.measures.outcome.higher_is_better else change, np.nan)

    def _stage(self, destination: int) -> int:
        return int(self.graph.port_stage[self._ports[destination][0]])

    def _candidates(self, destinations: list[int], need: IntArray) -> _Candidates:
        """The kept edges into the destinations of one stage, in the order in which they are tested."""
        every: list[tuple[IntArray, IntArray, IntArray]] = []
        for destination in destinations:
            sources = np.flatnonzero(self.kept[destination])[::-1]
            level = need[self._ports[destination]].max()
            every.append((np.full_like(sources, destination), sources, np.full_like(sources, level)))
        columns = [np.concatenate(column) for column in zip(*every, strict=True)]
        return _Candidates(columns[0], columns[1], columns[2], need)

    def _test(
        self,
        edges: _Candidates,
        goes: BoolArray,
        stage: int,
        plan: Plan,
        accept: Accept,
        report: Callable[[int], None],
    ) -> None:
        """Test the candidates in order, and remove those that may go.

        `goes` `[edge]` holds guesses, which decisions replace.
        """
        i = 0
        while i < len(goes):
            batch = self._next_batch(edges, i)
            guess = goes[batch]
            before = self.distance
            upto = np.tri(len(batch), k=-1, dtype=bool) & guess  # [row, candidate]
            rows = _Rows(edges, batch, upto | np.eye(len(batch), dtype=bool), stage, plan)
            distances, commit = self._run(rows) if len(batch) else ([], None)
            first, tested, last, right = i, 0, None, True
            while right and i < len(goes):
                if edges.level[i] == NOWHERE:  # no kept path leads to the logits
                    goes[i] = accept(self.distance, self.distance)
                    self.without[edges.destination[i], edges.source[i]] = self.value
                    i += 1
                    continue
                if tested == len(batch) or batch[tested] != i:
                    break
                if not np.isfinite(distances[tested]):
                    refuse_non_finite(self._values, self.measures.outcome, "while edges were removed")
                    raise AcdcError("the metric's mean is NaN or infinite while edges were removed; try float32")
                goes[i] = accept(distances[tested], self.distance)
                if goes[i]:
                    self.distance, last = distances[tested], tested
                    self.value = self._metric[tested]
                else:
                    self.without[edges.destination[i], edges.source[i]] = self._metric[tested]
                right = bool(goes[i] == guess[tested])
                i, tested = i + 1, tested + 1
            self.tests += tested
            if last is not None:
                assert commit is not None
                commit(last)
            if goes[first:i].any():
                self._remove(edges, first + np.flatnonzero(goes[first:i]), plan)
            if right:
                self._ahead = 2 * max(1, len(batch))
            else:
                self._ahead = tested
                goes[batch[tested:]] = self._guess(before, distances, guess, tested, accept)
            report(i)

    def _guess(
        self, before: float, distances: list[float], guess: BoolArray, tested: int, accept: Accept
    ) -> BoolArray:
        """New guesses for the rows that a wrong one has spoilt, from what each of their edges added there."""
        prefix = [before]  # distance of what a row's edge was removed from
        for distance, gone in zip(distances, guess, strict=True):
            prefix.append(distance if gone else prefix[-1])
        distance, again = self.distance, []
        for k in range(tested, len(guess)):
            expected = distance + distances[k] - prefix[k]
            again.append(accept(expected, distance))
            if again[-1]:
                distance = expected
        return np.array(again, dtype=bool)

    def _next_batch(self, edges: _Candidates, i: int) -> IntArray:
        """The next candidates to run at once: enough to fill the machine, few enough to stay in its caches."""
        batch = i + np.flatnonzero(edges.level[i:] > NOWHERE)[: max(self._ahead, LEAST_BATCH)]
        everywhere = np.maximum.accumulate(edges.level[batch] == EVERYWHERE)
        fits = np.arange(len(batch)) < [self._largest_batch(bool(each)) for each in everywhere]
        return batch[fits]

    def _run(self, rows: _Rows) -> tuple[list[float], Callable[[int], None]]:
        """Distance of each row, and what makes one of them the circuit whose activations are kept."""
        K = len(rows.batch)
        found: list[tuple[Tensor, Tensor]] = []  # metric and distance of a part, [K or 1, B]
        alone, journal = self._alone, None
        at_once = self._rows[bool((rows.edges.level[rows.batch] == EVERYWHERE).any())]
        for part in self._visits():
            if alone:
                journal = Journal(part.context)
                found.append(part.measure.both(self._logits(part, rows, journal)))
                continue
            pieces: list[tuple[Tensor, ...]] = []
            for start in range(0, K, at_once):
                some = dataclasses.replace(rows, removed=rows.removed[start : start + at_once])
                both = part.measure.both(self._logits(part, some))
                pieces.append(tuple(x.expand(len(some.removed), -1) for x in both))
            found.append(tuple(torch.cat(x) for x in zip(*pieces, strict=True)))  # type: ignore[arg-type]
        self.runs += 1
        self._values, distance = self._of_all(found, K)
        self._metric = self._values.mean(-1).expand(K).tolist()

        def commit(k: int) -> None:
            if journal is not None:
                journal.commit(k)
            else:
                self._pending = dataclasses.replace(rows, removed=rows.removed[k : k + 1])

        return distance.mean(-1).expand(K).tolist(), commit

    def _of_all(self, found: list[tuple[Tensor, Tensor]], rows: int) -> tuple[Tensor, Tensor]:
        """Metric and distance `[row or 1, prompt]` of all prompts, from those of each part."""
        if self._batches.ranks.count == 1:
            values, distances = (torch.cat(x, dim=-1) if len(x) > 1 else x[0] for x in zip(*found, strict=True))
            return values, distances
        values, distances = self._batches.together([torch.stack(both).expand(2, rows, -1) for both in found])
        return values, distances

    def _visits(self) -> Iterator[Part]:
        """The parts in turn, each told of what was removed since the last visit."""
        pending, self._pending = self._pending, None
        for part in self._parts:
            if pending is not None:
                journal = Journal(part.context)
                self._logits(part, pending, journal)
                journal.commit(0)
            yield part

    def _logits(self, part: Part, rows: _Rows, journal: Journal | None = None) -> Tensor:
        """Logits `[K, B, P, R]` of the rows on a part."""
        edges, batch, removed, context = rows.edges, rows.batch, rows.removed, part.context
        assert part.differences is not None
        seeds: dict[int, Tensor] = {}
        for destination in dict.fromkeys(edges.destination[batch].tolist()):
            own = np.flatnonzero(edges.destination[batch] == destination)
            own = own[np.argsort(edges.source[batch[own]])]
            change = take(part.differences, self._row[edges.source[batch[own]]])
            ports = [port for port in self._ports[destination].tolist() if edges.need[port] > NOWHERE]
            seeds |= self._seeds(ports, change, removed[:, own], edges.need, context)
        return propagate(
            self._model, self.graph, context, part.state, rows.plan,
            seeds=seeds, from_stage=rows.stage, rows=part.measure.rows, journal=journal,
        )  # fmt: skip

    def _seeds(
        self, ports: list[int], change: Tensor, removed: BoolArray, need: IntArray, context: Context
    ) -> dict[int, Tensor]:
        """How the inputs of ports that lose the same change in each row, where they are needed.

        Args:
            change: R[s] − A[s] of some sources, `[source, B, W, D]`; removed: `[row, source]`.
            need: `[n_ports]`.

        Returns:
            `[row, B, W or P, D]` by port.
        """
        everywhere = any(need[port] == EVERYWHERE for port in ports)
        if not everywhere:
            change = context.at_read(change)
        weights = torch.as_tensor(removed, device=self._device).to(change.dtype)
        change = (weights @ change.flatten(1)).view(len(removed), *change.shape[1:])
        near = context.at_read(change) if everywhere and (need[ports] == AT_READ).any() else change
        return {port: near if need[port] == AT_READ else change for port in ports}

    def _remove(self, edges: _Candidates, gone: IntArray, plan: Plan) -> None:
        self.kept[edges.destination[gone], edges.source[gone]] = False
        ports = np.flatnonzero(np.isin(self.graph.port_destination, edges.destination[gone]))
        plan.kept[ports] = self.kept[self.graph.port_destination[ports]]
        here = torch.as_tensor(ports, device=self._device)
        self._weights[0, here] = torch.as_tensor(plan.kept[ports], device=self._device).to(self._weights.dtype)

    def _largest_batch(self, everywhere: bool) -> int:
        """Most rows of a batch, given whether it changes inputs at every position."""
        rows = self._rows[everywhere]
        return rows if self._alone else max(rows, ROWS_A_VISIT)

    def _take_differences(self) -> None:
        """R[s] − A[s] of the sources with kept edges, for every part."""
        used: BoolArray = np.asarray(self.kept.any(axis=0))
        for part, patching in zip(self._visits(), self.measures.batches, strict=True):
            part.differences = patching.source_differences(part.state.outputs, used)
        self._row = np.cumsum(used) - 1
