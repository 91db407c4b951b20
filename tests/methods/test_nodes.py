"""Rankings of nodes are those of their edges together, prompt by prompt."""

from __future__ import annotations

import numpy as np
import pytest

import problems
from acdc.engine.problem import Problem
from acdc.graph import FloatArray
from acdc.methods import METHODS
from acdc.methods.aggregates import Estimates
from acdc.metrics import OUTCOMES


def scores(name: str, family: str, unit: str = "node", size: int = 3) -> Estimates:
    score, model = METHODS[name].score, problems.tiny(family)
    assert score is not None
    prompts = problems.make_prompts(padding="both", size=size)
    return score(Problem(model, model.graph(), prompts, OUTCOMES["logit-difference"], unit=unit))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "edges"), [("nap", "eap"), ("nap-ig", "eap-ig")])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_node_has_what_its_edges_have_together(name: str, edges: str, family: str) -> None:
    np.testing.assert_allclose(scores(name, family).values, scores(edges, family, "edge").values.sum(0))


def test_an_edge_has_its_sources_score() -> None:
    nodes, edges = scores("nap", "llama"), scores("nap", "llama", "edge")
    graph = problems.tiny("llama").graph()
    np.testing.assert_array_equal(edges.values, np.where(graph.valid, nodes.values, 0.0))
    assert edges.absolute is not None
    assert nodes.absolute is not None
    np.testing.assert_array_equal(edges.absolute, np.where(graph.valid, nodes.absolute, 0.0))


def test_head_importance_is_the_mean_of_absolute_effects_of_length_one_in_each_layer() -> None:
    model, prompts = problems.tiny("llama"), problems.make_prompts(size=3)
    score, alone = METHODS["hisp"].score, METHODS["nap"].score
    assert score is not None
    assert alone is not None

    def effects(i: int) -> FloatArray:
        one = Problem(model, model.graph(), prompts[i : i + 1], OUTCOMES["logit-difference"], unit="node")
        return alone(one).values

    mean = np.mean([np.abs(effects(i)) for i in range(3)], axis=0)
    graph = model.graph()
    lengths = [np.linalg.norm(mean[graph.source_layer == layer]) for layer in graph.source_layer]
    problem = Problem(model, graph, prompts, OUTCOMES["logit-difference"], unit="node")
    np.testing.assert_allclose(score(problem).values, mean / lengths)
