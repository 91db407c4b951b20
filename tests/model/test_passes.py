"""Passes are counted as a reader would count them."""

from __future__ import annotations

import pytest

import acdc
from acdc.model.passes import Passes, count_passes


@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize(
    ("method", "forward", "backward"),
    [("eap", 2, 1), ("clean-corrupted", 3, 2), ("eap-ig", 7, 5), ("random", 2, 0)],
)
def test_attribution_costs_what_the_registry_says(
    method: str, forward: int, backward: int, batch_size: int | None
) -> None:
    model, task = acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse", size=16, distribution="fixed")
    with count_passes() as passes:
        acdc.score(model, task, method, metric="projection", batch_size=batch_size)
    assert passes == Passes(forward * 16, backward * 16)


def test_each_circuit_of_a_batch_counts() -> None:
    model, task = acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse", size=16, distribution="fixed")
    graph = model.graph()
    with count_passes() as passes:
        acdc.score(model, task, "exact", graph=graph)
    to_logits = int(graph.valid[-1].sum())  # these need no run: what is read is a sum
    assert passes.forward == 16 * (graph.n_edges - to_logits + 2)


def test_nothing_is_counted_outside() -> None:
    model, task = acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse", size=4)
    with count_passes() as passes:
        pass
    acdc.score(model, task, "eap", metric="projection")
    assert passes == Passes(0, 0)
