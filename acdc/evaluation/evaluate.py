"""Judging a circuit: faithfulness on held-out prompts, beside what it must be compared with.

No number stands alone: the full model and the empty circuit give the scale, random circuits of the same size the
baseline, and a known true circuit, where there is one, what was hit and missed.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import warnings
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING

import numpy as np
import torch

from acdc.circuit import Circuit
from acdc.engine import memory, ranks
from acdc.engine.belonging import changes, weights_digest
from acdc.engine.circuits import measure_prompts
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import AcdcError, check_type, check_whole
from acdc.evaluation.judging import (
    NAN,
    intervals,
    judging_problem,
    over_the_vocabulary,
    random_circuits_like,
    warn_if_useless,
)
from acdc.evaluation.reproduction import Reproduction, reproduction
from acdc.metrics import (
    CONFIDENCE,
    NO_INTERVAL,
    OUTCOMES,
    confusion,
    faithfulness,
    faithfulness_interval,
    faithfulness_range,
    mean_interval,
    normalised_faithfulness,
    share_interval,
)
from acdc.model.model import Model
from acdc.shown import Shown, counted, in_brackets, rounded
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task


MOST_RANDOM_CIRCUITS = 100_000
"""To compare a circuit with; more would tell nothing new."""


@dataclasses.dataclass(frozen=True)
class TruthComparison:
    """A circuit against the known true circuit.

    Attributes:
        name: which truth.
        edges_are: what its edges are: "true edges", or "singly necessary edges" where these need not be one circuit.
        scope: its name, and how many of the semantic edges were seen to act, where that is known.
        true_positives, false_positives, missed: numbers of edges.
        precision, recall, f1: NaN where they are 0 / 0 (see `acdc.metrics.Confusion`).
    """

    name: str
    true_positives: int
    false_positives: int
    missed: int
    precision: float = NAN
    recall: float = NAN
    f1: float = NAN
    edges_are: str = "true edges"
    scope: str = ""


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation(Shown):
    """A circuit's measured behaviour; means over `n_prompts` prompts.

    Intervals are (low, high) over the prompts; NaN if none was asked for, or where none could be trusted: with too few
    prompts, or when a few of them decide (see `acdc.metrics.mean_interval`).

    Attributes:
        prompts: "held-out", "discovery" if the circuit was judged on the prompts it was found on, or "other" if there
            are no held-out ones and the circuit was found on other prompts than these; `acdc evaluate` says "given"
            where it is not known.
        changed: which of "weights", "prompts" and "held-out prompts" are not as they were when the circuit was found
            (see `acdc.engine.belonging`).
        full, empty, circuit: the metric for the full model, the circuit without edges, and the circuit.
        faithfulness: (circuit − empty) / (full − empty).
        faithfulness_range: the least and the greatest of a prompt alone.
        discovery_faithfulness: the same on the discovery prompts.
        random_faithfulness: the same for random circuits of the same number of edges, connected to the logits.
        kl: KL divergence from the full model in nats, worst_kl the largest of any prompt; None for numerical
            outputs.
        exact_match: fraction of read positions with the full model's most likely token; None for numerical outputs.
        truth: comparison with the known circuit, if there is one.
        reproduction: whether it reproduces every output and needs every edge, where outputs are exact.
        normalised_faithfulness: between 0 and 1 on every prompt (see `acdc.metrics.normalised_faithfulness`).
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
    faithfulness_interval: tuple[float, float] = NO_INTERVAL
    faithfulness_range: tuple[float, float] = NO_INTERVAL
    normalised_faithfulness: float = NAN
    normalised_faithfulness_interval: tuple[float, float] = NO_INTERVAL
    kl_interval: tuple[float, float] | None = None
    exact_match_interval: tuple[float, float] | None = None
    reproduction: Reproduction | None = None
    changed: tuple[str, ...] = ()

    def facts(self, *, found_here: bool = True) -> dict[str, str]:
        """What is said of it, by name: each number beside what it must be compared with.

        Args:
            found_here: whether the discovery prompts are meant to be those the circuit was found on.
        """
        e = self
        found_here = found_here and "prompts" not in e.changed
        where = "prompts it was found on" if found_here else "the task's discovery prompts"
        facts = {
            "edges kept": f"{e.n_edges} of {e.n_edges_total}",
            "faithfulness": f"{rounded(e.faithfulness)}{in_brackets(e.faithfulness_interval)} on {e.n_prompts} "
            f"{e.prompts} prompt{'s' * (e.n_prompts != 1)}",
        }
        if e.prompts == "held-out":
            facts["faithfulness"] += f" ({rounded(e.discovery_faithfulness)} on {where})"
        elif found_here:
            facts["faithfulness"] += ", which it was found on: --split or --held-out gives others"
        least, greatest = e.faithfulness_range
        if not in_brackets(e.faithfulness_interval) and not math.isnan(least):
            facts["prompt by prompt"] = (
                f"{rounded(least)} to {rounded(greatest)}; no interval could be trusted from "
                + counted(e.n_prompts, "prompt")
            )
        if e.random_faithfulness:
            mean, highest = statistics.fmean(e.random_faithfulness), max(e.random_faithfulness)
            facts["random circuits"] = (
                f"{rounded(mean)} on average, {rounded(highest)} at best "
                f"({len(e.random_faithfulness)} of the same size)"
            )
        facts[e.metric] = (
            f"full model {e.full:.4g}, circuit {e.circuit:.4g}, without any edge {e.empty:.4g} ({e.ablation} ablation)"
        )
        if e.kl is not None and e.exact_match is not None:
            facts["divergence"] = f"{max(e.kl, 0.0):.3g} nats from the full model, {e.worst_kl:.3g} at worst"
            facts["same answer"] = f"at {e.exact_match:.1%} of the positions read"
        if e.truth is not None:
            true = e.truth.edges_are == "true edges"
            facts["true circuit" if true else "singly necessary"] = (
                f"{e.truth.true_positives} of {e.truth.true_positives + e.truth.missed} {e.truth.edges_are} found, "
                f"{e.truth.false_positives} {'false' if true else 'others'} ({e.truth.scope or e.truth.name})"
            )
        if e.reproduction is not None:
            facts["reproduces"] = _reproduced(e.reproduction)
        return facts

    def _summary(self) -> str:
        return (
            f"{self.task}: {self.n_edges} of {self.n_edges_total} edges, faithfulness "
            f"{rounded(self.faithfulness)}{in_brackets(self.faithfulness_interval)} on {self.n_prompts} "
            f"{self.prompts} prompt{'s' * (self.n_prompts != 1)}"
        )


@ranks.shared
@memory.explained
@torch.inference_mode(False)
def evaluate(
    model: Model,
    task: Task | Dataset | Prompts,
    circuit: Circuit,
    *,
    metric: Metric | None = None,
    ablation: str | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    random_circuits: int = 10,
    seed: int = 0,
    truth: Circuit | None = None,
    confidence: float | None = CONFIDENCE,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measure a circuit on a task's held-out prompts (on its discovery prompts if there are no others).

    Args:
        metric, ablation: instead of the task's own.
        batch_size: prompts a batch; None: what fits.
        memory: how much may be used beside the weights, like "4GB"; None: what is free.
        random_circuits: how many random circuits of the same size to compare with.
        truth: a circuit to compare with; None: the task's own true circuit, if it has one.
        confidence: of the intervals; None: no intervals.

    Warns:
        UserWarning: the weights, or the prompts of the task of that name, are not those the circuit was found with; or
            it was found by a function as metric, and none is given to judge it by.

    Raises:
        AcdcError: the circuit belongs to another graph than the model's.
    """
    check_type("a Circuit", circuit, Circuit)
    check_type("a Circuit or None as the truth", truth, (Circuit, NoneType))
    check_whole("a number of random circuits", random_circuits, least=0, most=MOST_RANDOM_CIRCUITS)
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    changed = changes(circuit.provenance, model, dataset)
    for what, line in changed.items():
        if what == "weights" or dataset.name in (circuit.provenance.task, Path(circuit.provenance.task).name):
            warnings.warn(line, stacklevel=5)
    found_by = circuit.provenance.metric
    if metric is None and found_by not in ("", dataset.metric.name, *OUTCOMES):
        warnings.warn(
            f"the circuit was found by the metric {found_by!r}, which acdc does not know by name, and is judged by "
            f"{dataset.metric.name}: give it as metric, or another one to judge by",
            stacklevel=5,
        )
    problem = judging_problem(
        model,
        dataset,
        circuit.graph,
        found=circuit,
        batch_size=batch_size,
        memory=memory,
        seed=seed,
        progress=progress,
    )
    work = [dataset.metric.name, problem.ablation, batch_size, random_circuits, seed, circuit.edges]
    ranks.current().agree([*work, *vars(problem.prompts).values(), weights_digest(model)])
    nothing = np.zeros_like(circuit.edges)
    others = random_circuits_like(circuit, random_circuits, seed=seed)
    outcomes = [dataset.metric, *over_the_vocabulary(model)]
    circuits = [nothing, circuit.edges, *([np.stack(others)] if others else [])]
    measured, *over_vocabulary = measure_prompts(problem, circuits, outcomes)
    full, (empty, value, *random_values) = float(measured.full.mean()), measured.circuits.mean(axis=1).tolist()
    warn_if_useless(dataset, measured.full, measured.circuits[0])
    on_discovery = faithfulness(value, full=full, empty=empty)
    if dataset.held_out is not None:
        found_on = dataclasses.replace(problem, prompts=dataset.discovery)
        (there,) = measure_prompts(found_on, [nothing, circuit.edges], [dataset.metric])
        warn_if_useless(dataset, there.full, there.circuits[0], where="discovery")
        d_empty, d_value = there.circuits.mean(axis=1).tolist()
        on_discovery = faithfulness(d_value, full=float(there.full.mean()), empty=d_empty)
    bounded = normalised_faithfulness(
        measured.circuits[1], full=measured.full, corrupted=measured.corrupted
    )  # [prompt]
    kl, match = (x.circuits[1] for x in over_vocabulary) if over_vocabulary else (None, None)  # [prompt]
    interval = intervals(confidence)
    by_prompt = measured.circuits[1], measured.full, measured.circuits[0]
    return Evaluation(
        task=dataset.name,
        metric=dataset.metric.name,
        ablation=dataset.ablation,
        prompts="held-out" if dataset.held_out is not None else "other" if "prompts" in changed else "discovery",
        n_prompts=len(problem.prompts),
        n_edges=circuit.n_edges,
        n_edges_total=circuit.graph.n_edges,
        full=full,
        empty=empty,
        circuit=value,
        faithfulness=faithfulness(value, full=full, empty=empty),
        discovery_faithfulness=on_discovery,
        random_faithfulness=tuple(faithfulness(v, full=full, empty=empty) for v in random_values),
        kl=None if kl is None else float(kl.mean()),
        worst_kl=None if kl is None else float(kl.max()),
        exact_match=None if match is None else float(match.mean()),
        truth=_compare(circuit, dataset, truth),
        faithfulness_interval=interval(faithfulness_interval, *by_prompt),
        faithfulness_range=faithfulness_range(*by_prompt),
        normalised_faithfulness=float(bounded.mean()),
        normalised_faithfulness_interval=interval(share_interval, bounded),
        kl_interval=None if kl is None else interval(mean_interval, kl, within=(0, np.inf)),
        exact_match_interval=None if match is None else interval(share_interval, match),
        reproduction=_reproduction(problem, dataset, circuit),
        changed=tuple(changed),
    )


def _compare(circuit: Circuit, dataset: Dataset, truth: Circuit | None) -> TruthComparison | None:
    if truth is not None:
        if truth.graph != circuit.graph:
            raise AcdcError(
                "the true circuit is of another graph than the circuit: give both the same graph options"
            )
        name, edges, edges_are, scope = "given", truth.edges, "true edges", "given"
    elif dataset.truth is not None:
        known = dataset.truth
        name, edges, edges_are, scope = known.name, known.mask(circuit.graph), known.edges_are, known.scope
    else:
        return None
    counts = confusion(circuit.edges[circuit.graph.valid], edges[circuit.graph.valid])
    return TruthComparison(
        name,
        true_positives=counts.true_positives,
        false_positives=counts.false_positives,
        missed=counts.missed,
        precision=counts.precision,
        recall=counts.recall,
        f1=counts.f1,
        edges_are=edges_are,
        scope=scope,
    )


def _reproduction(problem: Problem, dataset: Dataset, circuit: Circuit) -> Reproduction | None:
    if not dataset.exact:
        return None
    sets = [dataset.discovery] if dataset.held_out is None else [dataset.discovery, dataset.held_out]
    quiet = dataclasses.replace(problem, progress=no_progress)
    return reproduction([dataclasses.replace(quiet, prompts=prompts) for prompts in sets], circuit.edges)


def _reproduced(found: Reproduction) -> str:
    """Whether all outputs are reproduced, and every edge is needed for it."""
    if found.reproduced < found.n_prompts:
        return f"the outputs on {counted(found.reproduced, 'prompt', of=found.n_prompts)}"
    needed = "no edge can go" if found.removable is None else f"{found.removable} can go"
    return f"all outputs on {counted(found.n_prompts, 'prompt')}, and {needed}"
