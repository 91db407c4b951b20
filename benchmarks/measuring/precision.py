"""Would a search decide the same if it tested edges in bfloat16, and how much sooner?

    python -m acdc.benchmarks.measuring.precision smollm2-135m-q4

The model is loaded twice, in float32 and in bfloat16, and the same edges of the same circuit, the best by EAP-IG, are
each removed alone, as searches do: by how much does the KL divergence from the full model rise? The two take turns in
one process, and time is the processor's.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import numpy as np
import torch

import acdc
from acdc.engine.measure import Measures
from acdc.engine.problem import Problem
from acdc.graph import BoolArray, FloatArray, IntArray
from acdc.methods.groups import Groups

DTYPES = (torch.float32, torch.bfloat16)
AT_ONCE = 50
"""Edges that are tested before the other dtype has its turn."""
SHARES = (0.0001, 0.001, 0.01)
"""Thresholds that decisions are compared at, of what separates the full model from the empty circuit."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """Tests in float32 and bfloat16.

    Attributes:
        kept: the circuit, `[n_destinations, n_sources]`; edges: those that were removed, flat.
        rises: `[2, edge]`; seconds: of each; separation: of the empty circuit, in float32.
    """

    kept: BoolArray
    edges: IntArray
    rises: FloatArray
    seconds: tuple[float, float]
    separation: float

    @property
    def errors(self) -> FloatArray:
        """`[edge]`, in bfloat16, in shares of the separation."""
        return np.abs(self.rises[1] - self.rises[0]) / self.separation

    def agreement(self, share: float) -> float:
        """Share of the edges that a threshold decides alike."""
        above = self.rises > share * self.separation
        return float((above[0] == above[1]).mean())

    def report(self) -> str:
        """A Markdown table."""
        lines = [
            "| | float32 | bfloat16 |",
            "|---|---|---|",
            f"| processor seconds, {self.rises.shape[1]} edges | {self.seconds[0]:.1f} | {self.seconds[1]:.1f} |",
            f"| median rise, of the separation | {np.median(np.abs(self.rises[0])) / self.separation:.2g} | |",
            f"| error: median, largest | | {np.median(self.errors):.2g}, {self.errors.max():.2g} |",
        ]
        lines += [f"| decided alike at τ = {share:g} | | {self.agreement(share):.1%} |" for share in SHARES]
        return "\n".join(lines)


def compare(name: str, *, task: str = "ioi", size: int = 16, edges: int = 3000, tests: int = 300) -> Compared:
    """Test some edges of a circuit in both dtypes.

    Args:
        edges: of the circuit; tests: how many of them are removed, drawn at random.
    """
    searches: list[Groups] = []
    kept, separation = None, 0.0
    for dtype in DTYPES:
        model = acdc.load(name, dtype=dtype)
        data = acdc.tasks.load(task, size=size, metric="kl").prepare(model)
        problem = Problem(model, model.graph(), data.discovery, data.metric, data.ablation)
        measures = Measures(problem.outcome, problem.batches("search"))
        if kept is None:
            kept = acdc.score(model, data, "eap-ig").top(edges).edges
            separation = measures.separation()
        searches.append(Groups(measures, kept=kept))
    assert kept is not None
    there = np.flatnonzero(kept)
    some = np.sort(np.random.default_rng(0).choice(there, min(tests, len(there)), replace=False))
    rises, seconds = np.zeros((len(DTYPES), len(some))), [0.0] * len(DTYPES)
    for first in range(0, len(some), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        for i, search in enumerate(searches):
            start = time.process_time()
            distances, _ = search.measure_without([some[[k]] for k in range(len(some))[part]])
            seconds[i] += time.process_time() - start
            rises[i, part] = distances - search.distance
    return Compared(kept, some, rises, (seconds[0], seconds[1]), separation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--size", type=int, default=16, help="prompts")
    parser.add_argument("--edges", type=int, default=3000, help="of the circuit")
    parser.add_argument("--tests", type=int, default=300, help="edges that are removed")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = compare(options.model, task=options.task, size=options.size, edges=options.edges, tests=options.tests)
    print(found.report())


if __name__ == "__main__":
    main()
