"""Exact edge activation patching: score(e) = metric(all edges but e) − metric(all edges), each edge alone.

Only what lies downstream is recomputed. All sources of one destination are one batch: the destination's component
is run once per source, and from there on all heads read the same residual stream again, so the rest is the plain
model. A whole node writes something else to all that follow, which is the plain model from there on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from acdc.engine.measure import Measure, bind, refuse_non_finite
from acdc.engine.memory import tokens_at_once
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.engine.propagate import stage_change
from acdc.graph import FloatArray, Units, units_of
from acdc.methods.aggregates import Estimates, sums
from acdc.methods.method import Method, estimates_of
from acdc.model import forward
from acdc.model.trace import rest_of_run
from acdc.store.resume import number


@torch.no_grad()
def exact_scores(
    patching: Patching,
    measure: Measure,
    *,
    destinations: Sequence[int] | None = None,
    places: Tensor | None = None,
    first: int = 0,
    tokens: int | None = None,
    save: Callable[[int, FloatArray], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FloatArray:
    """Sums over the prompts of one batch of each edge's effect, `[3, n_destinations, n_sources]` (`aggregates.sums`).

    Args:
        destinations: those whose edges to score; None: all. The others' scores are 0.
        places: `[place, B, W]` bool: each edge is replaced at one place alone, and scores are `[3, place, …]`.
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
    n = () if places is None else (len(places),)
    scores = np.zeros((3, *n, *graph.valid.shape))
    chosen = range(graph.n_destinations) if destinations is None else destinations
    done, total = 0, int(graph.valid[list(chosen)].sum())
    B, T = patching.prompts.clean.shape
    size = max(1, (tokens or tokens_at_once(model.device)) // (B * (T - patching.start) * (n or (1,))[0]))
    for destination in chosen:
        ports = np.flatnonzero(graph.port_destination == destination)
        stage = stage_of.get(int(ports[0]))
        sources = np.flatnonzero(graph.valid[destination])  # contiguous, since sources are in execution order
        for chunk in np.array_split(sources, -(-len(sources) // size)):
            change = differences[int(chunk[0]) : int(chunk[-1]) + 1]
            if places is not None:
                change = (change * places[:, None, ..., None]).flatten(0, 1)  # [place · source, B, W, D]
            if stage is None:  # the logits
                x = context.at_read(state.final_x + change)
            else:
                seeds = {int(port): change for port in ports}
                written = stage_change(graph, context, state, stage, seeds)
                x = stage.rest(model, context, trace, written)
            value = measure.value(forward.readout(model.decomposition, x, measure.rows))
            refuse_non_finite(value, measure.outcome, "for the model without one edge", first=first)
            effects = sums(value.double() - whole.double())
            scores[..., destination, chunk] = effects.reshape(3, *n, len(chunk))
            done += len(chunk)
            if progress is not None:
                progress(done, total)
        if save is not None:
            save(destination, scores)
    return scores


@torch.no_grad()
def unit_scores(
    patching: Patching,
    measure: Measure,
    units: Units,
    *,
    chosen: range,
    first: int = 0,
    at_once: int,
    save: Callable[[int, FloatArray], None],
    progress: Callable[[int, int], None],
) -> FloatArray:
    """The same for coarse units, `[3, unit]`: a run without each of those chosen.

    Args:
        at_once: runs as one batch.
        first, save, progress: as for `exact_scores`, of units.
    """
    whole = measure.value(patching.clean_logits(measure.rows))
    refuse_non_finite(whole, measure.outcome, "for the full model", first=first)
    scores, alone = np.zeros((3, *units.shape)), ~np.eye(units.n, dtype=bool)

    def without(some: slice) -> Tensor:
        if units.unit != "node":
            return patching.logits(units.mask(alone[some]), rows=measure.rows)
        if patching.coupled:  # what the node reads stays, which a shared norm lets others see
            return patching.logits(patching.graph.valid & alone[some][:, None], rows=measure.rows)
        return _without_nodes(patching, measure, some)

    for start in range(chosen.start, chosen.stop, at_once):
        some = slice(start, min(start + at_once, chosen.stop))
        value = measure.value(without(some))
        refuse_non_finite(value, measure.outcome, f"for the model without one {units.unit}", first=first)
        scores[:, some] = sums(value.double() - whole.double())
        save(some.stop - 1, scores)
        progress(some.stop - chosen.start, len(chosen))
    return scores


def _without_nodes(patching: Patching, measure: Measure, some: slice) -> Tensor:
    """Logits `[node, B, P, R]` of the full model without each of some sources, which no other source depends on."""
    model, context, trace = patching.model.decomposition, patching.context, patching.clean
    used = np.zeros(patching.graph.n_sources, dtype=bool)
    used[some] = True
    change = patching.source_differences(used=used)  # [node, B, W, D]
    places = [(slice(0, patching.graph.n_inputs), None), *((s.sublayer.outputs, s) for s in patching.stages)]
    found, done = [], 0
    for place, stage in places:
        here = change[done : done + int(used[place].sum())]
        done += len(here)
        if not len(here):
            continue
        if stage is None:
            x = rest_of_run(model, context, trace, trace.attention_input[0][..., context.start :, :] + here, 0)
        else:
            x = stage.rest(patching.model, context, trace, here)
        found.append(forward.readout(model, x, measure.rows))
    return torch.cat(found)


def node_effects(problem: Problem) -> FloatArray:
    """`[n_sources]`: mean metric without each node less that of the full model."""
    batches = dataclasses.replace(problem, unit="node").batches("circuits")
    total = np.zeros((3, problem.graph.n_sources))
    for first, patching in batches.after(0):
        total += unit_scores(
            patching, bind(problem.outcome, patching), units_of(problem.graph, "node"),
            chosen=range(problem.graph.n_sources), first=first, progress=lambda *_: None,
            at_once=problem.circuits_at_once(len(patching.prompts)), save=lambda *_: None,
        )  # fmt: skip
    return np.asarray(batches.ranks.summed(total)[0] / len(problem.prompts))


def _exact(problem: Problem) -> Estimates:
    units, edges = problem.units, problem.unit == "edge"
    batches = problem.batches("exact" if edges else "circuits")
    resume = problem.resume.of_prompts(batches.first, batches.last)
    shape = (3, *units.shape)
    saved = resume.load(
        {"total": (shape, np.float64), "batch": (shape, np.float64)}
        | {name: ((1,), np.int64) for name in ("prompts", "size", "following")}
    )
    total, part = saved.get("total", np.zeros(shape)), saved.get("batch", np.zeros(shape))
    done, following = int(number(saved, "prompts")), int(number(saved, "following"))
    if number(saved, "size") != batches.size:  # a batch of another size is begun again
        part, following = np.zeros(shape), 0
    for first, patching in batches.after(done):

        def save(
            last: int,
            scores: FloatArray,
            total: FloatArray = total,
            part: FloatArray = part,
            first: int = first,
        ) -> None:
            resume.save(total=total, batch=part + scores, prompts=first, size=batches.size, following=last + 1)

        def report(tested: int, _: int, first: int = first) -> None:
            done = units.n * (first - batches.first) // batches.size + tested
            problem.progress(done, units.n * len(batches), f"each {units.unit} alone")

        measure = bind(problem.outcome, patching)
        if edges:
            found = exact_scores(
                patching, measure, destinations=range(following, problem.graph.n_destinations), first=first,
                tokens=batches.tokens, save=save, progress=report,
            )  # fmt: skip
        else:
            found = unit_scores(
                patching, measure, units, chosen=range(following, units.n), first=first,
                at_once=problem.circuits_at_once(len(patching.prompts)), save=save, progress=report,
            )  # fmt: skip
        total = total + (part + found)
        part, following = np.zeros(shape), 0
    return estimates_of(problem, batches.ranks.summed(total))


EXACT = Method(
    name="exact",
    description="exact edge activation patching: the metric without each edge alone",
    cost="a partial run per edge",
    paper="Syed et al. 2023, arXiv 2310.10348",
    score=_exact,
    signs="measured",
    shares_prompts=True,
)
