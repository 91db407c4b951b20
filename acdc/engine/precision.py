"""Half precision in searches: keeping its rounding out of their decisions, or saying how large it is.

Removing one edge often moves a metric by less than bfloat16 or float16 can tell, so a search would be decided by
rounding. It runs in float32 instead, on a copy of the same weights; where that does not fit, it runs as it is, with a
warning that holds the rounding that was measured.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import TYPE_CHECKING

import torch

from acdc.engine import memory, ranks
from acdc.engine.measure import bind
from acdc.model.load import load
from acdc.model.model import Model

if TYPE_CHECKING:
    from acdc.engine.problem import Problem


def is_half(dtype: torch.dtype) -> bool:
    return dtype.itemsize < 4


def searched(problem: Problem) -> Problem:
    """The problem as a search takes it on: as it is, or if it is in half precision in float32."""
    if not is_half(problem.model.dtype):
        return problem
    model, dtype = problem.model, str(problem.model.dtype).removeprefix("torch.")
    if fits(problem):
        warnings.warn(
            f"{model.name} is in {dtype}, whose rounding can be larger than the effect of an edge: the search decides "
            "in float32, on a copy of the weights",
            stacklevel=3,
        )
        return dataclasses.replace(problem, model=converted(model, torch.float32))
    error = rounding(problem)
    warnings.warn(
        f"{model.name} is in {dtype}, and a float32 copy for the search does not fit in memory: rounding alone moves "
        f"the distance in {problem.outcome.name} by up to {error:.2g}, so edges whose removal costs within "
        f"{error:.2g} of the threshold are kept or removed by chance",
        stacklevel=3,
    )
    return problem


def fits(problem: Problem) -> bool:
    """Whether a float32 copy fits beside the model, with the search."""
    model = problem.model
    weights = sum(p.numel() for p in model.module.parameters()) * (4 + model.dtype.itemsize)
    search = memory.need(model, problem.graph, problem.prompts, problem.outcome, problem.ablation, "search")
    together = ranks.current()
    free = together.least(memory.available(model.device) / together.neighbours(model.device))
    return weights + 2 * search.of(problem.batch_of("search"), 0) < free


def converted(model: Model, dtype: torch.dtype) -> Model:
    """A copy of the same weights in another precision."""
    copied = load(copy.deepcopy(model.module).to(dtype), tokenizer=model.tokenizer)
    return dataclasses.replace(copied, name=model.name)


@torch.no_grad()
def rounding(problem: Problem) -> float:
    """Largest distance from the full model, of any prompt, of a run that keeps every edge: 0 but for rounding."""
    found, batches = [], problem.batches()
    for patching in batches:
        measure = bind(problem.outcome, patching)
        found.append(measure.distance(patching.logits(patching.graph.valid, rows=measure.rows))[0])
    return float(batches.together(found).max())
