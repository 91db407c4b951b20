"""`certify` measures what can be claimed of a circuit."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from acdc.certificates.enumeration import check_enumerable, enumerate_pairs
from acdc.certificates.parts import ROUNDING, Parts, dataset_of, problem_of
from acdc.certificates.record import NO_EDGE, STRENGTHS, Budget, Certificate, Minimality, Strength
from acdc.certificates.smaller import smaller_circuit
from acdc.certificates.smoothing import check_stability, stability
from acdc.circuit import Circuit
from acdc.engine import memory
from acdc.engine.belonging import prompts_digest, weights_digest
from acdc.engine.problem import Progress, no_progress
from acdc.errors import AcdcError, check_number, check_type, unknown
from acdc.graph import names_digest
from acdc.model.model import Model
from acdc.tasks.programs.program_task import ProgramTask
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task

MOST_PAIRS = 20_000


@memory.explained
@torch.inference_mode(False)
def certify(
    model: Model,
    task: Task | Dataset | Prompts,
    circuit: Circuit,
    *,
    strength: Strength = "local",
    enumerate: bool = False,
    stable: int | None = None,
    method: str = "eap-ig",
    budget: float | None = None,
    metric: Metric | None = None,
    ablation: str | None = None,
    seed: int = 0,
    memory: str | None = None,
    progress: Progress = no_progress,
) -> Certificate:
    """What can be claimed of a circuit, measured now.

    Args:
        strength: how strong a minimality to try for: "local", "pairs", "subset" or "cardinal". What is claimed is the
            strongest up to it that holds.
        enumerate: run the circuit on all pairs of inputs of a program, if these are at most a million.
        stable: also certify which edges stay when so many prompts change, by vote of subsamples on the best edges by
            `method`, as many as the circuit has.
        method: "eap" or "eap-ig".
        budget: largest distance from the full model; None: that of the circuit's search, or else (and by another
            metric or ablation than the search's) what its faithfulness or the task's leaves open.
        metric, ablation: instead of the task's own; bare prompts have none, and take the circuit's.

    Raises:
        AcdcError: the circuit is further from the model than the budget, or too large for the strength asked for.
    """
    check_type("a Circuit", circuit, Circuit)
    if strength not in STRENGTHS[1:]:
        raise unknown("strength of minimality", str(strength), STRENGTHS[1:])
    if circuit.unit != "edge" and strength in ("subset", "cardinal"):
        raise AcdcError(f"strength {strength!r} is of edges, and these are {circuit.unit}s: ask for pairs")
    if budget is not None:
        check_number("a budget", budget)
        if not (math.isfinite(budget) and budget >= 0):
            raise AcdcError(f"expected a finite budget of at least 0, got {budget}")
    dataset = dataset_of(circuit, task, model, metric, ablation)
    problem = problem_of(model, dataset, circuit, memory, progress)
    if enumerate:
        check_enumerable(model, task, dataset.ablation)
    if stable is not None:
        check_stability(problem, method=method, radius=stable)
    parts = Parts(problem, circuit)
    given = _budget(circuit, dataset, parts.separation) if budget is None else budget
    if parts.distance > given + ROUNDING * parts.separation:
        raise AcdcError(
            f"nothing can be certified: the circuit is {parts.distance:.4g} from the full model, past the budget of "
            f"{given:.4g}; give a larger --budget" + _unlike(circuit, dataset)
        )
    least = int(parts.alone.argmin()) if len(parts) else None
    measured = Budget(
        budget=given, distance=parts.distance, separation=parts.separation,
        least_without=None if least is None else float(parts.alone[least]),
        which="" if least is None else parts.names[least],
    )  # fmt: skip
    minimal = _minimality(parts, given, strength)
    found = None
    if enumerate:
        assert isinstance(task, ProgramTask)
        under = dataclasses.replace(task, ablation=dataset.ablation)
        found = enumerate_pairs(model, under, circuit.graph, circuit.edges, seed=seed, progress=progress)
    votes = None
    if stable is not None:
        votes = stability(problem, circuit.n_edges, method=method, radius=stable, seed=seed)
    return Certificate(
        edges_sha256=names_digest(circuit.edge_names()), n_edges=circuit.n_edges, model=model.name,
        weights_sha256=weights_digest(model), dtype=str(model.dtype).removeprefix("torch."), task=dataset.name,
        prompts_sha256=prompts_digest(dataset.discovery), n_prompts=len(dataset.discovery), metric=dataset.metric.name,
        ablation=dataset.ablation, unit=circuit.unit, seed=seed, budget=measured,
        minimality=minimal, enumeration=found, stability=votes,
    )  # fmt: skip


def _unlike(circuit: Circuit, dataset: Dataset) -> str:
    """By what other metric or ablation the circuit was found, as a hint; nothing if by the same."""
    made = circuit.provenance
    pairs = (("metric", made.metric, dataset.metric.name), ("ablation", made.ablation, dataset.ablation))
    then = ", ".join(f"{what}={found!r}" for what, found, now in pairs if found not in ("", now))
    return f", or {then}, by which it was found" if then else ""


def _budget(circuit: Circuit, dataset: Dataset, apart: float) -> float:
    """The budget the circuit was searched for, or what the task's faithfulness leaves open."""
    made = circuit.provenance
    found = None if _unlike(circuit, dataset) else made.selection.get("budget")  # it is in the units of a metric
    if isinstance(found, int | float) and not isinstance(found, bool) and np.isfinite(found):
        return float(found)
    asked = made.selection.get("faithfulness", dataset.faithfulness)
    return (1 - float(asked)) * apart  # type: ignore[arg-type]


def _minimality(parts: Parts, budget: float, strength: Strength) -> Minimality:
    """The strongest minimality up to the one asked for that holds."""
    circuit, names, n, within = parts.circuit, parts.names, len(parts), parts.within(budget)
    needless = tuple(names[i] for i in np.flatnonzero(parts.alone <= within))
    if needless:
        return Minimality(strength="none", tested=n, refuted=needless[:20])
    found = Minimality(strength="local", tested=n)
    if STRENGTHS.index(strength) < STRENGTHS.index("pairs") or n < 2:
        return found
    pairs = parts.pairs
    if len(pairs) > MOST_PAIRS:
        raise AcdcError(
            f"{len(pairs):,} pairs of {n} {parts.units.plural} are too many to test ({MOST_PAIRS:,} at most): "
            "ask for strength local"
        )
    both = parts.without(pairs)
    if (both <= within).any():
        refuted = tuple(names[i] for i in pairs[int(both.argmin())])
        return Minimality(strength="local", tested=n + len(pairs), refuted=refuted)
    found = Minimality(strength="pairs", tested=n + len(pairs))
    for name, allowed in (("subset", circuit.edges), ("cardinal", circuit.graph.valid)):
        if STRENGTHS.index(strength) < STRENGTHS.index(name):
            break
        smaller, tested = smaller_circuit(parts.problem, allowed, n - 1, within, strength=name)
        if smaller is not None:
            refuted = tuple(circuit.graph.edge_names(smaller)) or (NO_EDGE,)
            return Minimality(strength=found.strength, tested=found.tested + tested, refuted=refuted)
        found = Minimality(strength=name, tested=found.tested + tested)  # type: ignore[arg-type]
    return found
