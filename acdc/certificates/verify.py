"""`verify` measures the claims of a certificate again, without searching."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from acdc.certificates.enumeration import change_outputs, count_pairs, enumerate_pairs
from acdc.certificates.parts import ROUNDING, Parts, dataset_of, problem_of
from acdc.certificates.record import NO_EDGE, Certificate, Enumeration, Minimality
from acdc.certificates.smaller import MOST_CIRCUITS, smaller_circuit
from acdc.certificates.smoothing import check_stability, out_by_vote, radii, votes_of
from acdc.certificates.subsets import connected_circuits_up_to
from acdc.circuit import Circuit
from acdc.engine import memory
from acdc.engine.belonging import prompts_digest, weights_digest
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import AcdcError, check_type
from acdc.graph import names_digest
from acdc.model.model import Model
from acdc.tasks.programs.program_task import ProgramTask
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task

RECHECKED = 4096
"""Pairs of inputs that `verify` runs again."""
OTHER_VOTES = 0.01
"""Share of the subsamples that may vote otherwise on an edge on another machine."""
BY_CHANCE = 1e-9
"""Chance at which pairs drawn anew may differ from the claimed share more than is allowed (Hoeffding's bound)."""
NOT_THESE = "not all of the pairs that it names change an output"
SEEDED = 101
"""Added to the seed of pairs that are drawn to be run again."""


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
    dataset = dataset_of(circuit, task, model, metric, ablation)
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
    problem = problem_of(model, dataset, circuit, memory, progress)
    parts, b = Parts(problem, circuit), certificate.budget
    off = ROUNDING * max(parts.separation, abs(b.separation))
    least = float(parts.alone.min()) if len(parts) else None
    claims = [("the separation", b.separation, parts.separation), ("the distance", b.distance, parts.distance)]
    if (least is None) != (b.least_without is None):
        _wrong("it is not of these edges")
    if least is not None and b.least_without is not None:
        claims.append((f"the distance without one {circuit.unit}", b.least_without, least))
    for what, then_value, now_value in claims:
        if abs(then_value - now_value) > off:
            _wrong(f"{what} is {now_value:.6g}, and it says {then_value:.6g}")
    if parts.distance > b.budget + off:
        _wrong(f"the circuit is {parts.distance:.6g} from the model, past {b.budget:.6g}")
    names = parts.names
    if least is not None and (b.which not in names or parts.alone[names.index(b.which)] > least + off):
        _wrong(f"the circuit is nearest without {names[int(parts.alone.argmin())]}, not without {b.which!r}")
    checked = [f"within {b.budget:.4g} of the model ({parts.distance:.4g})"]
    told = _verify_minimality(parts, certificate, off, checked)
    if certificate.enumeration is not None:
        _verify_enumeration(model, task, dataset, circuit, certificate, checked, told)
    if certificate.stability is not None:
        _verify_stability(problem, circuit, certificate, checked)
    return Verification(tuple(checked), tuple(told))


def _verify_minimality(parts: Parts, certificate: Certificate, off: float, checked: list[str]) -> list[str]:
    """Checks what is claimed; returns what is not run again."""
    m, budget, n, units = certificate.minimality, certificate.budget.budget, len(parts), parts.units
    within = parts.within(budget - off)
    if m.strength == "none":
        needless = {
            name for name, distance in zip(parts.names, parts.alone, strict=True) if distance <= budget + off
        }
        if not needless:
            _wrong(f"every {units.unit} is needed")
        if not m.refuted or set(m.refuted) - needless:
            _wrong(f"not all of these {units.plural} can go alone: {', '.join(m.refuted)}")
        _verify_count(m, n)
        checked.append("not minimal, as it says")
        return []
    if may_go := int((parts.alone <= within).sum()):
        _wrong(f"{may_go} {units.plural} can go within the budget")
    checked.append(f"no {units.unit} of {n} can go")
    _verify_refuted(parts, m, budget + off)
    if m.strength == "local":
        _verify_count(m, n)
        return []
    pairs = parts.pairs
    rng = np.random.default_rng(certificate.seed + SEEDED)
    some = [pairs[i] for i in rng.permutation(len(pairs))[: max(64, n)]]
    if (parts.without(some) <= within).any():
        _wrong(f"two {units.plural} can go within the budget")
    checked.append(f"{len(some)} of {len(pairs):,} pairs cannot go")
    run = n + len(pairs)
    if m.strength == "pairs":
        _verify_count(m, run)
        return [] if len(some) == len(pairs) else ["that no other pair can go either"]
    circuit = parts.circuit
    allowed = circuit.edges if m.strength == "subset" else circuit.graph.valid
    smaller, tested = smaller_circuit(parts.problem, allowed, n - 1, within, strength=m.strength)
    if smaller is not None:
        _wrong(f"a circuit of {int(smaller.sum())} edges is within the budget")
    checked.append(f"no smaller circuit: {tested:,} run")
    if m.strength == "cardinal":
        run += sum(1 for _ in connected_circuits_up_to(circuit.graph, circuit.edges, n - 1, limit=MOST_CIRCUITS))
    _verify_count(m, run + tested)
    return []


def _verify_count(m: Minimality, run: int) -> None:
    """Checks how many circuits it says were run; more are for a stronger minimality that was refuted."""
    more = bool(m.refuted) and m.strength != "none"
    if m.tested < run or (m.tested > run and not more):
        _wrong(f"it says that {m.tested:,} circuits were run for strength {m.strength}, which takes {run:,}")


def _verify_refuted(parts: Parts, m: Minimality, within: float) -> None:
    """Checks what is said to refute the next stronger minimality: two parts that can go, or a smaller circuit."""
    if not m.refuted:
        return
    if m.strength == "local":
        if unknown_names := set(m.refuted) - set(parts.names):
            _wrong(f"the circuit has no {parts.units.unit} {sorted(unknown_names)[0]!r}")
        smaller = parts.edges_without(m.refuted)
    else:
        names = [] if m.refuted == (NO_EDGE,) else list(m.refuted)
        smaller = parts.circuit.graph.edges_from_names(names)
    if smaller.sum() >= parts.circuit.n_edges or parts.search.measures.distance(smaller) > within:
        _wrong(f"a circuit by {', '.join(m.refuted)} is not smaller and within the budget")


def _verify_enumeration(
    model: Model, task: Any, dataset: Dataset, circuit: Circuit, certificate: Certificate, checked: list[str],
    told: list[str],
) -> None:  # fmt: skip
    e = certificate.enumeration
    assert e is not None
    if not isinstance(task, ProgramTask):
        raise AcdcError("the certificate holds an enumeration, and this task's inputs are not a program's")
    differ = e.changed > 0
    if (
        {differ, e.mean > 0, e.worst > 0, bool(e.refutations)} != {differ}
        or e.mean > e.worst
        or e.changed > e.pairs
    ):
        _wrong("what it says of the outputs that change contradicts itself")
    under = dataclasses.replace(task, ablation=dataset.ablation)
    inputs, pairs = count_pairs(model, under)
    if (e.inputs, e.pairs) != (inputs, pairs) if e.proof else e.inputs > inputs:
        _wrong(f"there are {pairs:,} pairs of {inputs:,} inputs, and it says {e.pairs:,} of {e.inputs:,}")
    whole = e.pairs <= RECHECKED
    again = enumerate_pairs(
        model, under, circuit.graph, circuit.edges, most=e.pairs if whole else RECHECKED,
        seed=certificate.seed + (0 if whole else SEEDED),
    )  # fmt: skip
    if whole or again.proof:
        _verify_same(e, again)
    else:
        _verify_alike(e, again)
        named = change_outputs(model, under, circuit.graph, circuit.edges, e.refutations) if e.changed else True
        if named is False:
            _wrong(NOT_THESE)
        if named is None:
            told.append("the pairs that it names: certify again to run them")
        told.append(f"the other {e.pairs - again.pairs:,} pairs: certify again to run them all")
    checked.append(f"{again.changed} of {again.pairs:,} pairs of inputs run again change an output")


def _verify_same(e: Enumeration, again: Enumeration) -> None:
    """Checks a claim on pairs that were all run again."""
    if (again.inputs, again.what) != (e.inputs, e.what):
        _wrong(f"it is of {again.inputs} inputs, {again.what}, not of {e.inputs}, {e.what}")
    if max(abs(again.mean - e.mean), abs(again.worst - e.worst)) > 1e-9:
        _wrong(f"{again.mean:.3g} of the outputs change, not {e.mean:.3g}")
    if (again.pairs, again.changed, again.proof) != (e.pairs, e.changed, e.proof):
        _wrong(f"{again.changed} of {again.pairs} pairs change an output, not {e.changed} of {e.pairs}")
    if again.refutations != e.refutations:
        _wrong(NOT_THESE)


def _verify_alike(e: Enumeration, again: Enumeration) -> None:
    """Checks a claim on more pairs than are run again, as far as chance does not account for the difference."""
    if again.changed and not e.changed:
        _wrong(f"{again.changed} of {again.pairs} pairs change an output, and it says that none does")
    by_chance = math.sqrt(math.log(2 / BY_CHANCE) * (1 / again.inputs + 1 / max(e.inputs, 1)) / 2)
    shares = ("pairs", e.changed / e.pairs, again.changed / again.pairs), ("outputs", e.mean, again.mean)
    for what, then, now in shares:
        if abs(then - now) > by_chance:
            _wrong(f"{now:.3g} of the {what} change in {again.pairs:,} pairs drawn anew, and it says {then:.3g}")


def _verify_stability(problem: Problem, circuit: Circuit, certificate: Certificate, checked: list[str]) -> None:
    s = certificate.stability
    assert s is not None
    graph = circuit.graph
    if s.edges != circuit.n_edges or len(s.kept) + s.out + s.abstained != graph.n_edges:
        _wrong("its edges are not as many as it says")
    check_stability(problem, method=s.method, radius=s.radius, share=s.share)
    votes = votes_of(problem, s.edges, method=s.method, samples=s.samples, share=s.share, seed=certificate.seed)
    few = math.ceil(OTHER_VOTES * s.samples)
    fewer, more = (np.clip(votes + change, 0, s.samples) for change in (-few, few))
    least, most = (radii(x, s.samples, s.share, s.confidence) for x in (fewer, more))
    names = graph.edge_names(graph.valid)
    if unknown_names := s.kept.keys() - set(names):
        _wrong(f"the graph has no edge {sorted(unknown_names)[0]!r}")
    for name, low, high in zip(names, least, most, strict=True):
        claimed = s.kept.get(name)
        if claimed is None and low >= s.radius:
            _wrong(f"{name} stays if any {s.radius} prompts change, and it says that it may not")
        if claimed is not None and not (low <= claimed <= high and claimed >= s.radius):
            _wrong(f"{name} does not stay if any {claimed} prompts change")
    stays_out = [int(out_by_vote(x, s.samples, s.share, s.confidence, s.radius).sum()) for x in (more, fewer)]
    if not stays_out[0] <= s.out <= stays_out[1]:
        _wrong(f"{stays_out[0]} edges stay out, and it says {s.out}")
    checked.append(f"{len(s.kept)} edges stay by vote if any {s.radius} prompts change")


def _either(given: str, *names: str) -> str:
    """The name given, if it is one of several; else the first."""
    return given if given in names else names[0]


def _wrong(what: str) -> NoReturn:
    raise AcdcError(f"the certificate is wrong: {what}")
