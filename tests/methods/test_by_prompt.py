"""Stored scores: their means are the ranking's, and a resample's are those of a run on the resampled prompts."""

from __future__ import annotations

import numpy as np
import torch

import acdc
from acdc.engine.problem import Problem
from acdc.methods.attribution import path
from acdc.methods.by_prompt import best, resampled_sizes, scores_by_prompt
from acdc.metrics import OUTCOMES
from problems import make_prompts, tiny


def test_rows_are_the_scores_of_single_prompts() -> None:
    model, prompts = tiny("gpt2"), make_prompts(size=4, shared=2)
    problem = Problem(model, model.graph(), prompts, OUTCOMES["logit-difference"], batch_size=3)
    rows = scores_by_prompt(problem, alphas=path(3, problem.ablation))
    valid = model.graph().valid
    whole = acdc.score(model, prompts, "eap-ig", steps=3)
    assert np.allclose(np.abs(rows).mean(0), whole.sizes("mean-absolute")[valid], atol=1e-6)
    for i in range(4):
        alone = acdc.score(model, prompts[torch.tensor([i])], "eap-ig", steps=3)
        assert np.allclose(-rows[i], alone.values[valid], atol=1e-6)


def test_a_resample_is_a_mean_over_its_prompts() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    sizes = resampled_sizes(rows, 3, seed=4)
    counts = np.random.default_rng(4).multinomial(5, np.full(5, 1 / 5), size=3)
    for got, count in zip(sizes, counts, strict=True):
        assert np.allclose(got, np.abs(np.repeat(rows, count, axis=0)).mean(0), atol=1e-6)
    for aggregate, size in {
        "signed": lambda x: np.abs(x.mean(0)),
        "rms": lambda x: np.sqrt((x**2).mean(0)),
    }.items():
        for got, count in zip(resampled_sizes(rows, 3, seed=4, aggregate=aggregate), counts, strict=True):  # type: ignore[arg-type]
            assert np.allclose(got, size(np.repeat(rows, count, axis=0)), atol=1e-6)
    assert best(np.array([[3.0, 0.0, 5.0, 4.0]]), 2).tolist() == [[False, False, True, True]]
    assert best(np.array([1.0, 0.0]), 2).tolist() == [True, False]
