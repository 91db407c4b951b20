"""Certificates: what they claim is true, holds when it is measured again, and no changed byte passes."""

from __future__ import annotations

import importlib
import itertools
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import acdc
from acdc.benchmarks.measuring.planted import Case
from acdc.certificates import enumeration
from acdc.certificates.enumeration import enumerate_pairs
from acdc.certificates.parts import Parts, problem_of
from acdc.certificates.record import NAME, NO_EDGE, Stability, load, write
from acdc.certificates.subsets import TooMany, connected_circuits_up_to
from acdc.certificates.verify import RECHECKED
from acdc.circuit import Circuit
from acdc.engine.circuits import measure_prompts
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.graph import Graph, units_of
from acdc.tasks.programs.program_task import ProgramTask
from command_line import Command

certify, verify = (importlib.import_module(f"acdc.certificates.{name}") for name in ("certify", "verify"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A found circuit with a certificate of all kinds."""
    folder = tmp_path_factory.mktemp("certified") / "run"
    model, task = acdc.load("tracr-hist"), acdc.tasks.load("tracr-hist", distribution="fixed", size=16)
    circuit = acdc.discover(model, task)
    made = circuit.provenance.having(task_options={"distribution": "fixed", "size": 16})
    circuit = Circuit(circuit.graph, circuit.edges, circuit.scores, made)
    circuit.save(folder)
    certificate = acdc.certify(model, task, circuit, strength="cardinal", stable=1)
    assert certificate.minimality.strength == "cardinal"
    write(certificate, folder)
    return folder


def test_the_command_certifies_and_verifies(command: Command, run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "copy"))
    assert command("certify", folder).status == 2  # there is one
    made = command("certify", folder, "--strength", "pairs", "--force")
    assert made.status == 0, made.err
    assert "no edge and no two edges can go" in made.out
    checked = command("verify", folder)
    assert checked.status == 0, checked.err
    assert "the certificate holds" in checked.out
    (folder / NAME).unlink()
    none = command("verify", folder)
    assert none.status == 2
    assert "acdc certify" in none.err


def test_discover_certifies_what_it_found(command: Command, tmp_path: Path) -> None:
    found = command("discover", "tracr-hist", "--certify", "-o", tmp_path / "found")
    assert found.status == 0, found.err
    assert "no single edge can go" in found.out
    assert command("verify", tmp_path / "found").status == 0
    far = command(
        "discover", "tracr-hist", "--method", "random", "--edges", "2", "--certify", "-o", tmp_path / "far"
    )
    assert far.status == 0  # a circuit past its budget is written all the same
    assert "nothing can be certified" in far.err
    assert (tmp_path / "far" / "circuit.json").exists()
    assert not (tmp_path / "far" / NAME).exists()


def test_no_changed_byte_passes(run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["circuit.json", "scores.safetensors", NAME]
    refused = 0
    for i in range(100):
        folder = Path(shutil.copytree(run, tmp_path / str(i)))
        path = folder / names[i % 3]
        content = bytearray(path.read_bytes())
        place = int(rng.integers(len(content)))
        kind = i % 4
        if kind == 0:
            content[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del content[place]
        elif kind == 2:
            content.insert(place, content[place])
        else:
            content += b" "
        path.write_bytes(bytes(content))
        with pytest.raises(AcdcError):
            load(folder)
        refused += 1
    assert refused == 100
    load(run)


def test_false_claims_with_a_new_digest_do_not_hold(run: Path) -> None:
    certificate, circuit = load(run), Circuit.load(run)
    model, task = acdc.load("tracr-hist"), acdc.tasks.load("tracr-hist", distribution="fixed", size=16)
    assert acdc.verify(model, task, circuit, certificate).checked
    assert certificate.budget.least_without is not None
    budget = certificate.budget
    for changed in (
        {"budget": budget.model_copy(update={"distance": budget.distance + 1})},
        {"budget": budget.model_copy(update={"budget": budget.least_without + 1})},
        {"budget": budget.model_copy(update={"least_without": 9.0})},
        {"budget": budget.model_copy(update={"which": "input->m99"})},
        {"minimality": certificate.minimality.model_copy(update={"strength": "none"})},
        {"minimality": certificate.minimality.model_copy(update={"tested": 10_000_000})},
        {"edges_sha256": "0" * 64},
        {"weights_sha256": "0" * 64},
        {"prompts_sha256": "0" * 64},
        {"n_prompts": 10_000},
        {"n_edges": 2},
        {"model": "gpt2-xl"},
        {"task": "everything"},
        {"metric": "kl"},
        {"dtype": "float64"},
    ):
        with pytest.raises(AcdcError, match="certificate"):
            acdc.verify(model, task, circuit, certificate.model_copy(update=changed))


def test_a_circuit_that_is_not_minimal_says_so() -> None:
    case = Case.load("tracr-hist", 0)
    edges = case.truth.copy()
    edges.flat[np.flatnonzero(case.graph.valid & ~case.truth)[0]] = True
    circuit = Circuit(case.graph, edges)
    certificate = acdc.certify(case.model, case.task, circuit, strength="pairs")
    assert certificate.minimality.strength == "none"
    assert acdc.verify(case.model, case.task, circuit, certificate).checked
    for changed in ({"tested": 1}, {"refuted": ()}, {"refuted": tuple(circuit.edge_names())}):
        false = certificate.minimality.model_copy(update=changed)
        with pytest.raises(AcdcError, match="the certificate is wrong"):
            acdc.verify(case.model, case.task, circuit, certificate.model_copy(update={"minimality": false}))
    less = edges & False
    with pytest.raises(AcdcError, match="past the budget"):
        acdc.certify(case.model, case.task, Circuit(case.graph, less))


@pytest.mark.parametrize("strength", ["local", "pairs"])
def test_an_edge_that_does_nothing_is_not_needed_whatever_the_budget(strength: str) -> None:
    """A budget just below the distance lets rounding pass for need: a circuit as near without an edge is within it."""
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=16)
    found = acdc.discover(model, task, faithfulness=0.9)
    spare = next(  # that no kept edge reads
        name
        for name in found.graph.edge_names(found.graph.valid & ~found.edges)
        if not (found.graph.prune(found.edges | found.graph.edges_from_names([name])) & ~found.edges).any()
    )
    circuit = Circuit(found.graph, found.edges | found.graph.edges_from_names([spare]))
    true = acdc.certify(model, task, circuit, budget=_distance(model, task, circuit.edges))
    assert true.minimality.refuted == (spare,)
    n = circuit.n_edges
    tested = n if strength == "local" else n * (n + 1) // 2
    for budget in (true.budget.budget, true.budget.distance - 1e-7):
        false = true.model_copy(
            update={
                "budget": true.budget.model_copy(update={"budget": budget}),
                "minimality": true.minimality.model_copy(
                    update={"strength": strength, "tested": tested, "refuted": ()}
                ),
            }
        )
        with pytest.raises(AcdcError, match="1 edges can go within the budget"):
            acdc.verify(model, task, circuit, false)


def test_what_refutes_may_be_the_circuit_without_edges(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = acdc.load("tracr-hist"), acdc.tasks.load("tracr-hist", distribution="fixed", size=16)
    circuit = Circuit.load(run)
    nothing = np.zeros_like(circuit.edges)
    monkeypatch.setattr(certify, "smaller_circuit", lambda *_, **__: (nothing, 5))
    made = acdc.certify(model, task, circuit, strength="subset").minimality
    assert (made.strength, made.refuted) == ("pairs", (NO_EDGE,))
    parts = Parts(problem_of(model, task.prepare(model), circuit, None, lambda *_: None), circuit)
    distance = parts.search.measures.distance(nothing)
    verify._verify_refuted(parts, made, distance)
    with pytest.raises(AcdcError, match=r"by \(no edge\) is not smaller and within the budget"):
        verify._verify_refuted(parts, made, distance / 2)


def test_every_connected_circuit_comes_once() -> None:
    for graph, most in (
        (Graph(1, 1), 4),
        (Graph(1, 2, n_kv_heads=1, group_kv=True), 4),
        (Graph(2, 1, qkv="merged"), 4),
    ):
        places = np.argwhere(graph.valid)
        expected = set()
        for n in range(most + 1):
            for some in itertools.combinations(range(len(places)), n):
                edges = np.zeros_like(graph.valid)
                edges[tuple(places[list(some)].T)] = True
                if (graph.prune(edges) == edges).all():
                    expected.add(edges.tobytes())
        found = [c.tobytes() for c in connected_circuits_up_to(graph, graph.valid, most, limit=10**6)]
        assert len(found) == len(set(found))
        assert set(found) == expected
    with pytest.raises(TooMany):
        list(connected_circuits_up_to(graph, graph.valid, most, limit=10))


def test_enumeration_runs_every_pair_and_lists_refutations() -> None:
    model = acdc.load("tracr-mirrored")
    task = acdc.tasks.load("tracr-mirrored", distribution="fixed")
    known = task.prepare(model).truth
    assert known is not None
    graph = model.graph(inputs="split")
    truth = known.mask(graph)
    proved = enumerate_pairs(model, task, graph, truth)  # type: ignore[arg-type]
    assert proved.proof
    assert proved.pairs == proved.inputs**2
    assert proved.changed == 0
    broken = truth.copy()
    broken.flat[np.flatnonzero(truth)[0]] = False
    refuted = enumerate_pairs(model, task, graph, broken)  # type: ignore[arg-type]
    assert refuted.changed > 0
    assert refuted.refutations
    with pytest.raises(AcdcError, match="finitely many"):
        enumerate_pairs(acdc.load("induction-2l"), acdc.tasks.load("induction"), graph, truth)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "distribution", "inputs"),
    [("tracr-mirrored", "fixed", 32), ("tracr-shuffle-dyck", "mixed", 50), ("tracr-mirrored", "permuted", 6)],
)
def test_one_donor_stands_for_those_that_a_circuit_cannot_tell_apart(
    monkeypatch: pytest.MonkeyPatch, name: str, distribution: str, inputs: int
) -> None:
    """Counts over all pairs are those of a run of every pair, for right circuits and wrong ones."""
    every = enumeration._Inputs.every.func  # type: ignore[attr-defined]
    monkeypatch.setattr(enumeration._Inputs, "every", property(lambda self: every(self)[-inputs:]))
    model, task = acdc.load(name), acdc.tasks.load(name, distribution=distribution)
    assert isinstance(task, ProgramTask)
    graph = model.graph(inputs="split")
    known = task.truth()
    assert known is not None
    truth = known.mask(graph)
    rng = np.random.default_rng(1)
    fewer = 0
    for share in (0.0, 0.1, 0.3):
        circuit = (truth & (rng.random(truth.shape) >= share)) | (graph.valid & (rng.random(truth.shape) < share))
        found = enumerate_pairs(model, task, graph, circuit)
        with monkeypatch.context() as plain:
            plain.setattr(enumeration, "brought", lambda *given: torch.arange(len(given[-1]))[:, None].double())
            expected = enumerate_pairs(model, task, graph, circuit)
        assert found.pairs == expected.pairs == inputs**2 * (120 if distribution == "permuted" else 1)
        assert (found.changed, found.worst) == (expected.changed, expected.worst)
        assert found.mean == pytest.approx(expected.mean)
        assert (found.changed == 0) == (share == 0)
        fewer += found.what != expected.what
    assert fewer > 1


def test_a_proof_with_few_donors_is_made_again_whole() -> None:
    model, task = acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse", distribution="fixed", size=16)
    certificate = acdc.certify(model, task, circuit := acdc.discover(model, task), enumerate=True)
    assert certificate.enumeration is not None
    assert certificate.enumeration.proof
    assert certificate.enumeration.pairs == 243**2 > RECHECKED
    again = acdc.verify(model, task, circuit, certificate)
    assert any(said.startswith("0 of 59,049 pairs") for said in again.checked)
    assert not any("other" in said and "pairs" in said for said in again.told)
    for lie, words in (
        ({"pairs": 10**12}, "there are 59,049 pairs of 243 inputs, and it says 1,000,000,000,000"),
        ({"inputs": 10**6}, "there are 59,049 pairs of 243 inputs"),
        ({"proof": False}, "0 of 59049 pairs change an output"),
        ({"mean": 0.5}, "contradicts itself"),
        ({"changed": 7, "mean": 0.1, "worst": 1.0}, "contradicts itself"),
    ):
        false = certificate.enumeration.model_copy(update=lie)
        with pytest.raises(AcdcError, match=words):
            acdc.verify(model, task, circuit, certificate.model_copy(update={"enumeration": false}))


def test_what_a_drawn_enumeration_claims_is_held_to_pairs_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse", distribution="fixed", size=16)
    assert isinstance(task, ProgramTask)
    known = task.truth()
    assert known is not None
    graph = model.graph(inputs="split")
    broken = known.mask(graph)
    broken.flat[np.flatnonzero(broken)[0]] = False
    circuit = Circuit(graph, broken)
    monkeypatch.setattr("acdc.certificates.verify.RECHECKED", 300)  # of 59,049 pairs
    certificate = acdc.certify(model, task, circuit, budget=1e9, enumerate=True)
    found = certificate.enumeration
    assert found is not None
    assert found.refutations
    assert any("other" in line for line in acdc.verify(model, task, circuit, certificate).told)
    clean, corrupted = found.refutations[0]
    for lie, words in (
        ({"changed": 1}, "of the pairs change in"),
        ({"mean": 0.1}, "of the outputs change in"),
        ({"refutations": ((clean, clean),)}, "not all of the pairs that it names change an output"),
        ({"refutations": ((clean, (*corrupted, 99)),)}, "are not the token ids of an input of tracr-reverse"),
        ({"refutations": ((clean, (corrupted[1], *corrupted[1:])),)}, "are not the token ids"),
    ):
        false = certificate.model_copy(update={"enumeration": found.model_copy(update=lie)})
        with pytest.raises(AcdcError, match=words):
            acdc.verify(model, task, circuit, false)


def test_a_budget_is_of_the_metric_that_the_circuit_was_found_by() -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=16)
    circuit = acdc.discover(model, task, metric="kl", faithfulness=0.8)
    certificate = acdc.certify(model, task, circuit, metric="kl")
    assert certificate.metric == "kl"
    assert certificate.budget.budget == circuit.provenance.selection["budget"]
    acdc.verify(model, task, circuit, certificate, metric="kl")
    for metric in (None, "probability"):  # in which its own budget, in nats, says nothing
        with pytest.raises(AcdcError, match="or metric='kl', by which it was found") as refused:
            acdc.certify(model, task, circuit, metric=metric)
        assert f"past the budget of {certificate.budget.budget:.4g}" not in str(refused.value)
    other = acdc.certify(model, task, circuit, metric="probability", budget=0.9)
    acdc.verify(model, task, circuit, other, metric="probability")
    with pytest.raises(AcdcError, match="other metric"):
        acdc.verify(model, task, circuit, other)


def test_bad_requests() -> None:
    case = Case.load("tracr-hist", 0)
    circuit = Circuit(case.graph, case.truth)
    with pytest.raises(AcdcError, match="strength"):
        acdc.certify(case.model, case.task, circuit, strength="strong")  # type: ignore[arg-type]
    shared = acdc.tasks.load(case.model.name, ablation="mean")
    with pytest.raises(AcdcError, match="certified under resample and zero ablation, not mean"):
        acdc.certify(case.model, shared, circuit, stable=1, budget=100.0)
    with pytest.raises(AcdcError, match=r"number of prompts that change .* between 0 and 3, got 9"):
        acdc.certify(case.model, case.task, circuit, stable=9)
    with pytest.raises(AcdcError, match="whose scores add"):
        acdc.certify(case.model, case.task, circuit, stable=1, method="acdc")
    with torch.no_grad(), pytest.raises(AcdcError, match="program's task"):
        acdc.certify(case.model, case.task.prepare(case.model), circuit, enumerate=True)


@pytest.mark.parametrize("budget", [float("nan"), float("inf"), -1.0])
def test_a_budget_is_a_finite_number(budget: float) -> None:
    case = Case.load("tracr-hist", 0)
    with pytest.raises(AcdcError, match="expected a finite budget of at least 0"):
        acdc.certify(case.model, case.task, Circuit(case.graph, case.truth), budget=budget)


def test_what_takes_all_prompts_together_cannot_be_enumerated() -> None:
    case = Case.load("tracr-first", 0)
    task = acdc.tasks.load("tracr-first", ablation="mean-position", distribution="fixed")
    with pytest.raises(AcdcError, match="enumerated under resample and zero ablation, not mean-position"):
        acdc.certify(case.model, task, Circuit(case.graph, case.truth), enumerate=True, budget=100.0)


def test_numbers_of_a_foreign_certificate_are_checked() -> None:
    fields = {"method": "eap", "edges": 3, "samples": 10, "radius": 1, "kept": {}, "out": 0, "abstained": 0}
    for share, confidence in ((0.5, 2.0), (0.0, 0.9), (float("nan"), 0.9)):
        with pytest.raises(ValueError, match=r"share|confidence"):
            Stability(share=share, confidence=confidence, **fields)  # type: ignore[arg-type]


def _distance(model: acdc.Model, task: acdc.tasks.Task, edges: npt.NDArray[np.bool_]) -> float:
    """Of a circuit from the full model on the discovery prompts, by the slow way."""
    data = task.prepare(model)
    problem = Problem(model, model.graph(), data.discovery, data.metric, data.ablation)
    found = np.abs(np.diff(measure_prompts(problem, [model.graph().valid, edges])[0].circuits, axis=0))
    return float(found.mean())


def test_a_circuit_of_nodes_is_certified_by_its_nodes(tmp_path: Path) -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=32)
    circuit = acdc.discover(model, task, "guided", units="node")
    certificate = acdc.certify(model, task, circuit, strength="pairs")
    units = units_of(circuit.graph, "node")
    kept = np.flatnonzero(units.of_edges(circuit.edges))
    alone = {
        circuit.graph.sources[i]: _distance(
            model, task, circuit.graph.prune(units.mask(np.isin(np.arange(units.n), kept[kept != i])))
        )
        for i in kept
    }
    least = min(alone, key=lambda name: alone[name])
    assert certificate.budget.which == least
    assert certificate.budget.least_without == pytest.approx(alone[least], rel=1e-4)
    assert certificate.minimality.strength == "pairs"
    assert certificate.minimality.tested == len(kept) * (len(kept) + 1) // 2
    assert "no node and no two nodes can go within the budget" in certificate.claims()[1]
    circuit.save(tmp_path / "run")
    write(certificate, tmp_path / "run")
    again = load(tmp_path / "run")
    assert "no node of" in " ".join(acdc.verify(model, task, Circuit.load(tmp_path / "run"), again).checked)
    with pytest.raises(AcdcError, match="of other units"):
        acdc.verify(model, task, Circuit(circuit.graph, circuit.edges), again)
    with pytest.raises(AcdcError, match="'subset' is of edges, and these are nodes: ask for pairs"):
        acdc.certify(model, task, circuit, strength="subset")
    both = acdc.certify(model, task, circuit, strength="pairs", budget=min(alone.values()) * 0.999)
    for refuted, words in ((("input", "a9.h9"), "has no node 'a9.h9'"), (("input",), "is not smaller and within")):
        false = both.minimality.model_copy(update={"strength": "local", "refuted": refuted})
        with pytest.raises(AcdcError, match=words):
            acdc.verify(model, task, circuit, both.model_copy(update={"minimality": false}))
    more = Circuit(circuit.graph, circuit.graph.valid, unit="node")
    spare = acdc.certify(model, task, more, budget=certificate.budget.budget)
    assert spare.minimality.strength == "none"
    assert set(spare.minimality.refuted) == {
        name
        for i, name in enumerate(circuit.graph.sources)
        if _distance(model, task, circuit.graph.prune(units.mask(np.arange(units.n) != i))) <= spare.budget.budget
    }
    assert acdc.verify(model, task, more, spare).checked[-1] == "not minimal, as it says"


def test_what_can_go_alone_is_not_said_to_go_together() -> None:
    model, task = acdc.load("interp-reverse"), acdc.tasks.load("interp-reverse")
    circuit = acdc.discover(model, task, "eap-ig", edges=30)
    certificate = acdc.certify(model, task, circuit, budget=7.7e-5)
    names = list(certificate.minimality.refuted)
    left = circuit.edges & ~circuit.graph.edges_from_names(names[:3])
    assert _distance(model, task, left) > certificate.budget.budget
    assert (
        f"it is not minimal: any of {', '.join(names[:3])} and others can go alone within"
        in certificate.claims()[1]
    )
