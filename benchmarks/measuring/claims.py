"""What critics found of other models' circuits, asked of ours: how far they move with the sample of prompts and with
the order of tests, and how much of a task three edges do.

    python -m acdc.benchmarks.measuring.claims -o docs/trust/claims.csv

adds the rows that the file lacks, and prints all as a table.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

import acdc
from acdc.benchmarks.measuring.trust import TRAINED_CASES
from acdc.engine.circuits import measure_prompts
from acdc.engine.measure import Measures
from acdc.engine.problem import Problem
from acdc.errors import EmptyCircuitError
from acdc.evaluation.judging import judging_problem
from acdc.graph import BoolArray, Graph
from acdc.methods.attribution import STEPS, path
from acdc.methods.by_prompt import best, scores_by_prompt
from acdc.methods.groups import Groups
from acdc.metrics import OUTCOMES, jaccard
from acdc.tasks.task import Dataset

RESAMPLES, ORDERS = 200, 5
IOI = ["ioi"]
"""Tasks of which it is asked how much three edges do."""


class Row(NamedTuple):
    """One number of one case.

    Attributes:
        claim: "resamples, mean absolute" and "resamples, mean": the mean overlap (Jaccard) of EAP-IG's best edges on
            two bootstraps of the prompts; "order": that of ACDC's circuits under two orders of tests; "three edges":
            the share of held-out prompts on which three edges prefer the answer.
        edges: of the circuit, or of the smallest and the largest.
    """

    claim: str
    case: str
    value: float
    edges: str


def resampled(case: str, model: acdc.Model, data: Dataset) -> Iterator[Row]:
    """Scores are summed as the papers do (the mean, in size), and as here (the mean of sizes)."""
    n = acdc.discover(model, data, "eap-ig").n_edges
    problem = Problem(model, model.graph(), data.discovery, data.metric, data.ablation)
    scores = scores_by_prompt(problem, alphas=path(STEPS, data.ablation))
    prompts = len(scores)
    draws = np.random.default_rng(0).multinomial(prompts, np.full(prompts, 1 / prompts), size=(2, RESAMPLES))
    for name, rows in (("mean absolute", np.abs(scores)), ("mean", scores)):
        one, other = (best(np.abs(draw.astype(np.float32) @ rows), n) for draw in draws)
        overlap = float(np.mean([jaccard(a, b) for a, b in zip(one, other, strict=True)]))
        yield Row(f"resamples, {name}", case, overlap, str(n))


def reordered(case: str, model: acdc.Model, data: Dataset) -> Iterator[Row]:
    """ACDC's threshold; destinations from the logits backwards, those of a stage and the sources of each shuffled."""
    threshold = acdc.discover(model, data, "acdc").provenance.selection["threshold"]
    assert isinstance(threshold, float)
    problem = Problem(model, model.graph(), data.discovery, data.metric, data.ablation)
    measures = Measures(problem.outcome, problem.searched())
    rng = np.random.default_rng(0)
    found = [_swept(measures, _order(problem.graph, rng), threshold) for _ in range(ORDERS)]
    overlap = float(np.mean([jaccard(a, b) for a, b in itertools.combinations(found, 2)]))
    sizes = [int(edges.sum()) for edges in found]
    yield Row("order", case, overlap, f"{min(sizes)} to {max(sizes)}")


def _order(graph: Graph, rng: np.random.Generator) -> list[int]:
    """Flat indices of all edges."""
    stage = {
        d: int(graph.port_stage[np.flatnonzero(graph.port_destination == d)[0]])
        for d in range(graph.n_destinations)
    }
    destinations = sorted(rng.permutation(graph.n_destinations).tolist(), key=lambda d: -stage[d])
    return [
        d * graph.n_sources + int(s) for d in destinations for s in rng.permutation(np.flatnonzero(graph.valid[d]))
    ]


def _swept(measures: Measures, order: list[int], threshold: float) -> BoolArray:
    search = Groups(measures)
    for edge in order:
        group = np.array([edge])
        if search.distance_without(group) - search.distance < threshold:
            search.remove(group)
    return search.graph.prune(search.kept)


def three_edges(case: str, model: acdc.Model, data: Dataset) -> Iterator[Row]:
    """The best of what `guided` and four rankings keep of three edges, beside the whole model and no edge."""
    methods = ("guided", "exact", "eap-ig", "eap", "clean-corrupted")
    circuits = []
    for method in methods:
        with contextlib.suppress(EmptyCircuitError):  # its best three connect nothing
            circuits.append(acdc.discover(model, data, method, edges=3))
    problem = judging_problem(model, data, circuits[0].graph)
    nothing = np.zeros_like(problem.graph.valid)
    stack = [circuit.edges for circuit in circuits] + [nothing]
    (measured,) = measure_prompts(problem, stack, [OUTCOMES["logit-difference"]])
    right = (measured.circuits > 0).mean(axis=1)
    yield Row("three edges", case, float(right[:-1].max()), str(max(circuit.n_edges for circuit in circuits)))
    yield Row("all edges", case, float((measured.full > 0).mean()), str(problem.graph.n_edges))
    yield Row("no edge", case, float(right[-1]), "0")


def main(out: Annotated[Path, typer.Option("-o", "--out", help="The table.")]) -> None:
    """Measure what is missing."""
    rows = []
    if out.is_file():
        with out.open(newline="") as file:
            rows = [Row(c, case, float(v), e) for c, case, v, e in list(csv.reader(file))[1:]]
    known = {(row.claim, row.case) for row in rows}
    kinds = {"resamples, mean": resampled, "three edges": three_edges, "order": reordered}
    for claim, measure in kinds.items():
        for model_name, task_name in TRAINED_CASES:
            case = f"{model_name} {task_name}"
            if (claim, case) in known or (measure is three_edges and task_name not in IOI):
                continue
            model = acdc.load(model_name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = list(measure(case, model, acdc.tasks.load(task_name).prepare(model)))
            new = not out.is_file()
            with out.open("a", newline="") as file:
                csv.writer(file).writerows([Row._fields, *found] if new else found)
            rows += found
    for row in rows:
        print(f"| {row.claim} | {row.case} | {row.value:.2f} | {row.edges} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
