"""Do rankings of nodes find smaller circuits than the search? On the trained models, at the search's distance.

    python -m acdc.benchmarks.measuring.nodes -o docs/nodes.csv

`guided` finds a circuit of whole nodes for each faithfulness, by the KL divergence. Then each ranking is asked for its
fewest best nodes that are no farther from the full model, on the same prompts. Every size is run, since the distance
need not fall with it. A row a task and faithfulness.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import acdc
from acdc.benchmarks.suites import get_suite
from acdc.engine.circuits import measure_prompts
from acdc.engine.problem import Problem
from acdc.metrics import OUTCOMES
from acdc.store.writing import write_atomically
from acdc.tasks.task import Dataset

RANKINGS = (("nap", None), ("nap-ig", None), ("nap-ig", "kl"), ("exact", None), ("exact", "kl"))
"""A method, and the metric; None: the task's own."""
FAITHFULNESS = (0.8, 0.9, 0.95)
PROMPTS = 32


def rows(model: acdc.Model, data: Dataset, task: str, share: float) -> dict[str, Any]:
    """What the search keeps, and what each ranking needs to be as near."""
    graph = model.graph()
    found = acdc.discover(model, data, "guided", units="node", metric="kl", faithfulness=share)
    problem = Problem(model, graph, data.discovery, OUTCOMES["kl"], data.ablation, unit="node")
    units = problem.units
    (measured,) = measure_prompts(problem, [found.edges], [OUTCOMES["kl"]])
    distance = float(measured.circuits[0].mean())
    row: dict[str, Any] = {
        "model": model.name, "task": task, "faithfulness": share, "nodes": units.n,
        "guided": int(units.of_edges(found.edges).sum()), "kl": f"{distance:.4g}",
    }  # fmt: skip
    for method, metric in RANKINGS:
        scores = acdc.score(model, data, method, metric=metric, units="node", graph=graph)
        order = np.argsort(-units.values_of(scores.sizes()), kind="stable")
        circuits = [graph.prune(units.mask(np.isin(np.arange(units.n), order[:n]))) for n in range(units.n + 1)]
        (nats,) = measure_prompts(problem, circuits, [OUTCOMES["kl"]])
        near = [i for i, each in enumerate(nats.circuits) if float(each.mean()) <= distance * (1 + 1e-6)]
        fewest = min(int(units.of_edges(circuits[i]).sum()) for i in near)
        row[method if metric is None else f"{method}, {metric}"] = fewest
    return row


def measured() -> Iterator[dict[str, Any]]:
    for case in get_suite("trained").cases:
        model = acdc.load(case.model)
        data = acdc.tasks.load(case.task, size=PROMPTS, ablation=case.ablation).prepare(model)
        for share in FAITHFULNESS:
            yield rows(model, data, case.name, share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/nodes.csv"))
    torch.set_num_threads(1)
    output = parser.parse_args().output
    found: list[dict[str, Any]] = []
    for row in measured():
        found.append(row)
        print(row, flush=True)
        text = io.StringIO()
        writer = csv.DictWriter(text, [*found[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
        write_atomically(output, text.getvalue())


if __name__ == "__main__":
    main()
