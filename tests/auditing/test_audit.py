"""An audit finds what was planted, and lets true circuits pass."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import acdc
from acdc.auditing import adversary
from acdc.auditing.checks import CHECKS
from acdc.auditing.prompts import fresh_prompts
from acdc.auditing.record import AuditReport
from acdc.auditing.subject import Scale
from acdc.benchmarks.measuring.planted import KINDS, Case, Kind, planted_in
from acdc.circuit import Circuit
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import AcdcError
from acdc.evaluation.connected import connected_like
from acdc.evaluation.judging import random_circuits_like
from acdc.graph import units_of
from acdc.metrics import OUTCOMES
from acdc.metrics.hypotheses import holm
from acdc.tasks.prompts import Prompts
from acdc.tasks.repeats import among, without

WHERE = {
    "of another program": "tracr-count",
    "shifted inputs": "tracr-sort",
    "of other inputs": "tracr-sort",
    "names one off": "tracr-sort",
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.plant is not None], ids=lambda kind: kind.name)
def test_a_planted_fault_is_found_by_its_check(kind: Kind) -> None:
    if kind.name in ("half of two mechanisms", "overfit to few prompts", "of any network"):
        pytest.skip("slow; see the planted-fault suite")
    assert kind.plant is not None
    case = Case.load(WHERE.get(kind.name, "tracr-hist"), 0)
    planted = next(
        found for seed in range(9) if (found := kind.plant(case, np.random.default_rng(seed))) is not None
    )
    report = acdc.audit(
        planted.model, planted.task, planted.circuit, level=kind.level,  # type: ignore[arg-type]
        checks=[kind.check], size=384, **planted.options,
    )  # fmt: skip
    p = report[kind.check].p
    assert p is not None
    assert p <= 0.05 / 12, f"{report[kind.check].found}"
    assert report.failed == (kind.check,)


@pytest.mark.parametrize(
    ("name", "program", "seed"),
    [
        ("of any network", "tracr-occurrence", 0),  # as near to one in five shuffled copies
        ("by chance", "tracr-first", 6),  # nearer than 125 of 200 random circuits
        pytest.param(
            "half of two mechanisms", "tracr-sort-freq", 8, marks=pytest.mark.slow
        ),  # by 16%, where 10% may be
        ("shifted inputs", "interp-shift", 0),  # 47% of the way, where 25% are allowed
    ],
)
def test_a_weak_fault_is_found(name: str, program: str, seed: int) -> None:
    kind = next(kind for kind in KINDS if kind.name == name)
    planted = planted_in(kind, program, seed)
    assert planted is not None
    report = acdc.audit(
        planted.model, planted.task, planted.circuit, level=kind.level,  # type: ignore[arg-type]
        checks=[kind.check], seed=seed, **planted.options,
    )  # fmt: skip
    p = report[kind.check].p
    assert p is not None
    assert p <= 0.05 / 12, f"{report[kind.check].found}"


@pytest.mark.parametrize("name", ["tracr-hist", "interp-shift"])
def test_a_true_circuit_passes(name: str) -> None:
    case = Case.load(name, 1)
    report = acdc.audit(case.model, case.task, Circuit(case.graph, case.truth), level="quick", size=256, seed=1)
    assert report.failed == ()
    assert len(report.passed) == 6
    assert "passes all 6 checks" in str(report)


def test_what_any_network_has_too_may_be_true() -> None:
    """A third of the shuffled copies rank the edges of this small circuit highest as well: ties, and no defeats."""
    case = Case.load("tracr-caesar", 0)
    report = acdc.audit(case.model, case.task, Circuit(case.graph, case.truth), checks=["random-weights"])
    finding = report["random-weights"]
    assert max(finding.details["shuffled"]) == finding.details["trained"] == 1
    assert finding.threshold == 0.9
    assert 0.5 < finding.value < 0.9  # below the threshold, and not clearly so
    assert finding.verdict == "pass"


def test_checks_are_read_together_by_holm() -> None:
    case = Case.load("tracr-hist", 0)
    edges = case.truth.copy()
    edges.flat[np.flatnonzero(edges)[0]] = False
    names = ["held-out", "numbers", "matrix"]
    report = acdc.audit(case.model, case.task, Circuit(case.graph, edges), checks=names, size=64)
    p = [finding.p for finding in report.findings]
    assert [finding.verdict == "fail" for finding in report.findings] == holm([x for x in p if x is not None], 0.05)


def test_notes_are_of_the_shifted_prompts_too(tmp_path: Path) -> None:
    """Further prompts that were changed under the same name are another audit, which replaces nothing."""
    case = Case.load("tracr-hist", 0)
    circuit, further = (
        Circuit(case.graph, case.truth),
        [case.task.prepare(case.model).discovery[i::2] for i in (0, 1)],
    )
    assert str(further[0]) == str(further[1])

    def audited(prompts: Prompts) -> AuditReport:
        return acdc.audit(
            case.model, case.task, circuit, checks=["shift"], size=64, shift=prompts, notes=tmp_path / "notes"
        )

    assert audited(further[0]).findings == audited(further[0]).findings
    with pytest.raises(AcdcError, match="another audit"):
        audited(further[1])


def test_two_audits_at_once_keep_the_findings_of_both(tmp_path: Path) -> None:
    case = Case.load("tracr-hist", 0)
    notes, begun = tmp_path / "audit.json", []

    def audited(check: str, seed: int = 0, during: Progress = no_progress) -> AuditReport:
        circuit = Circuit(case.graph, case.truth)
        return acdc.audit(
            case.model, case.task, circuit, checks=[check], size=64, seed=seed, notes=notes, progress=during
        )

    def another(*_: object) -> None:
        if not begun:
            begun.append(1)
            audited("held-out")

    report = audited("numbers", during=another)
    assert {finding.check for finding in report.findings} == {"held-out", "numbers"}
    assert audited("held-out").findings == report.findings

    def of_another_seed(*_: object) -> None:
        if not notes.exists():
            audited("held-out", seed=1)

    notes.unlink()
    with pytest.raises(AcdcError, match="another metric, seed"):
        audited("numbers", during=of_another_seed)


def test_fresh_prompts_are_new() -> None:
    model, task = acdc.load("tracr-hist"), acdc.tasks.load("tracr-hist")
    data = task.prepare(model)
    found, where, unseen = fresh_prompts(task, model, data, 100)
    assert unseen
    assert where == "fresh prompts"
    assert len(without(found, data.discovery, data.ablation)) == len(found)
    held_out = fresh_prompts(data, model, data, 100)[0]
    assert data.held_out is not None
    assert len(held_out) == len(without(data.held_out, data.discovery, data.ablation))
    assert not any(among(held_out, data.discovery, data.ablation))


@pytest.mark.parametrize(
    ("n_held_out", "advice"), [(8, "only 8 held out.*--split 0.4"), (0, "none held out.*--split 0.5")]
)
def test_few_held_out_prompts_are_no_end(n_held_out: int, advice: str) -> None:
    """All checks but those that ask for unseen prompts judge by those it was found on, and say how to have others."""
    model = acdc.load("tiny-tasks-gqa")
    data = acdc.tasks.load("sva", size=32).prepare(model)
    assert data.held_out is not None
    few = dataclasses.replace(data, held_out=data.held_out[:n_held_out] if n_held_out else None)
    circuit = acdc.discover(model, few, "eap", edges=10)
    report = acdc.audit(model, few, circuit, checks=["held-out", "stability"], searches=1)
    assert report["held-out"].verdict == "not applicable"
    for said in (report.prompts, report["held-out"].found, report["stability"].found):
        assert re.search(f"prompts it was found on: {advice}", said)
    assert report["stability"].p is not None
    assert report.n_prompts == len(few.discovery)


def test_shares_are_what_a_plain_loop_says() -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=8)
    data = task.prepare(model)
    graph = model.graph()
    rng = np.random.default_rng(0)
    edges = graph.valid & (rng.random(graph.valid.shape) < 0.9)
    scale = Scale(Problem(model, graph, data.discovery, data.metric), exact=False)
    got = scale.shares([edges])[0]

    def metric(kept: Any, i: int) -> float:
        prompts = data.discovery[torch.tensor([i])]
        logits = Patching(model, graph, prompts).logits(kept)[0, 0, 0]
        assert prompts.answers is not None
        assert prompts.wrong is not None
        return float(logits[prompts.answers[0, 0, 0]] - logits[prompts.wrong[0, 0, 0]])

    nothing = np.zeros_like(edges)
    with torch.no_grad():
        rows = [[metric(kept, i) for kept in (graph.valid, nothing, edges)] for i in range(8)]
    full, empty, own = np.array(rows).T
    apart = np.abs(full - empty)
    assert np.allclose(got, np.clip(np.abs(own - full) / np.maximum(apart, apart.mean()), 0, 1), atol=1e-5)


def test_bad_arguments() -> None:
    model, task = acdc.load("tracr-hist"), acdc.tasks.load("tracr-hist")
    circuit = Case.load("tracr-hist", 0)
    good = Circuit(circuit.graph, circuit.truth)
    with pytest.raises(AcdcError, match="did you mean held-out"):
        acdc.audit(model, task, good, checks=["held-oot"])
    with pytest.raises(AcdcError, match="level"):
        acdc.audit(model, task, good, level="thorough")  # type: ignore[arg-type]
    with pytest.raises(AcdcError, match="limit above 0"):
        acdc.audit(model, task, good, limit=0)
    with pytest.raises(AcdcError, match="graph"):
        acdc.audit(model, task, Circuit(acdc.Graph(9, 9), acdc.Graph(9, 9).valid))
    data = task.prepare(model)
    with pytest.raises(AcdcError, match="needs 16 prompts"):
        acdc.audit(model, data.discovery[:4], good, metric="l2")
    assert len(CHECKS) == 12
    assert OUTCOMES["l2"].is_distance


def test_half_of_a_random_circuits_edges_may_go_where_no_single_one_can_be_told() -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=32)
    for method, verdict in (("random", "fail"), ("guided", "pass")):
        circuit = acdc.discover(model, task, method)
        finding = acdc.audit(model, task, circuit, level="quick", checks=["minimality"], size=128)["minimality"]
        assert finding.verdict == verdict, finding.found
        assert "prompts show of no single edge that it does nothing, which takes" in finding.found
        assert ("may go together" in finding.found) == (verdict == "fail")


def test_what_any_circuit_of_its_size_shares_is_not_asked_of_shuffled_weights() -> None:
    """Two of eight edges: input to MLP to logits is what most networks of one layer have."""
    model, task = acdc.load("tracr-caesar"), acdc.tasks.load("tracr-caesar", distribution="fixed", size=64)
    truth = acdc.Circuit(model.graph(), task.prepare(model).truth.mask(model.graph()))
    finding = acdc.audit(model, task, truth, checks=["random-weights"], size=64)["random-weights"]
    assert finding.verdict == "not applicable"
    assert "random connected circuits of 2 of 8 edges share half with it" in finding.found


def test_circuits_of_nothing_and_of_everything_are_audited() -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=32)
    valid = model.graph().valid
    nothing = acdc.audit(model, task, acdc.Circuit(model.graph(), valid & False), level="quick", size=64)
    assert nothing.failed
    assert nothing["minimality"].found == "the circuit has no edge"
    checks = ["held-out", "hypotheses", "stability", "random-weights"]
    whole = acdc.Circuit(model.graph(), valid)
    everything = acdc.audit(model, task, whole, faithfulness=1.0, checks=checks, size=64)
    assert everything["held-out"].verdict == everything["hypotheses"].verdict == "pass"  # but for rounding
    assert "it beats 0 of" in everything["hypotheses"].found
    assert "as near to the model as it claims" in everything["hypotheses"].found
    assert everything["stability"].verdict == everything["random-weights"].verdict == "not applicable"


def test_a_circuit_of_nodes_is_judged_by_its_nodes() -> None:
    """Found by the search that tests every node: no node is needless, and random circuits are of as many nodes."""
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=32)
    circuit = acdc.discover(model, task, "guided", units="node")
    found = acdc.audit(model, task, circuit, checks=["minimality"], size=64)
    assert found["minimality"].statistic == "nodes that do nothing"
    assert found["minimality"].verdict == "pass", found["minimality"].found
    assert set(found["minimality"].details["effect of each node"]) <= set(circuit.graph.sources)
    assert len(found["minimality"].details["effect of each node"]) == circuit.n_units
    for edges in connected_like(circuit, 20, seed=0):
        assert units_of(circuit.graph, "node").of_edges(edges).sum() == circuit.n_units


def test_of_other_prompts_than_a_circuits_own_it_is_not_said_that_it_was_found_on_them() -> None:
    model = acdc.load("induction-2l")
    own, other = (acdc.tasks.load("induction", size=16, seed=seed).prepare(model).discovery for seed in (0, 1))
    circuit = acdc.score(model, own, "eap").top(14)
    for prompts, said in (
        (own, "it was found on: none held out"),
        (other, "it is not known whether it was found on"),
    ):
        finding = acdc.audit(model, prompts, circuit, checks=["held-out"])["held-out"]
        assert finding.verdict == "not applicable"
        assert said in finding.found


def test_what_lies_within_the_circuit_is_no_rival() -> None:
    case = Case.load("tracr-sort", 0)
    edges = case.truth.copy()
    free = np.flatnonzero(case.graph.valid & ~edges)
    edges.flat[np.random.default_rng(0).choice(free, 3 * int(edges.sum()), replace=False)] = True
    report = acdc.audit(case.model, case.task, Circuit(case.graph, edges), checks=["rivals", "minimality"])
    assert report.failed == ("minimality",)
    assert report["rivals"].details["rival edges"] < edges.sum() / 2


def test_an_audit_that_ran_out_of_time_is_not_complete(tmp_path: Path) -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=16)
    circuit = acdc.discover(model, task, "eap", edges=20)
    asked: dict[str, Any] = {"size": 16, "checks": ["held-out", "hypotheses"], "notes": tmp_path / "notes.json"}
    short = acdc.audit(model, task, circuit, limit=1e-9, **asked)
    assert not short.complete
    assert "not all checks were run" in short.verdict()
    assert acdc.audit(model, task, circuit, **asked).complete


def test_findings_on_other_prompts_are_not_put_beside(tmp_path: Path) -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=16)
    circuit = acdc.discover(model, task, "eap", edges=20)
    notes = tmp_path / "notes.json"
    first = acdc.audit(model, task, circuit, checks=["numbers"], size=32, notes=notes)
    assert [f.check for f in first.findings] == ["numbers"]
    second = acdc.audit(model, task, circuit, checks=["held-out"], size=16, notes=notes)
    assert [f.check for f in second.findings] == ["held-out"]
    assert second.n_prompts == 16


def test_notes_of_another_function_of_the_same_name_are_not_taken(tmp_path: Path) -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=16)
    circuit = acdc.discover(model, task, "eap", edges=20)
    outcome = acdc.metrics.OUTCOMES["logit-difference"]
    one = dataclasses.replace(
        outcome, name="mine", function=lambda logits, targets: outcome.function(logits, targets)
    )
    two = dataclasses.replace(one, function=lambda logits, targets: outcome.function(logits, targets).sin())
    asked: dict[str, Any] = {"checks": ["held-out"], "size": 16, "notes": tmp_path / "notes.json"}
    acdc.audit(model, task, circuit, metric=one, **asked)
    with pytest.raises(AcdcError, match="of another metric"):
        acdc.audit(model, task, circuit, metric=two, **asked)


def test_notes_on_the_same_edges_found_otherwise_are_not_taken(tmp_path: Path) -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=16)
    nodes = acdc.discover(model, task, "eap", edges=40, units="node")
    asked: dict[str, Any] = {"checks": ["hypotheses"], "size": 16, "notes": tmp_path / "notes.json"}
    acdc.audit(model, task, nodes, **asked)
    edges = Circuit(nodes.graph, nodes.edges, provenance=nodes.provenance)
    other = nodes.provenance.having(method="eap-ig")
    for circuit in (edges, Circuit(nodes.graph, nodes.edges, provenance=other, unit="node")):
        with pytest.raises(AcdcError, match="the findings of another audit"):
            acdc.audit(model, task, circuit, **asked)


@pytest.mark.parametrize(("claim", "judged"), [(0.7, True), (0.6, False)])
def test_what_so_low_a_claim_allows_is_not_passed(claim: float, judged: bool) -> None:
    """Nothing could refute it: such a check does not apply, and none passes without a test."""
    model = acdc.load("tiny-tasks")
    data = acdc.tasks.load("ioi", size=32).prepare(model)
    circuit = acdc.discover(model, data, "eap-ig", edges=60)
    checks = ["held-out", "matrix", "shift"]
    found = acdc.audit(model, acdc.tasks.load("ioi", size=32), circuit, checks=checks, faithfulness=claim, size=32)
    for name in checks:
        applies = judged or name == "held-out"
        assert (found[name].verdict != "not applicable") == applies
        assert applies or "so low a claim, a faithfulness of 0.6" in found[name].found


def test_prompts_count_once_where_there_are_no_others() -> None:
    """Minimality pools the prompts of discovery with others; what is chosen on the former is not judged on them."""
    model = acdc.load("tiny-tasks")
    prompts = acdc.tasks.load("ioi", size=24).prepare(model).discovery
    circuit = acdc.discover(model, prompts, "eap-ig", edges=30)
    found = acdc.audit(model, prompts, circuit, checks=["minimality", "completeness", "adversary"])
    assert found["minimality"].found.startswith("24 prompts show of no single edge")
    assert found["minimality"].details["half of the edges"] is None
    for name in ("completeness", "adversary"):
        assert found[name].verdict == "not applicable"
        assert "is judged on others: prompts it was found on" in found[name].found


def test_a_metric_of_one_token_is_no_cell_of_answers_of_several() -> None:
    model = acdc.load("tiny-tasks")
    drawn = acdc.tasks.load("ioi", size=32).prepare(model).discovery
    rows = [row[mask].tolist() for row, mask in zip(drawn.clean, drawn.mask, strict=True)]
    other = [row[mask].tolist() for row, mask in zip(drawn.corrupted, drawn.mask, strict=True)]
    assert drawn.answers is not None
    assert drawn.wrong is not None
    right, wrong = ([[[int(row[0]), 1]] for row in answers] for answers in (drawn.answers, drawn.wrong))
    prompts = Prompts.from_continuations(rows, other, right, wrong)
    circuit = acdc.discover(model, prompts, "eap-ig", metric="log-probability-difference", edges=60)
    found = acdc.audit(model, prompts, circuit, metric="log-probability-difference", checks=["matrix"])
    cells = found["matrix"].details["mean share of the way to the empty circuit"]["resample"]
    assert "log-probability-difference" in cells
    assert "logit-difference" not in cells


def test_an_adversary_does_no_less_than_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that brings back all that was removed makes the model itself of it."""
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=32)
    circuit = acdc.discover(model, task, "eap-ig", edges=20)
    whole = torch.as_tensor(circuit.graph.valid, dtype=torch.float32)
    monkeypatch.setattr(
        adversary, "_climb", lambda _, __, ___, ____, unit, *_a, **_k: (whole, torch.zeros(len(unit)))
    )
    found = acdc.audit(model, task, circuit, checks=["adversary"], size=64)["adversary"]
    assert found.value == found.details["without an adversary"]
    assert found.value > 0
    assert found.details["each prompt with a mask of its own"] > 0


def test_a_circuit_of_nodes_is_compared_with_random_circuits_of_nodes() -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=32)
    circuit = acdc.discover(model, task, "nap", edges=7, units="node")
    found = acdc.audit(model, task, circuit, level="quick", checks=["hypotheses"], size=32)["hypotheses"]
    data = task.prepare(model)
    prompts = fresh_prompts(task, model, data, 32).prompts
    judge = Scale(Problem(model, circuit.graph, prompts, data.metric, data.ablation), exact=False)
    random = random_circuits_like(circuit, found.details["random circuits"], seed=0)
    shares = judge.shares(np.stack(random)).mean(axis=1)
    assert found.details["the same of random circuits"]["mean"] == pytest.approx(shares.mean())
    assert found.details["the same of random circuits"]["least"] == pytest.approx(shares.min())


def test_edges_on_no_path_do_something_where_corrupted_prompts_have_other_lengths() -> None:
    model, task = acdc.load("tracr-reverse"), acdc.tasks.load("tracr-reverse")
    circuit = acdc.discover(model, task, faithfulness=0.5)
    dangling = circuit - circuit.prune()
    assert dangling.n_edges
    judged = acdc.audit(model, task, circuit, checks=["minimality"], level="quick")["minimality"]
    assert not {*dangling.edge_names()} & {*judged.details["needless"]}
