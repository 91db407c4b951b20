"""Every outcome metric equals its definition, written out prompt by prompt with other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import torch
import torch.nn.functional as F
from torch import Tensor

from acdc.metrics import OUTCOMES, Outcome, Targets

VOCABULARY = 9


def make(*, seed: int = 1, circuits: int = 4) -> tuple[Tensor, Targets]:
    """Logits `[C, 3 prompts, 2 positions, V]` and targets: answer sets of unequal sizes, one position missing."""
    generator = torch.Generator().manual_seed(seed)
    logits, full, corrupted = (
        3 * torch.randn(*shape, 3, 2, VOCABULARY, generator=generator, dtype=torch.float64)
        for shape in ((circuits,), (), ())
    )
    answers = torch.tensor([[[1, 2, -1], [3, -1, -1]], [[0, 4, 5], [8, 7, -1]], [[6, -1, -1], [-1, -1, -1]]])
    wrong = torch.tensor([[[3, -1], [1, 2]], [[2, -1], [0, 1]], [[8, 0], [-1, -1]]])
    position_mask = torch.tensor([[True, True], [True, True], [True, False]])
    return logits, Targets(position_mask, answers, wrong, full, corrupted)


def _ids(ids: Tensor) -> list[int]:
    return [int(i) for i in ids if i >= 0]


def logit_difference(
    x: np.ndarray, full: np.ndarray, corrupted: np.ndarray, good: list[int], bad: list[int]
) -> float:
    return float(np.mean([x[i] for i in good]) - np.mean([x[i] for i in bad]))


def logit_margin(x: np.ndarray, full: np.ndarray, corrupted: np.ndarray, good: list[int], bad: list[int]) -> float:
    return float(np.mean([x[i] for i in good]) - max(x[i] for i in bad))


def probability(x: np.ndarray, full: np.ndarray, corrupted: np.ndarray, good: list[int], bad: list[int]) -> float:
    return sum(float(scipy.special.softmax(x)[i]) for i in good)


def probability_difference(
    x: np.ndarray, full: np.ndarray, corrupted: np.ndarray, good: list[int], bad: list[int]
) -> float:
    return probability(x, full, corrupted, good, bad) - probability(x, full, corrupted, bad, good)


def log_probability(
    x: np.ndarray, full: np.ndarray, corrupted: np.ndarray, good: list[int], bad: list[int]
) -> float:
    return math.log(probability(x, full, corrupted, good, bad))


def accuracy(x: np.ndarray, full: np.ndarray, corrupted: np.ndarray, good: list[int], bad: list[int]) -> float:
    return float(np.argmax(x) in good)


def exact_match(x: np.ndarray, full: np.ndarray, corrupted: np.ndarray, good: list[int], bad: list[int]) -> float:
    return float(np.argmax(x) == np.argmax(full))


def projection(x: np.ndarray, full: np.ndarray, corrupted: np.ndarray, good: list[int], bad: list[int]) -> float:
    direction = full - corrupted
    return float((x - corrupted) @ direction / np.linalg.norm(direction) ** 2)


def kl(x: np.ndarray, full: np.ndarray, corrupted: np.ndarray, good: list[int], bad: list[int]) -> float:
    return float(
        F.kl_div(
            torch.from_numpy(x).log_softmax(-1),
            torch.from_numpy(full).log_softmax(-1),
            log_target=True,
            reduction="sum",
        )
    )


def jensen_shannon(
    x: np.ndarray, full: np.ndarray, corrupted: np.ndarray, good: list[int], bad: list[int]
) -> float:
    p, q = scipy.special.softmax(x), scipy.special.softmax(full)
    return float(scipy.spatial.distance.jensenshannon(p, q)) ** 2


def l2(x: np.ndarray, full: np.ndarray, corrupted: np.ndarray, good: list[int], bad: list[int]) -> float:
    return float(np.linalg.norm(x - full)) ** 2


BY_HAND: dict[str, Callable[..., float]] = {
    "logit-difference": logit_difference,
    "logit-margin": logit_margin,
    "probability": probability,
    "probability-difference": probability_difference,
    "log-probability": log_probability,
    "log-probability-by-token": log_probability,
    "log-probability-difference": logit_difference,  # of answers of one token; of texts: tests/tasks/test_branches.py
    "log-probability-difference-by-token": logit_difference,
    "accuracy": accuracy,
    "exact-match": exact_match,
    "projection": projection,
    "kl": kl,
    "jensen-shannon": jensen_shannon,
    "l2": l2,
}

every_outcome = pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)


@every_outcome
def test_equals_its_definition(outcome: Outcome) -> None:
    logits, targets = make()
    assert targets.answers is not None
    assert targets.wrong is not None
    assert targets.full is not None
    assert targets.corrupted is not None
    ours = outcome(logits, targets)
    assert ours.shape == (4, 3)
    for c in range(4):
        for prompt in range(3):
            values = [
                BY_HAND[outcome.name](
                    logits[c, prompt, position].numpy(),
                    targets.full[prompt, position].numpy(),
                    targets.corrupted[prompt, position].numpy(),
                    _ids(targets.answers[prompt, position]),
                    _ids(targets.wrong[prompt, position]),
                )
                for position in range(2)
                if targets.position_mask[prompt, position]
            ]
            assert math.isclose(float(ours[c, prompt]), float(np.mean(values)), rel_tol=1e-11, abs_tol=1e-11)


@every_outcome
def test_leading_axes_are_batches(outcome: Outcome) -> None:
    """One circuit, many, or a grid of them."""
    logits, targets = make()
    many = outcome(logits, targets)
    torch.testing.assert_close(outcome(logits[1], targets), many[1])
    torch.testing.assert_close(outcome(logits.view(2, 2, *logits.shape[1:]), targets), many.view(2, 2, 3))


@every_outcome
def test_distance_is_zero_at_the_full_model_and_positive_elsewhere(outcome: Outcome) -> None:
    logits, targets = make()
    assert targets.full is not None
    at_full = outcome.distance(targets.full[None], targets)
    torch.testing.assert_close(at_full, torch.zeros(1, 3, dtype=torch.float64), rtol=0, atol=1e-14)
    elsewhere = outcome.distance(logits, targets)
    assert (elsewhere >= 0).all()
    assert elsewhere.any()
    if outcome.is_distance:
        torch.testing.assert_close(elsewhere, outcome(logits, targets))
        assert not outcome.higher_is_better
    else:
        torch.testing.assert_close(elsewhere, (outcome(logits, targets) - outcome(targets.full, targets)).abs())


@pytest.mark.parametrize("name", [name for name, outcome in OUTCOMES.items() if outcome.rows == "answers"])
def test_only_the_declared_rows_are_read(name: str) -> None:
    """A metric that reads the answers' rows alone gives the same from those rows, with ids that count them."""
    outcome = OUTCOMES[name]
    logits, targets = make()
    assert targets.answers is not None
    assert targets.wrong is not None
    ids = torch.cat([targets.answers[targets.answers >= 0], targets.wrong[targets.wrong >= 0]]).unique()
    place = {int(token): row for row, token in enumerate(ids)}

    def located(tokens: Tensor) -> Tensor:
        return torch.tensor([place.get(int(token), -1) for token in tokens.flatten()]).view(tokens.shape)

    fewer = Targets(targets.position_mask, located(targets.answers), located(targets.wrong))
    torch.testing.assert_close(outcome(logits[..., ids], fewer), outcome(logits, targets), rtol=0, atol=0)


@every_outcome
def test_only_the_declared_targets_are_read(outcome: Outcome) -> None:
    logits, targets = make()
    without = Targets(
        targets.position_mask,
        targets.answers if outcome.needs_answers else None,
        targets.wrong if outcome.needs_wrong else None,
        targets.full,
        targets.corrupted,
    )
    assert torch.equal(outcome(logits, without), outcome(logits, targets))


@every_outcome
def test_positions_that_do_not_exist_are_not_read(outcome: Outcome) -> None:
    logits, targets = make()
    changed = logits.clone()
    changed[:, 2, 1] += 10 * torch.randn(VOCABULARY, dtype=torch.float64)
    assert torch.equal(outcome(changed, targets), outcome(logits, targets))


@every_outcome
def test_gradients_where_they_are_promised(outcome: Outcome) -> None:
    logits, targets = make(circuits=1)
    logits.requires_grad_()
    if outcome.differentiable:
        assert torch.autograd.gradcheck(lambda x: outcome(x, targets), (logits,))
    else:
        assert not outcome(logits, targets).requires_grad


@every_outcome
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_stays_close_and_finite(outcome: Outcome, dtype: torch.dtype) -> None:
    logits, targets = make()
    assert targets.full is not None
    assert targets.corrupted is not None
    low = Targets(
        targets.position_mask, targets.answers, targets.wrong, targets.full.to(dtype), targets.corrupted.to(dtype)
    )
    ours = outcome(logits.to(dtype), low).double()
    scale = outcome(logits, targets).abs().max()
    bound = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    assert float((ours - outcome(logits, targets)).abs().max() / scale) < bound


@pytest.mark.parametrize("name", ["kl", "jensen-shannon"])
def test_certain_outputs_give_finite_divergences(name: str) -> None:
    """Distributions that put all their mass on different tokens: KL grows with the logits, JS stops at ln 2."""
    _, targets = make(circuits=1)
    full = torch.full((3, 2, VOCABULARY), -200.0, dtype=torch.float64)
    logits = full.clone()
    full[..., 0], logits[..., 1] = 0, 0
    certain = Targets(targets.position_mask, full=full)
    expected = 200.0 if name == "kl" else math.log(2)
    torch.testing.assert_close(OUTCOMES[name](logits, certain), torch.full((3,), expected, dtype=torch.float64))


def test_every_metric_has_a_definition_here() -> None:
    assert set(OUTCOMES) == set(BY_HAND)
    assert all(name == outcome.name and outcome.description for name, outcome in OUTCOMES.items())
