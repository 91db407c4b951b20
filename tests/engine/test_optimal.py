"""Constants of optimal ablation: what scipy finds with hooks on the plain module, kept with the circuit."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.optimize
import torch

import acdc
import problems
from acdc.circuit.constants import Constants
from acdc.engine import optimal
from acdc.engine.circuits import measure_circuits
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.metrics import OUTCOMES
from acdc.tasks.task import Dataset

Array = npt.NDArray[np.float64]


@functools.cache
def _problem(family: str = "gpt2", metric: str = "kl", size: int = 6, **options: Any) -> Problem:
    model = problems.tiny(family)
    prompts = problems.make_prompts(size=size)
    return Problem(model, model.graph(), prompts, OUTCOMES[metric], "optimal", **options)


def _hooked_loss(problem: Problem, layer: int | None, head: int | None) -> Callable[[Array], tuple[float, Array]]:
    """KL from the full model, and its gradient, where a GPT-2's head, MLP or input (no layer) writes a constant."""
    module, prompts = problem.model.module, problem.prompts
    block = module.transformer.h[layer or 0]  # type: ignore[union-attr,index]
    rows = torch.arange(len(prompts))

    def logits() -> torch.Tensor:
        found = module(prompts.clean, attention_mask=prompts.mask.long()).logits
        return found[rows, prompts.positions[:, 0]].log_softmax(-1)

    with torch.no_grad():
        full = logits()

    def loss(flat: Array) -> tuple[float, Array]:
        constant = torch.tensor(flat, requires_grad=True)

        def of_mlp(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
            return constant.expand_as(out)

        def of_head(_: Any, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            d, (x,) = len(flat), given
            return (
                torch.cat((x[..., : head * d], constant.expand(*x.shape[:-1], d), x[..., (head + 1) * d :]), -1),
            )  # type: ignore[operator]

        if layer is None:
            hook = block.register_forward_pre_hook(lambda _, given: (constant.expand_as(given[0]), *given[1:]))
        elif head is None:
            hook = block.mlp.register_forward_hook(of_mlp)
        else:
            hook = block.attn.c_proj.register_forward_pre_hook(of_head)
        with hook, torch.enable_grad():
            value = (full.exp() * (full - logits())).sum(-1).mean()
            (gradient,) = torch.autograd.grad(value, constant)
        return float(value.detach()), gradient.numpy()

    return loss


def test_no_constant_does_less_harm() -> None:
    """The loss at what was learned is what scipy comes to from the mean, with hooks on the plain module."""
    problem = _problem(metric="logit-difference")  # no distance: the loss is KL
    mean = dataclasses.replace(problem, ablation="mean")._references
    assert problem.constants is not None
    assert mean is not None
    for layer, head in ((0, 1), (1, 2), (1, None)):
        stage = 2 * layer + (head is None)
        loss = _hooked_loss(problem, layer, head)
        start = mean.outputs[stage][head or 0].flatten().numpy()
        best = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).fun
        assert best < 0.8 * loss(start)[0]  # there is something to be learned
        assert loss(problem.constants.outputs[stage][head or 0])[0] == pytest.approx(best, rel=0.02)
    loss = _hooked_loss(problem, None, None)
    (start,) = (x.flatten().numpy() for x in mean.inputs)
    best = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).fun
    assert best < 0.8 * loss(start)[0]
    assert loss(problem.constants.inputs[0])[0] == pytest.approx(best, rel=0.05)


def _without(problem: Problem) -> list[float]:
    """The metric without each source alone: nobody reads it, and it reads what it read."""
    valid = problem.graph.valid
    masks = [valid & ~(np.arange(problem.graph.n_sources) == source) for source in range(problem.graph.n_sources)]
    return measure_circuits(problem, masks)[1]


@pytest.mark.parametrize("family", ["gemma2", "gpt-neox-parallel"])
def test_no_source_is_worse_off_than_under_its_mean(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every family, where heads share a norm too: without a source the engine is nearer to the model, or as near."""
    for steps in ("STEPS", "INPUT_STEPS"):
        monkeypatch.setattr(optimal, steps, 20)
    learned = _problem(family, size=4)
    ours = np.array(_without(learned))
    theirs = np.array(_without(dataclasses.replace(learned, ablation="mean")))
    assert (ours <= theirs * (1 + 1e-9) + 1e-12).all()
    assert ours.sum() < 0.9 * theirs.sum()


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in ("STEPS", "INPUT_STEPS"):
        monkeypatch.setattr(optimal, steps, 5)


@pytest.mark.usefixtures("few_steps")
def test_a_batch_is_a_matter_of_memory_alone() -> None:
    model, prompts = problems.tiny("gpt2"), problems.make_prompts(size=5)
    whole, batched = (
        Problem(model, model.graph(), prompts, OUTCOMES["kl"], "optimal", size).constants for size in (None, 2)
    )
    assert whole is not None
    assert batched is not None
    for a, b in zip(whole.outputs + whole.inputs, batched.outputs + batched.inputs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("few_steps")
def test_a_circuit_keeps_its_constants(tmp_path: Path) -> None:
    """Held-out prompts are judged with the constants of the discovery prompts, in a run that is read again too."""
    model = problems.tiny("gpt2")
    discovery, held_out = problems.make_prompts(size=6), problems.make_prompts(size=5, seed=1)
    data = Dataset("random", discovery, held_out, OUTCOMES["kl"], "optimal")
    circuit = acdc.discover(model, data, "eap-ig", edges=40)
    assert circuit.constants is not None
    circuit.save(tmp_path / "run")
    again = acdc.Circuit.load(tmp_path / "run")
    found = acdc.evaluate(model, data, circuit, random_circuits=0)
    assert acdc.evaluate(model, data, again, random_circuits=0) == found
    by_hand = Problem(model, model.graph(), held_out, OUTCOMES["kl"], "optimal", constants=circuit.constants)
    assert found.circuit == measure_circuits(by_hand, [circuit.edges])[1][0]
    bare = dataclasses.replace(circuit, scores=None)  # learned again, on the discovery prompts
    assert acdc.evaluate(model, data, bare, random_circuits=0).circuit == pytest.approx(found.circuit, rel=1e-6)
    acts = acdc.CircuitModel.of(model, data, again)
    rows = torch.arange(5)
    logits = acts(held_out.clean)[rows, held_out.positions[:, 0]].log_softmax(-1)
    full = model.module(held_out.clean).logits[rows, held_out.positions[:, 0]].log_softmax(-1)
    kl = (full.exp() * (full - logits)).sum(-1).mean()
    assert float(kl.detach()) == pytest.approx(found.circuit)


def test_constants_of_another_model_are_refused() -> None:
    constants = _problem(metric="logit-difference").constants
    model = problems.tiny("qwen2")
    problem = Problem(model, model.graph(), problems.make_prompts(), OUTCOMES["kl"], "optimal", constants=constants)
    with pytest.raises(AcdcError, match="not of model"):
        measure_circuits(problem, [])


def test_what_cannot_be_learned_from_is_refused() -> None:
    with pytest.raises(AcdcError, match="on 3 prompts it would only learn these: give at least 4"):
        _problem(size=3)
    detached = dataclasses.replace(OUTCOMES["kl"], differentiable=False)
    model, prompts = problems.tiny("gpt2"), problems.make_prompts(size=4)
    with pytest.raises(AcdcError, match=r"goes by the gradient .* has none"):
        Problem(model, model.graph(), prompts, detached, "optimal")
    with pytest.raises(AcdcError, match="none for values at sites"):
        acdc.trace(model, prompts, ablation="optimal")
    with pytest.raises(AcdcError, match="none for neurons"):
        acdc.score(model, prompts, "nap", units="neuron", ablation="optimal")
    with pytest.raises(AcdcError, match="all finite"):
        Constants((np.array([np.nan]),), ())
