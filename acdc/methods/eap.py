"""Edge attribution patching: EAP, and what takes its gradients elsewhere or lets them flow back otherwise.

All are one first-order score (`attribution`), a choice of where its gradient is taken (`places`) and of how that flows
back (`acdc.model.backward`). Each place is a method with an option `backward`; RelP and GIM are EAP with theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from torch import Tensor

from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.errors import AcdcError, check_whole
from acdc.graph import Units
from acdc.methods.aggregates import Estimates
from acdc.methods.attribution import STEPS, attribute, path, summed
from acdc.methods.method import Method, estimates_of
from acdc.methods.options import Back, Steps
from acdc.methods.places import along_gradients, conductance, on_activations
from acdc.methods.ways_back import rule_of
from acdc.metrics import Outcome
from acdc.model.backward import Flow, Rule

Attribute = Callable[[Patching, Outcome, int, Flow], Tensor]
"""`(patching, outcome, prompts before these, flow)` to scores `[prompt, n_ports, n_sources]`."""


def attributed(problem: Problem, place: Attribute, rule: Rule, *, units: Units | None = None) -> Estimates:
    """Estimates of each unit (None: the problem's own) by the gradient at a place that flows back by a rule."""
    flow = Flow(problem.model, rule)

    def scores_of(patching: Patching, first: int) -> Tensor:
        return place(patching, problem.outcome, first, flow)

    total, _ = summed(scores_of, problem.batches("gradients"), units or problem.units, progress=problem.progress)
    return estimates_of(problem, total)


def straight(alphas: list[float]) -> Attribute:
    """On the straight line from the corrupted (0) to the clean embedding (1)."""

    def place(patching: Patching, outcome: Outcome, first: int, flow: Flow) -> Tensor:
        return attribute(patching, outcome, alphas=alphas, first=first, flow=flow)

    return place


def _eap(problem: Problem, *, backward: Back = "plain") -> Estimates:
    return attributed(problem, straight([1.0]), rule_of(backward))


def _eap_ig(problem: Problem, *, steps: Steps = STEPS, backward: Back = "plain") -> Estimates:
    return attributed(problem, straight(path(steps, problem.ablation)), rule_of(backward))


def _clean_corrupted(
    problem: Problem,
    *,
    ends: Annotated[Literal["both", "corrupted"], "where gradients are taken"] = "both",
    backward: Back = "plain",
) -> Estimates:
    return attributed(problem, straight([0.0, 1.0] if ends == "both" else [0.0]), rule_of(backward))


def _eap_ig_activations(problem: Problem, *, steps: Steps = STEPS, backward: Back = "plain") -> Estimates:
    check_whole("a number of steps", steps, least=1)

    def place(patching: Patching, outcome: Outcome, first: int, flow: Flow) -> Tensor:
        return on_activations(patching, outcome, first, flow, steps=steps)

    return attributed(problem, place, rule_of(backward))


def _eap_gp(
    problem: Problem,
    *,
    steps: Steps = STEPS,
    length: Annotated[float, "of a step down the distance"] = 1.0,
    backward: Back = "plain",
) -> Estimates:
    check_whole("a number of steps", steps, least=1)
    if not 0 < length < float("inf"):
        raise AcdcError(f"expected the length of a step to be above 0, got {length}")

    def place(patching: Patching, outcome: Outcome, first: int, flow: Flow) -> Tensor:
        return along_gradients(patching, outcome, first, flow, steps=steps, length=length)

    return attributed(problem, place, rule_of(backward))


def _conductance(problem: Problem, *, steps: Steps = STEPS, backward: Back = "plain") -> Estimates:
    check_whole("a number of steps", steps, least=1)

    def place(patching: Patching, outcome: Outcome, first: int, flow: Flow) -> Tensor:
        return conductance(patching, outcome, first, flow, steps=steps)

    return attributed(problem, place, rule_of(backward))


def _relp(
    problem: Problem,
    *,
    frozen_attention: Annotated[bool, "whether attention patterns are constants on the way back"] = False,
) -> Estimates:
    return attributed(problem, straight([1.0]), rule_of("relp", frozen_attention=frozen_attention))


def _gim(
    problem: Problem,
    *,
    temperature: Annotated[float, "of the softmax's derivative"] = 2.0,
    gates: Annotated[
        bool | None, "whether the two factors of a gated MLP get half each; if nothing is said, yes"
    ] = None,
) -> Estimates:
    if not 0 < temperature < float("inf"):
        raise AcdcError(f"expected a temperature above 0, got {temperature}")
    rule = rule_of("gim", temperature=temperature, gates=gates is not False)
    if gates is not None and not Flow(problem.model, rule).gated:
        raise AcdcError(f"gates={gates} is of gated MLPs, and {problem.model.name} has none; leave it out")
    return attributed(problem, straight([1.0]), rule)


EAP = Method(
    name="eap",
    description="edge attribution patching: first-order effect at the clean prompt",
    cost="2 forward, 1 backward",
    paper="Syed et al. 2023, arXiv 2310.10348",
    score=_eap,
    gradient="clean",
    signs="estimated",
    shares_prompts=True,
)
EAP_IG = Method(
    name="eap-ig",
    description="EAP with gradients averaged from the corrupted to the clean embedding",
    cost="(2 + steps) forward, steps backward",
    paper="Hanna et al. 2024, arXiv 2403.17806",
    score=_eap_ig,
    gradient="path",
    signs="estimated",
    shares_prompts=True,
)
EAP_IG_ACTIVATIONS = Method(
    name="eap-ig-activations",
    description="EAP with gradients averaged while what one sublayer writes goes from corrupted to clean",
    cost="(2 + steps × sublayers) forward, steps × sublayers backward",
    paper="Mueller et al. 2025 (MIB), arXiv 2504.13151",
    score=_eap_ig_activations,
    gradient="path",
    signs="estimated",
    shares_prompts=True,
)
CLEAN_CORRUPTED = Method(
    name="clean-corrupted",
    description="EAP with gradients averaged over the clean and the corrupted prompt",
    cost="3 forward, 2 backward",
    paper="Hanna et al. 2024, arXiv 2403.17806",
    score=_clean_corrupted,
    gradient="path",
    signs="estimated",
    shares_prompts=True,
)
EAP_GP = Method(
    name="eap-gp",
    description="EAP with gradients averaged along a path down the distance to the corrupted prompt's logits",
    cost="(3 + 2 × steps) forward, 2 × steps backward",
    paper="Zhang et al. 2025, arXiv 2502.06852",
    score=_eap_gp,
    gradient="path",
    signs="estimated",
    shares_prompts=True,
)
CONDUCTANCE = Method(
    name="conductance",
    description="what flows through each edge on the way from the corrupted to the clean embedding (CEAP)",
    cost="(2 + steps) forward, steps backward",
    paper="Dhamdhere et al. 2018, arXiv 1805.12233; Wu et al. 2026, arXiv 2606.16920",
    score=_conductance,
    gradient="path",
    signs="estimated",
    shares_prompts=True,
)
RELP = Method(
    name="relp",
    description="relevance patching: EAP with coefficients of relevance propagation for gradients",
    cost="2 forward, 1 backward",
    paper="Jafari et al. 2025, arXiv 2508.21258",
    score=_relp,
    gradient="clean",
    signs="estimated",
    shares_prompts=True,
)
GIM = Method(
    name="gim",
    description="EAP with gradients that know of norms, softmax and products (gradient interaction modifications)",
    cost="2 forward, 1 backward",
    paper="Edin et al. 2025, arXiv 2505.17630",
    score=_gim,
    gradient="clean",
    signs="estimated",
    shares_prompts=True,
)
