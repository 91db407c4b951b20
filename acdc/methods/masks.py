"""Masks learned by gradient descent: one trainer for all kinds.

Every edge or node has a parameter θ. On each step a gate is drawn from it, a number from 0 (its edges carry their
reference) to 1 (their own output); the model is run with these gates, and θ follows the gradient of its distance from
the full model plus a penalty on what is kept. Kinds differ in the gate, in the penalty, and in where they start.

A mask that ends keeping nothing, or everything it may, has learned no order, and is refused with what to change.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from acdc.engine.circuits import measure_prompts
from acdc.engine.measure import Measure, bind
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.errors import AcdcError, EmptyCircuitError, check_whole
from acdc.graph import BoolArray, FloatArray
from acdc.methods.attribution import gradient_of, refuse_bad_gradient
from acdc.metrics import OUTCOMES, Outcome
from acdc.model import passes

Loss = Literal["kl", "metric"]


class Gate:
    """A gate of each unit, drawn from its parameter θ."""

    by_prompt = False
    """Whether each prompt draws its own."""

    def draw(self, theta: Tensor, uniform: Tensor) -> Tensor:
        """From θ `[*units]` and numbers `[*units]`, or `[prompt, *units]`, that are uniform between 0 and 1."""
        raise NotImplementedError

    def kept(self, theta: Tensor) -> Tensor:
        """How sure each unit is to be kept, 0 to 1."""
        raise NotImplementedError

    def start(self, kept: float) -> float:
        """θ of a unit that is so sure to be kept."""
        return math.log(kept / (1 - kept))


@dataclasses.dataclass(frozen=True)
class HardConcrete(Gate):
    """Louizos et al. 2018 (arXiv 1712.01312): a stretched binary concrete variable, cut off at 0 and 1.

    Attributes:
        low, high: what it is stretched to; temperature: β.
    """

    low: float = -0.1
    high: float = 1.1
    temperature: float = 2 / 3

    def draw(self, theta: Tensor, uniform: Tensor) -> Tensor:
        noise = uniform.clamp(1e-6, 1 - 1e-6).logit()
        wide = torch.sigmoid((noise + theta) / self.temperature) * (self.high - self.low) + self.low
        return wide.clamp(0, 1)

    def kept(self, theta: Tensor) -> Tensor:
        """The chance that it is not 0."""
        return torch.sigmoid(theta - self.temperature * math.log(-self.low / self.high))

    def start(self, kept: float) -> float:
        return super().start(kept) + self.temperature * math.log(-self.low / self.high)


class UniformWindow(Gate):
    """Li & Janson 2024 (arXiv 2409.09951): uniform in a window about p = σ(θ) of width p (1 − p), a constant."""

    by_prompt = True

    def draw(self, theta: Tensor, uniform: Tensor) -> Tensor:
        p = torch.sigmoid(theta)
        width = (p * (1 - p)).detach()
        return (p + (uniform - 0.5) * width).clamp(0, 1)

    def kept(self, theta: Tensor) -> Tensor:
        return torch.sigmoid(theta)


class Plain(Gate):
    """The share σ(θ) itself, where the reference is what is drawn (IBCircuit)."""

    def draw(self, theta: Tensor, uniform: Tensor) -> Tensor:
        return torch.sigmoid(theta)

    def kept(self, theta: Tensor) -> Tensor:
        return torch.sigmoid(theta)


class Penalty:
    """What is added to the distance: a price for each unit's chance to be kept, over how many there are.

    Attributes:
        learned: what the penalty itself learns, by going up its gradient.
    """

    learned: tuple[Tensor, ...] = ()

    def __init__(self, gate: Gate, price: float) -> None:
        self.gate, self.price = gate, price

    def __call__(self, theta: Tensor, step: int) -> Tensor:
        return self.price * self.gate.kept(theta).mean()


class Lagrangian(Penalty):
    """Edge Pruning's (Bhaskar et al. 2024, arXiv 2406.16778): λ₁ (t − s) + λ₂ (t − s)², λ going up where θ goes down.

    s is the expected share that is removed, and t the target, which is come to in a straight line.
    """

    def __init__(self, gate: Gate, target: float, start: float, warm_up: int) -> None:
        super().__init__(gate, 0.0)
        self.target, self.first, self.warm_up = target, start, warm_up
        self.learned = (torch.zeros(2, dtype=torch.float64, requires_grad=True),)

    def __call__(self, theta: Tensor, step: int) -> Tensor:
        done = min(1.0, (step + 1) / max(1, self.warm_up))
        target = self.first + done * (self.target - self.first)
        lacking = target - (1 - self.gate.kept(theta)).mean()
        (prices,) = self.learned
        return prices[0] * lacking + prices[1] * lacking.square()


class Information(Penalty):
    """IBCircuit's: what a share λ of a node's output, the rest being noise like it, tells of the output, in nats.

    KL(N(λa + (1 − λ)μ, (1 − λ)²σ²) ‖ N(μ, σ²)), averaged over outputs a of mean μ and variance σ²:
    ½ ((1 − λ)² + λ² − 1) − log(1 − λ).
    """

    def __call__(self, theta: Tensor, step: int) -> Tensor:
        share = self.gate.kept(theta)
        rest = torch.nn.functional.softplus(theta)  # −log(1 − λ)
        return self.price * (0.5 * ((1 - share).square() + share.square() - 1) + rest).mean()


@dataclasses.dataclass(frozen=True)
class Training:
    """How long and how fast.

    Attributes:
        steps: of the optimiser, Adam; rate: its learning rate.
        batch: prompts a step.
        loss: "kl" from the full model, or "metric", the task's own distance from it; None: the metric if it is a
            distance, else KL.

    Raises:
        AcdcError: a number that cannot be.
    """

    steps: int
    rate: float
    batch: int
    loss: Loss | None = None

    def __post_init__(self) -> None:
        check_whole("a number of steps", self.steps, least=1)
        check_whole("a batch of prompts", self.batch, least=1)
        if not 0 < self.rate < math.inf:
            raise AcdcError(f"expected a learning rate above 0, got {self.rate}")

    def outcome(self, problem: Problem) -> Outcome:
        own = problem.outcome
        if (self.loss or ("metric" if own.is_distance else "kl")) == "metric":
            return own
        return OUTCOMES["kl"]


Renew = Callable[[Patching, torch.Generator], Patching]
"""A patching with references drawn anew."""


def train(
    problem: Problem,
    gate: Gate,
    penalty: Penalty,
    training: Training,
    *,
    start: float | FloatArray = 0.9,
    allowed: BoolArray | None = None,
    renew: Renew | None = None,
    unit: Literal["edge", "node"] | None = None,
) -> FloatArray:
    """Learn a mask.

    Args:
        start: how sure each unit is to be kept at first.
        allowed: which units may be kept; the others are removed throughout. None: all.
        renew: called with each batch's patching before each step.
        unit: what has a gate; None: the problem's unit.

    Returns:
        How sure each unit is to be kept, an array over units; 0 where it may not be, and everywhere if the empty
        circuit is as good as the model.

    Raises:
        EmptyCircuitError: the mask keeps nothing, or all it may.
        TaskError: the loss has no gradient, or one that is NaN or infinite.
    """
    unit = unit or problem.unit
    if unit not in ("edge", "node"):
        raise AcdcError(f"masks are learned of edges and of nodes, not of units {unit!r}")
    valid = torch.as_tensor(problem.graph.valid)
    shape = problem.graph.valid.shape if unit == "edge" else (problem.graph.n_sources,)
    may = (problem.graph.valid if unit == "edge" else np.ones(shape, dtype=bool)) if allowed is None else allowed
    chosen = torch.as_tensor(np.flatnonzero(may))
    n = len(chosen)
    if not n:
        raise EmptyCircuitError("no edge may be kept: take more candidates")
    outcome = training.outcome(problem)
    empty = np.zeros_like(problem.graph.valid)
    _, loss = measure_prompts(problem, [empty], [problem.outcome, outcome])  # refuses what is no number
    if np.array_equal(loss.full, loss.circuits[0]):  # nothing that is removed changes anything
        return np.zeros(shape)
    small = dataclasses.replace(problem, batch_size=min(training.batch, len(problem.prompts)))
    pairs = [(patching, bind(outcome, patching)) for patching in small.batches("gradients")]
    device = problem.model.device
    generator = torch.Generator().manual_seed(problem.seed)
    first = np.broadcast_to(np.asarray(start, dtype=np.float64), shape).ravel()[chosen.numpy()]
    theta = torch.tensor([gate.start(float(p)) for p in first], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([theta], lr=training.rate)
    order: list[int] = []
    for step in range(training.steps):
        order = order or torch.randperm(len(pairs), generator=generator).tolist()
        patching, measure = pairs[order.pop()]
        if renew is not None:
            patching = renew(patching, generator)
        drawn = (len(patching.prompts), n) if gate.by_prompt else (n,)
        uniform = torch.rand(drawn, generator=generator, dtype=torch.float64)
        with torch.enable_grad():
            gates = gate.draw(theta, uniform)
            whole = gates.new_zeros(*drawn[:-1], int(np.prod(shape))).index_copy(-1, chosen, gates)
            whole = whole.unflatten(-1, shape)
            weights = whole if unit == "edge" else whole[..., None, :] * valid
            distance = _distance(patching, measure, weights.to(device), by_prompt=gate.by_prompt)
            total = distance.cpu() + penalty(theta, step)
            theta.grad, *others = gradient_of(total, [theta, *penalty.learned], outcome)
        passes.count(backward=len(patching.prompts))
        assert theta.grad is not None
        refuse_bad_gradient(theta.grad, outcome)
        optimiser.step()
        with torch.no_grad():
            for learned, up in zip(penalty.learned, others, strict=True):
                learned += training.rate * up
        if step % 10 == 0:
            problem.progress(step, training.steps, "learning a mask")
    problem.progress(training.steps, training.steps, "learning a mask")
    sure = gate.kept(theta.detach()).numpy()
    _refuse_collapse(sure, training)
    found = np.zeros(int(np.prod(shape)))
    found[chosen.numpy()] = sure
    return found.reshape(shape)


def _distance(patching: Patching, measure: Measure, weights: Tensor, *, by_prompt: bool) -> Tensor:
    """Mean distance from the full model with these shares of all edges, `[n_destinations, n_sources]` or by prompt."""
    with patching.model.frozen():
        logits = patching.logits(weights.to(patching.model.dtype), rows=measure.rows, by_prompt=by_prompt)
        return measure.distance(logits).mean().double()


def _refuse_collapse(sure: FloatArray, training: Training) -> None:
    kept, n = int((sure > 0.5).sum()), len(sure)
    if not 0 < kept < n or np.ptp(sure) == 0:
        what = "nothing" if kept == 0 else f"all {n} units that it may"
        change = "a lower price or sparsity" if kept == 0 else "a higher price or sparsity, more steps"
        raise EmptyCircuitError(
            f"the learned mask collapsed: it keeps {what} after {training.steps} steps, so it says nothing of which "
            f"matter; try {change}, or another learning rate than {training.rate:g}"
        )
