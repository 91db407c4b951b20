"""Learned masks: subnetwork probing, Edge Pruning, HAP, UGS, IBCircuit, each a choice of what `masks` leaves open."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.engine.references import References
from acdc.errors import AcdcError
from acdc.graph import FloatArray
from acdc.methods.aggregates import Estimates
from acdc.methods.attribution import STEPS, path
from acdc.methods.eap import attributed, straight
from acdc.methods.masks import (
    HardConcrete,
    Information,
    Lagrangian,
    Penalty,
    Plain,
    Training,
    UniformWindow,
    train,
)
from acdc.methods.method import Method
from acdc.methods.nodes import as_asked
from acdc.methods.options import Batch, OfWhat, Price, Rate, Sparsity, Updates, WarmUp
from acdc.methods.ways_back import rule_of


def _positive(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise AcdcError(f"expected {name} to be at least 0, got {value}")


# ---- a price for what is kept -----------------------------------------------------------------------------------


def _subnetwork_probing(
    problem: Problem,
    *,
    price: Price = 1.0,
    steps: Updates = 500,
    learning_rate: Rate = 0.1,
    batch: Batch = 32,
    loss: OfWhat = None,
) -> Estimates:
    _positive("price", price)
    gate = HardConcrete()
    training = Training(steps, learning_rate, batch, loss)
    return Estimates(train(problem, gate, Penalty(gate, price), training, start=0.9))


def _ugs(
    problem: Problem,
    *,
    price: Price = 1e-3,
    steps: Updates = 500,
    learning_rate: Rate = 0.1,
    batch: Batch = 32,
    loss: OfWhat = None,
) -> Estimates:
    _positive("price", price)
    gate, training = UniformWindow(), Training(steps, learning_rate, batch, loss)
    return Estimates(train(problem, gate, Penalty(gate, price * problem.units.n), training, start=0.73))


# ---- Edge Pruning -----------------------------------------------------------------------------------------------


def _edge_pruning(
    problem: Problem,
    *,
    sparsity: Sparsity = 0.95,
    steps: Updates = 3000,
    learning_rate: Rate = 0.8,
    batch: Batch = 32,
    warm_up: WarmUp = 2500,
    loss: OfWhat = None,
    warm_start: Annotated[bool, "whether the mask starts from EAP-IG's ranking"] = False,
    restrict: Annotated[float | None, "share of all parts, the best by EAP-IG, that may be kept at all"] = None,
) -> Estimates:
    training = Training(steps, learning_rate, batch, loss)
    _check_shares(problem, sparsity, restrict)
    gate, allowed, first = HardConcrete(), None, 0.0
    start: float | FloatArray = 0.9
    if warm_start or restrict is not None:
        found = attributed(problem, straight(path(STEPS, problem.ablation)), rule_of("plain")).absolute
        assert found is not None
        order = np.argsort(-np.where(problem.units.valid, found, -1.0), axis=None, kind="stable")[: problem.units.n]
        if restrict is not None:
            allowed = np.isin(np.arange(found.size), order[: max(2, round(restrict * len(order)))])
            allowed = allowed.reshape(found.shape)
        if warm_start:
            start = np.zeros(found.size)
            start[order] = np.linspace(0.95, 0.5, len(order))  # the best is the surest
            first = 1 - float(start[order].mean())
            start = np.clip(start, 0.01, 0.99).reshape(found.shape)
    target = 1 - (1 - sparsity) / (restrict or 1.0)
    penalty = Lagrangian(gate, target, min(first, target), min(warm_up, steps))
    return Estimates(train(problem, gate, penalty, training, start=start, allowed=allowed))


def _hap(
    problem: Problem,
    *,
    sparsity: Sparsity = 0.95,
    restrict: Annotated[float, "share of all parts, the best by EAP-IG, that may be kept at all"] = 0.25,
    steps: Updates = 3000,
    learning_rate: Rate = 0.8,
    batch: Batch = 32,
    warm_up: WarmUp = 2500,
    loss: OfWhat = None,
) -> Estimates:
    return _edge_pruning(
        problem, sparsity=sparsity, steps=steps, learning_rate=learning_rate, batch=batch, warm_up=warm_up, loss=loss,
        warm_start=True, restrict=restrict,
    )  # fmt: skip


def _check_shares(problem: Problem, sparsity: float, restrict: float | None) -> None:
    if not 0 < sparsity < 1:
        raise AcdcError(f"expected a sparsity between 0 and 1, got {sparsity:g}")
    if restrict is not None and not 1 - sparsity < restrict <= 1:
        raise AcdcError(
            f"expected restrict, the share of all {problem.units.plural} that are candidates, to be at most 1 and more "
            f"than {1 - sparsity:.3g}, what is kept at sparsity {sparsity:g}; got {restrict:g}"
        )


# ---- noise in place of a reference ------------------------------------------------------------------------------


def _ibcircuit(
    problem: Problem,
    *,
    price: Price = 1.0,
    steps: Updates = 1000,
    learning_rate: Rate = 0.05,
    batch: Batch = 32,
    loss: OfWhat = None,
) -> Estimates:
    _positive("price", price)
    gate = Plain()
    inner = dataclasses.replace(problem, ablation="mean")  # the mean is where the noise is
    training = Training(steps, learning_rate, batch, loss)
    noise = _Noise(problem)
    shares = train(inner, gate, Information(gate, price), training, start=_FULL, renew=noise.patching, unit="node")
    return as_asked(problem, Estimates(shares))


_FULL = 1 / (1 + np.exp(-5.0))
"""σ(5), the share that IBCircuit starts from."""


class _Noise:
    """Normal noise with each output's own mean and variance over the prompts' real tokens."""

    def __init__(self, problem: Problem) -> None:
        sums: list[list[Tensor]] = []
        for patching in problem.batches("circuits"):
            real = patching.prompts.mask[..., None].to(patching.model.dtype)
            outputs = [*patching.clean_inputs, *(stage.output(patching.clean) for stage in patching.stages)]
            found = [
                part for x in outputs for part in ((x * real).sum((-3, -2)), (x.square() * real).sum((-3, -2)))
            ]
            sums.append([*found, real.sum()])
        *parts, count = (torch.stack(list(each)).sum(0) for each in zip(*sums, strict=True))
        self._means = [total / count for total in parts[::2]]
        pairs = zip(parts[1::2], self._means, strict=True)
        self._deviations = [(square / count - mean.square()).clamp(min=0).sqrt() for square, mean in pairs]

    @torch.no_grad()
    def patching(self, old: Patching, generator: torch.Generator) -> Patching:
        """The same prompts with new noise for references."""
        shape = tuple(old.prompts.mask.shape)
        found = []
        for mean, deviation in zip(self._means, self._deviations, strict=True):
            size = (*mean.shape[:-1], *shape, mean.shape[-1])
            normal = torch.randn(size, generator=generator).to(mean)
            found.append(mean[..., None, None, :] + deviation[..., None, None, :] * normal)
        n = old.graph.n_inputs
        references = References(tuple(found[:n]), tuple(found[n:]))
        return Patching(old.model, old.graph, old.prompts, ablation="mean", references=references)


SUBNETWORK_PROBING = Method(
    name="subnetwork-probing",
    description="a learned mask: hard concrete gates with a price for each that is not closed",
    cost="steps × (forward and backward through a mask)",
    paper="Cao et al. 2021, arXiv 2104.03514, as in Conmy et al. 2023",
    score=_subnetwork_probing,
    gradient="path",
    trains=True,
)
EDGE_PRUNING = Method(
    name="edge-pruning",
    description="a learned mask: hard concrete gates held to a sparsity by Lagrange multipliers",
    cost="steps × (forward and backward through a mask)",
    paper="Bhaskar et al. 2024, arXiv 2406.16778",
    score=_edge_pruning,
    gradient="path",
    trains=True,
)
HAP = Method(
    name="hap",
    description="Edge Pruning among the best candidates of EAP-IG, started from its scores",
    cost="EAP-IG, and steps × (forward and backward through a mask)",
    paper="arXiv 2510.03282; warm start: arXiv 2510.06811",
    score=_hap,
    gradient="path",
    trains=True,
)
UGS = Method(
    name="ugs",
    description="a learned mask: uniform gradient sampling about each unit's chance to be kept",
    cost="steps × (forward and backward through a mask of each prompt)",
    paper="Li & Janson 2024, arXiv 2409.09951",
    score=_ugs,
    gradient="path",
    trains=True,
)
IBCIRCUIT = Method(
    name="ibcircuit",
    description="a learned mask of nodes that mixes noise into each, with a price for what is told of its output",
    cost="steps × (2 forward, and forward and backward through a mask)",
    paper="Bian et al. 2025 (ICML)",
    score=_ibcircuit,
    gradient="path",
    grain="node",
    trains=True,
)
