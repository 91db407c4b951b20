"""Exact edge patching is what it says: the metric of the full model without each edge alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import families
import problems
from acdc.engine.patching import Patching
from acdc.methods.exact import exact_scores


def check(patching: Patching, measure: Any) -> None:
    graph = patching.graph
    full = problems.per_prompt(patching, measure, graph.valid[None])[0]
    expected = np.zeros((len(patching.prompts), *graph.valid.shape))
    for circuits, edge in zip(problems.all_but_one(graph)[:, None], np.argwhere(graph.valid), strict=True):
        expected[(slice(None), *edge)] = problems.per_prompt(patching, measure, circuits)[0] - full
    assert np.abs(expected).max() > 0
    sums = exact_scores(patching, measure)
    parts = (expected.sum(0), np.abs(expected).sum(0), np.square(expected).sum(0))
    for found, summed in zip(sums, parts, strict=True):
        assert np.abs(found - summed).max() < 1e-9 * np.abs(summed).max()


@pytest.mark.parametrize("family", families.FAMILIES)
def test_equals_removing_each_edge_alone_in_every_family(family: str) -> None:
    check(*problems.make(family, padding="both"))


@pytest.mark.parametrize(
    ("family", "options", "case"),
    [
        ("gpt2-scaled-by-layer", {"qkv": "merged"}, {"ablation": "zero", "metric": "kl"}),
        ("gpt2-scaled-by-layer", {"inputs": "split"}, {"shared": 4, "metric": "kl"}),
        ("gpt-neox-parallel", {"qkv": "merged"}, {"ablation": "mean", "padding": "left"}),
        ("llama", {"group_kv": True}, {"reads": 3, "padding": "right", "shared": 2}),
        ("olmo2", {"qkv": "merged"}, {"ablation": "mean-position", "metric": "exact-match"}),
        ("olmo2", {"group_kv": True}, {"shared": 3, "reads": 2}),
    ],
    ids=str,
)
def test_equals_removing_each_edge_alone(family: str, options: dict[str, Any], case: dict[str, Any]) -> None:
    check(*problems.make(family, graph=problems.tiny(family).graph(**options), **case))


def test_small_batches_of_sources_give_the_same() -> None:
    patching, measure = problems.make("gpt2-scaled-by-layer")
    seen: list[tuple[int, int]] = []
    B, T = patching.prompts.clean.shape
    tokens = 3 * B * (T - patching.start)
    scores = exact_scores(patching, measure, tokens=tokens, progress=lambda *x: seen.append(x))
    assert seen[-1] == (patching.graph.n_edges, patching.graph.n_edges)
    assert max(b - a for (a, _), (b, _) in zip([(0, 0), *seen], seen, strict=False)) == 3
    np.testing.assert_allclose(scores, exact_scores(patching, measure), atol=1e-12)
