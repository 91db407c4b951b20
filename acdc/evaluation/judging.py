"""What all judgements of a circuit share: the prompts it is judged on, what else is measured there, and how sure."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from acdc.circuit import Circuit, Scores, selection
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import AcdcError
from acdc.graph import BoolArray, FloatArray, Graph, units_of
from acdc.metrics import (
    NO_INTERVAL,
    OUTCOMES,
    Outcome,
    is_above_zero,
    magnitude_interval,
    ratio_interval,
    relative_difference,
)
from acdc.metrics.statistics import Interval
from acdc.model.model import Model
from acdc.shown import counted
from acdc.store.amounts import bytes_of

if TYPE_CHECKING:
    from acdc.tasks.prompts import Prompts
    from acdc.tasks.task import Dataset


NAN = float("nan")


def judging_problem(
    model: Model,
    dataset: Dataset,
    graph: Graph,
    *,
    found: Circuit | Scores | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Problem:
    """The prompts a circuit is judged on: the held-out ones, or the discovery prompts if there are no others.

    Args:
        found: what is judged. Under optimal ablation its constants count; where it has none, they are learned on the
            discovery prompts, and never on those that it is judged on.
    """
    limit = None if memory is None else bytes_of(memory)
    constants = None if found is None else found.constants

    def on(prompts: Prompts) -> Problem:
        return Problem(
            model, graph, prompts, dataset.metric, dataset.ablation, batch_size, seed, progress, memory_limit=limit,
            constants=constants,
        )  # fmt: skip

    if dataset.held_out is None:
        return on(dataset.discovery)
    if dataset.ablation == "optimal" and constants is None:
        constants = on(dataset.discovery).constants
    return on(dataset.held_out)


def over_the_vocabulary(model: Model) -> list[Outcome]:
    """The metrics that are measured whatever the task's own: none for numerical outputs."""
    return [] if is_numerical(model) else [OUTCOMES["kl"], OUTCOMES["exact-match"]]


def intervals(confidence: float | None) -> Callable[..., tuple[float, float]]:
    """Apply a function that gives an interval, with this confidence; without one, no interval."""
    if confidence is None:
        return lambda *_, **__: NO_INTERVAL
    return lambda function, *arrays, **options: function(*arrays, confidence=confidence, **options)


def warn_if_useless(dataset: Dataset, full: FloatArray, empty: FloatArray, *, where: str = "clean") -> None:
    """Warn unless the model is told to do the task better on clean prompts than with everything ablated.

    Args:
        full, empty: `[prompt]` metric of the full model and without any edge.
        where: on which prompts, in a word.
    """
    better, on_average = full - empty, float(full.mean() - empty.mean())
    upwards = dataset.metric.higher_is_better
    if on_average == 0 or (upwards and on_average < 0):
        how = ""
    elif upwards and is_above_zero(better) is False:
        how = f", as far as {counted(len(better), 'prompt')} can tell"
    else:
        return
    untold = ", a difference that is not told from 0" * bool(how)
    warnings.warn(
        f"{dataset.name}: the model does not do the task{how}: {dataset.metric.name} is {full.mean():.4g} on {where} "
        f"prompts and {empty.mean():.4g} with every edge ablated{untold}, so a circuit for it means little",
        stacklevel=6,
    )


def random_circuits_like(circuit: Circuit, n: int, *, seed: int) -> list[BoolArray]:
    """Random circuits of the same number of edges (nodes), grown from the logits so that every edge leads there."""
    rng = np.random.default_rng(seed)
    graph, units = circuit.graph, units_of(circuit.graph, circuit.unit)
    if circuit.unit != "edge":
        drawn = [selection.top_units(units, rng.random(units.shape), circuit.n_units) for _ in range(n)]
        return [units.mask(kept) for kept in drawn]
    return [selection.greedy(graph, rng.random(graph.valid.shape), circuit.n_edges, prune=False) for _ in range(n)]


def is_numerical(model: Model) -> bool:
    """Whether outputs are numbers rather than logits (some programs)."""
    return model.vocabulary_size == 1


def size(a: FloatArray, b: FloatArray) -> float:
    """|a − b| of means over the prompts."""
    return abs(float((a - b).mean()))


def share_of_separation(
    a: FloatArray, b: FloatArray, full: FloatArray, empty: FloatArray, confidence: float | None
) -> tuple[float, Interval]:
    """|a − b| as a share of |full − empty|, of means over the prompts, and its interval."""
    share = float(relative_difference(*(x.mean() for x in (a, b)), full=full.mean(), empty=empty.mean()))
    if confidence is None:
        return share, NO_INTERVAL
    return share, magnitude_interval(ratio_interval(a - b, full - empty, confidence=confidence))


def check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 0:
            raise AcdcError(f"expected {name} of at least 0, got {count}")
