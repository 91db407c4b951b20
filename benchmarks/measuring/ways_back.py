"""What RelP, GIM and AtP* cost beside EAP, and what AtP*'s bound of what was missed says.

    python -m acdc.benchmarks.measuring.ways_back -o docs/methods/ways_back.csv

All are run in turn in one process, round after round, so that whatever else the machine does meets them alike. The time
is of the processor, the least of all rounds; `ratio` is to EAP's, and memory is of tensors alive at once. The bound
(`acdc.missed`), measured on the small models, is of the circuit of the best tenth of the edges by `atp-star`, by the
task's own metric.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import statistics
import time
from pathlib import Path

import torch

import acdc
from acdc.benchmarks.cost import measure
from acdc.store.writing import write_atomically

METHODS = ("eap", "relp", "gim", "atp-star")
CASES = (("tiny-tasks", 32), ("tiny-tasks-gqa", 32), ("smollm2-135m-q4", 8))
"""Models, and prompts of indirect objects."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """One method on one model; of AtP* also its bound, and the largest effect that it left out, by exact patching, both
    in shares of what separates the full model from no circuit, on held-out prompts.
    """

    model: str
    prompts: int
    method: str
    processor_seconds: float
    ratio: float
    ratio_of_medians: float
    megabytes: float
    bound: float | None = None
    bound_seconds: float | None = None
    largest: float | None = None


def costs(name: str, prompts: int, *, rounds: int, bound: bool) -> list[Cost]:
    """All methods on one model."""
    model = acdc.load(name)
    data = acdc.tasks.load("ioi").prepare(model)
    data = dataclasses.replace(data, discovery=data.discovery[:prompts])
    methods = METHODS if bound else METHODS[:-1]  # AtP* takes a pass a layer
    taken: dict[str, list[float]] = {method: [] for method in methods}
    peaks = {}
    for method in methods:  # the first run of anything is slower than the next
        _, cost = measure(lambda method=method: acdc.score(model, data, method), model.device)  # type: ignore[misc]
        peaks[method] = cost.peak_bytes
    for i in range(rounds):
        for method in methods if i % 5 == 0 else methods[:3]:
            start = time.process_time()
            acdc.score(model, data, method)
            taken[method].append(time.process_time() - start)
    found = []
    for method, seconds in taken.items():
        extra = {}
        if bound and method == "atp-star":
            circuit = acdc.score(model, data, method).top(model.graph().n_edges // 10)
            start = time.process_time()
            missed = acdc.missed(model, data, circuit)
            extra = {
                "bound": missed.bound / missed.separation,
                "bound_seconds": time.process_time() - start,
            }
            assert data.held_out is not None
            exact = acdc.score(model, dataclasses.replace(data, discovery=data.held_out), "exact")
            outside = exact.graph.valid & ~circuit.edges
            extra["largest"] = float(abs(exact.values[outside]).max()) / missed.separation
        found.append(
            Cost(
                name, prompts, method, min(seconds), min(seconds) / min(taken["eap"]),
                statistics.median(seconds) / statistics.median(taken["eap"]), peaks[method] / 1e6, **extra,
            )
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", nargs="*", default=[name for name, _ in CASES])
    given = parser.parse_args()
    torch.set_num_threads(1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(Cost)])
    for name, prompts in CASES:
        if name in given.models:
            for row in costs(name, prompts, rounds=given.rounds, bound=name.startswith("tiny")):
                cells = dataclasses.asdict(row).values()
                writer.writerow([f"{x:.4g}" if isinstance(x, float) else x for x in cells])
                write_atomically(given.out, text.getvalue())
    print(text.getvalue())


if __name__ == "__main__":
    main()
