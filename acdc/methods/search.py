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
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from acdc.engine.measure import Measure, refuse_non_finite
from acdc.engine.memory import tokens_at_once
from acdc.engine.patching import Patching
from acdc.engine.propagate import (
    AT_READ,
    EVERYWHERE,
    NOWHERE,
    Plan,
    couple,
    port_demand,
    propagate,
    source_demand,
    take,
)
from acdc.engine.state import Journal, State, state_of
from acdc.errors import AcdcError
from acdc.graph import BoolArray, FloatArray, IntArray
from acdc.model import forward

Accept = Callable[[float, float], bool]
"""`(distance without the edge, distance with it) -> whether the edge may go`."""

LEAST_BATCH = 4
"""Rows below which a batch is not worth its overhead."""


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


class Search:
    """A circuit that shrinks: its kept edges, its distance from the full model, and its activations.

    Args:
        kept: `[n_destinations, n_sources]` edges to start from; None: all.

    Attributes:
        kept: edges that are left.
        distance: mean over the prompts of the metric's distance from the full model; value: of the metric.
        without: `[n_destinations, n_sources]` value without each edge, when it was last tested and stayed.
        dearest: largest rise of the distance that the removal of an edge has caused.
        tests: edges tested by running them; runs: batches run.
    """

    def __init__(self, patching: Patching, measure: Measure, kept: BoolArray | None = None) -> None:
        self.patching, self.measure, self.graph = patching, measure, patching.graph
        self.kept = self.graph.valid.copy() if kept is None else kept & self.graph.valid
        self.tests = self.runs = 0
        self.without = np.zeros(self.kept.shape)
        self._values: Tensor  # [row, prompt] of the metric in the last batch
        self._metric: list[float]  # [row], their means
        self.dearest = 0.0
        self._ports = [np.flatnonzero(self.graph.port_destination == d) for d in range(self.graph.n_destinations)]
        self._ahead = 4  # candidates to run next
        self._device = patching.model.device
        self._weights = self._port_weights()
        with torch.no_grad():
            self._state, logits = self._start()
            value, distance = measure.both(logits)
            self.value, self.distance = float(value.mean()), float(distance.mean())

    def _port_weights(self) -> Tensor:
        ports = np.ascontiguousarray(self.graph.to_ports(self.kept))
        return torch.as_tensor(ports, device=self._device).to(self.patching.model.dtype)[None]

    def _start(self) -> tuple[State, Tensor]:
        """State and logits of the kept circuit."""
        patching, graph = self.patching, self.graph
        if (self.kept == graph.valid).all():
            state = state_of(patching.model, patching.clean, patching.start, None, writable=True)
            return state, patching.clean_logits(self.measure.rows)[None]
        state = patching.reference_state(writable=True)
        kept = np.asarray(graph.to_ports(self.kept))
        demand = source_demand(graph, kept, patching.coupled, dense=patching.context.dense)
        journal = Journal(patching.context)
        logits = propagate(
            patching.model, graph, patching.context, state, Plan(self._weights, kept, demand),
            inputs=patching.input_differences(1), rows=self.measure.rows, journal=journal,
        )  # fmt: skip
        journal.commit(0)
        state.settled = True
        return state, logits

    @torch.no_grad()
    def sweep(
        self,
        accept: Accept,
        *,
        rank: FloatArray | None = None,
        expected: bool = True,
        settled: BoolArray | None = None,
        after: int | None = None,
        note: Callable[[int], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Test every kept edge once, destinations from the logits backwards; remove those that `accept` lets go.

        Args:
            accept: the rule.
            rank: `[n_destinations, n_sources]`; the edges into a destination are tested from the lowest rank up.
                None: from the latest source to the earliest.
            expected: whether most edges are expected to go; matters for speed alone.
            settled: `[n_destinations, n_sources]` edges that were tested in the circuit as it is, and are not tested
                again. Kept up to date: a tested edge that stays is added, and a removal clears all.
            after: go on after this stage, which an earlier sweep has noted.
            note: called with each stage that is done; `kept` is then what a new search starts from to go on.
            progress: called with (edges done, edges in all).

        Returns:
            Number of edges removed.
        """
        graph, patching = self.graph, self.patching
        total, done = int(self.kept.sum()), 0
        if settled is None:
            settled = np.zeros_like(self.kept)
        differences, row = self._source_differences()
        demand = np.zeros(graph.n_sources, dtype=np.int64)
        plan = Plan(self._weights, np.array(graph.to_ports(self.kept)), demand)
        layers = {sublayer.stage: sublayer.layer for sublayer in graph.sublayers}
        for stage, destinations in groupby(reversed(range(graph.n_destinations)), self._stage):
            layer = layers[stage]
            couple(graph, demand, stage, patching.coupled)
            need = port_demand(graph, demand)
            if patching.context.dense:
                need[need > NOWHERE] = EVERYWHERE
            edges = self._candidates(list(destinations), need, rank)

            def report(tested: int, done: int = done) -> None:
                if progress is not None:
                    progress(done + tested, total)

            if after is None or stage < after:
                goes = np.full(len(edges.source), expected)
                self._test(edges, goes, layer, plan, differences, row, accept, settled, report)
                if note is not None:
                    note(stage)
            ports = np.flatnonzero(graph.port_stage == stage)
            np.maximum(demand, (plan.kept[ports] * need[ports][:, None]).max(axis=0), out=demand)
            done += len(edges.source)
        return total - int(self.kept.sum())

    def removal(self) -> FloatArray:
        """`[n_destinations, n_sources]`: how much worse the metric gets without each kept edge alone; NaN elsewhere.

        Right if every kept edge was tested in the circuit as it is.
        """
        change = self.without - self.value
        return np.where(self.kept, 0.0 - change if self.measure.outcome.higher_is_better else change, np.nan)

    def _stage(self, destination: int) -> int:
        return int(self.graph.port_stage[self._ports[destination][0]])

    def _candidates(self, destinations: list[int], need: IntArray, rank: FloatArray | None) -> _Candidates:
        """The kept edges into the destinations of one stage, in the order in which they are tested."""
        every: list[tuple[IntArray, IntArray, IntArray]] = []
        for destination in destinations:
            sources = np.flatnonzero(self.kept[destination])[::-1]
            if rank is not None:
                sources = sources[::-1][np.argsort(rank[destination, sources[::-1]], kind="stable")]
            level = need[self._ports[destination]].max()
            every.append((np.full_like(sources, destination), sources, np.full_like(sources, level)))
        columns = [np.concatenate(column) for column in zip(*every, strict=True)]
        return _Candidates(columns[0], columns[1], columns[2], need)

    def _test(
        self,
        edges: _Candidates,
        goes: BoolArray,
        layer: int,
        plan: Plan,
        differences: Tensor,
        row: IntArray,
        accept: Accept,
        settled: BoolArray,
        report: Callable[[int], None],
    ) -> None:
        """Test the candidates in order, and remove those that may go.

        `goes` `[edge]` holds guesses, which decisions replace; `settled` edges stay without a test.
        """
        i = 0
        while i < len(goes):
            batch = self._next_batch(edges, i, settled)
            guess = goes[batch]
            journal = Journal(self.patching.context)
            before = self.distance
            distances = self._run(edges, batch, guess, layer, plan, differences, row, journal) if len(batch) else []
            first, tested, last, right = i, 0, None, True
            stayed: list[tuple[int, int]] = []  # since the last removal
            while right and i < len(goes):
                if edges.level[i] == NOWHERE:  # no kept path leads to the logits
                    goes[i] = accept(self.distance, self.distance)
                    self.without[edges.destination[i], edges.source[i]] = self.value
                    i += 1
                    continue
                edge = (int(edges.destination[i]), int(edges.source[i]))
                if last is None and settled[edge]:
                    goes[i] = False
                    i += 1
                    continue
                if tested == len(batch) or batch[tested] != i:
                    break
                if not np.isfinite(distances[tested]):
                    refuse_non_finite(self._values, self.measure.outcome, "while edges were removed")
                    raise AcdcError("the metric's mean is NaN or infinite while edges were removed; try float32")
                goes[i] = accept(distances[tested], self.distance)
                if goes[i]:
                    self.dearest = max(self.dearest, distances[tested] - self.distance)
                    self.distance, last, stayed = distances[tested], tested, []
                    self.value = self._metric[tested]
                else:
                    self.without[edge] = self._metric[tested]
                    stayed.append(edge)
                right = bool(goes[i] == guess[tested])
                i, tested = i + 1, tested + 1
            self.tests += tested
            if last is not None:
                journal.commit(last)
                settled[:] = False
            for edge in stayed:
                settled[edge] = True
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

    def _next_batch(self, edges: _Candidates, i: int, settled: BoolArray) -> IntArray:
        """The next candidates to run at once: enough to fill the machine, few enough to stay in its caches."""
        runs = (edges.level[i:] > NOWHERE) & ~settled[edges.destination[i:], edges.source[i:]]
        batch = i + np.flatnonzero(runs)[: max(self._ahead, LEAST_BATCH)]
        everywhere = np.maximum.accumulate(edges.level[batch] == EVERYWHERE)
        fits = np.arange(len(batch)) < [self._largest_batch(bool(each)) for each in everywhere]
        return batch[fits]

    def _run(
        self,
        edges: _Candidates,
        batch: IntArray,
        guess: BoolArray,
        layer: int,
        plan: Plan,
        differences: Tensor,
        row: IntArray,
        journal: Journal,
    ) -> list[float]:
        """Distance without each candidate and without those before it that are guessed to go."""
        context = self.patching.context
        seeds = {}
        before = np.tri(len(batch), k=-1, dtype=bool) & guess  # [row, candidate]
        removed = before | np.eye(len(batch), dtype=bool)
        for destination in dict.fromkeys(edges.destination[batch].tolist()):
            own = np.flatnonzero(edges.destination[batch] == destination)
            own = own[np.argsort(edges.source[batch[own]])]
            change = take(differences, row[edges.source[batch[own]]])
            ports = [int(port) for port in self._ports[destination] if edges.need[port] > NOWHERE]
            everywhere = any(edges.need[port] == EVERYWHERE for port in ports)
            if not everywhere:
                change = context.at_read(change)
            weights = torch.as_tensor(removed[:, own], device=self._device).to(change.dtype)
            change = (weights @ change.flatten(1)).view(len(batch), *change.shape[1:])  # [K, B, W or P, D]
            for port in ports:
                seeds[port] = context.at_read(change) if everywhere and edges.need[port] == AT_READ else change
        logits = propagate(
            self.patching.model, self.graph, context, self._state, plan,
            seeds=seeds, from_layer=layer, rows=self.measure.rows, journal=journal,
        )  # fmt: skip
        self.runs += 1
        self._values, distance = self.measure.both(logits)
        self._metric = self._values.mean(-1).expand(len(batch)).tolist()
        return distance.mean(-1).expand(len(batch)).tolist()

    def _remove(self, edges: _Candidates, gone: IntArray, plan: Plan) -> None:
        self.kept[edges.destination[gone], edges.source[gone]] = False
        ports = np.flatnonzero(np.isin(self.graph.port_destination, edges.destination[gone]))
        plan.kept[ports] = self.kept[self.graph.port_destination[ports]]
        here = torch.as_tensor(ports, device=self._device)
        self._weights[0, here] = torch.as_tensor(plan.kept[ports], device=self._device).to(self._weights.dtype)

    def _largest_batch(self, everywhere: bool) -> int:
        """Most rows of a batch, given whether it changes inputs at every position."""
        B, W = self.patching.prompts.clean.shape[0], self.patching.prompts.clean.shape[1] - self.patching.start
        tokens = B * (W if everywhere else self.patching.context.read.shape[1])
        return max(1, tokens_at_once(self._device) // tokens)

    def _source_differences(self) -> tuple[Tensor, np.ndarray]:
        """R[s] − A[s] of the sources with kept edges, `[n, B, W, D]`, and each source's row in it."""
        graph, patching, state = self.graph, self.patching, self._state
        used: BoolArray = np.asarray(self.kept.any(axis=0))
        row = np.cumsum(used) - 1
        start, references = patching.start, patching.references
        own = patching.clean_inputs
        blocks = [(references.inputs[i] - own[i])[:, :, start:] for i in range(graph.n_inputs) if used[i]]
        for index, layer in enumerate(patching.model.decomposition.layers):
            heads = np.flatnonzero(used[graph.layer_heads(index).outputs])
            if len(heads):
                z = references.z[index][..., start:, :] - state.reference_z[index]
                blocks.append(forward.write(layer.attention, z[heads], heads=heads.tolist())[:, 0])
            if graph.mlp and used[graph.layer_mlp(index).outputs].any():
                blocks.append(references.mlp[index][..., start:, :] - state.reference_mlp[index])
        empty = own[0].new_zeros(0, *own[0][0, :, start:].shape)
        return torch.cat(blocks) if blocks else empty, row
