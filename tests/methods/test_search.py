"""The fast search decides as the plain loop does: one edge at a time, every test a run of the whole circuit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import families
import oracle
import problems
from acdc.engine.measure import Measure, Measures
from acdc.engine.patching import Patching
from acdc.errors import AcdcError
from acdc.graph import BoolArray
from acdc.methods.search import Accept, Search


def acdc_rule(patching: Patching, measure: Measure, share: float) -> Accept:
    """ACDC's rule, with τ a share of what separates the full model from the empty circuit."""
    tau = share * distance_of_empty(patching, measure)
    return lambda new, old: new - old < tau


def distance_of_empty(patching: Patching, measure: Measure) -> float:
    return problems.distance(patching, measure, np.zeros_like(patching.graph.valid))


def check(patching: Patching, measure: Measure, share: float = 0.02) -> None:
    """Same kept edges as the plain loop, and a distance that a fresh run confirms."""
    graph = patching.graph
    accept = acdc_rule(patching, measure, share)
    expected, distance = problems.naive_search(
        graph, lambda edges: problems.distance(patching, measure, edges), accept
    )
    assert 0 < expected.sum() < graph.n_edges
    search = Search(patching, measure)
    removed = search.sweep(accept)
    assert graph.edge_names(search.kept) == graph.edge_names(expected)
    assert removed == graph.n_edges - expected.sum()
    scale = distance_of_empty(patching, measure)
    assert search.distance == pytest.approx(distance, abs=1e-9 * scale)
    assert search.distance == pytest.approx(problems.distance(patching, measure, search.kept), abs=1e-9 * scale)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_equals_the_plain_loop_in_every_family(family: str) -> None:
    check(*problems.make(family, padding="both"))


@pytest.mark.parametrize(
    ("family", "metric", "ablation"),
    [
        ("gpt2-scaled-by-layer", "kl", "resample"),
        ("gpt2-scaled-by-layer", "l2", "mean"),
        ("gpt-neox-parallel", "probability-difference", "zero"),
        ("gpt-neox-parallel", "kl", "mean-position"),
        ("llama", "l2", "zero"),
        ("gemma2", "kl", "zero"),
        ("olmo2", "probability-difference", "mean"),
        ("olmo2", "jensen-shannon", "resample"),
        ("qwen3", "exact-match", "mean-position"),
    ],
)
def test_equals_the_plain_loop_for_metrics_and_ablations(family: str, metric: str, ablation: str) -> None:
    check(*problems.make(family, metric=metric, ablation=ablation, padding="left"))


@pytest.mark.parametrize("share", [0.002, 0.2])
@pytest.mark.parametrize("family", ["gpt2-scaled-by-layer", "qwen3"])
def test_equals_the_plain_loop_at_other_thresholds(family: str, share: float) -> None:
    check(*problems.make(family, metric="kl"), share=share)


@pytest.mark.parametrize("prompts", [{"shared": 4}, {"shared": 0}, {"shared": 3, "padding": "right"}], ids=str)
@pytest.mark.parametrize("family", ["gpt2-scaled-by-layer", "mistral"])
def test_equals_the_plain_loop_where_prompts_share_a_beginning(family: str, prompts: dict[str, Any]) -> None:
    patching, measure = problems.make(family, **prompts)
    assert (patching.start > 0) == (prompts["shared"] > 0)
    check(patching, measure)


@pytest.mark.parametrize(("reads", "padding"), [(3, "none"), (3, "both"), (6, "none")])
@pytest.mark.parametrize("family", ["gpt2-scaled-by-layer", "gpt-neox-parallel", "olmo2"])
def test_equals_the_plain_loop_with_several_read_positions(family: str, reads: int, padding: str) -> None:
    check(*problems.make(family, reads=reads, padding=padding, shared=0))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt2-scaled-by-layer", {"qkv": "merged"}),
        ("olmo2", {"qkv": "merged"}),
        ("gpt-neox-parallel", {"qkv": "merged"}),
        ("gpt2-scaled-by-layer", {"inputs": "split"}),
        ("gpt2-scaled-by-layer", {"inputs": "token"}),
        ("llama", {"group_kv": True}),
        ("olmo2", {"group_kv": True}),
    ],
    ids=str,
)
def test_equals_the_plain_loop_on_other_graphs(family: str, options: dict[str, Any]) -> None:
    check(*problems.make(family, graph=problems.tiny(family).graph(**options), padding="right"), share=0.1)


@pytest.mark.parametrize("family", ["gpt2-scaled-by-layer", "gpt-neox-parallel"])
def test_equals_a_loop_over_hooks_on_the_plain_module(family: str) -> None:
    """Nothing of the engine in the loop but the metric."""
    patching, measure = problems.make(family, metric="kl", shared=2)
    model, graph, prompts = patching.model, patching.graph, patching.prompts
    reference = oracle.source_outputs(model.module, graph, prompts.corrupted, prompts.mask)

    def distance(edges: BoolArray) -> float:
        logits = oracle.patched_logits(
            model.module, graph, edges, prompts.clean, prompts.mask, None, reference
        )  # [B, T, V]
        return float(measure.distance(logits[torch.arange(len(prompts))[:, None], prompts.positions]).mean())

    accept = acdc_rule(patching, measure, 0.02)
    expected, _ = problems.naive_search(graph, distance, accept)
    search = Search(patching, measure)
    search.sweep(accept)
    assert graph.edge_names(search.kept) == graph.edge_names(expected)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_starting_from_a_pruned_circuit_is_going_on(family: str) -> None:
    """A search that starts where another has stopped knows the same distance and decides the same."""
    patching, measure = problems.make(family, metric="kl", padding="left")
    first = Search(patching, measure)
    first.sweep(acdc_rule(patching, measure, 0.01))
    again = Search(patching, measure, first.kept.copy())
    assert again.distance == pytest.approx(first.distance, rel=1e-9)
    for search in (first, again):
        search.sweep(acdc_rule(patching, measure, 0.05))
    assert (first.kept == again.kept).all()
    assert again.distance == pytest.approx(problems.distance(patching, measure, again.kept), rel=1e-9)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("family", ["gpt2-scaled-by-layer", "gpt-neox-parallel", "llama", "gemma2", "olmo2"])
def test_any_circuit_is_a_start(family: str, ablation: str) -> None:
    """Parts that nothing feeds, or that feed nothing, among them."""
    patching, measure = problems.make(family, metric="kl", ablation=ablation, padding="right")
    rng = np.random.default_rng(0)
    kept = patching.graph.valid & (rng.random(patching.graph.valid.shape) < 0.5)
    accept = acdc_rule(patching, measure, 0.02)
    expected, distance = problems.naive_search(
        patching.graph, lambda edges: problems.distance(patching, measure, edges), accept, kept=kept
    )
    search = Search(patching, measure, kept)
    search.sweep(accept)
    assert patching.graph.edge_names(search.kept) == patching.graph.edge_names(expected)
    assert search.distance == pytest.approx(distance, rel=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "olmo2"])
def test_what_the_search_expects_does_not_matter(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patching, measure = problems.make(family, padding="both")
    accept = acdc_rule(patching, measure, 0.02)
    kept, runs = [], []
    for ahead, expected in itertools.product((1, 2, 7, 1000), (True, False)):
        monkeypatch.setattr(Search, "_largest_batch", lambda self, everywhere, ahead=ahead: ahead)
        search = Search(patching, measure)
        search.sweep(accept, expected=expected)
        kept.append(search.kept)
        runs.append(search.runs)
    assert all((other == kept[0]).all() for other in kept)
    assert runs[0] > runs[-1]


def test_a_search_tests_only_edges_that_can_matter() -> None:
    """Nothing is run for edges into components from which no kept path leads to the logits."""
    patching, measure = problems.make("gpt2")
    search = Search(patching, measure)
    search.sweep(lambda new, old: True)
    assert not search.kept.any()
    assert search.tests == patching.graph.valid[-1].sum()
    assert search.runs < search.tests
    assert search.distance == pytest.approx(distance_of_empty(patching, measure))


def test_progress_counts_every_edge() -> None:
    patching, measure = problems.make("gpt2-scaled-by-layer")
    seen: list[tuple[int, int]] = []
    Search(patching, measure).sweep(acdc_rule(patching, measure, 0.02), progress=lambda *x: seen.append(x))
    assert seen == sorted(seen)
    assert seen[-1] == (patching.graph.n_edges, patching.graph.n_edges)


def test_a_metric_that_is_no_number_is_refused() -> None:
    patching, measure = problems.make("gpt2-scaled-by-layer")
    search = Search(patching, measure)
    for reference in patching.references.outputs:
        reference.fill_(float("nan"))
    with pytest.raises(AcdcError, match="NaN or infinite while edges were removed"):
        search.sweep(acdc_rule(patching, measure, 0.02))


def test_separation_is_what_removing_every_edge_costs() -> None:
    patching, measure = problems.make("llama")
    empty, full = problems.values(
        patching, measure, np.stack([np.zeros_like(patching.graph.valid), patching.graph.valid])
    )
    assert Measures.of(patching, measure).separation() == pytest.approx(abs(empty - full) / len(patching.prompts))
