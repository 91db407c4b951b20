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
    tokens: int | None = None,
    save: Callable[[int, FloatArray], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FloatArray:
    """Sums over the prompts of one batch of each edge's effect, `[3, n_destinations, n_sources]` (`aggregates.sums`).

    Args:
        destinations: those whose edges to score; None: all. The others' scores are 0.
        first: number of prompts before these, for messages.
        tokens: how many to run at once, as so many sources; None: as many as fill the machine.
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
    B, T = patching.prompts.clean.shape
    size = max(1, (tokens or tokens_at_once(model.device)) // (B * (T - patching.start)))
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


@torch.no_grad()
def _units_alone(problem: Problem) -> Estimates:
    """The same for coarse units: a run of the circuit without each."""
    units, total, batches = problem.units, np.zeros((3, *problem.units.shape)), problem.batches()
    alone = ~np.eye(units.n, dtype=bool)
    for first, patching in batches.after(0):
        measure, at_once = bind(problem.outcome, patching), problem.circuits_at_once(len(patching.prompts))
        whole = measure.value(patching.clean_logits(measure.rows))
        refuse_non_finite(whole, problem.outcome, "for the full model", first=first)
        for start in range(0, units.n, at_once):
            value = measure.value(patching.logits(units.mask(alone[start : start + at_once]), rows=measure.rows))
            refuse_non_finite(value, problem.outcome, f"for the model without one {units.unit}", first=first)
            total[:, start : start + at_once] += sums(value.double() - whole.double())
            done = units.n * first // batches.size + start
            problem.progress(done, units.n * len(batches), f"each {units.unit} alone")
    return estimates_of(problem, total)


def _exact(problem: Problem) -> Estimates:
    if problem.unit != "edge":
        return _units_alone(problem)
    graph, resume, batches = problem.graph, problem.resume, problem.batches("exact")
    shape, edges = (3, *graph.valid.shape), graph.n_edges
    saved = resume.load(
        {"total": (shape, np.float64), "batch": (shape, np.float64)}
        | {name: ((1,), np.int64) for name in ("prompts", "size", "destination")}
    )
    total, part = saved.get("total", np.zeros(shape)), saved.get("batch", np.zeros(shape))
    done, following = int(number(saved, "prompts")), int(number(saved, "destination"))
    if number(saved, "size") != batches.size:  # a batch of another size is begun again
        part, following = np.zeros(shape), 0
    for first, patching in batches.after(done):

        def save(
            destination: int,
            scores: FloatArray,
            total: FloatArray = total,
            part: FloatArray = part,
            first: int = first,
        ) -> None:
            resume.save(
                total=total, batch=part + scores, prompts=first, size=batches.size, destination=destination + 1
            )

        def report(tested: int, _: int, first: int = first) -> None:
            problem.progress(edges * first // batches.size + tested, edges * len(batches), "each edge alone")

        found = exact_scores(
            patching,
            bind(problem.outcome, patching),
            first=first,
            destinations=range(following, graph.n_destinations),
            tokens=batches.tokens,
            save=save,
            progress=report,
        )
        total = total + (part + found)
        part, following = np.zeros(shape), 0
    return estimates_of(problem, total)


EXACT = Method(
    name="exact",
    description="exact edge activation patching: the metric without each edge alone",
    cost="a partial run per edge",
    paper="Syed et al. 2023, arXiv 2310.10348",
    score=_exact,
    signs="measured",
)
