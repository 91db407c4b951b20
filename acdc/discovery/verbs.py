"""Scores, circuits, and circuits of another size, by a method that is asked for by its name."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
import torch

from acdc.circuit import Circuit, Provenance, Scores, selection
from acdc.circuit.checks import warn_of_size
from acdc.circuit.provenance import library_versions
from acdc.discovery.posing import problem_of, provenance_of, resumable
from acdc.discovery.rankings import check_rule, from_ranking, not_empty, nothing_matters
from acdc.engine import memory, ranks
from acdc.engine.belonging import changes
from acdc.engine.circuits import measure_prompts
from acdc.engine.neurons import NO_CONSTANTS
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import (
    AcdcError,
    EmptyCircuitError,
    TaskError,
    check_number,
    check_type,
    refuse_renamed,
    unknown,
)
from acdc.evaluation.judging import warn_if_useless
from acdc.graph import Graph, Unit
from acdc.graph.units import UNITS
from acdc.methods import (
    DEFAULT_RANKING,
    DEFAULT_SEARCH,
    METHODS,
    Estimates,
    Found,
    Method,
    Target,
    get_method,
)
from acdc.methods.method import refuse_metric
from acdc.methods.signs import signs_are
from acdc.model.model import Model
from acdc.neurons.scores import NeuronScores, score_neurons
from acdc.signatures import options_of
from acdc.store.resume import ResumeFile
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts

T = TypeVar("T")
RENAMED = {"checkpoint": "resume"}
"""Arguments of the last version, and what they are now."""

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task


@overload
def score(
    model: Model, task: Task | Dataset | Prompts, method: str = ..., *, units: Unit = ..., **options: Any
) -> Scores: ...
@overload
def score(
    model: Model, task: Task | Dataset | Prompts, method: str = ..., *, units: Literal["neuron"], **options: Any
) -> NeuronScores: ...
@ranks.shared
@memory.explained
@torch.inference_mode(False)
def score(
    model: Model,
    task: Task | Dataset | Prompts,
    method: str = DEFAULT_RANKING,
    *,
    metric: Metric | None = None,
    ablation: str | None = None,
    graph: Graph | None = None,
    units: Unit | Literal["neuron"] = "edge",
    batch_size: int | None = None,
    memory: str | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    resume: str | Path | ResumeFile | None = None,
    **options: Any,
) -> Scores | NeuronScores:
    """Score every edge: how much it matters to the task.

    Args:
        task: a task, a dataset, or bare prompts.
        method: a name from `acdc.methods.METHODS` that gives scores.
        metric, ablation: instead of the task's own; `metric` may be a function (`acdc.tasks.resolve_metric`).
        graph: whose edges to score; None: `model.graph()`.
        units: what is switched as one: "edge", "node" (what a component writes reaches everybody or nobody), or
            "neuron" (a hidden unit of an MLP, or with inside="heads" or "both" a dimension of a head: by "nap",
            "nap-ig" or "exact", see `acdc.neurons.score_neurons`).
        batch_size: prompts a batch; None: what fits in memory.
        memory: how much of it may be used beside the weights, like "4GB"; None: what is free.
        seed: of what the method draws; None: that of the task, by which a run's prompts are drawn again.
        progress: called with (done, total, text).
        resume: a file in which long work notes how far it is. The same call goes on from there, and removes the
            file when it is done; a file of other work, or a damaged one, is refused.
        options: of the method.

    Raises:
        AcdcError: unknown method or option, or a method that gives no ranking.
    """
    refuse_renamed(options, RENAMED)
    if units == "neuron":
        if graph is not None or resume is not None:
            raise AcdcError("neurons are scored without a graph and without a resume file: leave these out")
        if ablation == "optimal":  # before constants are learned
            raise AcdcError(NO_CONSTANTS)
        inside = options.pop("inside", "mlps")
        with ranks.sharing_if(False):
            return score_neurons(
                model, task, method, inside=inside, metric=metric, ablation=ablation, batch_size=batch_size,  # type: ignore[arg-type]
                memory=memory, progress=progress or no_progress, **get_method(method).options_from(options, "score"),
            )  # fmt: skip
    record = get_method(method)
    if record.score is None:
        rankings = [m.name for m in METHODS.values() if m.score is not None]
        raise AcdcError(
            f"method {method!r} gives a circuit, not scores; use discover, or one of {', '.join(rankings)}"
        )
    options = record.options_from(options, "score")
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    problem = problem_of(model, dataset, graph, units, batch_size, memory, seed, progress)
    _check_needs(record, dataset)
    problem = resumable(problem, resume, ("score", method, options))
    found = _given(record, record.score, Estimates, problem, options)
    problem.resume.remove()
    return _scores(problem, found, method, provenance_of(problem, dataset, method, options))


@ranks.shared
@memory.explained
@torch.inference_mode(False)
def discover(
    model: Model,
    task: Task | Dataset | Prompts,
    method: str = DEFAULT_SEARCH,
    *,
    edges: int | None = None,
    threshold: float | None = None,
    faithfulness: float | None = None,
    select: str = "top",
    aggregate: selection.Aggregate | None = None,
    metric: Metric | None = None,
    ablation: str | None = None,
    graph: Graph | None = None,
    units: Unit = "edge",
    batch_size: int | None = None,
    memory: str | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    resume: str | Path | ResumeFile | None = None,
    **options: Any,
) -> Circuit:
    """Find a circuit.

    How much is kept is said in at most one way. What it means depends on the method:

    - `edges`: this many edges, all of them on paths from the input to the logits.
    - `threshold`: of a ranking, the smallest absolute score; of a search, what its record says (`Method.targets`,
      listed by `acdc methods`).
    - `faithfulness`: a share of what separates the full model from the empty circuit. Of a ranking, the fewest best
      edges that, less those that dangle, reach it on the held-out prompts; of a search, what its record says.

    A method that only searches for some of them, and also ranks, is cut as a ranking for the others. Without any, a
    search that takes a faithfulness, and every ranking, gets the task's; another search decides itself.

    Args:
        select: how a ranking is cut: "top" or "greedy"; to a number of edges also "ilp", "pnr" or "bootstrap", each
            with a number of its own, "pnr=0.7" (`acdc.circuit.rules`).
        aggregate: how a ranking makes one size of an edge's scores on single prompts: "mean-absolute", "rms" or
            "signed" (`Scores.sizes`); None: "mean-absolute" where single prompts are scored, else "signed".
        others: as for `score`. Of a search whose prompts do not fit in memory at once, what belongs to a batch of
            them waits in a file (in `TMPDIR`).

    Warns:
        UserWarning: the circuit has fewer edges than `edges`, with both numbers and the reason.

    Raises:
        EmptyCircuitError: nothing is left, or nothing can be found.
        AcdcError: unknown method or option, or more than one way of saying how much to keep.
    """
    for what, amount in (("a threshold", threshold), ("a faithfulness", faithfulness)):
        if amount is not None:
            check_number(what, amount)
    target = Target(edges=edges, threshold=threshold, faithfulness=faithfulness)
    check_rule(select, target)
    if aggregate is not None and aggregate not in selection.AGGREGATES:
        raise unknown("aggregate", str(aggregate), selection.AGGREGATES)
    refuse_renamed(options, RENAMED)
    if units not in UNITS:
        raise _no_unit(units)
    record = get_method(method)
    searches = record.searches(target)
    if not searches and record.score is None:
        raise AcdcError(
            f"method {method!r} searches, and takes {' or '.join(record.targets)}, not {next(iter(target.given))}"
        )
    options = record.options_from(options, "search" if searches else "score")
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    problem = problem_of(model, dataset, graph, units, batch_size, memory, seed, progress)
    _check_needs(record, dataset)
    problem = resumable(problem, resume, ("discover", method, options, target.given, dataset.faithfulness))
    if searches:
        problem.check_memory("search")
    (measured,) = measure_prompts(problem, [np.zeros_like(problem.graph.valid)])
    warn_if_useless(dataset, measured.full, measured.circuits[0])
    full, empty = float(measured.full.mean()), float(measured.circuits[0].mean())
    rounding = 16 * float(torch.finfo(model.dtype).eps) * max(1.0, abs(full)) if full == empty else 0.0
    if not target.given and (not searches or "faithfulness" in record.targets):
        target = Target(faithfulness=dataset.faithfulness)
    provenance = provenance_of(problem, dataset, method, options)
    if searches:
        assert record.search is not None
        if select != "top":
            raise AcdcError(f"select={select!r} cuts a ranking, and {method} searches; leave it out")
        if aggregate is not None:
            raise AcdcError(f"aggregate={aggregate!r} is of a ranking, and {method} searches; leave it out")
        found = _given(record, record.search, Found, problem, target, options)
        problem.resume.remove()
        if target.edges is not None:
            if np.abs(found.scores).max() <= rounding:
                raise EmptyCircuitError(
                    f"{method} finds no edge that matters: {nothing_matters(dataset, full, empty)}"
                )
            if problem.unit == "edge":
                warn_of_size(problem.graph, found.edges, target.edges)
        scores = _scores(problem, Estimates(found.scores), method, provenance, found)
        made = provenance.having(selection={**found.selection, "aggregate": scores.aggregate})
        kept = problem.units.mask(found.edges)
        return not_empty(Circuit(problem.graph, kept, scores, made, problem.unit), dataset, full, empty)
    assert record.score is not None
    ranked = _given(record, record.score, Estimates, problem, options)
    scores = _scores(problem, ranked, method, provenance)
    problem.resume.remove()
    if scores.sizes(aggregate).max() <= rounding:
        raise EmptyCircuitError(f"{method} scores every edge 0: {nothing_matters(dataset, full, empty)}")
    return from_ranking(problem, dataset, scores, target, select, aggregate, (full, empty))


@ranks.shared
@memory.explained
@torch.inference_mode(False)
def cut(
    model: Model,
    task: Task | Dataset | Prompts,
    circuit: Circuit,
    *,
    edges: int | None = None,
    threshold: float | None = None,
    faithfulness: float | None = None,
    select: str = "top",
    aggregate: selection.Aggregate | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    progress: Progress | None = None,
    resume: str | Path | ResumeFile | None = None,
) -> Circuit:
    """Another size of circuit, from what was measured for one: nothing is scored or searched from the beginning.

    A ranking is cut anew. Of a search, a number of edges gives its own circuit of that size, on its front; for a larger
    budget (`threshold`, or a lower `faithfulness`) it goes on from the circuit, of which the new one is a part, and
    certifies it as before. So circuits at several budgets cost little more than the first:

        circuits = [acdc.discover(model, task, faithfulness=0.99)]
        for faithfulness in (0.95, 0.9, 0.8):
            circuits.append(acdc.cut(model, task, circuits[-1], faithfulness=faithfulness))

    Args:
        task: that the circuit was found for, with the same prompts, metric and ablation.
        edges, threshold, faithfulness, select, aggregate: as for `discover`; one of the first three.
        others: as for `score`.

    Raises:
        EmptyCircuitError: nothing is left.
        AcdcError: no amount is given, or more than one; the circuit has no scores, was found on other prompts, in other
            weights, by another metric or under another ablation, or by a search that cannot do this.
    """
    check_type("a circuit", circuit, Circuit)
    for what, amount in (("a threshold", threshold), ("a faithfulness", faithfulness)):
        if amount is not None:
            check_number(what, amount)
    target = Target(edges=edges, threshold=threshold, faithfulness=faithfulness)
    if not target.given:
        raise AcdcError("say how much to keep: edges, threshold or faithfulness")
    check_rule(select, target)
    made, scores = circuit.provenance, circuit.scores
    if scores is None:
        raise AcdcError("the circuit has no scores to cut another size from: find one with discover")
    record = _going_on(made, scores, target)
    dataset = as_dataset(task, model)
    for name, now in (("metric", dataset.metric.name), ("ablation", dataset.ablation)):
        if (before := getattr(made, name)) and before != now:
            raise AcdcError(
                f"the circuit was found with {name} {before!r}, and the task has {now!r}: give the same"
            )
    for what, line in changes(made, model, dataset).items():
        if what != "held-out prompts":
            raise AcdcError(f"{line}, so its scores are not of them: find a circuit with discover")
    problem = problem_of(
        model, dataset, circuit.graph, circuit.unit, batch_size, memory, made.seed, progress, scores.constants
    )
    (measured,) = measure_prompts(problem, [np.zeros_like(problem.graph.valid)])
    warn_if_useless(dataset, measured.full, measured.circuits[0])
    separation = float(measured.full.mean()), float(measured.circuits[0].mean())
    if record is None:
        found = from_ranking(problem, dataset, scores, target, select, aggregate, separation)
        return dataclasses.replace(found, provenance=found.provenance.having(measured={}, command=()))
    if select != "top" or aggregate is not None:
        raise AcdcError(f"select and aggregate cut a ranking, and {record.name} goes on searching; leave them out")
    assert record.narrow is not None
    begun = ("cut", made.method, made.options, target.given, circuit.edges, scores.values)
    problem = resumable(problem, resume, begun)
    problem.check_memory("search")
    options = {name: made.options[name] for name in options_of(record.narrow) if name in made.options}
    part = _given(record, record.narrow, Found, problem, target, circuit, options)
    problem.resume.remove()
    made = made.having(measured={}, command=(), versions=library_versions())
    scores = _scores(problem, Estimates(part.scores), made.method, made, part)
    how = {**part.selection, "aggregate": scores.aggregate, "inside": circuit.n_edges}
    kept = problem.units.mask(part.edges)
    return not_empty(
        Circuit(problem.graph, kept, scores, made.having(selection=how), problem.unit), dataset, *separation
    )


def _going_on(made: Provenance, scores: Scores, target: Target) -> Method | None:
    """The method whose search goes on from its circuit to a target; None where scores are cut as a ranking."""
    record = METHODS.get(made.method)
    if record is None or record.search is None or ("select" in made.selection and scores.order is None):
        return None
    if target.edges is not None and scores.order is not None:
        return None
    takes = [] if record.narrow is None else [amount for amount in record.targets if amount != "edges"]
    (amount,) = target.given
    if amount not in takes:
        instead = f"with {' or '.join(takes)} it could; " if takes else ""
        raise AcdcError(f"{record.name} cannot go on from a circuit to {amount}: {instead}use discover")
    return record


def _no_unit(units: object) -> AcdcError:
    if units == "neuron":
        return AcdcError(
            "neurons are found inside a circuit: find one by edges or nodes, then acdc.neurons.discover_neurons(model, "
            "task, circuit)"
        )
    if units == "position":
        return AcdcError(
            "edges at positions are scored by acdc.tracing.score_positions, and found by "
            "acdc.tracing.discover_positions, inside a circuit if one is given"
        )
    return unknown("unit", str(units), (*UNITS, "neuron", "position"))


def _scores(
    problem: Problem, found: Estimates, method: str, provenance: Provenance, searched: Found | None = None
) -> Scores:
    values, absolute, rms = found.values, found.absolute, found.rms
    units = problem.units
    if values.shape != units.shape:
        raise AcdcError(f"method {method!r} does not rank {units.plural}")
    nodes = values if problem.unit == "node" else None
    scores = Scores(
        problem.graph,
        units.spread(values),
        method,
        provenance,
        nodes,
        absolute=None if absolute is None else units.spread(absolute),
        rms=None if rms is None else units.spread(rms),
        unit=problem.unit,
        signs=signs_are(get_method(method), problem.outcome),
        constants=problem.constants,
    )
    if searched is None:
        return scores
    removal = searched.removal
    if removal is not None:
        removal = np.where(units.mask(searched.edges), units.spread(removal), np.nan)
    return dataclasses.replace(scores, removal=removal, order=searched.order, front=searched.front)


def _given(record: Method, function: Callable[..., T], kind: type[T], *arguments: Any) -> T:
    """What a method's function gives; what another package's raises is an error that names the method.

    Of processes that work together each runs it on all prompts, if it cannot share them, and the first one's counts.

    Args:
        arguments: of the function, its options last.
    """
    together = ranks.current()
    if together.count > 1 and not record.shares_prompts:
        warnings.warn(
            f"method {record.name!r} does not share its prompts: each of the {together.count} processes runs all",
            stacklevel=5,
        )
    try:
        with ranks.sharing_if(record.shares_prompts):
            found = function(*arguments[:-1], **arguments[-1])
    except (AcdcError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if METHODS.comes_with_acdc(record.name):
            raise
        reason = " ".join(str(error).split())
        raise AcdcError(
            f"method {record.name!r}, which is not acdc's own, failed: {type(error).__name__}: {reason:.300}"
        ) from error
    check_type(f"method {record.name!r} to return {kind.__name__}", found, kind)
    return found if record.shares_prompts else together.told(found)


def _check_needs(record: Method, dataset: Dataset) -> None:
    """Refuse a metric or prompts that the method cannot work with."""
    refuse_metric(record, dataset.metric, METHODS.values())
    prompts = dataset.discovery
    if record.counterfactual and torch.equal(prompts.clean, prompts.corrupted):
        raise TaskError(
            f"{dataset.name}: method {record.name!r} needs corrupted prompts, and these are the clean ones again"
        )
