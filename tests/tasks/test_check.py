from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import acdc.tasks
from acdc.errors import TaskError
from acdc.metrics import OUTCOMES
from acdc.tasks import Dataset, Prompts, as_dataset
from acdc.tasks.check import check_task, only_correct


@dataclasses.dataclass(frozen=True)
class Successor:
    """A "model" that predicts the successor of the current token (of token 0: `at_zero`)."""

    name: str = "successor"
    tokenizer: None = None
    program: None = None
    vocabulary_size: int = 30
    context_length: int | None = None
    bos_token_id: int | None = None
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    at_zero: float = 0.0

    def plain_logits(self, token_ids: Tensor, mask: Tensor, position_ids: Tensor | None = None) -> Tensor:
        logits = torch.nn.functional.one_hot((token_ids + 1) % self.vocabulary_size, self.vocabulary_size).double()
        logits[token_ids == 0] = self.at_zero
        return logits * 10


MODEL = Successor()


def _prompts(last: list[int], corrupted: list[int], answers: list[int], wrong: list[int]) -> Prompts:
    clean, other = ([[i + 1, 7, x] for i, x in enumerate(ends)] for ends in (last, corrupted))
    return Prompts.from_tokens(clean, other, answers, wrong)


GOOD = _prompts([3, 4, 5, 6], [9, 9, 9, 9], [4, 5, 6, 7], [10, 10, 10, 10])
GOOD_TOO = _prompts([3, 4, 5, 6], [8, 8, 8, 8], [4, 5, 6, 7], [10, 10, 10, 10])
HALF = _prompts([3, 4, 5, 6], [9, 9, 9, 9], [4, 5, 20, 20], [10, 10, 6, 7])


def test_numbers_of_a_good_task() -> None:
    report = check_task(MODEL, GOOD)  # type: ignore[arg-type]
    assert report.usable
    assert report.metric == "logit-difference"
    quality = report.discovery
    assert (quality.n_prompts, quality.clean, quality.corrupted) == (4, 10.0, -10.0)
    assert (quality.accuracy, quality.right, quality.right_corrupted) == (1.0, 1.0, 0.0)
    assert (quality.changed, quality.lengths, quality.duplicates) == (1.0, (3, 3), 0)
    assert report.held_out is None
    assert report.remarks == (
        "there are no held-out prompts, so faithfulness can only be measured on the discovery prompts",
    )


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_batches_change_nothing(batch_size: int | None) -> None:
    assert check_task(MODEL, HALF, batch_size=batch_size) == check_task(MODEL, HALF)  # type: ignore[arg-type]


def test_a_task_the_model_does_not_do_is_a_problem_with_both_numbers() -> None:
    report = check_task(MODEL, GOOD.swapped())  # type: ignore[arg-type]
    assert not report.usable
    assert "logit-difference is -10 on clean prompts and 10 on corrupted ones" in report.problems[0]
    assert any("gets 0% of the prompts right" in remark for remark in report.remarks)


def _by_chance(right: int, wrong: int, corrupted: int = 10) -> Prompts:
    """Prompts of which the model gets so many right, and on so many others says the wrong answer."""
    last = [3 + i % 5 for i in range(right + wrong)]
    says, other = [x + 1 for x in last], [20] * len(last)
    answers = [*says[:right], *other[right:]]
    return _prompts(last, [corrupted] * len(last), answers, [*other[:right], *says[right:]])


def test_what_chance_could_do_is_a_problem() -> None:
    report = check_task(MODEL, _by_chance(11, 9))  # type: ignore[arg-type]
    assert report.discovery.clean > report.discovery.corrupted
    assert "it is not told that the model does this task: logit-difference is 1 on clean" in report.problems[0]
    assert "from 20 prompts that difference is not told from 0" in report.problems[0]
    assert check_task(MODEL, _by_chance(16, 4)).usable  # type: ignore[arg-type]
    more = Dataset("mine", _by_chance(11, 9), _by_chance(18, 4, corrupted=11), OUTCOMES["logit-difference"])
    assert check_task(MODEL, more).usable  # type: ignore[arg-type]  # together they tell


def test_held_out_prompts_enter_the_verdict() -> None:
    both = Dataset("mine", GOOD, GOOD.swapped(), OUTCOMES["logit-difference"])
    (problem,) = check_task(MODEL, both).problems  # type: ignore[arg-type]
    assert problem.startswith("the model does not do this task: on the held-out prompts logit-difference is -10")
    assert check_task(MODEL, dataclasses.replace(both, held_out=GOOD_TOO)).usable  # type: ignore[arg-type]


def test_no_better_than_a_guess_is_a_problem() -> None:
    rows = [[i + 1, 7, x] for i, x in enumerate([3, 4, 5, 6])]
    other = [[*row[:2], 9] for row in rows]
    wrong = [[20, 21, 22], [4, 21, 22], [6, 21, 22], [7, 21, 22]]  # what the model says, on all but the first
    some = Prompts.from_tokens(rows, other, [4, 20, 20, 20], wrong)
    report = check_task(MODEL, some)  # type: ignore[arg-type]
    assert report.discovery.guessed == 0.25
    assert report.discovery.right == 0.25
    assert "gets 25% of the prompts right, and a guess among the answers 25%" in " ".join(report.problems)
    assert check_task(MODEL, HALF.swapped()).discovery.guessed == 0.5  # type: ignore[arg-type]
    assert check_task(MODEL, Prompts.from_tokens(rows, other, [4, 5, 6, 7])).discovery.guessed is None  # type: ignore[arg-type]


def test_a_corruption_that_changes_nothing_is_a_problem_under_a_distance() -> None:
    same = Prompts.from_tokens([[1, 2], [3, 4]], [[5, 2], [6, 4]])
    report = check_task(MODEL, same, metric="kl")  # type: ignore[arg-type]
    assert "changes nothing" in report.problems[0]
    assert check_task(MODEL, GOOD, metric="kl").usable  # type: ignore[arg-type]


def test_only_correct_keeps_what_the_model_gets_right() -> None:
    dataset = dataclasses.replace(
        as_dataset(HALF, MODEL), held_out=GOOD_TOO, tokens=(("a",), ("b",), ("c",), ("d",))
    )
    kept = only_correct(MODEL, dataset)  # type: ignore[arg-type]
    assert kept.discovery.clean[:, -1].tolist() == [3, 4]
    assert kept.tokens == (("a",), ("b",))
    assert kept.held_out is not None
    assert len(kept.held_out) == 4
    with pytest.raises(TaskError, match="gets none of the 4 discovery prompts right"):
        only_correct(MODEL, GOOD.swapped())  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="no answers"):
        only_correct(MODEL, Prompts.from_tokens([[1]], [[2]]))  # type: ignore[arg-type]


def test_duplicates_and_leaks_and_constant_answers_are_remarked() -> None:
    twice = Prompts.from_tokens([[1, 3]] * 2, [[1, 5]] * 2, [4, 4], [6, 6])
    leaked = Prompts.from_tokens([[1, 3]] * 2, [[1, 8]] * 2, [4, 4], [6, 6])
    dataset = Dataset("mine", twice, leaked, OUTCOMES["logit-difference"])
    report = check_task(MODEL, dataset)  # type: ignore[arg-type]
    assert report.usable
    assert report.remarks == (
        "1 discovery prompt occurred before",
        "every prompt has the same answer, so a constant would do the task",
        "1 held-out prompt occurred before",
        "2 of 2 held-out prompts are among the discovery prompts too",
    )


def test_a_corruption_that_leaves_the_answer_is_remarked() -> None:
    kept = Prompts.from_tokens([[1, 3], [2, 4]], [[9, 3], [8, 4]], [4, 5], [10, 10])
    remarks = check_task(MODEL, kept, metric="logit-difference").remarks  # type: ignore[arg-type]
    assert any("still right on 100% of the corrupted prompts" in remark for remark in remarks)


def test_logits_that_are_not_finite_are_refused() -> None:
    prompts = Prompts.from_tokens([[1, 0]], [[1, 3]], [4], [5])
    with pytest.raises(TaskError, match=r"clean prompts are not finite .*float32"):
        check_task(Successor(at_zero=float("nan")), prompts)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["induction-2l", "tracr-reverse", "tracr-proportion"])
def test_built_in_models_do_their_tasks(name: str) -> None:
    task = acdc.tasks.default_task(name)
    assert task is not None
    report = check_task(acdc.load(name), acdc.tasks.load(task))
    assert report.usable
    assert report.discovery.right in (1.0, None)
