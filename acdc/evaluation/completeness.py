"""Is everything in the circuit that matters? Answered by knocking parts out.

*Completeness* (Wang et al. 2023): with the same components K knocked out, a complete circuit changes as the full
model does, F(C∖K) ≈ F(M∖K), for every K. Backup components that a circuit leaves out show here, and nowhere else.
Measured in shares of what separates the full model from the circuit without edges.

To knock out a component is to ablate all edges that leave it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from acdc.circuit import Circuit
from acdc.engine import memory, ranks
from acdc.engine.circuits import measure_prompts
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import check_type, unknown
from acdc.evaluation.judging import check_counts, judging_problem, share_of_separation, size
from acdc.evaluation.published import published
from acdc.graph import FloatArray, Graph, IntArray
from acdc.metrics.statistics import CONFIDENCE, Interval
from acdc.model.model import Model
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task

Kind = Literal["none", "random", "class", "greedy"]


@dataclasses.dataclass(frozen=True)
class Knockout:
    """The circuit and the full model with the same components knocked out.

    Attributes:
        kind: how the components were chosen: "none" (nothing knocked out), "random", "class", or "greedy".
        name: of the class; the number of the draw or of the greedy step.
        components: what was knocked out.
        model, circuit: mean metric of the full model and of the circuit without them.
        incompleteness: |model − circuit| as a share of what separates the full model from the empty circuit.
        interval: (low, high) over the prompts, as in `Evaluation`.
    """

    kind: Kind
    name: str
    components: tuple[str, ...]
    model: float
    circuit: float
    incompleteness: float
    interval: Interval


@dataclasses.dataclass(frozen=True)
class Completeness:
    """How differently the circuit and the full model react to knock-outs.

    Attributes:
        prompts: "held-out" or "discovery".
        full, empty: the metric for the full model and the circuit without edges.
        knockouts: nothing knocked out first, then random sets, classes, and the greedy search's steps.
        largest: the largest incompleteness of all.
        random_mean: the mean incompleteness of the random sets; NaN without any.
    """

    task: str
    metric: str
    ablation: str
    prompts: str
    n_prompts: int
    full: float
    empty: float
    knockouts: tuple[Knockout, ...]
    largest: float
    random_mean: float


# ---- completeness -----------------------------------------------------------------------------------------------


@ranks.shared
@memory.explained
@torch.inference_mode(False)
def completeness(
    model: Model,
    task: Task | Dataset | Prompts,
    circuit: Circuit,
    *,
    metric: Metric | None = None,
    ablation: str | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    random_sets: int = 20,
    classes: Mapping[str, Collection[str]] | None = None,
    greedy_steps: int = 10,
    greedy_candidates: int = 10,
    seed: int = 0,
    confidence: float | None = CONFIDENCE,
    progress: Progress = no_progress,
) -> Completeness:
    """Knock the same heads and MLPs out of the circuit and of the full model, and compare, on held-out prompts.

    The sets K are of components in the circuit. Inputs are never knocked out: nothing would be left to compare.

    Args:
        metric, ablation, batch_size, memory: as for `evaluate`.
        random_sets: so many sets that hold each component with probability ½.
        classes: names of components by name of their class, like `{"induction": ["a1.h0", "a1.h3"]}`; those outside
            the circuit are left out. None: the roles of the published circuit of this task and model if there is
            one, else the heads of each layer, and the MLPs.
        greedy_steps: a set grown by the component that makes the circuit most incomplete, at most so many times, and
            as long as there is one.
        greedy_candidates: so many components, drawn at random, are tried at each step.
        confidence: of the intervals; None: no intervals.

    Raises:
        AcdcError: the circuit is of another graph than the model's, or a class names no component of it.
    """
    check_counts(random_sets=random_sets, greedy_steps=greedy_steps, greedy_candidates=greedy_candidates)
    check_type("a Circuit", circuit, Circuit)
    check_type("classes as a mapping from names to components", classes, (Mapping, NoneType))
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    graph = circuit.graph
    problem = judging_problem(
        model, dataset, graph, found=circuit, batch_size=batch_size, memory=memory, seed=seed, progress=progress
    )
    components = np.flatnonzero(circuit.edges.any(axis=0) & (graph.source_stage > 0))
    rng = np.random.default_rng(seed)
    sets = [_Set("none", "", components[:0])]
    for i in range(random_sets if len(components) else 0):
        sets.append(_Set("random", str(i + 1), components[rng.random(len(components)) < 0.5]))
    for name, members in (_default_classes(model, dataset, graph) if classes is None else classes).items():
        inside = np.intersect1d(_indices(graph, members), components)
        if len(inside):
            sets.append(_Set("class", name, inside))
    (measured,) = measure_prompts(problem, [np.zeros_like(graph.valid)])
    full, empty = measured.full, measured.circuits[0]  # [prompt]
    rows = _knock_out(problem, circuit, sets)
    rows += _greedy(problem, circuit, rows[0], components, greedy_steps, greedy_candidates, rng)
    knockouts = []
    for (kind, name, which), of_model, of_circuit in rows:
        share, interval = share_of_separation(of_model, of_circuit, full, empty, confidence)
        names = tuple(graph.sources[s] for s in which)
        means = float(of_model.mean()), float(of_circuit.mean())
        knockouts.append(Knockout(kind, name, names, *means, share, interval))
    random = [k.incompleteness for k in knockouts if k.kind == "random"]
    return Completeness(
        task=dataset.name,
        metric=dataset.metric.name,
        ablation=dataset.ablation,
        prompts="held-out" if dataset.held_out is not None else "discovery",
        n_prompts=len(problem.prompts),
        full=float(full.mean()),
        empty=float(empty.mean()),
        knockouts=tuple(knockouts),
        largest=max(k.incompleteness for k in knockouts),
        random_mean=float(np.mean(random)) if random else float("nan"),
    )


class _Set(NamedTuple):
    """A set of sources to knock out, by index."""

    kind: Kind
    name: str
    which: IntArray


_Row = tuple[_Set, FloatArray, FloatArray]
"""A set, and the metric `[prompt]` of the full model and of the circuit without it."""


def _knock_out(problem: Problem, circuit: Circuit, sets: Sequence[_Set]) -> list[_Row]:
    """Run the full model and the circuit without each set."""
    removed = np.zeros((len(sets), circuit.graph.n_sources), dtype=bool)
    for row, chosen in zip(removed, sets, strict=True):
        row[chosen.which] = True
    stacks = [edges & ~removed[:, None, :] for edges in (circuit.graph.valid, circuit.edges)]
    (measured,) = measure_prompts(problem, stacks)
    of_model, of_circuit = np.split(measured.circuits, 2)
    return list(zip(sets, of_model, of_circuit, strict=True))


def _greedy(
    problem: Problem,
    circuit: Circuit,
    start: _Row,
    components: IntArray,
    steps: int,
    candidates: int,
    rng: np.random.Generator,
) -> list[_Row]:
    """Sets that grow by what makes the circuit and the model differ most, from nothing."""
    best, found = start, list[_Row]()
    for step in range(min(steps, len(components))):
        left = np.setdiff1d(components, best[0].which)
        tried = rng.permutation(left)[:candidates]
        sets = [_Set("greedy", str(step + 1), np.append(best[0].which, s)) for s in tried]
        if not sets:
            break
        better = max(_knock_out(problem, circuit, sets), key=lambda row: size(*row[1:]))
        if not size(*better[1:]) > size(*best[1:]):
            break
        best = better
        found.append(best)
    return found


def _default_classes(model: Model, dataset: Dataset, graph: Graph) -> Mapping[str, Collection[str]]:
    known = published(model.name, dataset.name)
    if known is not None and known.components <= set(graph.sources):
        return known.roles
    classes: dict[str, list[str]] = {}
    for row in graph.components:
        if row.kind in ("head", "mlp"):
            of = "MLPs" if row.kind == "mlp" else f"heads of layer {row.layer}"
            classes.setdefault(of, []).append(row.name)
    return classes


def _indices(graph: Graph, names: Collection[str]) -> IntArray:
    for name in names:
        if name not in graph.source_index:
            raise unknown("component", name, graph.sources)
    return np.array([graph.source_index[name] for name in names], dtype=np.int64)
