"""Nothing assumes that the model is on the CPU: on a GPU that is pretended everything runs, and gives the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import acdc
from acdc.engine import memory
from acdc.methods import METHODS, get_method
from pretend_gpu import pretended_gpu

CASES = (("induction-2l", "induction"), ("tiny-tasks-gqa", "gendered-pronoun"))
"""Of a learned absolute position and plain heads; of rotary ones and grouped queries."""

PLAIN_MLPS = {"cd-t"}
"""Methods without a rule for gated MLPs."""


@pytest.fixture(autouse=True)
def same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(memory.TOKENS_AT_ONCE, "cuda", memory.tokens_at_once(torch.device("cpu")))


def on_both(
    case: tuple[str, str],
    work: Callable[[acdc.Model, acdc.tasks.Dataset], Any],
    monkeypatch: pytest.MonkeyPatch,
    size: int = 4,
    device: str = "cuda",
) -> list[Any]:
    """What work gives on the CPU and on the GPU."""

    def on(device: str) -> Any:
        model = acdc.load(case[0], device=device)
        return work(model, acdc.tasks.load(case[1], size=size).prepare(model))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here = on("cpu")
        with pretended_gpu(monkeypatch):
            return [here, on(device)]


@pytest.mark.parametrize(
    ("name", "case"),
    [
        (name, case)
        for name, method in METHODS.items()
        for case in (CASES[:1] if method.trains or name in PLAIN_MLPS else CASES)
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_methods(name: str, case: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    method = get_method(name)
    steps = {"steps": 150} if "steps" in method.options and method.options["steps"] > 150 else {}

    def work(model: acdc.Model, data: acdc.tasks.Dataset) -> Any:
        if method.score is not None:
            return acdc.score(model, data, name, **steps).values
        goal = {"faithfulness": 0.8} if "faithfulness" in method.targets else {"threshold": 1.0}
        return acdc.discover(model, data, name, metric="logit-difference", **goal).edges

    here, there = on_both(case, work, monkeypatch)
    np.testing.assert_array_equal(there, here)


@pytest.mark.parametrize("ablation", ["zero", "mean", "mean-position", "optimal"])
def test_ablations(ablation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = on_both(
        CASES[0], lambda model, data: acdc.score(model, data, "eap", ablation=ablation).values, monkeypatch
    )
    np.testing.assert_array_equal(there, here)


def circuit_of(model: acdc.Model, data: acdc.tasks.Dataset) -> acdc.Circuit:
    return acdc.discover(model, data, "eap", edges=60, metric="logit-difference")


QUESTIONS: dict[str, Callable[[acdc.Model, acdc.tasks.Dataset], Any]] = {
    "evaluate": lambda model, data: acdc.evaluate(model, data, circuit_of(model, data), random_circuits=2),
    "curve": lambda model, data: acdc.curve(model, data, acdc.score(model, data, "eap")),
    "minimality": lambda model, data: acdc.minimality(model, data, circuit_of(model, data)),
    "completeness": lambda model, data: acdc.completeness(
        model, data, circuit_of(model, data), random_sets=2, greedy_steps=2
    ),
    "missed": lambda model, data: acdc.missed(model, data, circuit_of(model, data), samples=200),
    "certify": lambda model, data: acdc.certify(model, data, acdc.discover(model, data, faithfulness=0.8)),
    "audit": lambda model, data: acdc.audit(model, data, circuit_of(model, data), level="quick"),
    "trace": lambda model, data: acdc.trace(model, data, sites=("residual", "heads")).maps,
    "trace, first order": lambda model, data: acdc.trace(model, data, method="first-order").maps,
    "ablate": lambda model, data: acdc.ablate(model, data, "a1.h0"),
    "patch path": lambda model, data: acdc.patch_path(model, data, ["a0.h1", "logits"]),
    "neurons": lambda model, data: acdc.score(model, data, "nap-ig", units="neuron"),
    "greedy": lambda model, data: acdc.discover(model, data, "eap-ig", edges=20, select="greedy"),
    "nodes": lambda model, data: acdc.discover(model, data, faithfulness=0.8, units="node"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions(question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = on_both(CASES[0], QUESTIONS[question], monkeypatch, size=16 if question == "audit" else 8)
    assert repr(there) == repr(here)


@pytest.mark.parametrize("device", ["cuda+cpu", "cuda+disk"])
@pytest.mark.parametrize("question", ["evaluate", "trace", "greedy"])
def test_weights_elsewhere(question: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = on_both(CASES[1], QUESTIONS[question], monkeypatch, device=device)
    assert repr(there) == repr(here)


class TestPretendedGpu:
    """It refuses what a real one refuses."""

    def test_tensors_on_different_devices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pretended_gpu(monkeypatch):
            there = torch.zeros(3, device="cuda")
            assert (there + 1).device.type == there[1:].device.type == "cuda"
            assert there.cpu().device.type == torch.zeros(3).device.type == "cpu"
            with pytest.raises(RuntimeError, match="same device"):
                there + torch.zeros(3)
            assert (there + torch.tensor(1.0)).device.type == "cuda"

    def test_indices_may_be_on_the_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pretended_gpu(monkeypatch):
            there = torch.zeros(3, device="cuda")
            assert there[torch.tensor([0, 1])].device.type == "cuda"
            with pytest.raises(RuntimeError, match="same device"):
                torch.zeros(3)[torch.tensor([0, 1], device="cuda")]

    def test_arrays_and_generators(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pretended_gpu(monkeypatch):
            with pytest.raises(TypeError, match="numpy"):
                torch.zeros(3, device="cuda").numpy()
            with pytest.raises(RuntimeError, match="generator"):
                torch.rand(3, device="cuda", generator=torch.Generator().manual_seed(0))

    def test_gradients_go_back_across_devices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pretended_gpu(monkeypatch):
            x = torch.ones(3, requires_grad=True)
            (x.to("cuda") * 2).sum().cpu().backward()
            assert x.grad is not None
            assert x.grad.device.type == "cpu"
            assert x.grad.tolist() == [2.0, 2.0, 2.0]
