"""A quadratic model of the distance in the weights of the edges, and what it says may go together.

Near a circuit, removing the edges of a set S changes what the metric reads on prompt b by about −Σ_{e∈S} ∂_b/∂w_e, and
the distance by

    ΔD(S) = mean_b [ −Σ_e g_be + ½ Σ_k (Σ_e G_bke)² ]

with g the gradient of the distance, and G the gradients along the few directions k of the logits in which the distance
curves most (Gauss–Newton). Of a metric that is a distance itself, g_b / √(2 D_b) is one more direction: no set takes
the distance D_b of a prompt below 0, whatever first order says.

A ranking knows the size of each edge's effect only; this knows which effects cancel, on every prompt. The model's own
terms e = e' stand for all that it does not see (other directions, other prompts, the network's curvature) and are
counted many times over: without this it believes in sets of large effects that cancel.

All of it takes one run, and a backward pass for the distance and for each direction. What it proposes is tested.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from acdc.engine.edge_gradients import EdgeGradients
from acdc.engine.measure import Measure, Measures
from acdc.engine.memory import DIRECTIONS
from acdc.engine.patching import Patching
from acdc.errors import TaskError
from acdc.graph import BoolArray, FloatArray, IntArray
from acdc.methods.attribution import gradient_of, refuse_bad_gradient
from acdc.metrics import Outcome
from acdc.model import passes

DAMPING = 10.0
"""How many times an edge's own curvature is counted."""
ATTRIBUTED = 0.01
"""Share of an edge's attribution that it costs at least: where a softmax is saturated, nothing curves."""
NEAR = 0.01
"""Share of the distance that matters below which no prompt's distance is told from 0."""
AT_ONCE = 0.002
"""Share of the edges that the model lets go before it looks at all costs again."""
COHERENT = 2.0
"""How many times what edges curve alone they may curve together: past it, each has changed what the next one costs."""


@dataclasses.dataclass(frozen=True, eq=False)
class Quadratic:
    """The model around one circuit.

    Attributes:
        edges: flat indices of the circuit's edges, `[edge]`.
        linear: change of the distance to first order when each goes, `[edge]`.
        effects: `[row, edge]`; rows are directions × prompts, scaled so that the curvature is ½ |Σ effects|²; of a
            distance the last one of each prompt is its gradient's own.
        attributed: absolute scores of the edges in the full model, `[edge]`.
    """

    edges: IntArray
    linear: FloatArray
    effects: FloatArray
    attributed: FloatArray

    @classmethod
    def around(cls, measures: Measures, kept: BoolArray, scale: float, scores: FloatArray) -> Quadratic:
        """The model around a circuit `[n_destinations, n_sources]`.

        Args:
            scale: the distance that matters, as a budget is.
            scores: absolute scores of all edges in the full model, of the same shape as the circuit.

        Raises:
            TaskError: the metric has no gradient, or it is NaN or infinite.
        """
        edges = np.flatnonzero(kept)
        linear, effects = np.zeros(len(edges)), list[FloatArray]()
        n = len(measures.batches.prompts)
        for patching, measure in measures:
            first, rows = _gradients(patching, measure, kept, edges, scale)
            linear -= first.sum(0).cpu().numpy() / n
            effects.append(rows.cpu().numpy() / n**0.5)
        ranks = measures.batches.ranks  # rows come from all prompts, in their order
        every: FloatArray = ranks.gathered(torch.from_numpy(np.concatenate(effects)).T).T.numpy()
        found = cls(edges, ranks.summed(linear), every, scores.ravel()[edges])
        refuse_bad_gradient(found.linear, measures.outcome)
        refuse_bad_gradient(found.effects, measures.outcome)
        return found

    @cached_property
    def own(self) -> FloatArray:
        """Each edge's curvature alone, undamped, `[edge]`."""
        squares: FloatArray = np.square(self.effects).sum(0)
        return squares

    @cached_property
    def alone(self) -> FloatArray:
        """What each edge costs, `[edge]`."""
        return self.linear + 0.5 * DAMPING * self.own + ATTRIBUTED * self.attributed

    def goes(self, count: int) -> IntArray:
        """Flat indices of so many edges that may go together at least cost, cheapest first."""
        left = np.ones(len(self.edges), dtype=bool)
        together = np.zeros(len(self.effects))
        order: list[IntArray] = []
        at_once = max(1, int(AT_ONCE * len(self.edges)))
        while (missing := count - sum(map(len, order))) > 0:
            cost = np.where(left, self.alone + together @ self.effects, np.inf)
            some = np.argsort(cost, kind="stable")[: min(at_once, missing)]
            joint = np.square(np.cumsum(self.effects[:, some], axis=1)).sum(0)
            coherent = joint > COHERENT * np.cumsum(self.own[some])
            if coherent[1:].any():
                some = some[: 1 + int(coherent[1:].argmax())]
            order.append(self.edges[some])
            left[some] = False
            together += self.effects[:, some].sum(1)
        return np.concatenate(order) if order else np.zeros(0, dtype=np.int64)


def _gradients(
    patching: Patching, measure: Measure, kept: BoolArray, edges: IntArray, scale: float
) -> tuple[Tensor, Tensor]:
    """Of one batch: gradient of the distance `[B, edge]`, and along the directions `[direction · B, edge]`."""
    prompts, model = len(patching.prompts), patching.model
    with torch.enable_grad(), model.frozen():
        zeros = torch.zeros(prompts, len(edges), dtype=model.dtype, device=model.device)
        gradients = EdgeGradients(patching.graph, kept, zeros)
        logits = patching.logits(kept, rows=measure.rows, gradients=gradients)
        found: list[Tensor] = []
        if logits.requires_grad:
            for direction in directions(measure, logits.detach()[0], scale):
                found.append(gradients.of((logits[0] * direction).sum()).cpu().double())
                passes.count(backward=prompts)
    none = torch.zeros(0, len(edges), dtype=torch.float64)
    first = found[0] if found else none.new_zeros(prompts, len(edges))
    rows = found[1:]
    if measure.outcome.is_distance:
        least = max(NEAR * scale, torch.finfo(model.dtype).eps)
        distance = measure.distance(logits.detach())[0].cpu().double().clamp(min=least)
        rows.append(-first / (2 * distance).sqrt()[:, None])
    return first, torch.cat([none, *rows])


def directions(measure: Measure, logits: Tensor, scale: float) -> list[Tensor]:
    """In logits: the gradient of the distance, then F_k with Σ_k F_k F_kᵀ ≈ its curvature: `[B, P, R]` each.

    Where the metric v is no distance itself, |v − v_full| is taken as (v − v_full)² / 2c + c / 2, which lies above it
    and touches it at c: where the circuit is, or `scale` if that is farther.

    Args:
        logits: of the circuit, `[B, P, R]`.

    Raises:
        TaskError: the metric has no gradient.
    """
    x = logits.clone().requires_grad_()
    with torch.enable_grad():
        if measure.outcome.is_distance:
            (slope,) = gradient_of(measure.distance(x[None]).sum(), [x], measure.outcome, create_graph=True)
            return [slope.detach(), *_curvature(slope, x, measure.outcome)]
        value = measure.value(x[None])[0]
        (slope,) = gradient_of(value.sum(), [x], measure.outcome)
    apart = value.detach() - measure.full
    c = apart.abs().clamp(min=scale).clamp(min=torch.finfo(x.dtype).eps)[:, None, None]
    return [slope * apart[:, None, None] / c, slope / c.sqrt()]


def _curvature(slope: Tensor, x: Tensor, outcome: Outcome) -> list[Tensor]:
    """The Hessian at each position by Nyström's method, after one power iteration: `[B, P, R]` each.

    A direction is the sum of one of each position with random signs, so that positions do not mix on average. None
    where the metric has no second derivative.
    """
    if not slope.requires_grad:
        return []
    generator = torch.Generator().manual_seed(0)
    count = min(DIRECTIONS, x.shape[-1])

    def hessian(vectors: Tensor) -> Tensor:  # [B, P, R, K]
        product = x.new_empty(vectors.shape)
        for k in range(count):
            along = (slope * vectors[..., k]).sum()
            (product[..., k],) = gradient_of(along, [x], outcome, retain_graph=True)
        return product

    drawn = torch.randn(x.shape[-1], count, generator=generator).to(x)
    signs = torch.randint(0, 2, (x.shape[1], 1, count), generator=generator).to(x) * 2 - 1
    try:
        basis = torch.linalg.qr(hessian(drawn.expand(*x.shape, count)))[0]
    except TaskError:
        return []
    product = hessian(basis)
    size, vectors = torch.linalg.eigh(basis.mT @ product)
    root = torch.where(size > 1e-6 * size.amax(-1, keepdim=True), size, torch.inf).rsqrt()
    return list((product @ (vectors * (signs * root[..., None, :]))).unbind(-1))
