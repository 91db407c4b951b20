"""A circuit and its parts, each left out alone: the runs that claims are made from, and checked by."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from acdc.circuit import Circuit
from acdc.engine.measure import Measures
from acdc.engine.problem import Problem, Progress
from acdc.graph import BoolArray, FloatArray, units_of
from acdc.methods.groups import Groups
from acdc.model.model import Model
from acdc.store.amounts import bytes_of
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task

ROUNDING = 1e-4
"""Share of the separation by which a distance may differ on another machine."""
AS_NEAR = 1e-6
"""The same by which two distances of one run may differ that are equal."""


class Parts:
    """What a circuit is made of (edges, or nodes with the edges that go with them), and how far it is without some.

    Attributes:
        names: of the parts, in the order in which they are counted.
        distance: of the circuit from the full model, a mean over the prompts; separation: of the circuit without edges.
    """

    def __init__(self, problem: Problem, circuit: Circuit) -> None:
        self.problem, self.circuit = problem, circuit
        self.units = units_of(circuit.graph, circuit.unit)
        own = self.units.of_edges(circuit.edges)
        self.names: list[str] = self.units.names_of(own)
        self._places = np.flatnonzero(own)
        self.search = Groups(Measures(problem.outcome, problem.searched()), kept=circuit.edges)
        self.distance = self.search.distance
        self.separation = self.search.measures.separation()

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def alone(self) -> FloatArray:
        """`[part]` distance without each part alone."""
        return self.without([[i] for i in range(len(self))])

    def within(self, budget: float) -> float:
        """The largest distance within a budget: at least that of a circuit as near as this one, which is within it."""
        return max(budget, self.distance + AS_NEAR * self.separation)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return list(itertools.combinations(range(len(self)), 2))

    def without(self, groups: Sequence[Sequence[int]]) -> FloatArray:
        """`[group]` distance without each group of parts."""
        if not groups:
            return np.zeros(0)
        going = [self.units.going(self.circuit.edges, self._places[list(group)]) for group in groups]
        return self.search.measure_without(going)[0]

    def edges_without(self, names: Sequence[str]) -> BoolArray:
        """`[destination, source]` the circuit's edges without the parts of these names."""
        edges = self.circuit.edges.copy()
        gone = self._places[np.isin(self.names, list(names))]
        edges.flat[self.units.going(self.circuit.edges, gone)] = False
        return edges


def dataset_of(
    circuit: Circuit, task: Task | Dataset | Prompts, model: Model, metric: Metric | None, ablation: str | None
) -> Dataset:
    """A recipe or dataset says its own metric and ablation; bare prompts take the circuit's."""
    if isinstance(task, Prompts):
        made = circuit.provenance
        metric, ablation = metric or made.metric or None, ablation or made.ablation or None
    return as_dataset(task, model, metric=metric, ablation=ablation)


def problem_of(model: Model, dataset: Dataset, circuit: Circuit, memory: str | None, progress: Progress) -> Problem:
    """The discovery prompts of a dataset, with a circuit's constants."""
    return Problem(
        model, circuit.graph, dataset.discovery, dataset.metric, dataset.ablation, progress=progress,
        memory_limit=None if memory is None else bytes_of(memory), constants=circuit.constants,
    )  # fmt: skip
