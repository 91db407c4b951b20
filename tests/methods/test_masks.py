"""Learned masks: gates and penalties against their definitions, one step against finite differences, and collapse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import problems
from acdc.engine.measure import bind
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.errors import AcdcError, EmptyCircuitError
from acdc.methods import METHODS, Estimates
from acdc.methods.masks import HardConcrete, Information, Lagrangian, Penalty, Plain, Training, UniformWindow, train
from acdc.metrics import OUTCOMES

EDGES = ["subnetwork-probing", "edge-pruning", "hap", "ugs"]


def make(family: str = "llama", unit: Any = "edge", size: int = 3, metric: str = "logit-difference") -> Problem:
    model = problems.tiny(family)
    prompts = problems.make_prompts(size=size, padding="both")
    return Problem(model, model.graph(), prompts, OUTCOMES[metric], unit=unit)


def estimates(name: str, problem: Problem, **options: Any) -> Estimates:
    score = METHODS[name].score
    assert score is not None
    return score(problem, **options)


# ---- gates and penalties ----------------------------------------------------------------------------------------


def test_a_hard_concrete_gate_is_a_stretched_sigmoid_of_logistic_noise() -> None:
    theta, u = (
        torch.tensor([-2.0, 0.3, 4.0], dtype=torch.float64),
        torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64),
    )
    found = HardConcrete().draw(theta, u).numpy()
    logistic = np.log(u.numpy()) - np.log(1 - u.numpy())
    expected = np.clip(1.2 / (1 + np.exp(-(logistic + theta.numpy()) / (2 / 3))) - 0.1, 0, 1)
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("gate", [HardConcrete(), UniformWindow()])
def test_how_sure_a_unit_is_kept_is_what_its_draws_say(gate: Any) -> None:
    theta = torch.tensor([-2.0, -0.3, 0.5, 3.0], dtype=torch.float64)
    u = torch.rand(200_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = gate.draw(theta, u)
    mean = (drawn > 0).double().mean(0) if isinstance(gate, HardConcrete) else drawn.mean(0)
    np.testing.assert_allclose(mean, gate.kept(theta), atol=0.005)
    start = torch.tensor([gate.start(0.9)], dtype=torch.float64)
    assert float(gate.kept(start)) == pytest.approx(0.9)


def test_information_is_the_divergence_of_two_normal_distributions() -> None:
    share, mean, deviation = 0.7, 1.5, 2.0
    a = mean + deviation * torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy = torch.distributions.Normal(share * a + (1 - share) * mean, (1 - share) * deviation)
    expected = torch.distributions.kl_divergence(noisy, torch.distributions.Normal(mean, deviation)).mean()
    theta = torch.tensor([np.log(share / (1 - share))], dtype=torch.float64)
    assert float(Information(Plain(), 1.0)(theta, 0)) == pytest.approx(float(expected), rel=0.01)


def test_a_lagrangian_comes_to_its_target_in_a_straight_line() -> None:
    gate = HardConcrete()
    penalty = Lagrangian(gate, 0.8, 0.2, warm_up=4)
    with torch.no_grad():
        penalty.learned[0].copy_(torch.tensor([1.0, 0.0]))
    theta = torch.full((5,), gate.start(0.5), dtype=torch.float64)
    lacking = [float(penalty(theta, step).detach()) for step in range(6)]
    np.testing.assert_allclose(lacking, [0.35 - 0.5, 0.5 - 0.5, 0.65 - 0.5, 0.3, 0.3, 0.3], atol=1e-12)


# ---- training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["edge", "node"])
def test_one_step_goes_against_the_slope_of_the_loss(unit: str) -> None:
    """Adam's first step is of one size, against the sign of the gradient: here by finite differences of full runs."""
    problem, gate, rate = make(unit=unit), HardConcrete(), 1e-4
    penalty = Penalty(gate, 0.3)
    n = problem.units.n
    start = np.random.default_rng(0).uniform(0.3, 0.8, problem.units.shape)
    found = train(problem, gate, penalty, Training(1, rate, 8), start=start)
    generator = torch.Generator().manual_seed(problem.seed)
    torch.randperm(1, generator=generator)
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    patching = Patching(problem.model, problem.graph, problem.prompts)
    measure = bind(OUTCOMES["kl"], patching)
    theta = torch.tensor([gate.start(float(p)) for p in start[problem.units.valid]], dtype=torch.float64)

    @torch.no_grad()
    def loss(theta: torch.Tensor) -> float:
        gates = np.zeros(problem.units.shape)
        gates[problem.units.valid] = gate.draw(theta, u).numpy()
        weights = torch.as_tensor(problem.units.spread(gates))
        return float(measure.distance(patching.logits(weights, rows=None)).mean() + penalty(theta, 0))

    moved = torch.tensor([gate.start(float(p)) for p in found[problem.units.valid]]) - theta
    for i in np.random.default_rng(1).permutation(n)[:12]:
        step = torch.zeros_like(theta)
        step[i] = 1e-5
        slope = (loss(theta + step) - loss(theta - step)) / 2e-5
        if abs(slope) > 1e-7:
            assert float(moved[i]) == pytest.approx(-rate * np.sign(slope), rel=0.02)


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("unit", ["edge", "node"])
def test_each_learned_mask_ranks_what_it_is_asked_for(name: str, unit: str) -> None:
    problem = make(unit=unit, size=5)
    options = {} if name in ("subnetwork-probing", "ugs") else {"warm_up": 10, "sparsity": 0.6}
    if name == "hap":
        options["restrict"] = 0.7
    if name == "ugs":
        options["price"] = 0.1
    found = estimates(name, problem, steps=20, learning_rate=0.3, batch=2, **options).values
    assert found.shape == problem.units.shape
    assert (found[problem.units.valid] >= 0).all()
    assert not found[~problem.units.valid].any()
    again = estimates(name, make(unit=unit, size=5), steps=20, learning_rate=0.3, batch=2, **options).values
    np.testing.assert_array_equal(found, again)
    if name == "hap":
        assert int((found > 0).sum()) == round(0.7 * problem.units.n)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_noise_in_place_of_a_reference(family: str) -> None:
    found = estimates("ibcircuit", make(family), steps=40, learning_rate=0.3, price=3.0).values
    nodes = estimates("ibcircuit", make(family, "node"), steps=40, learning_rate=0.3, price=3.0).values
    graph = problems.tiny(family).graph()
    np.testing.assert_array_equal(found, np.where(graph.valid, nodes, 0.0))
    assert 0 < nodes.min() < nodes.max() < 1


def test_a_task_whose_metric_is_a_distance_is_learned_by_it() -> None:
    assert Training(1, 0.1, 1).outcome(make(metric="l2")).name == "l2"
    assert Training(1, 0.1, 1).outcome(make()).name == "kl"
    assert Training(1, 0.1, 1, "metric").outcome(make()).name == "logit-difference"


# ---- what cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("price", "what"), [(1e6, "keeps nothing"), (0.0, "keeps all")])
def test_a_mask_that_collapses_is_said_and_not_returned(price: float, what: str) -> None:
    with pytest.raises(EmptyCircuitError, match=what):
        estimates("subnetwork-probing", make(), price=price, steps=3 if price == 0 else 60, learning_rate=0.2)


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("ugs", {"steps": 0}, "number of steps"),
        ("ugs", {"batch": 0}, "batch of prompts"),
        ("ugs", {"learning_rate": 0.0}, "learning rate"),
        ("ibcircuit", {"price": -1.0}, "price"),
        ("edge-pruning", {"sparsity": 1.0}, "between 0 and 1"),
        ("hap", {"sparsity": 0.5, "restrict": 0.4}, "at most 1 and more than 0.5"),
    ],
)
def test_options_that_cannot_be_are_refused(name: str, options: dict[str, Any], what: str) -> None:
    with pytest.raises(AcdcError, match=what):
        estimates(name, make(), **options)
