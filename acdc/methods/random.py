"""Random scores: what every method must beat."""

from __future__ import annotations

import numpy as np

from acdc.engine.circuits import measure_prompts
from acdc.engine.problem import Problem
from acdc.methods.aggregates import Estimates
from acdc.methods.method import Method


def _random(problem: Problem) -> Estimates:
    measure_prompts(problem, [])  # as with every method, a metric that is no number on some prompt is refused
    drawn = np.random.default_rng(problem.seed).random(problem.units.shape)
    return Estimates(np.where(problem.units.valid, drawn, 0.0))


RANDOM = Method(
    name="random",
    description="random scores: what every method must beat",
    cost="2 forward",
    score=_random,
    baseline=True,
    shares_prompts=True,
)
