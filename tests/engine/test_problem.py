"""A problem's batches are its prompts, each once, with references that belong to all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import acdc
import problems
from acdc.engine.problem import Problem
from acdc.errors import TaskError
from acdc.metrics import OUTCOMES

KL = OUTCOMES["kl"]


def make(**options: Any) -> Problem:
    model = problems.tiny("gpt2-scaled-by-layer")
    return Problem(model, model.graph(), problems.make_prompts(size=5, padding="both"), KL, **options)


@pytest.mark.parametrize("size", [1, 2, 5, 100, None])
def test_batches_are_the_prompts_in_order(size: int | None) -> None:
    problem = make(batch_size=size)
    batches = list(problem.batches())
    assert len(batches) == len(problem.batches())
    assert max(len(batch.prompts) for batch in batches) <= problem.batch_of("circuits")
    assert torch.equal(torch.cat([batch.prompts.clean for batch in batches]), problem.prompts.clean)
    assert len(problem.patching().prompts) == 5


@pytest.mark.parametrize("ablation", ["mean", "mean-position"])
@pytest.mark.parametrize("size", [1, 2])
def test_every_batch_has_the_mean_over_all_prompts(ablation: Any, size: int) -> None:
    whole = make(ablation=ablation).patching().references
    for i, batch in enumerate(make(ablation=ablation, batch_size=size).batches()):
        real = batch.prompts.mask
        ours, theirs = batch.references, whole
        for part, expected in zip((*ours.inputs, *ours.outputs), (*theirs.inputs, *theirs.outputs), strict=True):
            own = expected[..., i * size : i * size + len(real), :, :]
            torch.testing.assert_close(part[..., real, :], own[..., real, :])


def test_a_batch_is_as_large_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    room = make()._need("circuits").of(3)
    sizes = []
    for free in (0.0, 2 * room, 1e9):
        monkeypatch.setattr("acdc.engine.memory.available", lambda device, free=free: free)
        sizes.append(make().batch_of("circuits"))
    assert sizes == [1, 3, 5]


@pytest.mark.parametrize(
    "metric",
    [lambda logits: logits[..., 1].softmax(-2), lambda logits: logits[..., 1] * torch.rand(logits.shape[:-1])],
    ids=["of all prompts together", "another each time"],
)
def test_a_metric_whose_value_of_a_prompt_is_not_its_own_is_refused(metric: Any) -> None:
    with pytest.raises(TaskError, match=r"beside others and .* alone"):
        acdc.score(problems.tiny("gpt2"), problems.make_prompts(), "eap", metric=metric)
