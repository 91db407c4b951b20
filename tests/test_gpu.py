"""On a GPU everything gives what it gives on a CPU, to rounding; skipped where there is none (`pytest -m gpu`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import acdc
from acdc.benchmarks.measuring.gpu import SUBJECTS, Plan, one, rows_in
from acdc.engine import memory
from acdc.model.elsewhere import numbers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]
DEVICES = ("cpu", "cuda")


def both(name: str, task: str, size: int = 8) -> list[tuple[acdc.Model, acdc.Dataset]]:
    models = [acdc.load(name, device=device) for device in DEVICES]
    return [(model, acdc.tasks.load(task, size=size).prepare(model)) for model in models]


@pytest.mark.parametrize(
    "method",
    [
        "eap",
        "eap-ig",
        "eap-ig-activations",
        "eap-gp",
        "conductance",
        "relp",
        "gim",
        "atp-star",
        "nap-ig",
        "hisp",
        "exact",
    ],
)
def test_rankings_are_those_of_the_cpu(method: str) -> None:
    here, there = (acdc.score(model, data, method) for model, data in both("induction-2l", "induction"))
    scale = np.abs(here.values).max()
    np.testing.assert_allclose(there.values, here.values, atol=1e-3 * scale)


@pytest.mark.parametrize("method", ["acdc", "guided"])
def test_searches_keep_the_edges_that_they_keep_on_the_cpu(method: str) -> None:
    found = [acdc.discover(model, data, method) for model, data in both("tracr-hist", "tracr-hist")]
    assert (found[0].edges == found[1].edges).all()


def test_judging_looking_inside_and_tracing_are_those_of_the_cpu() -> None:
    values = []
    for model, data in both("induction-2l", "induction"):
        circuit = acdc.discover(model, data, "eap", edges=20, metric="logit-difference")
        judged = acdc.evaluate(model, data, circuit, random_circuits=2)
        scores = acdc.score(model, data, "eap", metric="logit-difference")
        curve = acdc.curve(model, data, scores)
        values.append([judged.faithfulness, judged.kl, *curve.faithfulness])
    np.testing.assert_allclose(values[1], values[0], atol=1e-3)


@pytest.mark.parametrize("device", ["cuda+cpu", "cuda+disk"])
def test_weights_that_stay_elsewhere_give_the_same(device: str) -> None:
    scores = []
    for each in ("cuda", device):
        model = acdc.load("tiny-tasks-gqa", device=each)
        data = acdc.tasks.load("ioi", size=8).prepare(model)
        scores.append(acdc.score(model, data, "eap-ig").values)
    assert model.device.type == "cuda"
    assert {numbers(parameter).device.type for parameter in model.module.parameters()} == {"cpu"}
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5 * np.abs(scores[0]).max())


def test_batches_go_by_the_gpu() -> None:
    device = torch.device("cuda")
    assert memory.tokens_at_once(device) > memory.tokens_at_once(torch.device("cpu"))
    assert 0 < memory.available(device) <= torch.cuda.get_device_properties(device).total_memory


def test_products_are_not_rounded_to_tf32_unless_asked_for() -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32


def test_every_work_is_measured_on_the_gpu(tmp_path: Path) -> None:
    plan = Plan(tmp_path, torch.device("cuda"), ["tiny"])
    assert list(one(plan, "tiny", SUBJECTS["tiny"].works)) == list(SUBJECTS["tiny"].works)
    rows = rows_in(tmp_path).all()
    assert [row.get("error") for row in rows] == [None] * len(rows)
    assert all(row["peak_bytes"] is not None for row in rows)
