from __future__ import annotations

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
