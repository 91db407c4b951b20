"""Is everything in the circuit that matters, and does all in it matter? Answered by knocking parts out.

*Completeness* (Wang et al. 2023): with the same components K knocked out, a complete circuit changes as the full
model does, F(C∖K) ≈ F(M∖K), for every K. Backup components that a circuit leaves out show here, and nowhere else.
*Minimality*: without an edge, the circuit changes. Both are measured in shares of what separates the full model from
the circuit without edges.

To knock out a component is to ablate all edges that leave it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch

from acdc import memory
from acdc.circuit import Circuit
from acdc.errors import AcdcError, check_type, unknown
from acdc.evaluation import judging_problem
from acdc.graph import BoolArray, FloatArray, Graph, IntArray, node_kind
from acdc.measure import CIRCUITS_AT_ONCE, measure_prompts
from acdc.metrics import NO_INTERVAL, magnitude_interval, ratio_interval, relative_difference
from acdc.model.model import Model
from acdc.problem import Problem, Progress, no_progress
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts
from acdc.tasks.published import published

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task

Interval = tuple[float, float]
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


@dataclasses.dataclass(frozen=True)
class EdgeImportance:
    """What one edge of the circuit does.

    Attributes:
        change: of the metric when the edge is added to the circuit without it (and without `without`).
        share: |change| as a share of what separates the full model from the empty circuit.
        interval: (low, high) of the share over the prompts, as in `Evaluation`.
        without: the other edges that were knocked out, where the edge shows most; none unless asked for.
    """

    edge: str
    change: float
    share: float
    interval: Interval
    without: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Minimality:
    """What each edge of a circuit does.

    Attributes:
        prompts: "held-out" or "discovery".
        full, empty, circuit: the metric for the full model, the circuit without edges, and the circuit.
        edges: in the order of `Circuit.edge_names`.
    """

    task: str
    metric: str
    ablation: str
    prompts: str
    n_prompts: int
    full: float
    empty: float
    circuit: float
    edges: tuple[EdgeImportance, ...]

    def needless(self, share: float = 0.01) -> tuple[str, ...]:
        """Edges whose knock-out changes less than this share (Wang et al. ask for 1%), least first."""
        return tuple(e.edge for e in sorted(self.edges, key=lambda e: e.share) if e.share < share)


# ---- completeness -----------------------------------------------------------------------------------------------


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
    random_sets: int = 20,
    classes: Mapping[str, Collection[str]] | None = None,
    greedy_steps: int = 10,
    greedy_candidates: int = 10,
    seed: int = 0,
    confidence: float | None = 0.95,
    progress: Progress = no_progress,
) -> Completeness:
    """Knock the same heads and MLPs out of the circuit and of the full model, and compare, on held-out prompts.

    The sets K are of components in the circuit. Inputs are never knocked out: nothing would be left to compare.

    Args:
        metric, ablation, batch_size: as for `evaluate`.
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
    _check_counts(random_sets=random_sets, greedy_steps=greedy_steps, greedy_candidates=greedy_candidates)
    check_type("a Circuit", circuit, Circuit)
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    graph = circuit.graph
    problem = judging_problem(model, dataset, graph, batch_size=batch_size, seed=seed, progress=progress)
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
        share, interval = _share(of_model, of_circuit, full, empty, confidence)
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
        better = max(_knock_out(problem, circuit, sets), key=lambda row: _size(*row[1:]))
        if not _size(*better[1:]) > _size(*best[1:]):
            break
        best = better
        found.append(best)
    return found


def _default_classes(model: Model, dataset: Dataset, graph: Graph) -> Mapping[str, Collection[str]]:
    known = published(model.name, dataset.name)
    if known is not None and known.components <= set(graph.sources):
        return known.roles
    classes: dict[str, list[str]] = {}
    for name, layer in zip(graph.sources, graph.source_layer, strict=True):
        if layer >= 0:
            of = "MLPs" if node_kind(name) == "mlp" else f"heads of layer {layer}"
            classes.setdefault(of, []).append(name)
    return classes


def _indices(graph: Graph, names: Collection[str]) -> IntArray:
    for name in names:
        if name not in graph.source_index:
            raise unknown("component", name, graph.sources)
    return np.array([graph.source_index[name] for name in names], dtype=np.int64)


# ---- minimality -------------------------------------------------------------------------------------------------


@memory.explained
@torch.inference_mode(False)
def minimality(
    model: Model,
    task: Task | Dataset | Prompts,
    circuit: Circuit,
    *,
    metric: Metric | None = None,
    ablation: str | None = None,
    batch_size: int | None = None,
    random_sets: int = 0,
    seed: int = 0,
    confidence: float | None = 0.95,
    progress: Progress = no_progress,
) -> Minimality:
    """Knock each edge out of the circuit, on held-out prompts: does the circuit change?

    An edge can seem needless because another does the same. Wang et al. therefore ask that it matters for *some* set
    of other edges knocked out beside it, which `random_sets` looks for.

    Args:
        metric, ablation, batch_size: as for `evaluate`.
        random_sets: try every edge with so many random sets of other edges knocked out, and report it where it shows
            most; each set holds a random share of the edges, up to a half. Each costs a run an edge.
        confidence: of the intervals; None: no intervals.

    Raises:
        AcdcError: the circuit is of another graph than the model's.
    """
    _check_counts(random_sets=random_sets)
    check_type("a Circuit", circuit, Circuit)
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    graph, edges = circuit.graph, np.argwhere(circuit.edges)
    at_once = CIRCUITS_AT_ONCE - 1  # and the circuit they are compared with
    runs = 2 + (1 + random_sets) * (len(edges) + -(-len(edges) // at_once))
    done = 0

    def tell(step: int, total: int | None, text: str) -> None:
        progress(done * problem.n_batches + step, runs * problem.n_batches, "knocking out edges")

    problem = judging_problem(model, dataset, graph, batch_size=batch_size, seed=seed, progress=tell)
    (measured,) = measure_prompts(problem, [np.zeros_like(graph.valid), circuit.edges])
    full, (empty, whole) = measured.full, measured.circuits  # [prompt]
    done = 2
    rng = np.random.default_rng(seed)
    shape = (len(edges), len(full))
    present, absent = np.zeros(shape), np.zeros(shape)  # the metric with and without each edge, where it shows most
    without = np.zeros(len(edges), dtype=np.int64)  # number of the set of others knocked out there
    removed: list[BoolArray] = []
    for number in range(1 + random_sets):
        others = circuit.edges & (rng.random(graph.valid.shape) < (rng.random() / 2 if number else 0))
        removed.append(others)
        for start in range(0, len(edges), at_once):
            some = edges[start : start + at_once]
            values = _toggle(problem, circuit.edges & ~others, some)
            done += 1 + len(some)
            for i, (d, s) in enumerate(some):
                pair = (values[0], values[1 + i])
                with_edge, without_edge = pair[::-1] if others[d, s] else pair
                e = start + i
                if not number or _size(with_edge, without_edge) > _size(present[e], absent[e]):
                    present[e], absent[e], without[e] = with_edge, without_edge, number
    importances = []
    for e, (d, s) in enumerate(edges):
        share, interval = _share(present[e], absent[e], full, empty, confidence)
        beside = removed[without[e]].copy()
        beside[d, s] = False
        names = tuple(graph.edge_names(beside))
        change = float((present[e] - absent[e]).mean())
        importances.append(EdgeImportance(graph.edge_name(d, s), change, share, interval, names))
    return Minimality(
        task=dataset.name,
        metric=dataset.metric.name,
        ablation=dataset.ablation,
        prompts="held-out" if dataset.held_out is not None else "discovery",
        n_prompts=len(problem.prompts),
        full=float(full.mean()),
        empty=float(empty.mean()),
        circuit=float(whole.mean()),
        edges=tuple(importances),
    )


def _toggle(problem: Problem, base: BoolArray, edges: IntArray) -> FloatArray:
    """`[1 + edge, prompt]`: the metric of a circuit, and of it with each edge removed or, if it lacks it, added."""
    stack = np.repeat(base[None], 1 + len(edges), axis=0)
    for circuit, (d, s) in zip(stack[1:], edges, strict=True):
        circuit[d, s] ^= True
    (measured,) = measure_prompts(problem, [stack])
    return measured.circuits


# ---- differences ------------------------------------------------------------------------------------------------


def _size(a: FloatArray, b: FloatArray) -> float:
    """|a − b| of means over the prompts."""
    return abs(float((a - b).mean()))


def _share(
    a: FloatArray, b: FloatArray, full: FloatArray, empty: FloatArray, confidence: float | None
) -> tuple[float, Interval]:
    """|a − b| as a share of |full − empty|, of means over the prompts, and its interval."""
    share = float(relative_difference(*(x.mean() for x in (a, b)), full=full.mean(), empty=empty.mean()))
    if confidence is None:
        return share, NO_INTERVAL
    return share, magnitude_interval(ratio_interval(a - b, full - empty, confidence=confidence))


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 0:
            raise AcdcError(f"expected {name} of at least 0, got {count}")
