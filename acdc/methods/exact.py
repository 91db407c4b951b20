"""Exact edge activation patching: score(e) = metric(all edges but e) − metric(all edges), each edge alone.

Only what lies downstream is recomputed. All sources of one destination are one batch: the destination's component
is run once per source, and from there on all heads read the same residual stream again, so the rest is the plain
model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from acdc.engine.measure import Measure, bind, refuse_non_finite
from acdc.engine.memory import tokens_at_once
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.engine.propagate import stage_change
from acdc.graph import FloatArray
from acdc.methods.aggregates import Estimates, sums
from acdc.methods.method import Method, estimates_of
from acdc.model import forward
from acdc.store.resume import number


@torch.no_grad()
def exact_scores(
    patching: Patching,
    measure: Measure,
    *,
    destinations: Sequence[int] | None = None,
    first: int = 0,
    save: Callable[[int, FloatArray], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FloatArray:
    """Sums over the prompts of one batch of each edge's effect, `[3, n_destinations, n_sources]` (`aggregates.sums`).

    Args:
        destinations: those whose edges to score; None: all. The others' scores are 0.
        first: number of prompts before these, for messages.
        save: called with each destination that is done and the scores so far.
        progress: called with (edges done, edges in all).
    """
    model, graph, context = patching.model, patching.graph, patching.context
    trace, state = patching.clean, patching.clean_state()
    differences = patching.source_differences()  # [S, B, W, D]
    stage_of = {port: stage for stage in patching.stages for port in stage.sublayer.every_port}
    whole = measure.value(patching.clean_logits(measure.rows))
    refuse_non_finite(whole, measure.outcome, "for the full model", first=first)
    scores = np.zeros((3, *graph.valid.shape))
    chosen = range(graph.n_destinations) if destinations is None else destinations
    done, total = 0, int(graph.valid[list(chosen)].sum())
    size = _batch(patching)
    for destination in chosen:
        ports = np.flatnonzero(graph.port_destination == destination)
        stage = stage_of.get(int(ports[0]))
        sources = np.flatnonzero(graph.valid[destination])  # contiguous, since sources are in execution order
        for chunk in np.array_split(sources, -(-len(sources) // size)):
            change = differences[int(chunk[0]) : int(chunk[-1]) + 1]
            if stage is None:  # the logits
                x = context.at_read(state.final_x + change)
            else:
                seeds = {int(port): change for port in ports}
                written = stage_change(graph, context, state, stage, seeds)
                x = stage.rest(model, context, trace, written)
            value = measure.value(forward.readout(model.decomposition, x, measure.rows))
            refuse_non_finite(value, measure.outcome, "for the model without one edge", first=first)
            scores[:, destination, chunk] = sums(value.double() - whole.double())
            done += len(chunk)
            if progress is not None:
                progress(done, total)
        if save is not None:
            save(destination, scores)
    return scores


def _batch(patching: Patching) -> int:
    """Sources a batch: enough tokens to fill the machine."""
    tokens = patching.prompts.clean.shape[0] * (patching.prompts.clean.shape[1] - patching.start)
    return max(1, tokens_at_once(patching.model.device) // tokens)


@torch.no_grad()
def _units_alone(problem: Problem) -> Estimates:
    """The same for coarse units: a run of the circuit without each."""
    units, total, first = problem.units, np.zeros((3, *problem.units.shape)), 0
    alone = ~np.eye(units.n, dtype=bool)
    for patching in problem.batches():
        measure, at_once = bind(problem.outcome, patching), problem.circuits_at_once(len(patching.prompts))
        whole = measure.value(patching.clean_logits(measure.rows))
        refuse_non_finite(whole, problem.outcome, "for the full model", first=first)
        for start in range(0, units.n, at_once):
            value = measure.value(patching.logits(units.mask(alone[start : start + at_once]), rows=measure.rows))
            refuse_non_finite(value, problem.outcome, f"for the model without one {units.unit}", first=first)
            total[:, start : start + at_once] += sums(value.double() - whole.double())
            problem.progress(start, units.n, f"each {units.unit} alone")
        first += len(patching.prompts)
    return estimates_of(problem, total)


def _exact(problem: Problem) -> Estimates:
    if problem.unit != "edge":
        return _units_alone(problem)
    graph, resume = problem.graph, problem.resume
    saved = resume.load(
        {"total": ((3, *graph.valid.shape), np.float64), "batch": ((1,), np.int64), "destination": ((1,), np.int64)}
    )
    total = saved.get("total", np.zeros((3, *graph.valid.shape)))
    first, following = int(number(saved, "batch")), int(number(saved, "destination"))
    batches, edges = problem.n_batches, graph.n_edges
    for i, patching in enumerate(problem.batches("exact")):
        if i < first:
            continue
        before = total.copy()
        total = before + exact_scores(
            patching,
            bind(problem.outcome, patching),
            first=i * problem.prompts_per_batch,
            destinations=range(following if i == first else 0, graph.n_destinations),
            save=lambda d, scores, i=i, before=before: resume.save(  # type: ignore[misc]
                total=before + scores, batch=i, destination=d + 1
            ),
            progress=lambda done, _, first=i * edges: problem.progress(  # type: ignore[misc]
                first + done, batches * edges, "each edge alone"
            ),
        )
    return estimates_of(problem, total)


EXACT = Method(
    name="exact",
    description="exact edge activation patching: the metric without each edge alone",
    cost="a partial run per edge",
    paper="Syed et al. 2023, arXiv 2310.10348",
    score=_exact,
    signs="measured",
)
