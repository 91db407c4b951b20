"""Judging a circuit: faithfulness on held-out prompts, beside what it must be compared with.

No number stands alone: the full model and the empty circuit give the scale, random circuits of the same size the
baseline, and a known true circuit, where there is one, what was hit and missed.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from acdc import selection
from acdc.circuit import Circuit, Scores
from acdc.errors import AcdcError
from acdc.graph import BoolArray
from acdc.measure import bind
from acdc.metrics import MIB_SHARES, OUTCOMES, cmd, cpr, faithfulness
from acdc.model.model import Model
from acdc.problem import Problem, Progress, no_progress
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task


@dataclasses.dataclass(frozen=True)
class TruthComparison:
    """A circuit against the known true circuit.

    Attributes:
        name: which truth.
        true_positives, false_positives, missed: numbers of edges.
    """

    name: str
    true_positives: int
    false_positives: int
    missed: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A circuit's measured behaviour; means over `n_prompts` prompts.

    Attributes:
        prompts: "held-out", or "discovery" if the circuit was judged on the prompts it was found on.
        full, empty, circuit: the metric for the full model, the circuit without edges, and the circuit.
        faithfulness: (circuit − empty) / (full − empty).
        discovery_faithfulness: the same on the discovery prompts.
        random_faithfulness: the same for random circuits of the same number of edges, connected to the logits.
        kl: KL divergence from the full model in nats, worst_kl the largest of any prompt; None for numerical
        outputs. exact_match: fraction of read positions with the full model's most likely token; None for numerical
        outputs. truth: comparison with the known circuit, if there is one.
    """

    task: str
    metric: str
    ablation: str
    prompts: str
    n_prompts: int
    n_edges: int
    n_edges_total: int
    full: float
    empty: float
    circuit: float
    faithfulness: float
    discovery_faithfulness: float
    random_faithfulness: tuple[float, ...]
    kl: float | None
    worst_kl: float | None
    exact_match: float | None
    truth: TruthComparison | None


@dataclasses.dataclass(frozen=True)
class Curve:
    """Faithfulness over circuit sizes (MIB's grid by default).

    Attributes:
        shares: asked-for share of all edges; n_edges: edges left after pruning; faithfulness: at each.
        cpr, cmd: integrals over the shares.
    """

    shares: tuple[float, ...]
    n_edges: tuple[int, ...]
    faithfulness: tuple[float, ...]
    cpr: float
    cmd: float


def evaluate(
    model: Model,
    task: Task | Dataset | Prompts,
    circuit: Circuit,
    *,
    metric: Metric | None = None,
    ablation: str | None = None,
    batch_size: int | None = None,
    random_circuits: int = 10,
    seed: int = 0,
    truth: Circuit | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure a circuit on a task's held-out prompts (on its discovery prompts if there are no others).

    Args:
        metric, ablation: instead of the task's own.
        batch_size: prompts a batch; None: what fits.
        random_circuits: how many random circuits of the same size to compare with.
        truth: a circuit to compare with; None: the task's own true circuit, if it has one.

    Raises:
        AcdcError: the circuit belongs to another graph than the model's.
    """
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    judged = dataset.held_out if dataset.held_out is not None else dataset.discovery
    problem = Problem(model, circuit.graph, judged, dataset.metric, dataset.ablation, batch_size, seed, progress)
    others = random_circuits_like(circuit, random_circuits, seed=seed)
    means = measure_circuits(problem, [np.zeros_like(circuit.edges), circuit.edges, *others])
    full, (empty, value, *random_values) = means
    if full == empty or (dataset.metric.higher_is_better and full <= empty):
        warnings.warn(
            f"{dataset.name}: the model does not do the task: {dataset.metric.name} is {full:.4g} on clean prompts "
            f"and {empty:.4g} with every edge ablated",
            stacklevel=2,
        )
    on_discovery = faithfulness(value, full=full, empty=empty)
    if dataset.held_out is not None:
        found_on = dataclasses.replace(problem, prompts=dataset.discovery)
        d_full, (d_empty, d_value) = measure_circuits(found_on, [np.zeros_like(circuit.edges), circuit.edges])
        on_discovery = faithfulness(d_value, full=d_full, empty=d_empty)
    kl = worst = match = None
    if not is_numerical(model):
        divergences = _per_prompt(dataclasses.replace(problem, outcome=OUTCOMES["kl"]), circuit.edges)
        kl, worst = float(divergences.mean()), float(divergences.max())
        match = float(
            _per_prompt(dataclasses.replace(problem, outcome=OUTCOMES["exact-match"]), circuit.edges).mean()
        )
    return Evaluation(
        task=dataset.name,
        metric=dataset.metric.name,
        ablation=dataset.ablation,
        prompts="held-out" if dataset.held_out is not None else "discovery",
        n_prompts=len(judged),
        n_edges=circuit.n_edges,
        n_edges_total=circuit.graph.n_edges,
        full=full,
        empty=empty,
        circuit=value,
        faithfulness=faithfulness(value, full=full, empty=empty),
        discovery_faithfulness=on_discovery,
        random_faithfulness=tuple(faithfulness(v, full=full, empty=empty) for v in random_values),
        kl=kl,
        worst_kl=worst,
        exact_match=match,
        truth=_compare(circuit, dataset, truth),
    )


def curve(
    model: Model,
    task: Task | Dataset | Prompts,
    scores: Scores,
    *,
    metric: Metric | None = None,
    ablation: str | None = None,
    batch_size: int | None = None,
    shares: Sequence[float] = MIB_SHARES,
    by: selection.By = "absolute",
    progress: Progress = no_progress,
) -> Curve:
    """Faithfulness of the top-n circuits of a ranking, n = int(share · edges), on held-out prompts if there are
    any.

    Args:
        by: "absolute" as MIB ranks for CMD, "signed" as it ranks for CPR.
    """
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    graph = scores.graph
    judged = dataset.held_out if dataset.held_out is not None else dataset.discovery
    problem = Problem(model, graph, judged, dataset.metric, dataset.ablation, batch_size, 0, progress)
    circuits = [selection.top(graph, scores.values, int(share * graph.n_edges), by=by) for share in shares]
    full, (empty, *values) = measure_circuits(problem, [np.zeros_like(graph.valid), *circuits])
    found = tuple(faithfulness(value, full=full, empty=empty) for value in values)
    return Curve(
        tuple(shares), tuple(int(c.sum()) for c in circuits), found, cpr(shares, found), cmd(shares, found)
    )


def measure_circuits(problem: Problem, circuits: Sequence[BoolArray]) -> tuple[float, list[float]]:
    """Mean metric over the prompts of the full model and of each circuit."""
    full: list[torch.Tensor] = []
    values: list[list[torch.Tensor]] = []
    total = problem.n_batches * len(circuits)
    for i, patching in enumerate(problem.batches()):
        measure = bind(problem.outcome, patching)
        full.append(measure.value(patching.clean_logits(measure.rows)))
        row = []
        with torch.no_grad():
            for edges in circuits:
                row.append(measure.value(patching.logits(edges, rows=measure.rows))[0])
                problem.progress(i * len(circuits) + len(row), total, "running circuits")
        values.append(row)
    means = [float(torch.cat(column).double().mean()) for column in zip(*values, strict=True)]
    return float(torch.cat(full).double().mean()), means


def _per_prompt(problem: Problem, edges: BoolArray) -> torch.Tensor:
    """The metric of one circuit, a number a prompt."""
    values = []
    for patching in problem.batches():
        measure = bind(problem.outcome, patching)
        with torch.no_grad():
            values.append(measure.value(patching.logits(edges, rows=measure.rows))[0].double().cpu())
    return torch.cat(values)


def random_circuits_like(circuit: Circuit, n: int, *, seed: int) -> list[BoolArray]:
    """Random circuits of the same number of edges, grown from the logits so that every edge leads there."""
    rng = np.random.default_rng(seed)
    graph = circuit.graph
    return [selection.greedy(graph, rng.random(graph.valid.shape), circuit.n_edges, prune=False) for _ in range(n)]


def is_numerical(model: Model) -> bool:
    """Whether outputs are numbers rather than logits (some Tracr programs)."""
    return model.program is not None and model.program.program.numerical


def _compare(circuit: Circuit, dataset: Dataset, truth: Circuit | None) -> TruthComparison | None:
    if truth is not None:
        if truth.graph != circuit.graph:
            raise AcdcError(
                "the true circuit is of another graph than the circuit: give both the same graph options"
            )
        name, edges = "given", truth.edges
    elif dataset.truth is not None:
        name, edges = dataset.truth.name, dataset.truth.mask(circuit.graph)
    else:
        return None
    return TruthComparison(
        name,
        true_positives=int((circuit.edges & edges).sum()),
        false_positives=int((circuit.edges & ~edges).sum()),
        missed=int((~circuit.edges & edges).sum()),
    )
