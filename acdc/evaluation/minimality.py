"""Does all in a circuit matter?

*Minimality* (Wang et al. 2023): without an edge, the circuit changes. Measured in shares of what separates the full
model from the circuit without edges.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch

from acdc.circuit import Circuit
from acdc.engine import memory, ranks
from acdc.engine.circuits import CIRCUITS_AT_ONCE, measure_prompts
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import check_type
from acdc.evaluation.judging import check_counts, judging_problem, share_of_separation, size
from acdc.graph import BoolArray, FloatArray, IntArray, Unit, Units, units_of
from acdc.metrics.statistics import CONFIDENCE, Interval
from acdc.model.model import Model
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task


@dataclasses.dataclass(frozen=True)
class EdgeImportance:
    """What one edge of the circuit does (or one node, of a circuit of nodes).

    Attributes:
        edge: its name.
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
        edges: in the order of `Circuit.edge_names`; of a circuit of nodes, its nodes.
        unit: what they are, "edge" or "node".
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
    unit: Unit = "edge"

    def needless(self, share: float = 0.01) -> tuple[str, ...]:
        """Edges whose knock-out changes less than this share (Wang et al. ask for 1%), least first."""
        return tuple(e.edge for e in sorted(self.edges, key=lambda e: e.share) if e.share < share)


@ranks.shared
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
    memory: str | None = None,
    random_sets: int = 0,
    seed: int = 0,
    confidence: float | None = CONFIDENCE,
    progress: Progress = no_progress,
) -> Minimality:
    """Knock each edge (or node, of a circuit of nodes) out of it, on held-out prompts: does the circuit change?

    An edge can seem needless because another does the same. Wang et al. therefore ask that it matters for *some* set
    of other edges knocked out beside it, which `random_sets` looks for.

    Args:
        metric, ablation, batch_size, memory: as for `evaluate`.
        random_sets: try every edge with so many random sets of other edges knocked out, and report it where it shows
            most; each set holds a random share of the edges, up to a half. Each costs a run an edge.
        confidence: of the intervals; None: no intervals.

    Raises:
        AcdcError: the circuit is of another graph than the model's.
    """
    check_counts(random_sets=random_sets)
    check_type("a Circuit", circuit, Circuit)
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    graph, units = circuit.graph, units_of(circuit.graph, circuit.unit)
    own = units.of_edges(circuit.edges)
    edges, names = np.argwhere(own), units.names_of(own)
    at_once = CIRCUITS_AT_ONCE - 1  # and the circuit they are compared with
    runs = 2 + (1 + random_sets) * (len(edges) + -(-len(edges) // at_once))
    done = 0

    def tell(step: int, total: int | None, text: str) -> None:
        if total is None:  # what memory it takes
            progress(step, total, text)
        else:
            progress(done * batches + step, runs * batches, "knocking out edges")

    problem = judging_problem(
        model, dataset, graph, found=circuit, batch_size=batch_size, memory=memory, seed=seed, progress=tell
    )
    batches = -(-len(problem.prompts) // problem.batch_of("circuits"))
    (measured,) = measure_prompts(problem, [np.zeros_like(graph.valid), circuit.edges])
    full, (empty, whole) = measured.full, measured.circuits  # [prompt]
    done = 2
    rng = np.random.default_rng(seed)
    shape = (len(edges), len(full))
    present, absent = np.zeros(shape), np.zeros(shape)  # the metric with and without each edge, where it shows most
    without = np.zeros(len(edges), dtype=np.int64)  # number of the set of others knocked out there
    removed: list[BoolArray] = []
    for number in range(1 + random_sets):
        others = own & (rng.random(own.shape) < (rng.random() / 2 if number else 0))
        removed.append(others)
        for start in range(0, len(edges), at_once):
            some = edges[start : start + at_once]
            values = _toggle(problem, circuit, units, own & ~others, some)
            done += 1 + len(some)
            for i, place in enumerate(map(tuple, some)):
                pair = (values[0], values[1 + i])
                with_edge, without_edge = pair[::-1] if others[place] else pair
                e = start + i
                if not number or size(with_edge, without_edge) > size(present[e], absent[e]):
                    present[e], absent[e], without[e] = with_edge, without_edge, number
    importances = []
    for e, place in enumerate(map(tuple, edges)):
        share, interval = share_of_separation(present[e], absent[e], full, empty, confidence)
        beside = removed[without[e]].copy()
        beside[place] = False
        change = float((present[e] - absent[e]).mean())
        importances.append(EdgeImportance(names[e], change, share, interval, tuple(units.names_of(beside))))
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
        unit=circuit.unit,
    )


def _toggle(problem: Problem, circuit: Circuit, units: Units, base: BoolArray, some: IntArray) -> FloatArray:
    """`[1 + unit, prompt]`: the metric of a part of the circuit, and of it with each unit removed or, if it lacks it,
    added.
    """
    stack = np.repeat(base[None], 1 + len(some), axis=0)
    for switches, place in zip(stack[1:], map(tuple, some), strict=True):
        switches[place] ^= True
    (measured,) = measure_prompts(problem, [units.mask(stack) & circuit.edges])
    return measured.circuits
