"""Edge attribution patching: EAP, and what takes its gradients elsewhere (EAP-IG, clean-corrupted).

All three are means of one first-order score (`attribution`) over places between the corrupted and the clean prompt.
"""

from __future__ import annotations

import numpy as np
import torch

from acdc.engine.problem import Problem
from acdc.methods.aggregates import Estimates, sums
from acdc.methods.attribution import STEPS, attribute, path
from acdc.methods.method import Method, estimates_of


def _attribution(problem: Problem, alphas: list[float]) -> Estimates:
    graph = problem.graph
    total = np.zeros((3, *problem.units.shape))
    destination = torch.as_tensor(graph.port_destination)
    batches = problem.batches("gradients")
    for first, patching in batches.after(0):
        problem.progress(first // batches.size, len(batches), "attribution")
        scores = attribute(patching, problem.outcome, alphas=alphas, first=first)  # [prompt, port, source]
        merged = scores.new_zeros(len(scores), *graph.valid.shape)
        merged.index_add_(1, destination.to(scores.device), scores)
        total += sums(problem.units.collect(merged).movedim(0, -1))
    problem.progress(len(batches), len(batches), "attribution")
    return estimates_of(problem, total)


def _eap(problem: Problem) -> Estimates:
    return _attribution(problem, [1.0])


def _eap_ig(problem: Problem, *, steps: int = STEPS) -> Estimates:
    return _attribution(problem, path(steps))


def _clean_corrupted(problem: Problem) -> Estimates:
    return _attribution(problem, [0.0, 1.0])


EAP = Method(
    name="eap",
    description="edge attribution patching: first-order effect at the clean prompt",
    cost="2 forward, 1 backward",
    paper="Syed et al. 2023, arXiv 2310.10348",
    score=_eap,
    gradient="clean",
    signs="estimated",
)
EAP_IG = Method(
    name="eap-ig",
    description="EAP with gradients averaged from the corrupted to the clean embedding",
    cost="(2 + steps) forward, steps backward",
    paper="Hanna et al. 2024, arXiv 2403.17806",
    score=_eap_ig,
    gradient="path",
    signs="estimated",
)
CLEAN_CORRUPTED = Method(
    name="clean-corrupted",
    description="EAP with gradients averaged over the clean and the corrupted prompt",
    cost="3 forward, 2 backward",
    paper="Hanna et al. 2024, arXiv 2403.17806",
    score=_clean_corrupted,
    gradient="path",
    signs="estimated",
)
