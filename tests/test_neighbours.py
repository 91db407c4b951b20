"""A prompt's numbers are its own: neighbours in its batch, the batch size and the side of padding change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import acdc
import families
import problems
from acdc.engine.circuits import measure_prompts
from acdc.engine.problem import Problem
from acdc.engine.references import NOT_LEARNED
from acdc.graph import FloatArray
from acdc.methods import METHODS
from acdc.metrics import OUTCOMES
from acdc.model.model import Model
from acdc.tasks.prompts import Padding, Prompts

LENGTHS = (7, 5, 3, 7, 2)  # a rotary embedding that remembers has 5 go on from 7
OTHERWISE: tuple[tuple[Padding, int | None], ...] = (("left", 1), ("right", 3), ("left", None))


def make_prompts(padding: Padding) -> Prompts:
    generator = torch.Generator().manual_seed(0)
    clean = [torch.randint(1, families.VOCABULARY, (n,), generator=generator).tolist() for n in LENGTHS]
    corrupted = [[row[0], (row[1] + 7) % families.VOCABULARY, *row[2:]] for row in clean]
    return Prompts.from_tokens(
        clean, corrupted, answers=[1, 2, 3, 4, 5], wrong=[11, 12, 13, 14, 15], padding=padding
    )


def numbers(model: Model, ablation: Any, padding: Padding, batch_size: int | None, method: str) -> list[FloatArray]:
    """A ranking, and a metric of the full model, on the corrupted prompts and of circuits, prompt by prompt."""
    graph = model.graph()
    problem = Problem(model, graph, make_prompts(padding), OUTCOMES["logit-difference"], ablation, batch_size)
    score = METHODS[method].score
    assert score is not None
    rng = np.random.default_rng(0)
    circuits = [np.zeros_like(graph.valid), graph.valid & (rng.random(graph.valid.shape) < 0.6)]
    (measured,) = measure_prompts(problem, circuits)
    return [score(problem).values, measured.full, measured.corrupted, measured.circuits]


def assert_same(ours: list[FloatArray], theirs: list[FloatArray]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * max(1.0, float(np.abs(b).max())))


QUICK = ("gpt2", "gemma2", *families.ROTATE_BY_LENGTH)
"""Learned positions, windows, and rotations that the length decides."""


@pytest.mark.parametrize("ablation", NOT_LEARNED)
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in QUICK else pytest.mark.slow)
        for family in (*families.FAMILIES, *families.ROTATE_BY_LENGTH)
    ],
)
def test_padding_and_batches_change_nothing(family: str, ablation: str) -> None:
    model = problems.tiny(family)
    alone = numbers(model, ablation, "right", 1, "eap")
    for padding, batch_size in OTHERWISE:
        assert_same(numbers(model, ablation, padding, batch_size, "eap"), alone)


@pytest.mark.parametrize("family", ["gemma2", *families.ROTATE_BY_LENGTH])
def test_nor_do_they_change_exact_scores(family: str) -> None:
    model = problems.tiny(family)
    alone = numbers(model, "resample", "right", 1, "exact")
    assert_same(numbers(model, "resample", "left", 3, "exact"), alone)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", families.ROTATE_BY_LENGTH)
def test_the_full_model_is_a_fresh_plain_module_on_each_prompt_alone(family: str, padding: Padding) -> None:
    prompts = make_prompts(padding)
    model = problems.tiny(family)
    alone = [
        families.module(family, dtype=torch.float64)(input_ids=row[real][None], use_cache=False).logits[0, -1]
        for row, real in zip(prompts.clean, prompts.mask, strict=True)
    ]
    expected = torch.stack(alone)

    def last(logits: Tensor) -> Tensor:
        return logits.gather(1, prompts.positions[..., None].expand(-1, -1, logits.shape[-1]))[:, 0]

    with torch.no_grad():
        for logits in (model.plain_logits, model.decomposed_logits):
            found = last(logits(prompts.clean, prompts.mask))
            assert float((found - expected).abs().max() / expected.abs().max()) < 1e-9


def test_positions_at_padding_choose_nothing() -> None:
    """The user's own position ids may hold anything where there is no token."""
    model = problems.tiny("phi3-longrope")
    prompts = make_prompts("right")[torch.tensor([2, 4])]  # both are short
    ids = (prompts.mask.long().cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model.decomposed_logits(prompts.clean, prompts.mask, ids)
        found = model.decomposed_logits(prompts.clean, prompts.mask, ids.where(prompts.mask, 40))
    assert torch.equal(found[prompts.mask], expected[prompts.mask])


def test_searches_agree_whatever_the_padding() -> None:
    model = problems.tiny("phi3-longrope")
    found = [acdc.discover(model, make_prompts(padding), "acdc") for padding in ("left", "right")]  # type: ignore[arg-type]
    assert set(found[0].edge_names()) == set(found[1].edge_names())
