"""Costs are those of the computation, whatever the machine."""

from __future__ import annotations

import torch

from acdc.benchmarks.cost import measure


def test_operations_and_peak_memory_of_a_small_computation() -> None:
    given = torch.ones(100, 100)

    def compute() -> torch.Tensor:
        one = given + 1  # 40 kB
        part = one[:10]  # a view
        one.add_(1)
        other = given @ given  # 40 kB more, the peak; 2 · 100³ operations
        del one, part
        return other + 1  # the first 40 kB are free by now

    result, cost = measure(compute, torch.device("cpu"))
    assert result[0, 0] == 101
    assert cost.flops == 2 * 100**3
    assert cost.peak_bytes == 80_000
    assert cost.seconds > 0
    assert cost.processor_seconds > 0
    assert (cost.forward, cost.backward) == (0, 0)
