"""Proximities of parts against a loop over positions, on outputs of the plain module."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import oracle
import problems
from acdc.engine.problem import Problem
from acdc.methods import METHODS
from acdc.metrics import OUTCOMES


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt-neox-parallel", {}),
        ("gpt-neox-parallel", {"qkv": "merged"}),  # three ports read the same, and count once
        ("llama", {}),
        ("llama", {"group_kv": True}),
        ("gemma2", {}),
    ],
)
def test_a_part_counts_by_how_near_the_sum_is_to_it(family: str, options: dict[str, Any]) -> None:
    patching, _ = problems.make(family, padding="both")
    graph, prompts = patching.model.graph(**options), patching.prompts
    written = oracle.source_outputs(patching.model.module, graph, prompts.clean, prompts.mask)
    expected = np.zeros(graph.valid.shape)
    for d in range(graph.n_destinations):
        sources = np.flatnonzero(graph.valid[d])
        for b in range(len(prompts)):
            shares = []
            for t in torch.nonzero(prompts.mask[b]).flatten():
                parts = torch.stack([written[graph.sources[s]][b, t] for s in sources])
                x = parts.sum(0)
                near = [max(0.0, float(x.abs().sum() - (part - x).abs().sum())) for part in parts]
                shares.append(np.array(near) / sum(near))
            expected[d, sources] += np.mean(shares, axis=0) / len(prompts)
    score = METHODS["information-flow"].score
    assert score is not None
    problem = Problem(patching.model, graph, prompts, OUTCOMES["logit-difference"], batch_size=2)
    np.testing.assert_allclose(score(problem).values, expected, atol=1e-12)
