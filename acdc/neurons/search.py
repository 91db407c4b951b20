"""From coarse to fine: neurons are pruned inside the nodes that a circuit keeps, under the same metric and budget.

A ranking in the whole model says which neurons to try first, runs of the circuit decide: the fewest best that stay
within the budget, and then groups of them, and at last each alone, go if they can.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from acdc.circuit import Circuit
from acdc.engine import memory
from acdc.engine.circuits import measure_prompts
from acdc.engine.neurons import Inside, NeuronReferences
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import AcdcError, check_type
from acdc.evaluation.judging import check_counts, judging_problem
from acdc.graph import BoolArray
from acdc.methods.halving import check_runs, fewest, pruned
from acdc.metrics import CONFIDENCE
from acdc.model.model import Model
from acdc.neurons.circuit import NeuronCircuit
from acdc.neurons.evaluation import NeuronEvaluation, distances, measure_neurons
from acdc.neurons.scores import Method, score_neurons, split
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task

MOST_RUNS = 400
"""Runs of the circuit that pruning makes after the ranking is cut, unless told otherwise."""
ROUNDING = 1e-4
"""Share of the separation by which a circuit that meets its budget may seem to miss it."""


@memory.explained
@torch.inference_mode(False)
def discover_neurons(
    model: Model,
    task: Task | Dataset | Prompts,
    circuit: Circuit,
    *,
    method: Method = "nap-ig",
    inside: Inside = "mlps",
    faithfulness: float | None = None,
    runs: int = MOST_RUNS,
    one_by_one: bool = False,
    metric: Metric | None = None,
    ablation: str | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    progress: Progress = no_progress,
) -> NeuronCircuit:
    """Find the neurons that are enough inside the nodes that a circuit keeps.

    The distance from the full model (mean over the discovery prompts) stays within a budget: that of the search which
    found the circuit, if it was under this metric and ablation and had one; otherwise 1 − `faithfulness` of what
    separates the full model from the empty circuit. Where the circuit with all its neurons is farther than that, its
    own distance is the budget.

    Args:
        method: that ranks neurons, "nap", "nap-ig" or "exact" (`score_neurons`).
        inside: "mlps" (their hidden units), "heads" (the dimensions of their attention results) or "both".
        faithfulness: for the budget; None: the search's budget, or the task's faithfulness.
        runs: most runs of the circuit to find neurons that can go; 0: the ranking is cut and no more.
        one_by_one: from all neurons, each is tested alone and goes if it can, the weakest first, as ACDC does with
            edges; otherwise the ranking is cut first, and groups go together: fewer runs, and fewer neurons where some
            undo each other.
        others: as for `acdc.discover`.

    Raises:
        AcdcError: the circuit keeps no MLP (no head, neither), or is of another model; a number that cannot be.
        UnsupportedModelError: the hidden layer of some MLP cannot be found; says which, and why.
    """
    check_type("a Circuit", circuit, Circuit)
    check_runs(runs, one_by_one=one_by_one)
    if faithfulness is not None and not 0 < faithfulness <= 1:
        raise AcdcError(f"expected a faithfulness above 0 and at most 1, got {faithfulness}")
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    problem = dataclasses.replace(
        judging_problem(model, dataset, circuit.graph, batch_size=batch_size, memory=memory),
        prompts=dataset.discovery,
    )
    nodes = kept_nodes(circuit, inside)
    if not nodes:
        raise AcdcError(NOTHING_INSIDE[inside] + ": there is nothing to prune inside of")
    scores = score_neurons(
        model, dataset, method, inside=inside, nodes=nodes, batch_size=batch_size, memory=memory, progress=progress
    )
    widths = {node: len(scores.values[node]) for node in nodes if node in scores.values}
    judge = _Judge(problem, circuit, widths, inside, progress)
    every = np.ones(sum(judge.widths.values()), dtype=bool)
    share = dataset.faithfulness if faithfulness is None else faithfulness
    budget = (1 - share) * judge.separation
    made = circuit.provenance
    same = (made.metric, made.ablation) == (dataset.metric.name, dataset.ablation)
    if faithfulness is None and same and isinstance(found := made.selection.get("budget"), float):
        budget = found
    if (whole := judge(every)) > budget + ROUNDING * judge.separation:
        warnings.warn(
            f"with all its neurons the circuit is {whole:.4g} from the full model, past the {budget:.4g} asked for, so "
            "its neurons are held to that",
            stacklevel=5,
        )
    budget = max(budget, whole * (1 + 1e-6))
    sizes = np.concatenate([scores.absolute[node] for node in widths])
    ranks = np.empty(len(sizes))
    ranks[np.argsort(sizes, kind="stable")] = np.arange(1, len(sizes) + 1)  # those of score 0 are ranked too
    kept = every if one_by_one else fewest(lambda some: judge(some) <= budget, ranks)
    kept, alone = pruned(lambda some: judge(some) <= budget, kept, ranks, runs, one_by_one=one_by_one)
    return NeuronCircuit(
        circuit=circuit,
        kept=split(kept, judge.widths),
        model=model.name,
        task=dataset.name,
        metric=dataset.metric.name,
        ablation=dataset.ablation,
        method=method,
        budget=budget,
        distance=judge(kept),
        tested_alone=alone,
    )


NOTHING_INSIDE: dict[Inside, str] = {
    "mlps": "the circuit keeps no MLP", "heads": "the circuit keeps no head", "both": "the circuit keeps no node",
}  # fmt: skip


def kept_nodes(circuit: Circuit, inside: Inside = "mlps") -> list[str]:
    """MLPs, heads or both that something in the circuit reads."""
    graph = circuit.graph
    kinds = {"mlps": ("mlp",), "heads": ("head",), "both": ("mlp", "head")}[inside]
    names = [name for kind in kinds for name in graph.names(kind)]
    return [node for node in names if circuit.edges[:, graph.source_index[node]].any()]


class _Judge:
    """Distance from the full model of a circuit with some of its neurons.

    Attributes:
        widths: units of each node that is kept; separation: of the full model from no edge.
    """

    def __init__(
        self, problem: Problem, circuit: Circuit, widths: dict[str, int], inside: Inside, progress: Progress
    ) -> None:
        self._problem, self._edges, self.widths = problem, circuit.edges, widths
        self._batches, self._references = problem.batches(), NeuronReferences(problem, inside, widths)
        self._progress, self._runs = progress, 0
        (empty,) = measure_prompts(problem, [np.zeros_like(circuit.edges)], batches=self._batches)
        self.separation = abs(float((empty.circuits[0] - empty.full).mean()))

    def __call__(self, kept: BoolArray) -> float:
        self._runs += 1
        self._progress(self._runs, None, "pruning neurons")
        own = split(kept, self.widths)
        (found,) = measure_prompts(
            self._problem, [self._edges], batches=self._batches,
            inside=lambda patching, _: self._references.keeping(patching, own),
        )  # fmt: skip
        return float(distances(self._problem, found)[0])


@memory.explained
@torch.inference_mode(False)
def evaluate_neurons(
    model: Model,
    task: Task | Dataset | Prompts,
    found: NeuronCircuit,
    *,
    random_neurons: int = 10,
    metric: Metric | None = None,
    ablation: str | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    seed: int = 0,
    confidence: float | None = CONFIDENCE,
    progress: Progress = no_progress,
) -> NeuronEvaluation:
    """Measure a circuit with the neurons that stay on a task's held-out prompts, beside itself with all neurons.

    Args:
        random_neurons: draws of as many random neurons in each MLP to compare with.
        others: as for `acdc.evaluate`.

    Raises:
        AcdcError: the model's MLPs have other numbers of hidden units.
    """
    check_type("a NeuronCircuit", found, NeuronCircuit)
    check_counts(random_neurons=random_neurons)
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    problem = judging_problem(
        model, dataset, found.circuit.graph, batch_size=batch_size, memory=memory, progress=progress
    )
    return measure_neurons(
        problem, found.circuit.edges, found.kept, random_neurons=random_neurons, seed=seed, confidence=confidence,
        prompts="held-out" if dataset.held_out is not None else "discovery",
    )  # fmt: skip
