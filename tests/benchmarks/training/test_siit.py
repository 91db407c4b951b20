"""Alignment, interventions and training of the networks whose true circuits are known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import acdc
from acdc.benchmarks.training.siit import Inputs, Recipe, Trial, network, train
from acdc.benchmarks.training.siit_alignment import Alignment, Swap
from acdc.benchmarks.training.siit_check import shortcomings, verify
from acdc.benchmarks.training.train_interp import RECIPES, make, summary
from acdc.errors import AcdcError
from acdc.model.programs.tracr import TracrModel
from acdc.tasks.programs.interp import InterpRecord

RECIPE = Recipe(d_model=8, n_heads=2, d_mlp=8, steps=6, batch_size=8)


def alignment(name: str = "reverse", n_heads: int = 4, seed: int = 0) -> Alignment:
    return Alignment.draw(TracrModel.load(f"tracr-{name}"), n_heads=n_heads, seed=seed)


@pytest.mark.parametrize("name", ["reverse", "leader", "only-unique"])
def test_every_part_of_the_program_has_a_part_of_the_network_in_its_layer(name: str) -> None:
    for seed in range(5):
        drawn = alignment(name, seed=seed)
        assert len(set(drawn.nodes.values())) == len(drawn.nodes)
        for high, low in drawn.nodes.items():
            assert (low[0], low.split(".")[0]) == (high[0], high.split(".")[0])
        edges = drawn.truth.get("resample", "varied").edges
        assert int(drawn.true.sum()) == len(edges)
        assert not (drawn.true & drawn.false).any()
        assert int(drawn.true.sum() + drawn.false.sum()) == drawn.low.n_edges
    assert len({tuple(alignment(name, seed=seed).nodes.values()) for seed in range(5)}) > 1


def test_swapping_a_node_swaps_all_that_it_writes_in_both() -> None:
    drawn = alignment()
    swap = Swap.of_nodes(drawn, torch.tensor([-1, 2]), torch.zeros(drawn.low.n_sources, dtype=torch.bool))
    assert not swap.high[0].any()
    assert not swap.low[0].any()
    for mask, source in zip((swap.high, swap.low), drawn.inside[2], strict=True):
        assert mask[1, :, source].all()
        assert int(mask[1].sum()) == mask.shape[1]


def test_nodes_outside_are_swapped_in_the_network_alone() -> None:
    drawn = alignment()
    everything = torch.ones(drawn.low.n_sources, dtype=torch.bool)
    swap = Swap.of_nodes(drawn, torch.tensor([-1]), everything)
    assert not swap.high.any()
    assert torch.equal(swap.low[0, 0], drawn.outside)


def test_random_interventions_swap_true_edges_in_both_or_in_neither() -> None:
    drawn = alignment()
    swap = Swap.random(drawn, 200, torch.Generator().manual_seed(0))
    high, low = drawn.edges
    assert torch.equal(swap.high[:, high[:, 0], high[:, 1]], swap.low[:, low[:, 0], low[:, 1]])
    assert (swap.low & drawn.false).any((1, 2)).float().mean() > 0.5
    assert (swap.low & drawn.true).any((1, 2)).float().mean() > 0.5


def test_held_out_inputs_are_never_trained_on() -> None:
    inputs = Inputs(TracrModel.load("tracr-hist"), seed=0)
    drawn = inputs.draw(inputs.train, 500, torch.Generator().manual_seed(0))
    held_out = {tuple(row) for row in inputs.tokens[inputs.held_out].tolist()}
    assert len(held_out) == len(inputs.held_out) > 200
    assert held_out.isdisjoint(map(tuple, torch.cat((drawn.clean, drawn.corrupted)).tolist()))
    assert len(inputs.held_out) + len(inputs.train) == 4 + 4**2 + 4**3 + 4**4 + 4**5


def test_what_is_expected_without_a_swap_is_what_the_program_gives() -> None:
    drawn = alignment("hist")
    record = InterpRecord.of(drawn.program, drawn.nodes)
    inputs = Inputs(drawn.program, seed=0)
    pairs = inputs.draw(inputs.train, 20, torch.Generator().manual_seed(0))
    trial = Trial(drawn, record, network(RECIPE, record, drawn.program), pairs)
    for tokens, mask, answers in zip(
        pairs.clean, pairs.clean_mask, trial.behaviour().expected.tolist(), strict=True
    ):
        text = [record.vocabulary[token] for token in tokens[mask].tolist()]
        said = [record.vocabulary[answer] for answer in answers if answer >= 0]
        assert said == [str(text.count(letter)) for letter in text[1:]]


def test_swapping_every_aligned_node_gives_the_donors_answer() -> None:
    """Of a program whose answer is written by one node: that node swapped, the answer is the donor's."""
    drawn = alignment("hist")
    record = InterpRecord.of(drawn.program, drawn.nodes)
    inputs = Inputs(drawn.program, seed=0)
    pairs = inputs.draw(inputs.train, 50, torch.Generator().manual_seed(0))
    pairs = dataclasses.replace(pairs, corrupted_positions=pairs.clean_positions)
    longer = pairs.corrupted_mask.sum(1) >= pairs.clean_mask.sum(1)
    pairs = pairs[longer]
    trial = Trial(drawn, record, network(RECIPE, record, drawn.program), pairs)
    last = torch.full((len(pairs),), list(drawn.nodes).index("m0"))
    nobody = torch.zeros(drawn.low.n_sources, dtype=torch.bool)
    swapped = trial.intervention(Swap.of_nodes(drawn, last, nobody)).expected
    donors = record.tokens(trial.high_donor.logits, pairs.clean_mask)
    assert torch.equal(swapped, donors)


def train_tiny(**options: Any) -> tuple[torch.Tensor, list[dict[str, float]]]:
    drawn = alignment("shift", n_heads=2)
    record = InterpRecord.of(drawn.program, drawn.nodes)
    model, curve = train(drawn, record, RECIPE, every=3, **options)
    return torch.cat([parameter.flatten() for parameter in model.parameters()]), curve


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    class InterruptedError(Exception):
        pass

    def stop(line: dict[str, float]) -> None:
        stopped.append(line)

    def save_then_stop(line: dict[str, float]) -> None:
        if line["step"] == 6:
            raise InterruptedError

    stopped: list[dict[str, float]] = []
    whole, curve = train_tiny()
    with pytest.raises(InterruptedError):
        train_tiny(resume=tmp_path / "resume.pt", report=save_then_stop)
    resumed, resumed_curve = train_tiny(resume=tmp_path / "resume.pt", report=stop)
    assert [line["step"] for line in stopped] == [6]
    assert torch.equal(whole, resumed)
    assert curve == resumed_curve


def test_an_untrained_network_is_found_wanting() -> None:
    drawn = alignment("shift", n_heads=2)
    record = InterpRecord.of(drawn.program, drawn.nodes)
    found = verify(network(RECIPE, record, drawn.program), drawn, record, pairs=50, edge_pairs=5)
    words = shortcomings(found)
    assert words[0].startswith("accuracy is 0.")
    assert any(text.startswith("interchange accuracy of a0.h") for text in words)
    assert set(found["nodes"]) == set(drawn.nodes.values())
    assert set(found["outside"]) == {"a0.h0", "a0.h1", "m0"} - set(drawn.nodes.values())
    assert found["false_edges"]["number"] == int(drawn.false.sum())


@pytest.mark.slow
def test_a_trained_network_is_good_enough(tmp_path: Path) -> None:
    make("shift", tmp_path / "interp-shift", dataclasses.replace(RECIPES["shift"], steps=600))
    assert acdc.tasks.default_task(str(tmp_path / "interp-shift")) == str(tmp_path / "interp-shift")
    model, task = acdc.load(tmp_path / "interp-shift"), acdc.tasks.load(tmp_path / "interp-shift")
    truth = acdc.evaluate(model, task, acdc.discover(model, task), random_circuits=0).truth
    assert truth is not None
    assert (truth.true_positives, truth.false_positives, truth.missed) == (4, 0, 0)
    assert "`interp-shift`" in summary(tmp_path)


def test_a_network_that_is_not_good_enough_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(AcdcError, match=r"interp-shift is not good enough: accuracy is 0\."):
        make("shift", tmp_path / "interp-shift", dataclasses.replace(RECIPE, n_heads=1))
    assert not (tmp_path / "interp-shift" / "config.json").exists()
