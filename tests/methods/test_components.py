"""Whole components by plain runs are circuits without all edges that leave them, run edge by edge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import families
import problems
from acdc.engine.measure import Measures
from acdc.methods.components import Components


@pytest.mark.parametrize(
    ("family", "case"),
    [(family, {"padding": "both"}) for family in families.FAMILIES]
    + [
        ("gpt2", {"ablation": "zero"}),
        ("olmo2", {"ablation": "mean", "reads": 2}),
        ("llama", {"ablation": "mean-position", "padding": "left"}),
        ("gpt-neox-parallel", {"metric": "logit-difference", "shared": 3}),
    ],
    ids=str,
)
def test_is_the_circuit_of_the_components_that_are_kept(family: str, case: dict[str, Any]) -> None:
    patching, measure = problems.make(family, **{"metric": "kl"} | case)
    graph, rng = patching.graph, np.random.default_rng(0)
    components = Components(Measures.of(patching, measure), graph)
    assert components.distance == pytest.approx(0, abs=1e-12)
    for _ in range(6):
        fewer = components.kept & (rng.random(graph.n_sources) < 0.8)
        expected = problems.distance(patching, measure, graph.edges_from_sources(fewer))
        assert components.without(fewer) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        if rng.random() < 0.6:
            components.keep(fewer)
            assert components.distance == pytest.approx(expected, rel=1e-9, abs=1e-12)
