"""The closed form of edge attribution equals what it stands for: gradients through every head's own norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import families
import oracle
import problems
from acdc.engine.measure import Measure, bind
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.engine.references import NOT_LEARNED, mean_references
from acdc.graph import FloatArray, Graph
from acdc.methods import METHODS
from acdc.methods.aggregates import Estimates
from acdc.methods.attribution import attribute
from acdc.metrics import OUTCOMES
from acdc.tasks.prompts import Prompts
from slow_attribution import slow_scores


def scores_of(patching: Patching, measure: Measure, alphas: Sequence[float] = (1.0,)) -> FloatArray:
    return patching.graph.from_ports(attribute(patching, measure.outcome, alphas=alphas).sum(0).numpy())


def weight_gradients(patching: Patching, measure: Measure) -> FloatArray:
    """Minus the metric's gradient in the weight of each edge, at the full model."""
    weights = torch.from_numpy(patching.graph.valid).double().requires_grad_()
    with patching.model.frozen():
        value = measure.value(patching.logits(weights, rows=measure.rows)).sum()
    (gradient,) = torch.autograd.grad(value, weights)
    return np.where(patching.graph.valid, -gradient.numpy(), 0.0)


def assert_same(ours: FloatArray, theirs: FloatArray, bound: float = 1e-9) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0
    assert np.abs(ours - theirs).max() < bound * np.abs(theirs).max()


# ---- at the clean prompt ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", NOT_LEARNED)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_eap_is_the_gradient_of_edge_weights(family: str, ablation: str) -> None:
    patching, measure = problems.make(family, ablation=ablation, padding="both")
    assert_same(scores_of(patching, measure), weight_gradients(patching, measure))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt2", {"qkv": "merged"}),
        ("olmo2", {"qkv": "merged"}),
        ("gpt2", {"inputs": "split"}),
        ("gpt2", {"inputs": "token"}),
        ("llama", {"group_kv": True}),
        ("gemma2", {"group_kv": True}),
        ("olmo2", {"group_kv": True}),
    ],
    ids=str,
)
def test_eap_on_other_graphs(family: str, options: dict[str, Any]) -> None:
    patching, measure = problems.make(family, graph=problems.tiny(family).graph(**options))
    assert_same(scores_of(patching, measure), weight_gradients(patching, measure))


@pytest.mark.parametrize(
    ("metric", "prompts"),
    [
        ("probability", {"reads": 3, "padding": "both"}),
        ("probability-difference", {"shared": 4, "padding": "left"}),
        ("logit-difference", {"reads": 6, "shared": 0}),
        ("projection", {"shared": 3, "reads": 2}),
    ],
)
@pytest.mark.parametrize("family", ["gpt2", "gpt-neox-parallel", "gemma3"])
def test_eap_for_other_metrics_and_prompts(family: str, metric: str, prompts: dict[str, Any]) -> None:
    patching, measure = problems.make(family, metric=metric, **prompts)
    assert_same(scores_of(patching, measure), weight_gradients(patching, measure))


@pytest.mark.parametrize("family", ["gpt2", "gpt-neox-parallel", "llama", "gemma2", "olmo2"])
def test_eap_is_what_removing_a_little_of_an_edge_costs(family: str) -> None:
    patching, measure = problems.make(family, padding="right")
    graph, step = patching.graph, 1e-5
    scores = scores_of(patching, measure)
    edges = np.random.default_rng(0).permutation(np.argwhere(graph.valid))[:12]
    less, more = (np.repeat(graph.valid[None].astype(float), len(edges), axis=0) for _ in range(2))
    for i, (destination, source) in enumerate(edges):
        less[i, destination, source] -= step
        more[i, destination, source] += step
    slope = (problems.values(patching, measure, less) - problems.values(patching, measure, more)) / (2 * step)
    assert np.abs(scores[edges[:, 0], edges[:, 1]] - slope).max() < 1e-6 * np.abs(scores).max()


# ---- on the way from the corrupted to the clean embedding -------------------------------------------------------


def method_scores(name: str, patching: Patching, metric: str, **options: Any) -> FloatArray:
    """A method of the registry, as the change of the metric on removal, summed over all prompts."""
    score = METHODS[name].score
    assert score is not None
    ablation = patching.ablation
    problem = Problem(patching.model, patching.graph, patching.prompts, OUTCOMES[metric], ablation)
    sign = -1 if OUTCOMES[metric].higher_is_better else 1  # scores are positive where an edge helps
    return sign * score(problem, **options).values * len(patching.prompts)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_eap_ig_averages_gradients_from_the_corrupted_end(family: str) -> None:
    patching, measure = problems.make(family, padding="both")
    expected = slow_scores(patching, measure, [k / 4 for k in range(4)])
    assert_same(method_scores("eap-ig", patching, "logit-difference", steps=4), expected)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_eap_ig_takes_no_gradient_at_an_embedding_of_zero(family: str) -> None:
    """A norm's slope is 1/√eps there, by which scores were up to 10²²."""
    patching, measure = problems.make(family, ablation="zero", metric="kl")
    ours = method_scores("eap-ig", patching, "kl", steps=4)
    assert_same(ours, slow_scores(patching, measure, [0.0625, 0.3125, 0.5625, 0.8125]))
    assert np.abs(ours).max() < 100


@pytest.mark.parametrize("metric", ["kl", "l2"])
def test_eap_ig_follows_a_distance_from_the_full_model(metric: str) -> None:
    patching, measure = problems.make("llama", metric=metric)
    assert_same(
        method_scores("eap-ig", patching, metric), slow_scores(patching, measure, [k / 5 for k in range(5)])
    )


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_clean_corrupted_averages_both_ends(family: str) -> None:
    patching, measure = problems.make(family, padding="left")
    expected = slow_scores(patching, measure, [0.0, 1.0])
    assert_same(method_scores("clean-corrupted", patching, "logit-difference"), expected)


def test_eap_is_the_definition_at_the_clean_end() -> None:
    patching, measure = problems.make("gpt2", padding="right", shared=2)
    assert_same(method_scores("eap", patching, "logit-difference"), slow_scores(patching, measure, [1.0]))


# ---- batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", NOT_LEARNED)
@pytest.mark.parametrize("method", ["eap", "eap-ig", "clean-corrupted", "exact"])
def test_batches_do_not_change_scores(method: str, ablation: Any) -> None:
    """Nor do means over the prompts, which are over all of them and not over a batch."""
    model = problems.tiny("llama")
    score = METHODS[method].score
    assert score is not None

    def scores(batch_size: int | None) -> Estimates:
        prompts = problems.make_prompts(size=5, padding="both")
        return score(
            Problem(model, model.graph(), prompts, OUTCOMES["logit-difference"], ablation, batch_size=batch_size)
        )

    whole = scores(None)
    for size in (1, 2, 5):
        assert_same(scores(size).values, whole.values)


@pytest.mark.parametrize("per_position", [False, True])
def test_mean_references_do_not_depend_on_batches(per_position: bool) -> None:
    model = problems.tiny("gpt2")
    prompts = problems.make_prompts(size=5, padding="both")

    def means(batch_size: int | None) -> list[Tensor]:
        found = mean_references(model, model.graph(), prompts, per_position=per_position, batch_size=batch_size)
        return [*found.inputs, *found.outputs]

    for ours, whole in zip(means(2), means(None), strict=True):
        torch.testing.assert_close(ours, whole)


def test_prompts_that_do_not_differ_score_nothing() -> None:
    model = problems.tiny("gpt2")
    prompts = problems.make_prompts()
    same = Prompts(prompts.clean, prompts.clean, prompts.mask, prompts.positions, prompts.answers, prompts.wrong)
    patching = Patching(model, model.graph(), same)
    measure = bind(OUTCOMES["logit-difference"], patching)
    assert np.abs(scores_of(patching, measure)).max() < 1e-12


def test_source_differences_are_those_of_the_plain_module() -> None:
    patching, _ = problems.make("gemma2", shared=3)
    graph: Graph = patching.graph
    prompts, module = patching.prompts, patching.model.module
    clean = oracle.source_outputs(module, graph, prompts.clean, prompts.mask)
    corrupted = oracle.source_outputs(module, graph, prompts.corrupted, prompts.mask)
    expected = torch.stack([corrupted[s] - clean[s] for s in graph.sources])
    assert patching.start == 3
    assert float(expected[:, :, :3].abs().max()) < 1e-12
    torch.testing.assert_close(patching.source_differences(), expected[:, :, 3:])
