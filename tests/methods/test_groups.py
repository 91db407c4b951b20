"""Groups of edges are tested exactly: every distance is that of a full run of the circuit without the group."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import families
import problems
from acdc.engine.circuits import measure_prompts
from acdc.engine.measure import Measures
from acdc.engine.problem import Problem
from acdc.graph import Graph, IntArray
from acdc.methods.groups import Groups
from acdc.metrics import OUTCOMES


def some_groups(graph: Graph, kept: np.ndarray[Any, Any], seed: int) -> list[IntArray]:
    """Single edges, what enters a destination, what leaves a component, and edges drawn from everywhere."""
    rng, edges = np.random.default_rng(seed), np.flatnonzero(kept)
    destination, source = np.divmod(edges, graph.n_sources)
    groups = [edges[i : i + 1] for i in rng.choice(len(edges), 6, replace=False)]
    groups += [edges[destination == d] for d in rng.choice(np.unique(destination), 3, replace=False)]
    groups += [edges[source == s] for s in rng.choice(np.unique(source), 3, replace=False)]
    return groups + [np.sort(rng.choice(edges, len(edges) // n, replace=False)) for n in (2, 3, 5)]


QUICK = ("gpt2-scaled-by-layer", "gpt-neox-parallel", "llama", "olmo2", "gemma2")


@pytest.mark.parametrize(
    "family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in families.FAMILIES]
)
def test_distances_are_those_of_full_runs_whatever_was_removed_before(family: str) -> None:
    patching, measure = problems.make(family, metric="kl", padding="both")
    graph = patching.graph
    search = Groups(patching, measure, graph.valid & (np.random.default_rng(0).random(graph.valid.shape) < 0.8))
    for seed in range(4):
        groups = some_groups(graph, search.kept, seed)
        found, values = search.measure_without(groups)
        for group, distance, value in zip(groups, found, values, strict=True):
            circuit = search.kept.copy()
            circuit.flat[group] = False
            assert distance == pytest.approx(problems.distance(patching, measure, circuit), rel=1e-9, abs=1e-12)
            expected = problems.values(patching, measure, circuit[None])[0] / len(patching.prompts)
            assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
        search.remove(groups[-1 - seed])
        assert search.distance == pytest.approx(problems.distance(patching, measure, search.kept), rel=1e-9)


@pytest.mark.parametrize("few", [0, 40, 4096])
def test_few_tests_of_neighbouring_stages_run_as_one_batch(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And say the same: none, some, or all of them."""
    patching, measure = problems.make("gemma2", metric="kl", padding="both")
    edges = np.flatnonzero(patching.graph.valid)
    groups = [edges[i : i + 1] for i in range(0, len(edges), 7)]
    search = Groups(patching, measure)
    stages = {search._first_stage(group) for group in groups}
    monkeypatch.setattr("acdc.methods.groups.FEW_TOKENS", few)
    found, _ = search.measure_without(groups)
    assert (search.runs < len(stages)) == (few > 0)
    for group, distance in zip(groups, found, strict=True):
        circuit = search.kept.copy()
        circuit.flat[group] = False
        assert distance == pytest.approx(problems.distance(patching, measure, circuit), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("family", "case", "options"),
    [
        ("gpt2-scaled-by-layer", {"ablation": "zero", "metric": "logit-difference"}, {"qkv": "merged"}),
        ("olmo2", {"ablation": "mean", "reads": 2, "shared": 3}, {}),
        ("llama", {"ablation": "mean-position", "padding": "left"}, {"group_kv": True}),
        ("gpt2", {"ablation": "zero"}, {"inputs": "split"}),
    ],
    ids=str,
)
def test_and_so_under_other_ablations_and_graphs(
    family: str, case: dict[str, Any], options: dict[str, Any]
) -> None:
    patching, measure = problems.make(family, graph=problems.tiny(family).graph(**options), **case)
    search = Groups(patching, measure)
    for seed in range(3):
        groups = some_groups(patching.graph, search.kept, seed)
        found, _ = search.measure_without(groups)
        for group, distance in zip(groups, found, strict=True):
            circuit = search.kept.copy()
            circuit.flat[group] = False
            assert distance == pytest.approx(problems.distance(patching, measure, circuit), rel=1e-9, abs=1e-12)
        search.remove(groups[7 + seed])
        assert search.distance == pytest.approx(problems.distance(patching, measure, search.kept), rel=1e-9)


@pytest.mark.parametrize("family", ["gpt2-scaled-by-layer", "olmo2"])
def test_and_so_on_prompts_in_batches(family: str) -> None:
    patching, measure = problems.make(family, metric="kl", padding="both")
    whole = Groups(patching, measure)
    problem = Problem(patching.model, patching.graph, patching.prompts, OUTCOMES["kl"], batch_size=2)
    parts = Groups(Measures(problem.outcome, problem.searched()))
    for seed in range(3):
        groups = some_groups(patching.graph, whole.kept, seed)
        for found, expected in zip(parts.measure_without(groups), whole.measure_without(groups), strict=True):
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
        for search in (whole, parts):
            search.remove(groups[7 + seed])
        assert parts.distance == pytest.approx(whole.distance, rel=1e-9)


@pytest.mark.parametrize("ablation", ["resample", "mean"])
@pytest.mark.parametrize("size", [5, 2])
def test_every_prompt_is_as_in_a_full_run(size: int, ablation: Any) -> None:
    """In one batch and in several, without groups that start anywhere, and without none."""
    model = problems.tiny("gemma2")
    problem = Problem(model, model.graph(), problems.make_prompts(size=5), OUTCOMES["kl"], ablation, size)
    kept = problem.graph.valid & (np.random.default_rng(0).random(problem.graph.valid.shape) < 0.8)
    nothing = np.zeros(0, dtype=np.int64)
    groups = [nothing, *some_groups(problem.graph, kept, 1), nothing]
    stack = np.repeat(kept[None], len(groups), axis=0)
    for circuit, group in zip(stack, groups, strict=True):
        circuit.flat[group] = False
    batches = problem.batches()
    assert len(batches) == -(-5 // size)
    found = Groups(Measures(problem.outcome, batches), kept=kept).values_without(groups)
    (expected,) = measure_prompts(problem, [stack])
    np.testing.assert_allclose(found, expected.circuits, rtol=1e-9, atol=1e-12)
