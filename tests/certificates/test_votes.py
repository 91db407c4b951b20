"""Edges that stay when prompts change: votes of subsamples, their bounds, and what is claimed of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

import acdc
from acdc.certificates.smoothing import bounds, largest_radius, vote
from acdc.errors import AcdcError
from acdc.methods.by_prompt import best


def test_votes_that_are_not_of_all_edges_or_far_off_do_not_hold() -> None:
    model, task = acdc.load("tracr-hist"), acdc.tasks.load("tracr-hist", distribution="fixed", size=16)
    circuit = acdc.discover(model, task)
    certificate = acdc.certify(model, task, circuit, stable=1)
    assert acdc.verify(model, task, circuit, certificate).checked
    votes = certificate.stability
    assert votes is not None
    assert votes.kept
    first = next(iter(votes.kept))
    other = next(name for name in circuit.graph.edge_names(circuit.graph.valid) if name not in votes.kept)
    for lie, words in (
        ({"out": votes.out + 1}, "its edges are not as many as it says"),
        ({"kept": votes.kept | {first: votes.kept[first] + 5}}, f"{first} does not stay if any"),
        ({"kept": votes.kept | {other: 3000}, "out": votes.out - 1}, f"{other} does not stay if any 3000 prompts"),
        ({"kept": votes.kept | {other: 1}, "out": votes.out - 1}, f"{other} does not stay if any 1 prompts"),
        ({"kept": {}, "abstained": votes.abstained + len(votes.kept)}, f"{first} stays if any 1 prompts change"),
        ({"out": votes.out - 1, "abstained": votes.abstained + 1}, "edges stay out, and it says"),
        ({"kept": votes.kept | {"m0->m99": 1}, "out": votes.out - 1}, "has no edge 'm0->m99'"),
    ):
        false = certificate.model_copy(update={"stability": votes.model_copy(update=lie)})
        with pytest.raises(AcdcError, match=words):
            acdc.verify(model, task, circuit, false)


def test_a_vote_is_a_count_over_subsamples() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((12, 9)).astype(np.float32)
    votes = vote(scores, 3, samples=50, share=0.5, seed=3)
    again = np.random.default_rng(3)
    chosen = again.random((50, 12)) < 0.5
    expected = sum(best(np.abs(scores[row]).sum(0), 3).astype(int) for row in chosen)
    assert votes.tolist() == expected.tolist()


def test_certified_edges_survive_every_change_of_so_many_prompts() -> None:
    """Slow and exact: the probability of each edge over all subsamples, before and after any one prompt changes."""
    rng = np.random.default_rng(1)
    n, share = 6, 0.2
    scores = np.abs(rng.standard_normal((n, 5))) + np.array([2.0, 1, 0, 0, 0])
    subsets = np.array(list(itertools.product([0, 1], repeat=n)), dtype=bool)
    weight = share ** subsets.sum(1) * (1 - share) ** (~subsets).sum(1)

    def probability(rows: np.ndarray) -> np.ndarray:
        kept = np.array([best(rows[some].sum(0), 2) if some.any() else np.zeros(5, bool) for some in subsets])
        return np.asarray(weight @ kept)

    before = probability(scores)
    certified = [i for i in range(5) if largest_radius(float(before[i]), share) >= 1]
    for prompt in range(n):
        for value in (0.0, 100.0):
            changed = scores.copy()
            changed[prompt] = value * (np.arange(5) == 4)
            after = probability(changed)
            assert (after >= before - share - 1e-12).all()
            assert all(after[i] > 0.5 for i in certified)


def test_bounds_are_clopper_and_pearson() -> None:
    low, high = bounds(np.array([0.0, 3.0, 10.0]), 10, 0.95)
    tail = 0.05 / 6
    assert low[0] == 0
    assert high[2] == 1
    assert stats.binom.sf(2, 10, low[1]) == pytest.approx(tail)
    assert stats.binom.cdf(3, 10, high[1]) == pytest.approx(tail)
    assert largest_radius(0.5, 0.2) == -1
    assert largest_radius(1.0, 0.2) == 3  # 0.8^3 = 0.512 > ½


def test_stability_takes_no_gradient_that_vanishes() -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=8, metric="kl")
    circuit = acdc.Circuit(model.graph(), model.graph().valid)
    with pytest.raises(AcdcError, match="gradient of 'kl' is zero at the clean prompt"):
        acdc.certify(model, task, circuit, stable=1, method="eap", budget=100.0)
