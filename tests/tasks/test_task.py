from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import acdc.tasks
from acdc.errors import AcdcError, TaskError
from acdc.metrics import OUTCOMES, Targets
from acdc.tasks import Prompts, Task, as_dataset
from acdc.tasks.task import resolve_metric
from tiny_tokenizers import StandIn

MODEL = StandIn(vocabulary_size=50)
PROMPTS = Prompts.from_tokens([[1, 2], [3, 4]], [[1, 5], [3, 6]], [7, 8], [9, 10])
BARE = Prompts.from_tokens([[1, 2], [3, 4]], [[1, 5], [3, 6]])


def test_a_task_a_dataset_and_prompts_all_become_a_dataset() -> None:
    task = acdc.tasks.load("induction", size=4)
    assert isinstance(task, Task)
    dataset = as_dataset(task, MODEL)
    assert dataset.name == "induction"
    assert as_dataset(dataset, MODEL) == dataset
    bare = as_dataset(PROMPTS, MODEL)
    assert bare.discovery is PROMPTS
    assert bare.held_out is None
    assert bare.metric.name == "logit-difference"
    assert as_dataset(BARE, MODEL).metric.name == "kl"
    with pytest.raises(TaskError, match=r"expected a task .* got str"):
        as_dataset("induction", MODEL)  # type: ignore[arg-type]


def test_metric_and_ablation_can_be_overridden_and_near_misses_are_named() -> None:
    dataset = as_dataset(PROMPTS, MODEL, metric="kl", ablation="zero")
    assert dataset.metric is OUTCOMES["kl"]
    assert dataset.ablation == "zero"
    with pytest.raises(AcdcError, match="unknown metric 'logit-diference': did you mean logit-difference"):
        as_dataset(PROMPTS, MODEL, metric="logit-diference")
    with pytest.raises(AcdcError, match="unknown ablation 'means': did you mean mean"):
        as_dataset(PROMPTS, MODEL, ablation="means")
    with pytest.raises(
        AcdcError, match=r"unknown metric 'margin': .*one of your own is given itself: as_dataset\("
    ):
        as_dataset(PROMPTS, MODEL, metric="margin")
    with pytest.raises(AcdcError, match="unknown metric 'klx'"):
        acdc.tasks.load("induction", metric="klx")


def test_a_metric_without_its_answers_is_refused() -> None:
    with pytest.raises(TaskError, match="'logit-difference' needs answers, and the prompts have none"):
        as_dataset(BARE, MODEL, metric="logit-difference")
    some = Prompts.from_tokens([[1, 2], [3, 4]], [[1, 5], [3, 6]], [7, 8], [[9], []])
    with pytest.raises(TaskError, match="prompt 2 has no wrong answers, which metric 'logit-difference' needs"):
        as_dataset(some, MODEL)


def test_prompts_beyond_the_model_are_refused() -> None:
    with pytest.raises(
        TaskError, match="prompt 2: token id 8 in answers is outside of the model's vocabulary of 8"
    ):
        as_dataset(PROMPTS, StandIn(vocabulary_size=8))
    with pytest.raises(TaskError, match="longer than the model's context of 1"):
        as_dataset(PROMPTS, StandIn(context_length=1))


def test_prompts_put_into_a_dataset_are_checked_too() -> None:
    dataset = dataclasses.replace(as_dataset(PROMPTS, MODEL), held_out=Prompts.from_tokens([[60]], [[1]]))
    with pytest.raises(
        TaskError, match="prompt 1: token id 60 in clean is outside of the model's vocabulary of 50"
    ):
        as_dataset(dataset, MODEL)


def test_a_function_is_a_metric_per_prompt_or_per_position() -> None:
    def best(logits: Tensor, targets: Targets) -> Tensor:
        """Highest logit."""
        return logits.amax(-1)

    logits = torch.randn(3, 2, 4, 5)  # circuit, prompt, position, vocabulary
    targets = Targets(torch.tensor([[True, True, False, False], [True, True, True, True]]))
    expected = torch.stack([logits[:, 0, :2].amax(-1).mean(-1), logits[:, 1].amax(-1).mean(-1)], -1)
    metric = resolve_metric(best)
    assert (metric.name, metric.description, metric.higher_is_better, metric.rows) == (
        "best",
        "Highest logit.",
        True,
        "vocabulary",
    )
    torch.testing.assert_close(metric(logits, targets), expected)

    whole = resolve_metric(lambda logits, targets: logits.sum((-1, -2)))
    torch.testing.assert_close(whole(logits, targets), logits.sum((-1, -2)))

    wrong = resolve_metric(lambda logits, targets: logits.sum())
    with pytest.raises(TaskError, match=r"expected values \[3, 2\] .* or \[3, 2, 4\] .* got \[\]"):
        wrong(logits, targets)
    with pytest.raises(TaskError, match="expected a metric's name, an Outcome or a function, got int"):
        resolve_metric(3)  # type: ignore[arg-type]


def test_a_distance_comes_with_a_function() -> None:
    metric = as_dataset(PROMPTS, MODEL, metric=lambda logits, targets: logits[..., 0, 0]).metric
    logits = torch.randn(2, 1, 5)
    targets = Targets(torch.ones(2, 1, dtype=torch.bool), full=torch.zeros(2, 1, 5))
    torch.testing.assert_close(metric.distance(logits, targets), logits[:, 0, 0].abs())


class Margin(torch.nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits[..., 0] - logits[..., 1]


@pytest.mark.parametrize(
    "function",
    [
        lambda logits: logits[..., 0] - logits[..., 1],
        lambda logits, *, scale=1.0: scale * (logits[..., 0] - logits[..., 1]),
        lambda logits, targets=None: logits[..., 0] - logits[..., 1],
        lambda *given: given[0][..., 0] - given[0][..., 1],
        functools.partial(lambda first, logits: logits[..., first] - logits[..., 1], 0),
        Margin(),
        Margin().forward,
    ],
)
def test_a_function_of_the_logits_alone_is_a_metric(function: Any) -> None:
    logits, targets = torch.randn(3, 2, 1, 5), Targets(torch.ones(2, 1, dtype=torch.bool))
    found = resolve_metric(function)(logits, targets)
    torch.testing.assert_close(found, (logits[..., 0] - logits[..., 1])[..., 0])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: 0, r"expected a function of the logits, or of logits and targets, got <lambda>\(\)"),
        (lambda logits, targets, third: logits, r"got <lambda>\(logits, targets, third\)"),
        (lambda logits, *, needed: logits, r"got <lambda>\(logits, \*, needed\)"),
        (lambda logits: logits[..., 99], r"failed on logits \[2, 1, 5\] .*: IndexError: index 99"),
        (lambda logits, targets: targets.answer, r"failed .*: AttributeError: .* no attribute 'answer'"),
        (lambda logits: logits.detach().numpy().sum(-1), "expected a torch tensor of values, got ndarray"),
        (lambda logits: None, "expected a torch tensor of values, got NoneType"),
        (lambda logits: logits.sum(-1) + 1j, "expected real values, got torch.complex64"),
        (lambda logits: logits, r"expected values \[2\] .* got \[2, 1, 5\]"),
    ],
)
def test_what_goes_wrong_in_a_function_names_the_metric(function: Any, message: str) -> None:
    logits, targets = torch.randn(2, 1, 5), Targets(torch.ones(2, 1, dtype=torch.bool))
    with pytest.raises(TaskError, match=message) as caught:
        resolve_metric(function)(logits, targets)
    assert "\n" not in str(caught.value)
    assert "metric '<lambda>'" in str(caught.value)
    if "failed" in message:
        assert isinstance(caught.value.__cause__, IndexError | AttributeError)


def test_an_outcome_of_ones_own_is_checked_like_a_function() -> None:
    own = dataclasses.replace(OUTCOMES["kl"], name="own", function=lambda logits, targets: logits.sum())
    with pytest.raises(TaskError, match="metric 'own': expected values"):
        as_dataset(PROMPTS, MODEL, metric=own).metric(torch.randn(2, 1, 5), Targets(torch.ones(2, 1).bool()))
    assert resolve_metric(OUTCOMES["kl"]) is OUTCOMES["kl"]


def test_whole_numbers_are_values() -> None:
    metric = resolve_metric(lambda logits: logits.argmax(-1))
    found = metric(torch.tensor([[[0.0, 2.0, 1.0]]]), Targets(torch.ones(1, 1, dtype=torch.bool)))
    assert found.tolist() == [1.0]
    assert found.dtype == torch.float32
