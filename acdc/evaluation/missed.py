"""What a circuit may have left out: an upper bound on what any edge outside it does to the full model, alone.

Random sets of the edges outside are removed together, a run each, so that thousands of edges are bounded by some
hundred runs (Kramár et al. 2024, arXiv 2403.00745, section 3.3, for AtP*, where what ranks high is verified one by one
and the rest is bounded). The bound takes removals to add up.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import scipy.stats
import torch

from acdc.circuit import Circuit
from acdc.engine import memory, ranks
from acdc.engine.circuits import measure_circuits
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import AcdcError, check_number, check_type, check_whole
from acdc.evaluation.judging import judging_problem
from acdc.graph import BoolArray, FloatArray, units_of
from acdc.model.model import Model
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task

FEWEST, MOST = 50, 100_000
"""Sets to remove, where their number is not given."""


@dataclasses.dataclass(frozen=True, eq=False)
class Missed:
    """What a circuit may have left out.

    Attributes:
        metric, ablation: that it is measured by; prompts: "held-out" or "discovery".
        bound: with this `confidence` no unit outside the circuit, removed alone from the full model, changes the metric
            by more, if removals add up; in the metric's units.
        separation: what separates the full model from the circuit without any edge.
        unit: the name of that which the bound is of.
        outside: how many units were bounded; samples: sets of them that were removed, each with `share` of them.
        effects: estimate of each unit's effect of removal, NaN for those of the circuit, as an array over units;
            bounds: the same, upper bounds of its size.
    """

    metric: str
    ablation: str
    prompts: str
    bound: float
    separation: float
    unit: str
    outside: int
    samples: int
    share: float
    confidence: float
    effects: FloatArray = dataclasses.field(repr=False)
    bounds: FloatArray = dataclasses.field(repr=False)

    def record(self) -> dict[str, str | float]:
        """All but the arrays."""
        return {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("effects", "bounds")
        }


@ranks.shared
@memory.explained
@torch.inference_mode(False)
def missed(
    model: Model,
    task: Task | Dataset | Prompts,
    circuit: Circuit,
    *,
    metric: Metric | None = None,
    ablation: str | None = None,
    samples: int | None = None,
    share: float = 0.05,
    confidence: float = 0.95,
    batch_size: int | None = None,
    memory: str | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Missed:
    """Bound what a circuit left out, on a task's held-out prompts (its discovery prompts if there are no others).

    Each sample removes each edge (node) outside the circuit with probability `share` from the full model. Its effect
    is estimated by the mean effect of the samples with it less that of those without, and bounded by Student's t at a
    confidence that is shared among all of them (Bonferroni). What else a sample removes hangs on no unit, so the
    variance beside a unit's own effect is that of all samples, not of the few with it, in which a large unit may never
    be.

    Args:
        samples: sets to remove, one run each; None: as many as give each unit two with it, surely enough.
        share: of the units, in a set.
        confidence: of the bound.
        metric, ablation, batch_size, memory: as for `acdc.evaluate`.

    Raises:
        AcdcError: nothing is outside the circuit, or too few samples for each unit to be in two and out of two.
    """
    check_left_out(circuit)
    if samples is not None:
        check_whole("a number of samples", samples, least=4)
    check_number("a share", share)
    check_number("a confidence", confidence)
    if not 0 < share < 1 or not 0 < confidence < 1:
        raise AcdcError(f"expected a share and a confidence between 0 and 1, got {share} and {confidence}")
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    problem = dataclasses.replace(
        judging_problem(
            model, dataset, circuit.graph, found=circuit, batch_size=batch_size, memory=memory, seed=seed,
            progress=progress,
        ),
        unit=circuit.unit,
    )  # fmt: skip
    units = problem.units
    rest = np.flatnonzero(units.valid & ~units.of_edges(circuit.edges))
    chosen = _sets(len(rest), samples, share, np.random.default_rng(seed), units.plural)
    kept = np.repeat(units.valid[None], len(chosen), axis=0)
    for some, removed in zip(kept, chosen, strict=True):
        some.ravel()[rest[removed]] = False
    full, empty, values = _measured(problem, [np.zeros_like(circuit.graph.valid), *units.mask(kept)])
    estimate, error = _difference(values - full, chosen)
    quantile = scipy.stats.t.ppf(1 - (1 - confidence) / (2 * len(rest)), len(chosen) - 2)
    effects, bounds = np.full(units.shape, np.nan), np.full(units.shape, np.nan)
    effects.ravel()[rest] = estimate
    bounds.ravel()[rest] = np.abs(estimate) + quantile * error
    worst = int(rest[np.argmax(bounds.ravel()[rest])])
    name = units.names[int(np.searchsorted(np.flatnonzero(units.valid), worst))]
    return Missed(
        dataset.metric.name, dataset.ablation, "held-out" if dataset.held_out is not None else "discovery",
        float(bounds.ravel()[worst]), abs(full - empty), name, len(rest), len(chosen), share, confidence, effects,
        bounds,
    )  # fmt: skip


def _measured(problem: Problem, circuits: list[BoolArray]) -> tuple[float, float, FloatArray]:
    """The metric of the full model, of the first circuit, and of the others."""
    full, (first, *others) = measure_circuits(problem, circuits)
    return full, first, np.asarray(others)


def check_left_out(circuit: Circuit) -> None:
    """Raise an `AcdcError` for what is no circuit, or keeps everything."""
    check_type("a Circuit", circuit, Circuit)
    units = units_of(circuit.graph, circuit.unit)
    if (units.of_edges(circuit.edges) | ~units.valid).all():
        raise AcdcError(f"the circuit keeps all {units.n} {units.plural}: nothing was left out")


def _sets(n: int, samples: int | None, share: float, rng: np.random.Generator, plural: str) -> BoolArray:
    """`[sample, unit]` which to remove, so that each unit is in two sets and out of two.

    Raises:
        AcdcError: there are too few samples for that.
    """
    number = FEWEST if samples is None else samples
    while samples is None and number < MOST and n * scipy.stats.binom.cdf(1, number, min(share, 1 - share)) > 0.01:
        number = number * 5 // 4
    chosen = rng.random((number, n)) < share
    while samples is None and not _tells(chosen) and len(chosen) < MOST:
        chosen = np.concatenate([chosen, rng.random((number, n)) < share])
    if not _tells(chosen):
        raise AcdcError(
            f"{len(chosen)} samples of {share:.3g} of the {plural} do not hold and lack each one twice; take more"
        )
    return np.asarray(chosen)


def _tells(chosen: BoolArray) -> bool:
    """Whether each unit is in two of the sets and out of two."""
    counts = chosen.sum(0)
    return bool(counts.min() >= 2 and counts.max() <= len(chosen) - 2)


def _difference(change: FloatArray, chosen: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Of each unit: the mean change of samples with it less that of those without, and its standard error.

    Args:
        change: `[sample]`; chosen: `[sample, unit]`.
    """
    n, held = len(change), chosen.sum(0)
    with_it = change @ chosen / held
    without = change @ ~chosen / (n - held)
    beside = np.square(change).sum() - held * np.square(with_it) - (n - held) * np.square(without)
    variance = np.maximum(beside, 0.0) / (n - 2)
    return with_it - without, np.sqrt(variance * (1 / held + 1 / (n - held)))
