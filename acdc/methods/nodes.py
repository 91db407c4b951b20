"""Rankings of nodes: attribution of what a component writes to everybody, and head importance (HISP).

What a node does is what its edges do together, so node attribution patching is edge attribution with the scores of a
node's edges added up on each prompt before any size is taken: one backward pass, and no other arithmetic. Where edges
are asked for, each has its source's score, so that a circuit takes nodes whole.
"""

from __future__ import annotations

import numpy as np

from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.graph import FloatArray, IntArray, units_of
from acdc.methods.aggregates import Estimates
from acdc.methods.attribution import STEPS, path
from acdc.methods.eap import attributed, straight
from acdc.methods.method import Method
from acdc.methods.options import Back, Steps
from acdc.methods.ways_back import Backward, rule_of


def _nodes(problem: Problem, alphas: list[float], backward: Backward) -> Estimates:
    """Estimates of nodes, `[n_sources]`."""
    if problem.unit not in ("edge", "node"):
        raise AcdcError(f"this method ranks nodes, and so edges by their source, not units {problem.unit!r}")
    return attributed(problem, straight(alphas), rule_of(backward), units=units_of(problem.graph, "node"))


def as_asked(problem: Problem, found: Estimates) -> Estimates:
    """Estimates of nodes, for nodes or for their edges."""
    if problem.unit == "node":
        return found
    spread = units_of(problem.graph, "node").spread
    absolute, rms = (None if x is None else spread(x) for x in (found.absolute, found.rms))
    return Estimates(spread(found.values), absolute, rms)


def _nap(problem: Problem, *, backward: Back = "plain") -> Estimates:
    return as_asked(problem, _nodes(problem, [1.0], backward))


def _nap_ig(problem: Problem, *, steps: Steps = STEPS, backward: Back = "plain") -> Estimates:
    return as_asked(problem, _nodes(problem, path(steps, problem.ablation), backward))


def _hisp(problem: Problem, *, backward: Back = "plain") -> Estimates:
    found = _nodes(problem, [1.0], backward).absolute
    assert found is not None
    return as_asked(problem, Estimates(by_layer(found, problem.graph.source_layer)))


def by_layer(importance: FloatArray, layer: IntArray) -> FloatArray:
    """Importances `[n_sources]` divided by the root of the sum of squares of their layer."""
    found = np.zeros_like(importance)
    for own in np.unique(layer):
        chosen = layer == own
        length = np.linalg.norm(importance[chosen])
        found[chosen] = importance[chosen] / length if length else 0.0
    return found


NAP = Method(
    name="nap",
    description="node attribution patching: first-order effect of what each node writes",
    cost="2 forward, 1 backward",
    paper="Nanda 2023; Mueller et al. 2025 (MIB), arXiv 2504.13151",
    score=_nap,
    gradient="clean",
    signs="estimated",
    grain="node",
    shares_prompts=True,
)
NAP_IG = Method(
    name="nap-ig",
    description="the same with gradients averaged from the corrupted to the clean embedding",
    cost="(2 + steps) forward, steps backward",
    paper="Mueller et al. 2025 (MIB), arXiv 2504.13151",
    score=_nap_ig,
    gradient="path",
    signs="estimated",
    grain="node",
    shares_prompts=True,
)
HISP = Method(
    name="hisp",
    description="head importance: mean absolute first-order effect of each node, normalised in each layer",
    cost="2 forward, 1 backward",
    paper="Michel et al. 2019, arXiv 1905.10650, as in Conmy et al. 2023",
    score=_hisp,
    gradient="clean",
    grain="node",
    shares_prompts=True,
)
