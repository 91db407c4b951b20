"""The quadratic model: right to first order, curved as the metric is, and aware of effects that cancel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import problems
from acdc.engine.measure import Measure, Measures, bind
from acdc.engine.patching import Patching
from acdc.errors import TaskError
from acdc.graph import BoolArray, IntArray
from acdc.methods import quadratic
from acdc.methods.attribution import weight_gradient
from acdc.methods.quadratic import Quadratic, directions
from acdc.metrics import OUTCOMES

FAMILIES = ("gpt2-scaled-by-layer", "llama", "gpt-neox-parallel")


def together(model: Quadratic, columns: IntArray) -> float:
    """What the edges in these places of `edges` cost together."""
    effects = model.effects[:, columns]
    between = np.square(effects.sum(1)).sum() - np.square(effects).sum()
    return float(model.alone[columns].sum() + 0.5 * between)


def some_circuit(patching: Patching, seed: int = 0) -> BoolArray:
    """Most edges, at random."""
    generator = np.random.default_rng(seed)
    graph = patching.graph
    return graph.prune(graph.valid & (generator.random(graph.valid.shape) < 0.8))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_weights_of_each_prompt_are_those_of_a_run_alone(family: str, ablation: Any) -> None:
    patching, measure = problems.make(family, metric="kl", ablation=ablation, padding="both", reads=2)
    graph, n = patching.graph, len(patching.prompts)
    shares = torch.rand(n, *graph.valid.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shares[:, 1] *= shares[:, 1] > 0.5
    shares.requires_grad_()
    with patching.model.frozen():
        together = measure.distance(patching.logits(shares, by_prompt=True))[0]
        (gradient,) = torch.autograd.grad(together.sum(), [shares])
        for prompt in range(n):
            alone = shares[prompt].detach().clone().requires_grad_()
            distance = measure.distance(patching.logits(alone))[0, prompt]
            (expected,) = torch.autograd.grad(distance, [alone])
            torch.testing.assert_close(together[prompt], distance, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(gradient[prompt], expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("metric", ["kl", "l2", "logit-difference"])
def test_the_model_is_right_to_first_and_second_order(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the distance along the line on which some edges fade, and its part that is linear in the logits."""
    monkeypatch.setattr(quadratic, "DIRECTIONS", 100)
    monkeypatch.setattr(quadratic, "DAMPING", 1.0)
    patching, measure = problems.make("gpt2-scaled-by-layer", metric=metric, padding="both")
    kept = some_circuit(patching)
    scale = 10.0  # so that a metric that is no distance is bounded by one and the same parabola
    model = Quadratic.around(Measures.of(patching, measure), kept, scale, np.zeros(kept.shape))
    if metric != "logit-difference":  # the last rows are the gradient's own
        model = dataclasses.replace(model, effects=model.effects[: -len(patching.prompts)])
    going = np.zeros_like(kept)
    going.flat[model.edges[:: len(model.edges) // 5]] = True

    def logits(share: float) -> Tensor:
        with torch.no_grad():
            return patching.logits(kept - share * going.astype(float), rows=measure.rows)

    step = 1e-3
    start, velocity = logits(0), (logits(step) - logits(-step)) / (2 * step)

    def bound(share: float) -> float:  # the distance where logits were linear in the weights
        changed = start + share * velocity
        if metric == "logit-difference":
            return float(((measure.value(changed) - measure.full) ** 2 / (2 * scale)).mean())
        return float(measure.distance(changed).mean())

    columns = np.flatnonzero(going.ravel()[model.edges])
    slope = (bound(step) - bound(-step)) / (2 * step)
    curvature = (bound(step) - 2 * bound(0) + bound(-step)) / step**2
    assert model.linear[columns].sum() == pytest.approx(slope, rel=1e-4)
    assert np.square(model.effects[:, columns].sum(1)).sum() == pytest.approx(curvature, rel=1e-3)
    assert together(model, columns) == pytest.approx(slope + curvature / 2, rel=1e-3)


def test_where_there_are_many_rows_the_sharpest_curvature_is_kept() -> None:
    patching, measure = problems.make("gpt2-scaled-by-layer", metric="kl")
    logits = patching.clean_logits().clone()
    logits[..., : quadratic.DIRECTIONS + 1] += 12  # likely tokens, which curve in one direction less
    found = directions(measure, logits, 1.0)[1:]
    assert len(found) == quadratic.DIRECTIONS < logits.shape[-1]
    p = logits.softmax(-1)
    for prompt in range(len(p)):
        exact = torch.diag(p[prompt, 0]) - torch.outer(p[prompt, 0], p[prompt, 0])
        low = sum(torch.outer(f[prompt, 0], f[prompt, 0]) for f in found)
        assert torch.linalg.norm(exact - low) < 0.05 * torch.linalg.norm(exact)


def test_effects_that_cancel_go_together() -> None:
    edges = np.array([3, 5, 8, 13])
    effects = np.array([[2.0, -2.0, 1.5, 0.0], [0.0, 0.0, 0.0, 3.0]])
    model = Quadratic(edges, np.zeros(4), effects, np.zeros(4))
    assert model.goes(2).tolist() == [8, 5]  # 1.5 − 2 costs less than the second cheapest alone
    assert model.goes(4).tolist()[-1] == 13
    assert model.goes(0).tolist() == []
    assert together(model, np.array([0, 1])) == pytest.approx(model.alone[:2].sum() - 4)


def test_edges_that_do_the_same_do_not_all_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them alone brings the circuit nearer; all together bring it far beyond."""
    monkeypatch.setattr(quadratic, "AT_ONCE", 0.5)
    n = 40
    effects = np.zeros((2, 2 * n))
    effects[0, :n], effects[1, n:] = 0.1, 1e-3
    linear = np.where(np.arange(2 * n) < n, -0.2, 0.0)
    model = Quadratic(np.arange(2 * n), linear, effects, np.zeros(2 * n))
    going = model.goes(n)
    assert len(going) == n
    assert together(model, going) < 0 < together(model, np.arange(n))


def test_no_set_brings_a_distance_below_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quadratic, "DAMPING", 1.0)
    patching, measure = problems.make("gpt2-scaled-by-layer", metric="kl", padding="both")
    kept = some_circuit(patching)
    measures = Measures.of(patching, measure)
    model = Quadratic.around(measures, kept, 1e-9, np.zeros(kept.shape))
    for n in (1, 5, 50):
        best = np.argsort(model.linear, kind="stable")[:n]
        assert model.linear[best].sum() < 0
        assert together(model, best) > -measures.distance(kept)


def test_a_circuit_that_is_not_read_costs_nothing() -> None:
    patching, measure = problems.make("gpt2-scaled-by-layer", metric="kl")
    kept = np.zeros_like(patching.graph.valid)
    kept[0] = patching.graph.valid[0]  # nothing reads these heads
    model = Quadratic.around(Measures.of(patching, measure), kept, 1.0, np.zeros(kept.shape))
    assert len(model.edges) == kept.sum()
    assert not model.alone.any()


def test_a_metric_without_a_gradient_is_refused() -> None:
    patching, measure = problems.make("gpt2-scaled-by-layer", metric="accuracy")
    with pytest.raises(TaskError, match="has no gradient"):
        Quadratic.around(
            Measures.of(patching, measure), some_circuit(patching), 1.0, np.zeros(patching.graph.valid.shape)
        )


class Once(torch.autograd.Function):
    """Squares, with a first derivative alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


def sum_of_squares(x: Tensor) -> Tensor:
    found: Tensor = Once.apply(x)
    return found.sum(-1)


@pytest.mark.parametrize("function", [sum_of_squares, lambda x: x.sum(-1)], ids=["not twice", "linear"])
def test_without_a_second_derivative_nothing_curves(function: Callable[[Tensor], Tensor]) -> None:
    outcome = dataclasses.replace(
        OUTCOMES["l2"], name="mine", function=lambda logits, targets: function(logits - targets.full)
    )
    patching, _ = problems.make("gpt2-scaled-by-layer", metric="kl")
    kept = some_circuit(patching)
    measures = Measures.of(patching, bind(outcome, patching))
    model = Quadratic.around(measures, kept, 1.0, np.zeros(kept.shape))
    assert model.effects.shape == (len(patching.prompts), kept.sum())  # the gradient's own
    gradient = weight_gradient(measures, kept, Measure.distance, sparse=True)
    np.testing.assert_allclose(model.linear, -gradient[kept], rtol=1e-9, atol=1e-12)


def test_edges_without_any_curvature_go_by_their_attribution() -> None:
    model = Quadratic(np.arange(3), np.zeros(3), np.zeros((2, 3)), np.array([0.2, 0.1, 0.3]))
    assert model.goes(3).tolist() == [1, 0, 2]
