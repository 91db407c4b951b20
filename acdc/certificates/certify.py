"""`certify` measures what can be claimed of a circuit, and `verify` measures the claims again, without searching."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from acdc.certificates.enumeration import check_enumerable, enumerate_pairs
from acdc.certificates.record import STRENGTHS, Budget, Certificate, Minimality, Strength
from acdc.certificates.smoothing import check_stability, stability
from acdc.certificates.subsets import TooMany, connected_circuits_up_to
from acdc.circuit import Circuit
from acdc.engine import memory
from acdc.engine.belonging import prompts_digest, weights_digest
from acdc.engine.circuits import CIRCUITS_AT_ONCE
from acdc.engine.measure import Measures
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.engine.stages import stages_of
from acdc.errors import AcdcError, check_number, check_type, unknown
from acdc.graph import BoolArray, FloatArray, IntArray, Units, names_digest, units_of
from acdc.methods.groups import Groups
from acdc.model.model import Model
from acdc.store.amounts import bytes_of
from acdc.tasks import as_dataset
from acdc.tasks.programs.program_task import ProgramTask
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task

MOST_PAIRS = 20_000
MOST_CIRCUITS = 300_000
"""Circuits that are run to prove that no smaller one will do."""
MOST_EDGES = 25
"""Edges of a circuit above which there are too many smaller ones."""
ROUNDING = 1e-4
"""Share of the separation by which a distance may differ on another machine."""
RECHECKED = 4096
"""Pairs of inputs that `verify` runs again."""
SEEDED = 101
"""Added to the seed of pairs that are drawn to be run again."""


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
    dataset = _dataset(circuit, task, model, metric, ablation)
    problem = _problem(model, dataset, circuit, memory, progress)
    if enumerate:
        check_enumerable(model, task, dataset.ablation)
    if stable is not None:
        check_stability(problem, method=method, radius=stable)
    search = Groups(Measures(problem.outcome, problem.searched()), kept=circuit.edges)
    apart = search.measures.separation()
    given = _budget(circuit, dataset, apart) if budget is None else budget
    if search.distance > given + ROUNDING * apart:
        raise AcdcError(
            f"nothing can be certified: the circuit is {search.distance:.4g} from the full model, past the budget of "
            f"{given:.4g}; give a larger --budget" + _unlike(circuit, dataset)
        )
    names, groups = _alone(circuit)
    rises = _without(search, groups)
    least = int(rises.argmin()) if len(rises) else -1
    measured = Budget(
        budget=given, distance=search.distance, separation=apart,
        least_without=float(rises[least]) if names else None, which=names[least] if names else "",
    )  # fmt: skip
    minimal = _minimality(problem, search, circuit, given, rises, strength)
    found = None
    if enumerate:
        assert isinstance(task, ProgramTask)
        found = enumerate_pairs(
            model, _of(task, dataset), circuit.graph, circuit.edges, seed=seed, progress=progress
        )
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


def _dataset(
    circuit: Circuit, task: Task | Dataset | Prompts, model: Model, metric: Metric | None, ablation: str | None
) -> Dataset:
    """A recipe or dataset says its own metric and ablation; bare prompts take the circuit's."""
    if isinstance(task, Prompts):
        made = circuit.provenance
        metric, ablation = metric or made.metric or None, ablation or made.ablation or None
    return as_dataset(task, model, metric=metric, ablation=ablation)


def _unlike(circuit: Circuit, dataset: Dataset) -> str:
    """By what other metric or ablation the circuit was found, as a hint; nothing if by the same."""
    made = circuit.provenance
    pairs = (("metric", made.metric, dataset.metric.name), ("ablation", made.ablation, dataset.ablation))
    then = ", ".join(f"{what}={found!r}" for what, found, now in pairs if found not in ("", now))
    return f", or {then}, by which it was found" if then else ""


def _of(task: ProgramTask, dataset: Dataset) -> ProgramTask:
    return dataclasses.replace(task, ablation=dataset.ablation)


def _problem(model: Model, dataset: Dataset, circuit: Circuit, limit: str | None, progress: Progress) -> Problem:
    return Problem(
        model, circuit.graph, dataset.discovery, dataset.metric, dataset.ablation, progress=progress,
        memory_limit=None if limit is None else bytes_of(limit), constants=circuit.constants,
    )  # fmt: skip


def _budget(circuit: Circuit, dataset: Dataset, apart: float) -> float:
    """The budget the circuit was searched for, or what the task's faithfulness leaves open."""
    made = circuit.provenance
    found = None if _unlike(circuit, dataset) else made.selection.get("budget")  # it is in the units of a metric
    if isinstance(found, int | float) and not isinstance(found, bool) and np.isfinite(found):
        return float(found)
    asked = made.selection.get("faithfulness", dataset.faithfulness)
    return (1 - float(asked)) * apart  # type: ignore[arg-type]


def _units(circuit: Circuit) -> tuple[Units, IntArray]:
    """What a circuit is made of, and which of them it has, flat."""
    units = units_of(circuit.graph, circuit.unit)
    return units, np.flatnonzero(units.of_edges(circuit.edges))


def _alone(circuit: Circuit) -> tuple[list[str], list[IntArray]]:
    """Each edge (or node) of a circuit: its name, and which edges go with it."""
    units, kept = _units(circuit)
    return units.names_of(units.of_edges(circuit.edges)), [units.going(circuit.edges, one) for one in kept[:, None]]


def _without(search: Groups, groups: list[Any]) -> FloatArray:
    return search.measure_without(groups)[0] if groups else np.zeros(0)


def _minimality(
    problem: Problem, search: Groups, circuit: Circuit, budget: float, rises: FloatArray, strength: Strength
) -> Minimality:
    """The strongest minimality up to the one asked for that holds."""
    units, kept = _units(circuit)
    names, n = units.names_of(units.of_edges(circuit.edges)), len(kept)
    needless = tuple(names[i] for i in np.flatnonzero(rises <= budget))
    if needless:
        return Minimality(strength="none", tested=n, refuted=needless[:20])
    found = Minimality(strength="local", tested=n)
    if STRENGTHS.index(strength) < STRENGTHS.index("pairs") or n < 2:
        return found
    pairs = list(itertools.combinations(range(n), 2))
    if len(pairs) > MOST_PAIRS:
        raise AcdcError(
            f"{len(pairs):,} pairs of {n} {units.plural} are too many to test ({MOST_PAIRS:,} at most): "
            "ask for strength local"
        )
    both = _without(search, [units.going(circuit.edges, kept[list(pair)]) for pair in pairs])
    if (both <= budget).any():
        refuted = tuple(names[i] for i in pairs[int(both.argmin())])
        return Minimality(strength="local", tested=n + len(pairs), refuted=refuted)
    found = Minimality(strength="pairs", tested=n + len(pairs))
    for name, allowed in (("subset", circuit.edges), ("cardinal", circuit.graph.valid)):
        if STRENGTHS.index(strength) < STRENGTHS.index(name):
            break
        smaller, tested = smaller_circuit(problem, allowed, n - 1, budget, strength=name)
        if smaller is not None:
            refuted = tuple(circuit.graph.edge_names(smaller))[:30]
            return Minimality(strength=found.strength, tested=found.tested + tested, refuted=refuted)
        found = Minimality(strength=name, tested=found.tested + tested)  # type: ignore[arg-type]
    return found


def smaller_circuit(
    problem: Problem, allowed: BoolArray, most: int, budget: float, *, strength: str
) -> tuple[BoolArray | None, int]:
    """A connected circuit of at most `most` of the allowed edges within the budget, or None; and how many were run.

    Raises:
        AcdcError: dangling edges may matter under this ablation, or there are too many circuits.
    """
    coupled = any(stage.coupled for stage in stages_of(problem.model, problem.graph))
    if problem.ablation != "resample" or coupled:
        raise AcdcError(
            f"strength {strength!r} is of connected circuits, and in this model under {problem.ablation} ablation "
            "parts that nothing feeds, or reads, can matter too: ask for pairs"
        )
    if most + 1 > MOST_EDGES:
        raise AcdcError(
            f"strength {strength!r} is for circuits of at most {MOST_EDGES} edges, not {most + 1}: ask for pairs"
        )
    circuits = connected_circuits_up_to(problem.graph, allowed, most, limit=MOST_CIRCUITS)
    measures = Measures(problem.outcome, problem.searched())
    tested = 0
    try:
        while some := list(itertools.islice(circuits, CIRCUITS_AT_ONCE)):
            stack = np.stack(some)
            distances = stacked_distances(measures, stack)
            tested += len(some)
            problem.progress(tested, None, "smaller circuits")
            if (distances <= budget).any():
                return stack[int(distances.argmin())], tested
    except TooMany:
        raise AcdcError(
            f"strength {strength!r} takes more than {MOST_CIRCUITS:,} smaller circuits of this graph: ask for "
            f"{'subset' if strength == 'cardinal' else 'pairs'}"
        ) from None
    return None, tested


@torch.no_grad()
def stacked_distances(measures: Measures, stack: BoolArray) -> FloatArray:
    """`[C]` mean distance of circuits, run together."""
    found = [
        measure.distance(patching.logits(stack, rows=measure.rows)).double().cpu().numpy()
        for patching, measure in measures
    ]
    return np.asarray(np.concatenate(found, axis=-1).mean(axis=-1))


# ---- verifying --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Verification:
    """What verifying found.

    Attributes:
        checked: what was measured again and holds, a sentence each.
        told: what was not run again, and is the certificate's word.
    """

    checked: tuple[str, ...]
    told: tuple[str, ...]


@memory.explained
@torch.inference_mode(False)
def verify(
    model: Model,
    task: Task | Dataset | Prompts,
    circuit: Circuit,
    certificate: Certificate,
    *,
    metric: Metric | None = None,
    ablation: str | None = None,
    memory: str | None = None,
    progress: Progress = no_progress,
) -> Verification:
    """Measure a certificate's claims again, without any search.

    The distance, and that without each edge, are run again; of pairs and smaller circuits the ones that can be told
    apart cheaply; enumerations on thousands of the pairs; stability from one pass.

    Args:
        metric, ablation: as they were given to `certify`.

    Raises:
        AcdcError: the certificate is of other weights, prompts, settings or another circuit, or a claim does not hold.
    """
    check_type("a Certificate", certificate, Certificate)
    dataset = _dataset(circuit, task, model, metric, ablation)
    about = {
        "edges": (certificate.edges_sha256, names_digest(circuit.edge_names())),
        "precision": (certificate.dtype, str(model.dtype).removeprefix("torch.")),
        "weights": (certificate.weights_sha256, weights_digest(model)),
        "prompts": (certificate.prompts_sha256, prompts_digest(dataset.discovery)),
        "metric": (certificate.metric, dataset.metric.name),
        "ablation": (certificate.ablation, dataset.ablation),
        "units": (certificate.unit, circuit.unit),
        "numbers of edges and prompts": (
            f"{certificate.n_edges} and {certificate.n_prompts}", f"{circuit.n_edges} and {len(dataset.discovery)}"
        ),
        "model": (certificate.model, _either(certificate.model, circuit.provenance.model, model.name)),
        "task": (certificate.task, _either(certificate.task, circuit.provenance.task, dataset.name)),
    }  # fmt: skip
    for what, (then, now) in about.items():
        if then != now:
            short = what not in ("edges", "weights", "prompts")
            hint = f"load the model in that (--dtype {then})" if what == "precision" else "certify again"
            raise AcdcError(
                f"the certificate is of other {what}" + (f" ({then!r}, not {now!r})" if short else "") + f": {hint}"
            )
    problem = _problem(model, dataset, circuit, memory, progress)
    search = Groups(Measures(problem.outcome, problem.searched()), kept=circuit.edges)
    b, apart = certificate.budget, search.measures.separation()
    off = ROUNDING * max(apart, abs(b.separation))
    names, groups = _alone(circuit)
    rises = _without(search, groups)
    least = float(rises.min()) if len(rises) else None
    claims = [("the separation", b.separation, apart), ("the distance", b.distance, search.distance)]
    if (least is None) != (b.least_without is None):
        raise AcdcError("the certificate is wrong: it is not of these edges")
    if least is not None and b.least_without is not None:
        claims.append((f"the distance without one {circuit.unit}", b.least_without, least))
    for what, then_value, now_value in claims:
        if abs(then_value - now_value) > off:
            raise AcdcError(f"the certificate is wrong: {what} is {now_value:.6g}, and it says {then_value:.6g}")
    if search.distance > b.budget + off:
        _wrong(f"the circuit is {search.distance:.6g} from the model, past {b.budget:.6g}")
    if least is not None and (b.which not in names or rises[names.index(b.which)] > least + off):
        _wrong(f"the circuit is nearest without {names[int(rises.argmin())]}, not without {b.which!r}")
    checked = [f"within {b.budget:.4g} of the model ({search.distance:.4g})"]
    told = _verify_minimality(problem, search, circuit, certificate, rises, off, checked)
    if certificate.enumeration is not None:
        _verify_enumeration(model, task, dataset, circuit, certificate, checked, told)
    if (s := certificate.stability) is not None:
        again = stability(
            problem, s.edges, method=s.method, radius=s.radius, samples=s.samples, share=s.share,
            confidence=s.confidence, seed=certificate.seed,
        )  # fmt: skip
        differ = {name for name in again.kept.keys() | s.kept.keys() if again.kept.get(name) != s.kept.get(name)}
        few = max(1, 0.02 * len(s.kept))  # on another machine a vote may fall otherwise
        if s.edges != circuit.n_edges or len(differ) > few:
            raise AcdcError(f"the certificate is wrong: {len(differ)} edges are not as stable as it says")
        if max(abs(again.out - s.out), abs(again.abstained - s.abstained)) > few:
            _wrong(f"{again.out} edges stay out and {again.abstained} are undecided, not {s.out} and {s.abstained}")
        checked.append(f"{len(s.kept)} edges stay by vote if any {s.radius} prompts change")
    return Verification(tuple(checked), tuple(told))


def _verify_minimality(
    problem: Problem, search: Groups, circuit: Circuit, certificate: Certificate, rises: FloatArray, off: float,
    checked: list[str],
) -> list[str]:  # fmt: skip
    """Checks what is claimed; returns what is not run again."""
    units, kept = _units(circuit)
    m, budget, n = certificate.minimality, certificate.budget.budget, len(kept)
    if m.strength == "none":
        fits = rises <= budget + off
        names = units.names_of(units.of_edges(circuit.edges))
        needless = {name for name, may_go in zip(names, fits, strict=True) if may_go}
        if not needless:
            _wrong(f"every {units.unit} is needed")
        if not m.refuted or set(m.refuted) - needless:
            _wrong(f"not all of these {units.plural} can go alone: {', '.join(m.refuted)}")
        _verify_count(m, n)
        checked.append("not minimal, as it says")
        return []
    if may_go := int((rises <= budget - off).sum()):
        _wrong(f"{may_go} {units.plural} can go within the budget")
    checked.append(f"no {units.unit} of {n} can go")
    _verify_refuted(search, circuit, m, budget + off)
    if m.strength == "local":
        _verify_count(m, n)
        return []
    pairs = list(itertools.combinations(kept, 2))
    rng = np.random.default_rng(certificate.seed + SEEDED)
    some = [pairs[i] for i in rng.permutation(len(pairs))[: max(64, n)]]
    if (
        len(some)
        and (_without(search, [units.going(circuit.edges, np.array(pair)) for pair in some]) <= budget - off).any()
    ):
        _wrong(f"two {units.plural} can go within the budget")
    checked.append(f"{len(some)} of {len(pairs):,} pairs cannot go")
    run = n + len(pairs)
    if m.strength == "pairs":
        _verify_count(m, run)
        return [] if len(some) == len(pairs) else ["that no other pair can go either"]
    allowed = circuit.edges if m.strength == "subset" else problem.graph.valid
    smaller, tested = smaller_circuit(problem, allowed, n - 1, budget - off, strength=m.strength)
    if smaller is not None:
        _wrong(f"a circuit of {int(smaller.sum())} edges is within the budget")
    checked.append(f"no smaller circuit: {tested:,} run")
    if m.strength == "cardinal":
        run += sum(1 for _ in connected_circuits_up_to(problem.graph, circuit.edges, n - 1, limit=MOST_CIRCUITS))
    _verify_count(m, run + tested)
    return []


def _verify_count(m: Minimality, run: int) -> None:
    """Checks how many circuits it says were run; more are for a stronger minimality that was refuted."""
    more = bool(m.refuted) and m.strength != "none"
    if m.tested < run or (m.tested > run and not more):
        _wrong(f"it says that {m.tested:,} circuits were run for strength {m.strength}, which takes {run:,}")


def _verify_refuted(search: Groups, circuit: Circuit, m: Minimality, within: float) -> None:
    """Checks what is said to refute the next stronger minimality: two edges that can go, or a smaller circuit."""
    if not m.refuted:
        return
    if m.strength == "local":
        units, kept = _units(circuit)
        names = np.array(units.names_of(units.of_edges(circuit.edges)))
        if unknown_names := set(m.refuted) - set(names.tolist()):
            _wrong(f"the circuit has no {units.unit} {sorted(unknown_names)[0]!r}")
        smaller = circuit.edges.copy()
        smaller.flat[units.going(circuit.edges, kept[np.isin(names, m.refuted)])] = False
    else:
        smaller = circuit.graph.edges_from_names(list(m.refuted))
    if smaller.sum() >= circuit.n_edges or search.measures.distance(smaller) > within:
        _wrong(f"a circuit by {', '.join(m.refuted)} is not smaller and within the budget")


def _verify_enumeration(
    model: Model, task: Any, dataset: Dataset, circuit: Circuit, certificate: Certificate, checked: list[str],
    told: list[str],
) -> None:  # fmt: skip
    e = certificate.enumeration
    assert e is not None
    if not isinstance(task, ProgramTask):
        raise AcdcError("the certificate holds an enumeration, and this task's inputs are not a program's")
    whole = e.pairs <= RECHECKED
    again = enumerate_pairs(
        model, _of(task, dataset), circuit.graph, circuit.edges, most=e.pairs if whole else RECHECKED,
        seed=certificate.seed + (0 if whole else SEEDED),
    )  # fmt: skip
    whole = whole or (e.proof and again.proof)
    if whole and (again.inputs, again.what) != (e.inputs, e.what):
        _wrong(f"it is of {again.inputs} inputs, {again.what}, not of {e.inputs}, {e.what}")
    if whole and max(abs(again.mean - e.mean), abs(again.worst - e.worst)) > 1e-9:
        _wrong(f"{again.mean:.3g} of the outputs change, not {e.mean:.3g}")
    if whole and (again.pairs, again.changed, again.proof) != (e.pairs, e.changed, e.proof):
        _wrong(f"{again.changed} of {again.pairs} pairs change an output, not {e.changed} of {e.pairs}")
    if again.changed and not e.changed:
        _wrong(f"{again.changed} of {again.pairs} pairs change an output, and it says that none does")
    checked.append(f"{again.changed} of {again.pairs:,} pairs of inputs run again change an output")
    if not whole:
        told.append(f"the other {e.pairs - again.pairs:,} pairs: certify again to run them all")


def _either(given: str, *names: str) -> str:
    """The name given, if it is one of several; else the first."""
    return given if given in names else names[0]


def _wrong(what: str) -> None:
    raise AcdcError(f"the certificate is wrong: {what}")


def files_of(run: Path) -> Path:
    """The folder of a run, given by itself or by its `circuit.json`."""
    return run.parent if run.is_file() else run
