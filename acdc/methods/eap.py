"""Edge attribution patching: EAP, and what takes its gradients elsewhere (EAP-IG, clean-corrupted).

All three are means of one first-order score (`attribution`) over places between the corrupted and the clean prompt.
"""

from __future__ import annotations

from acdc.engine.problem import Problem
from acdc.methods.aggregates import Estimates
from acdc.methods.attribution import STEPS, attribution, path
from acdc.methods.method import Method, estimates_of


def _attribution(problem: Problem, alphas: list[float]) -> Estimates:
    batches = problem.batches("gradients")
    total, _ = attribution(problem.outcome, batches, problem.units, alphas=alphas, progress=problem.progress)
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
