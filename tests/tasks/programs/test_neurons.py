"""The true neurons of compiled programs: what brute force over all pairs finds; rankings and pruning recover them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import acdc
from acdc.benchmarks.measuring.neurons import flags, recovery, witnessed
from acdc.neurons import discover_neurons
from acdc.tasks.programs.inputs import random_pairs
from acdc.tasks.programs.neurons import keeping_alone, neuron_effects, true_neurons
from acdc.tasks.programs.rare_inputs import all_pairs


@pytest.mark.parametrize("name", ["tracr-hist", "tracr-proportion"])
def test_rankings_and_pruning_one_by_one_recover_the_truth(name: str) -> None:
    found = recovery(name)
    assert found.auc_exact == found.auc_nap_ig == 1
    assert found.one_by_one == (found.true, 0)
    assert found.groups[1] == 0
    assert found.alone < 1e-6
    assert found.groups_alone < 1e-6


def test_a_replaced_neuron_moves_outputs_as_a_hook_on_the_module_does() -> None:
    model = acdc.load("tracr-hist").program
    assert model is not None
    pairs = random_pairs(model, 20, distribution="mixed", rng=np.random.default_rng(0))
    effects = neuron_effects(model, pairs, ablation="resample")
    seen: list[torch.Tensor] = []

    def run(tokens: torch.Tensor, mask: torch.Tensor, change: object = None) -> torch.Tensor:
        seen.clear()

        def hook(_: object, args: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
            seen.append(args[0].clone())
            return change(args[0].clone()) if callable(change) else None

        handle = model.layers[0].mlp[2].register_forward_pre_hook(hook)
        with torch.no_grad():
            out = model(tokens, attention_mask=mask)
        handle.remove()
        return out

    whole = run(pairs.clean, pairs.clean_mask)
    run(pairs.corrupted, pairs.corrupted_mask)
    other = seen[0]
    read = pairs.clean_mask.clone()
    read[:, 0] = False
    for unit in (0, 4, 9):

        def change(x: torch.Tensor, unit: int = unit) -> torch.Tensor:
            x[..., unit] = other[..., unit]
            return x

        moved = (run(pairs.clean, pairs.clean_mask, change) - whole).abs().amax(-1).masked_fill(~read, 0).amax(-1)
        np.testing.assert_allclose(effects[unit], moved.numpy(), atol=1e-3)


@pytest.mark.slow
def test_the_truth_is_what_all_pairs_show() -> None:
    model = acdc.load("tracr-proportion").program
    assert model is not None
    truth = true_neurons(model, distribution="fixed")
    every = all_pairs(model, ablation="resample", distribution="fixed")
    assert every is not None
    shown = [
        neuron_effects(model, some, ablation="resample").max(-1) for some, _ in zip(every, range(20), strict=False)
    ]
    np.testing.assert_array_equal(np.concatenate(truth.kept), np.max(shown, axis=0) > 1e-2)


def test_zeros_have_a_truth_of_their_own() -> None:
    model, task = acdc.load("tracr-hist"), acdc.tasks.load("tracr-hist", ablation="zero")
    assert model.program is not None
    truth = true_neurons(model.program, ablation="zero")
    pairs = random_pairs(model.program, 100, distribution="varied", rng=np.random.default_rng(3))
    assert keeping_alone(model.program, pairs, truth.kept, ablation="zero").max() < 1e-6
    data = witnessed(task.prepare(model), model, truth)
    whole = acdc.Circuit(model.graph(), model.graph().valid)
    found = discover_neurons(model, data, whole, faithfulness=1 - 1e-6, one_by_one=True)
    kept = flags(found, truth)
    assert not (kept & ~np.concatenate(truth.kept)).any()
