"""Groups of edges, tested exactly: how far is the circuit from the model without this group, and without that one?

A group may be any set of edges: one, those into a port, those out of a component, half of the circuit. As in the
edge-by-edge search the circuit's activations are known, removing an edge changes its destination's input by the known
R[s] − A[s], and only what lies downstream is run (`propagate`). Groups are tested independently of each other, so
those that start in the same stage, or in neighbouring ones where they are few, run as one batch. Where a group also
removes edges out of what it changes, its row has weights of its own.

Prompts may come in batches; each is told of a removal when the next tests come to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from acdc.engine.attention_stage import take
from acdc.engine.demand import EVERYWHERE, NOWHERE, port_demand, source_demand
from acdc.engine.measure import Measure, Measures, refuse_non_finite
from acdc.engine.patching import Patching
from acdc.engine.propagate import Plan, propagate
from acdc.engine.state import Journal
from acdc.errors import AcdcError
from acdc.graph import BoolArray, FloatArray, IntArray
from acdc.methods.search import ROWS_A_VISIT, Part, Search

FEW_TOKENS = 4096
"""Tests of so many tokens cost as much as the calls of one pass, on a CPU and on a GPU."""

Group = IntArray
"""Flat indices of edges in `[n_destinations, n_sources]`."""


@dataclasses.dataclass
class _Part(Part):
    """With what removed edges carry.

    Attributes:
        inputs: R[s] − A[s] of the inputs, which no removal changes, `[B, W, D]` each.
        outputs: R of each stage's components, compact, on the window.
    """

    inputs: list[Tensor] = dataclasses.field(kw_only=True)
    outputs: list[Tensor] = dataclasses.field(kw_only=True)


@dataclasses.dataclass
class _Tests:
    """Groups that are tested together: row k is the circuit without some of the edges.

    Attributes:
        edges: flat indices; removed: `[row, edge]`.
        need: `[n_ports]`, where each port's input is needed.
        stage: of the first destinations.
    """

    edges: IntArray
    removed: BoolArray
    plan: Plan
    need: IntArray
    stage: int


class Groups(Search):
    """A circuit that shrinks by groups of edges; arguments and attributes as of `Search`."""

    def __init__(
        self, prompts: Measures | Patching, measure: Measure | None = None, kept: BoolArray | None = None
    ) -> None:
        super().__init__(prompts, measure, kept)
        self._stages: IntArray = self.graph.port_stage[[ports[0] for ports in self._ports]]  # of destinations
        self._last: tuple[list[Group], _Tests, Journal | None, FloatArray, FloatArray] | None
        self._untold: _Tests | None = None  # the removal that the batches have still to be told of
        self._renew()

    def _start(self, patching: Patching, measure: Measure) -> tuple[Part, Tensor]:
        start, references = patching.start, patching.references
        pairs = zip(references.inputs, patching.clean_inputs, strict=True)
        inputs = [(reference - own)[0, :, start:] for reference, own in pairs]
        outputs = [x[..., start:, :] for x in references.outputs]
        state, logits = self._state(patching, measure)
        return _Part(patching.context, measure, state, inputs=inputs, outputs=outputs), logits

    def _renew(self) -> None:
        """What depends on the circuit as it is."""
        graph = self.graph
        self._weights = self._port_weights()
        kept = np.array(graph.to_ports(self.kept))
        demand = source_demand(graph, kept, self._coupled, dense=self._dense)
        self._need = port_demand(graph, demand)
        if self._dense:
            self._need[self._need > NOWHERE] = EVERYWHERE
        self._plan = Plan(self._weights, kept, demand)
        self._differences: dict[int, Tensor] = {}  # of the only batch
        self._last = None

    # ---- testing -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def measure_without(self, groups: Sequence[Group]) -> tuple[FloatArray, FloatArray]:
        """Distance from the full model and metric, means over the prompts, without each group alone: `[group]` both."""
        distance, value = np.full(len(groups), self.distance), np.full(len(groups), self.value)
        first = np.array([self._first_stage(group) for group in groups], dtype=np.int64)
        for some in self._together(first):
            distance[some], value[some] = self._run_groups([groups[i] for i in some], int(first[some].min()))
        return distance, value

    @torch.no_grad()
    def values_without(self, groups: Sequence[Group]) -> FloatArray:
        """Metric without each group alone, prompt by prompt: `[group, prompt]`; an empty group: of the circuit."""
        first = np.array([self._first_stage(group) for group in groups], dtype=np.int64)
        self._run_groups([np.zeros(0, dtype=np.int64)], int(self._stages.max()))
        found = np.repeat(self._values.double().cpu().numpy(), len(groups), axis=0)
        for some in self._together(first):
            self._run_groups([groups[i] for i in some], int(first[some].min()))
            found[some] = self._values.double().cpu().numpy()
        return found

    def _together(self, first: IntArray) -> Iterator[IntArray]:
        """Tests to run as one batch, by the stage that each changes first; -1: nothing that matters reads its edges.

        Those of one stage; so few that a pass costs more than what it computes wait for those of an earlier one.
        """
        waiting = np.zeros(0, dtype=np.int64)
        for stage in np.unique(first[first >= 0])[::-1]:
            rows = self._rows_at_once(stage)
            size = rows if self._alone else ROWS_A_VISIT
            if len(waiting) > rows * FEW_TOKENS / self.measures.batches.tokens:
                yield waiting
                waiting = waiting[:0]
            waiting = np.concatenate([waiting, np.flatnonzero(first == stage)])
            while len(waiting) > size:
                yield waiting[:size]
                waiting = waiting[size:]
        if len(waiting):
            yield waiting

    def distance_without(self, group: Group) -> float:
        """The distance without one group, which may be removed then at no further cost."""
        return float(self.measure_without([group])[0][0])

    def group_without(self, circuit: BoolArray) -> Group:
        """The edges that go for a smaller circuit, without those that nothing reads in it: these need no run."""
        ports = np.asarray(self.graph.to_ports(circuit))
        need = port_demand(self.graph, source_demand(self.graph, ports, self._coupled, dense=self._dense))
        read = np.array([(need[ports] > NOWHERE).any() for ports in self._ports])
        return np.flatnonzero(self.kept & ~circuit & read[:, None])

    def _rows_at_once(self, stage: int) -> int:
        return self._rows[bool((self._need[self.graph.port_stage == stage] == EVERYWHERE).any())]

    def _first_stage(self, group: Group) -> int:
        """The first stage that a group changes; -1 if none."""
        destinations = np.unique(group // self.graph.n_sources)
        read = [d for d in destinations if (self._need[self._ports[d]] > NOWHERE).any()]
        return int(self._stages[read].min()) if read else -1

    def _run_groups(self, groups: list[Group], stage: int) -> tuple[FloatArray, FloatArray]:
        edges = np.unique(np.concatenate(groups))
        removed = np.stack([np.isin(edges, group) for group in groups])
        later = bool((self.graph.source_stage[edges % self.graph.n_sources] >= stage).any())
        plan = self._plan_without(edges, removed) if later else self._plan
        tests = _Tests(edges, removed, plan, self._need, stage)
        alone, journal, found = self._alone, None, list[tuple[Tensor, Tensor]]()
        size = len(groups) if alone else self._rows_at_once(stage)
        for part in self._told():
            journal = Journal(part.context) if alone else None
            pieces = []
            for start in range(0, len(groups), size):
                some = _rows(tests, slice(start, start + size))
                both = part.measure.both(self._run_tests(part, some, journal))
                pieces.append([x.expand(len(some.removed), -1) for x in both])
            values, distances = (torch.cat(x) for x in zip(*pieces, strict=True))
            found.append((values, distances))
        self.runs += 1
        self.tests += len(groups)
        values, distances = self._of_all(found, len(groups))
        self._values = values
        if not bool(torch.isfinite(distances).all()):
            refuse_non_finite(values, self.measures.outcome, "while edges were removed")
            raise AcdcError("the metric's mean is NaN or infinite while edges were removed; try float32")
        distance, value = (x.mean(-1).double().cpu().numpy() for x in (distances, values))
        self._last = (groups, tests, journal, distance, value)
        return distance, value

    def _plan_without(self, edges: IntArray, removed: BoolArray) -> Plan:
        """The plan with weights of its own for each row, in which the row's edges carry nothing."""
        kept = np.repeat(self.kept.reshape(1, -1), len(removed), axis=0)
        kept[:, edges] &= ~removed
        ports = np.asarray(self.graph.to_ports(kept.reshape(len(removed), *self.kept.shape)))
        weights = torch.as_tensor(ports, device=self._device).to(self._weights.dtype)
        return Plan(weights, self._plan.kept, self._plan.demand)

    def _told(self) -> Iterator[_Part]:
        """The batches in turn, each told of what was removed since the last visit."""
        untold, self._untold = self._untold, None
        for part in self._parts:
            assert isinstance(part, _Part)
            if untold is not None:
                journal = Journal(part.context)
                self._run_tests(part, untold, journal)
                journal.commit(0)
            yield part

    def _run_tests(self, part: _Part, tests: _Tests, journal: Journal | None) -> Tensor:
        """Logits `[K, B, P, R]` of the rows on a batch of prompts."""
        return propagate(
            self._model, self.graph, part.context, part.state, tests.plan,
            seeds=self._changes(part, tests), from_stage=tests.stage, rows=part.measure.rows, journal=journal,
        )  # fmt: skip

    def _changes(self, part: _Part, tests: _Tests) -> dict[int, Tensor]:
        """How the inputs of the ports into which edges are removed change in each row."""
        context, removed, need = part.context, tests.removed, tests.need
        destination, source = np.divmod(tests.edges, self.graph.n_sources)
        known = self._differences if self._alone else {}
        alike: dict[tuple[bytes, bytes, bool], tuple[IntArray, list[int]]] = {}  # ports that lose the same
        for d in np.unique(destination):
            ports = [port for port in self._ports[d].tolist() if need[port] > NOWHERE]
            if ports:
                own = np.flatnonzero(destination == d)
                everywhere = bool((need[ports] == EVERYWHERE).any())
                key = source[own].tobytes(), removed[:, own].tobytes(), everywhere
                alike.setdefault(key, (own, []))[1].extend(ports)
        like, most = part.inputs[0], max((len(own) for own, _ in alike.values()), default=0)
        room = like.new_empty(most, *like.shape)  # one piece of memory for all, which differ in size
        seeds: dict[int, Tensor] = {}
        for own, ports in alike.values():
            for s in source[own].tolist():
                if s not in known:
                    known[s] = self._difference(part, s)
            change = torch.stack([known[s] for s in source[own].tolist()], out=room[: len(own)])
            seeds |= self._seeds(ports, change, removed[:, own], need, context)
        return seeds

    def _difference(self, part: _Part, source: int) -> Tensor:
        """R[s] − A[s] of a source in the circuit as it is, `[B, W, D]`."""
        if source < self.graph.n_inputs:
            return part.inputs[source]
        stage = next(stage for stage in part.state.stages if source in stage.sublayer.sources)
        which = np.array([source - stage.sublayer.sources.start])
        compact = take(part.outputs[stage.index], which) - take(part.state.outputs[stage.index], which)
        return stage.write(compact, which)[0, 0]

    # ---- removing ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def remove(self, group: Group) -> None:
        """Remove a group; without a run if it was among those tested last."""
        stage = self._first_stage(group)
        if stage >= 0:
            if self._tested_row(group) is None:
                self._run_groups([group], stage)
            row = self._tested_row(group)
            assert row is not None
            assert self._last is not None
            _, tests, journal, distance, value = self._last
            if journal is not None:
                journal.commit(row)
            else:
                self._untold = _rows(tests, slice(row, row + 1))
            self.distance, self.value = float(distance[row]), float(value[row])
        self.drop(group)

    def drop(self, edges: Group) -> None:
        """Remove edges that carry nothing, or that nothing reads, without a run."""
        self.kept.flat[edges] = False
        self._renew()

    def _tested_row(self, group: Group) -> int | None:
        """Where the group is among those tested last."""
        for i, other in enumerate(self._last[0] if self._last else ()):
            if len(other) == len(group) and (other == group).all():
                return i
        return None


def _rows(tests: _Tests, some: slice) -> _Tests:
    """Some of the rows."""
    plan = tests.plan
    if len(plan.weights) > 1:
        plan = dataclasses.replace(plan, weights=plan.weights[some])
    return dataclasses.replace(tests, removed=tests.removed[some], plan=plan)
