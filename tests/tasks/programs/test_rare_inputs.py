"""Inputs that make a program do what it rarely does are found, and where there are few inputs, all are."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from acdc.graph import BoolArray
from acdc.model.programs.tracr import BUILTIN, TracrModel
from acdc.tasks.programs import rare_inputs as tracr_search
from acdc.tasks.programs.derive import causal_edges, edge_effects, structural_edges
from acdc.tasks.programs.inputs import lengths_of, random_pairs
from acdc.tasks.programs.rare_inputs import (
    all_inputs,
    all_pairs,
    number_of_inputs,
    structured_inputs,
    telling_pairs,
)
from acdc.tasks.programs.truth import TrueCircuit, TrueCircuits, derive_truth

SIX_ALIKE = Path(__file__).parent / "six-alike"
"""SelectorWidth(Select(tokens, tokens, EQ)) >= 6 on 12 letters and 7 places, compiled."""


def test_a_program_whose_output_rarely_changes_shows_its_edges() -> None:
    """All its tokens differ on nearly every random input; six alike are one in a hundred thousand."""
    model, semantic = TracrModel.load(SIX_ALIKE), structural_edges(TracrModel.load(SIX_ALIKE), semantic=True)
    rng = np.random.default_rng(0)
    assert semantic.sum() == 5
    random = random_pairs(model, 800, distribution="fixed", rng=rng)
    assert not causal_edges(model, random, ablation="resample").edges.any()
    for distribution in ("fixed", "varied"):
        pairs = telling_pairs(model, distribution=distribution, rng=rng)
        np.testing.assert_array_equal(causal_edges(model, pairs, ablation="resample").edges, semantic)


def test_counts_are_reached_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without structured inputs too: a change that makes a count occur for the first time is kept and changed on."""
    monkeypatch.setattr(tracr_search, "structured_inputs", lambda *_, **__: [])
    model = TracrModel.load(SIX_ALIKE)
    inputs = tracr_search.telling_inputs(model, rng=np.random.default_rng(0), mixed=False)
    most = max(max(map(values.count, values)) for values in inputs)
    assert most >= 6


def test_structured_inputs_are_inputs() -> None:
    for name, mixed in itertools.product(("tracr-hist", "tracr-sort-unique", "tracr-shuffle-dyck2"), (False, True)):
        program = TracrModel.load(name).program
        found = structured_inputs(program, rng=np.random.default_rng(0), mixed=mixed)
        lengths = {len(values) for values in found}
        assert lengths == set(lengths_of(program) if mixed else lengths_of(program)[-1:])
        assert set().union(*found) <= set(program.tokens)
        if program.distinct:
            assert all(len(set(values)) == len(values) for values in found)
        else:
            assert {(token,) * max(lengths) for token in program.tokens[:8]} <= set(found)


@pytest.mark.parametrize("name", ["tracr-hist", "tracr-sort-unique"])
def test_all_inputs_are_counted(name: str) -> None:
    program = TracrModel.load(name).program
    for mixed in (False, True):
        every = list(all_inputs(program, mixed=mixed))
        assert len(every) == len(set(every)) == number_of_inputs(program, mixed=mixed)


def test_all_pairs_are_all() -> None:
    model = TracrModel.load("tracr-increment")
    n = number_of_inputs(model.program, mixed=False)
    batches = all_pairs(model, ablation="zero", distribution="fixed")
    assert batches is not None
    clean = torch.cat([pairs.clean for pairs in batches])
    assert len(clean) == len(clean.unique(dim=0)) == n
    assert all_pairs(model, ablation="resample", distribution="permuted") is None  # an order each
    assert all_pairs(TracrModel.load(SIX_ALIKE), ablation="zero", distribution="fixed") is None  # 35,831,808


def test_effects_of_some_edges_are_those_of_all() -> None:
    model = TracrModel.load("tracr-hist")
    pairs = random_pairs(model, 20, distribution="varied", rng=np.random.default_rng(0))
    every = edge_effects(model, pairs, ablation="resample")
    some: BoolArray = np.random.default_rng(0).random(every.shape[:2]) < 0.5
    expected = every.masked_fill(~torch.from_numpy(some)[..., None], 0)
    torch.testing.assert_close(edge_effects(model, pairs, ablation="resample", only=some), expected, atol=0, rtol=0)


def test_a_truth_says_how_many_semantic_edges_were_seen_to_act() -> None:
    circuit = TrueCircuit(
        kind="causal", ablation="resample", distribution="fixed", edges=("a->b",), acting=1, semantic=3
    )
    assert circuit.scope == "resample/fixed, 1 of 3 semantic edges seen to act"
    every = circuit.model_copy(update={"exhaustive": True})
    assert every.scope == "resample/fixed, 1 of 3 semantic edges seen to act, all pairs of inputs tried"
    assert TrueCircuit(kind="semantic", edges=()).scope == "semantic"


def test_a_truth_derived_again_is_the_one_that_is_shipped() -> None:
    model = TracrModel.load("tracr-increment")
    derived, shipped = derive_truth(model), TrueCircuits.load(BUILTIN / "tracr-increment")
    assert [c.witnesses for c in derived.circuits[2:5]] == [c.witnesses for c in shipped.circuits[2:5]]
    assert [set(c.edges) for c in derived.circuits] == [set(c.edges) for c in shipped.circuits]


def test_edges_that_never_acted_are_warned_of() -> None:
    """An MLP that reads the token, and none of whose units is ever above zero."""
    model = TracrModel.load("tracr-increment")
    with torch.no_grad():
        model.layers[0].mlp[0].bias.fill_(-1e6)
        model.layers[0].mlp[0].weight.mul_(0.5)
    with pytest.warns(
        UserWarning, match=r"semantic edges were never seen to act, on any input tried: input\.token->m0"
    ):
        derive_truth(model)


@pytest.mark.slow
def test_the_truth_of_six_alike_is_whole() -> None:
    truth = derive_truth(TracrModel.load(SIX_ALIKE))
    for circuit in truth.circuits[2:]:
        assert (circuit.acting, circuit.semantic) == (5, 5)
