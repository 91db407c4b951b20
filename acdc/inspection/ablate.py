"""Direct questions: what becomes of the task without these parts, or if one path alone carries another prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from acdc.circuit import Circuit
from acdc.engine import memory
from acdc.engine.circuits import Measured, measure_prompts
from acdc.engine.demand import source_demand
from acdc.engine.measure import bind, refuse_non_finite
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.engine.propagate import Plan, propagate
from acdc.errors import AcdcError, check_names, check_type
from acdc.evaluation.judging import NAN, intervals, judging_problem, over_the_vocabulary
from acdc.graph import Graph
from acdc.graph.names import split_destination
from acdc.inspection.parts import edges_of, masks_of, parts_of, place_of
from acdc.metrics import CONFIDENCE, NO_INTERVAL, faithfulness, faithfulness_interval, mean_interval, share_interval
from acdc.metrics.statistics import Interval
from acdc.model.model import Model
from acdc.shown import Shown, counted, in_brackets, rounded
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task


@dataclasses.dataclass(frozen=True, repr=False)
class PartEffect(Shown):
    """What a change of some parts does to the task.

    Attributes:
        parts: what was changed, by name.
        how: "without" (ablated) or "along" (one path patched).
        n_edges: how many edges that are.
        prompts: "held-out" or "discovery".
        full, changed, empty: mean metric of the full model, with the change, and with everything ablated.
        effect: changed − full.
        faithfulness: (changed − empty) / (full − empty): 1 if the change does nothing, 0 if it does all there is to do.
        kl: mean KL divergence from the full model in nats; exact_match: share of read positions with the full model's
            most likely token; None for numerical outputs.
        intervals: `*_interval`, over the prompts; NaN where there is none.
    """

    task: str
    model: str
    metric: str
    ablation: str
    parts: tuple[str, ...]
    how: str
    n_edges: int
    prompts: str
    n_prompts: int
    full: float
    changed: float
    empty: float
    effect: float
    faithfulness: float
    kl: float | None
    exact_match: float | None
    effect_interval: Interval = NO_INTERVAL
    faithfulness_interval: Interval = NO_INTERVAL
    kl_interval: Interval | None = None
    exact_match_interval: Interval | None = None

    def _summary(self) -> str:
        return f"{self.how} {', '.join(self.parts)}: {self.metric} {self.changed:.4g}, full model {self.full:.4g}"

    def facts(self) -> dict[str, str]:
        """What was changed, and what came of it."""
        found = {
            self.how: f"{', '.join(self.parts)} ({counted(self.n_edges, 'edge')}, {self.ablation} ablation)",
            self.metric: f"{self.changed:.4g}; full model {self.full:.4g}, without any edge {self.empty:.4g}",
            "effect": f"{self.effect:.4g}{in_brackets(self.effect_interval)} on {self.n_prompts} {self.prompts} "
            "prompts",
            "faithfulness": f"{rounded(self.faithfulness)}{in_brackets(self.faithfulness_interval)}",
        }
        if self.kl is not None and self.kl_interval is not None:
            found["divergence"] = f"{self.kl:.3g}{in_brackets(self.kl_interval)} nats from the full model"
        if self.exact_match is not None and self.exact_match_interval is not None:
            found["same answer"] = (
                f"{rounded(self.exact_match)}{in_brackets(self.exact_match_interval)} of the positions read"
            )
        return found


@memory.explained
@torch.inference_mode(False)
def ablate(
    model: Model,
    task: Task | Dataset | Prompts,
    parts: str | Sequence[str] | Circuit,
    *,
    metric: Metric | None = None,
    ablation: str | None = None,
    graph: Graph | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    confidence: float | None = CONFIDENCE,
    progress: Progress = no_progress,
) -> PartEffect:
    """Remove parts of the model, all at once, and measure on the task's held-out prompts.

    Args:
        parts: one name or several (`acdc.inspection.parts`): nodes `a2.h0`, edges `a0.h1->m2`, what a node reads
            `a2.h3<k>`, layers `a2`, each perhaps at a span or position, `a2.h0@S2`; or the edges of a circuit.
        metric, ablation: instead of the task's own.
        graph: whose names they are; None: `model.graph()`.
        confidence: of the intervals; None: no intervals.

    Raises:
        AcdcError: an unknown part, span or position.
    """
    if not isinstance(parts, str | Circuit):
        check_names("parts", parts)
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    graph = (parts.graph if isinstance(parts, Circuit) else model.graph()) if graph is None else graph
    circuit = parts if isinstance(parts, Circuit) else None
    problem = judging_problem(
        model, dataset, graph, found=circuit, batch_size=batch_size, memory=memory, progress=progress
    )
    if isinstance(parts, Circuit):
        names, edges, places = parts.edge_names(), parts.edges, None
    else:
        names = [parts] if isinstance(parts, str) else list(parts)
        edges, places = masks_of(graph, problem.prompts, parts)
    kept = graph.valid & ~edges
    nothing = np.zeros_like(kept)
    outcomes = [dataset.metric, *over_the_vocabulary(model)]
    measured = measure_prompts(problem, [nothing, kept], outcomes, places=places)
    n_edges = int((edges if places is None else edges.any(0)).sum())
    return _effect(problem, dataset, tuple(names), "without", n_edges, measured, confidence)


@memory.explained
@torch.inference_mode(False)
@torch.no_grad()
def patch_path(
    model: Model,
    task: Task | Dataset | Prompts,
    path: Sequence[str],
    *,
    metric: Metric | None = None,
    ablation: str | None = None,
    graph: Graph | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    confidence: float | None = CONFIDENCE,
    progress: Progress = no_progress,
) -> PartEffect:
    """Let one path alone carry the reference (path patching, Goldowsky-Dill et al. 2023, arXiv 2304.05969).

    What the first node writes is replaced for the second alone, whose changed output reaches the third alone, and so
    on; everything else is as on the clean prompt.

    Args:
        path: `["a0.h1", "a2.h3<k>", "logits"]`: a node, then what reads it, up to the logits; a node without a port
            reads through all of its ports. The first may be at a span or position, `a0.h1@S2`.
        others: as for `ablate`.

    Raises:
        AcdcError: a part that is unknown, or does not read the one before it; a path that does not end in the logits.
    """
    check_type("a path as a list of names, like ['a0.h1', 'logits']", path, (list, tuple))
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    graph = model.graph() if graph is None else graph
    problem = judging_problem(model, dataset, graph, batch_size=batch_size, memory=memory, progress=progress)
    steps = _steps(graph, path)
    (_, where), *_ = parts_of(path[:1])
    place = None if not where else place_of(problem.prompts, where)
    outcomes = [dataset.metric, *over_the_vocabulary(model)]
    nothing = np.zeros_like(graph.valid)
    measured = measure_prompts(problem, [nothing], outcomes)
    changed: list[list[np.ndarray]] = [[] for _ in outcomes]
    for first, patching in problem.batches().after(0):
        own = None if place is None else place[first : first + len(patching.prompts)].to(model.device)
        logits = along(patching, steps, own)
        for outcome, found in zip(outcomes, changed, strict=True):
            measure = bind(outcome, patching)
            values = measure.value(logits if measure.rows is None else logits[..., measure.rows])[0]
            refuse_non_finite(values, outcome, "along the path", first=first)
            found.append(values.double().cpu().numpy())
    measured = [
        dataclasses.replace(x, circuits=np.stack([x.circuits[0], np.concatenate(new)]))
        for x, new in zip(measured, changed, strict=True)
    ]
    return _effect(
        problem, dataset, (" -> ".join(path),), "along", sum(len(d) for _, d in steps), measured, confidence
    )


def _steps(graph: Graph, path: Sequence[str]) -> list[tuple[int, list[int]]]:
    """For each part of a path but the last, its source, and the destinations of the next."""
    parts = [name for name, _ in parts_of(path)]
    if len(parts) < 2 or parts[-1] != "logits":
        raise AcdcError(f"expected a path from a node to the logits, like ['a0.h1', 'logits'], got {list(path)}")
    if misplaced := [name for name in path[1:] if "@" in name]:
        raise AcdcError(f"only the first part of a path may be at a place, got {misplaced[0]!r}")
    first, port = split_destination(parts[0])
    if port and first in graph.source_index:
        raise AcdcError(
            f"a path begins with what a node writes, and {parts[0]!r} is what one reads: begin with {first!r}, or with "
            "a node before it"
        )
    found = []
    for name, following in pairwise(parts):
        node, _ = split_destination(name)
        if node not in graph.source_index:
            edges_of(graph, name)  # names the near misses
            raise AcdcError(f"{name!r} writes nothing by itself, so no path leads through it")
        destinations = [
            d
            for d, (name_of, whole) in enumerate(zip(graph.destinations, graph.destination_nodes, strict=True))
            if following in (name_of, whole)
        ]
        source = graph.source_index[node]
        if not destinations:
            edges_of(graph, following)
            raise AcdcError(f"{following!r} reads nothing, so no path leads to it")
        if not all(graph.valid[d, source] for d in destinations):
            raise AcdcError(
                f"{node} is not executed before {following}, so no path leads from the one to the other"
            )
        found.append((source, destinations))
    return found


def along(patching: Patching, steps: list[tuple[int, list[int]]], place: Tensor | None) -> Tensor:
    """Logits `[1, B, P, V]` where the first source's reference travels along these steps alone."""
    graph, context = patching.graph, patching.context
    used = np.zeros(graph.n_sources, dtype=bool)
    (first, into), *rest = steps
    used[first] = True
    difference = patching.source_differences(used=used)[0][None]  # [1, B, W, D]
    if place is not None:
        difference = difference * place[:, patching.start :, None]
    kept = np.zeros_like(graph.valid)
    for source, destinations in rest:
        kept[destinations, source] = True
    ports = np.asarray(graph.to_ports(kept), dtype=bool)
    demand = source_demand(graph, ports, patching.coupled, dense=context.dense)
    at_read = ~graph.reads_everywhere & (np.append(demand, 1)[graph.port_source] == 1)
    seeds = {
        int(port): context.at_read(difference) if at_read[port] else difference
        for port in np.flatnonzero(np.isin(graph.port_destination, into))
    }
    weights = torch.as_tensor(ports, device=difference.device).to(difference.dtype)[None]
    plan = Plan(weights, ports, demand)
    return propagate(patching.model, graph, context, patching.clean_state(), plan, seeds=seeds)


def _effect(
    problem: Problem,
    dataset: Dataset,
    parts: tuple[str, ...],
    how: str,
    n_edges: int,
    measured: Sequence[Measured],
    confidence: float | None,
) -> PartEffect:
    own, *over_vocabulary = measured
    (empty, changed), full = own.circuits, own.full
    kl, match = (x.circuits[1] for x in over_vocabulary) if over_vocabulary else (None, None)
    interval = intervals(confidence)
    same = full.mean() == empty.mean()
    return PartEffect(
        task=dataset.name,
        model=problem.model.name,
        metric=dataset.metric.name,
        ablation=dataset.ablation,
        parts=parts,
        how=how,
        n_edges=n_edges,
        prompts="held-out" if dataset.held_out is not None else "discovery",
        n_prompts=len(problem.prompts),
        full=float(full.mean()),
        changed=float(changed.mean()),
        empty=float(empty.mean()),
        effect=float((changed - full).mean()),
        faithfulness=NAN if same else float(faithfulness(changed.mean(), full=full.mean(), empty=empty.mean())),
        kl=None if kl is None else float(kl.mean()),
        exact_match=None if match is None else float(match.mean()),
        effect_interval=interval(mean_interval, changed - full),
        faithfulness_interval=NO_INTERVAL if same else interval(faithfulness_interval, changed, full, empty),
        kl_interval=None if kl is None else interval(mean_interval, kl, within=(0, np.inf)),
        exact_match_interval=None if match is None else interval(share_interval, match),
    )
