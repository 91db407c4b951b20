"""What single edges are worth: the metric of a circuit without each."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch

from acdc.circuit import Circuit
from acdc.engine import memory
from acdc.engine.circuits import CIRCUITS_AT_ONCE, measure_prompts
from acdc.engine.problem import Progress, no_progress
from acdc.errors import check_type
from acdc.evaluation.judging import judging_problem
from acdc.model.model import Model
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task


@dataclasses.dataclass(frozen=True)
class RemovalEffects:
    """What the metric does when single edges are removed from a circuit.

    Attributes:
        prompts: "held-out" or "discovery".
        full, empty, circuit: mean metric of the full model, the circuit without edges, and the circuit.
        changes: metric without the edge less metric of the circuit, by edge.
        higher_is_better: whether more of the metric means the behaviour is done better.
    """

    metric: str
    prompts: str
    n_prompts: int
    full: float
    empty: float
    circuit: float
    changes: dict[str, float]
    higher_is_better: bool = True


@memory.explained
@torch.inference_mode(False)
def removal_effects(
    model: Model,
    task: Task | Dataset | Prompts,
    circuit: Circuit,
    *,
    most: int | None = 200,
    metric: Metric | None = None,
    ablation: str | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    progress: Progress = no_progress,
) -> RemovalEffects:
    """Remove each edge of a circuit by itself and measure; costs a run of the circuit an edge.

    Args:
        most: only this many edges, those with the largest |score|; None: all.
        metric, ablation: instead of the task's own.
    """
    check_type("a Circuit", circuit, Circuit)
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    graph, edges = circuit.graph, np.argwhere(circuit.edges)
    if most is not None and len(edges) > most:
        sizes = np.zeros(len(edges)) if circuit.scores is None else circuit.sizes()[circuit.edges]
        edges = edges[np.sort(np.argsort(-sizes, kind="stable")[: max(0, most)])]
    stacks = []
    for start in range(0, len(edges), CIRCUITS_AT_ONCE):
        some = edges[start : start + CIRCUITS_AT_ONCE]
        stack = np.repeat(circuit.edges[None], len(some), axis=0)
        stack[np.arange(len(some)), some[:, 0], some[:, 1]] = False
        stacks.append(stack)
    problem = judging_problem(
        model, dataset, graph, found=circuit, batch_size=batch_size, memory=memory, progress=progress
    )
    (measured,) = measure_prompts(problem, [np.zeros_like(circuit.edges), circuit.edges, *stacks])
    empty, whole, *without = measured.circuits.mean(axis=1).tolist()
    return RemovalEffects(
        metric=dataset.metric.name,
        prompts="held-out" if dataset.held_out is not None else "discovery",
        n_prompts=len(problem.prompts),
        full=float(measured.full.mean()),
        empty=empty,
        circuit=whole,
        changes={graph.edge_name(d, s): value - whole for (d, s), value in zip(edges, without, strict=True)},
        higher_is_better=dataset.metric.higher_is_better,
    )
