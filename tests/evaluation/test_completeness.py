"""Knock-outs are what plain runs of the circuit and of the model without the same parts give."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import acdc
import families
import problems
from acdc.circuit import Circuit
from acdc.engine.circuits import measure_prompts
from acdc.engine.measure import bind
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.evaluation.minimality import _toggle
from acdc.graph import BoolArray, units_of
from acdc.metrics import OUTCOMES
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts
from acdc.tasks.task import Dataset


@functools.cache
def model() -> Model:
    return families.tiny("gpt2-scaled-by-layer", torch.float64)


@functools.cache
def prompts() -> Prompts:
    """Prompts that the model gets right: the answer is what it says, the wrong one what it says when corrupted."""
    pairs = problems.make_prompts(size=8)
    real = torch.ones_like(pairs.clean, dtype=torch.bool)
    with torch.no_grad():
        answers, wrong = (model().plain_logits(x, real)[:, -1].argmax(-1) for x in (pairs.clean, pairs.corrupted))
    return Prompts.from_tokens(pairs.clean, pairs.corrupted, answers, wrong)


@functools.cache
def circuit(density: float = 0.6) -> Circuit:
    graph = model().graph()
    return Circuit(graph, graph.valid & (np.random.default_rng(0).random(graph.valid.shape) < density))


@torch.no_grad()
def metric(edges: BoolArray) -> float:
    """Mean logit difference of a circuit, by one plain run."""
    patching = Patching(model(), model().graph(), prompts())
    measure = bind(OUTCOMES["logit-difference"], patching)
    return float(measure.value(patching.logits(edges, rows=measure.rows)).mean())


def without(edges: BoolArray, components: tuple[str, ...]) -> BoolArray:
    gone = np.isin(model().graph().sources, components)
    return edges & ~gone[None, :]


# ---- completeness -----------------------------------------------------------------------------------------------


@functools.cache
def found() -> acdc.Completeness:
    return acdc.completeness(model(), prompts(), circuit(), random_sets=4, greedy_steps=3, greedy_candidates=99)


def test_the_whole_model_is_complete() -> None:
    graph = model().graph()
    result = acdc.completeness(model(), prompts(), Circuit(graph, graph.valid), random_sets=5)
    assert result.largest == pytest.approx(0, abs=1e-9)
    assert {k.kind for k in result.knockouts} == {"none", "random", "class"}  # nothing for a greedy search to find


def test_both_are_run_without_the_same_components() -> None:
    result = found()
    assert result.full == pytest.approx(metric(model().graph().valid))
    assert result.empty == pytest.approx(metric(np.zeros_like(model().graph().valid)))
    for knockout in result.knockouts:
        assert knockout.model == pytest.approx(metric(without(model().graph().valid, knockout.components)))
        assert knockout.circuit == pytest.approx(metric(without(circuit().edges, knockout.components)))
        share = abs(knockout.model - knockout.circuit) / abs(result.full - result.empty)
        assert knockout.incompleteness == pytest.approx(share)
        assert np.isnan(knockout.interval[0]) or knockout.interval[0] <= share <= knockout.interval[1]
    assert not all(np.isnan(knockout.interval[0]) for knockout in result.knockouts)
    assert result.largest == max(k.incompleteness for k in result.knockouts)
    random = [k.incompleteness for k in result.knockouts if k.kind == "random"]
    assert result.random_mean == pytest.approx(np.mean(random))


def test_sets_are_of_the_circuits_heads_and_mlps() -> None:
    graph, result = model().graph(), found()
    inside = {graph.sources[s] for s in np.flatnonzero(circuit().edges.any(axis=0))} - {"input"}
    assert all(set(k.components) <= inside for k in result.knockouts)
    assert result.knockouts[0].kind == "none"
    assert result.knockouts[0].components == ()
    assert [k.name for k in result.knockouts if k.kind == "random"] == ["1", "2", "3", "4"]
    assert len({k.components for k in result.knockouts if k.kind == "random"}) > 1
    classes = {k.name: k.components for k in result.knockouts if k.kind == "class"}
    assert set(classes) == {"heads of layer 0", "heads of layer 1", "MLPs"}
    assert set().union(*classes.values()) == inside


def test_classes_of_ones_own() -> None:
    small = Circuit.from_names(model().graph(), ["input->m0", "m0->a1.h0<v>", "a1.h0->logits"])
    classes = {"mine": ["m0", "a0.h0"], "outside": ["a0.h1"], "late": ("a1.h0",)}
    result = acdc.completeness(model(), prompts(), small, classes=classes, random_sets=0, greedy_steps=0)
    assert [(k.name, k.components) for k in result.knockouts[1:]] == [("mine", ("m0",)), ("late", ("a1.h0",))]
    assert math.isnan(result.random_mean)


def test_the_greedy_search_adds_what_shows_most() -> None:
    result = found()
    greedy = [k for k in result.knockouts if k.kind == "greedy"]
    assert greedy
    steps = [result.knockouts[0], *greedy]
    for before, after in itertools.pairwise(steps):
        assert set(before.components) < set(after.components)
        assert len(after.components) == len(before.components) + 1
        assert after.incompleteness > before.incompleteness
    inside = sorted(set().union(*(k.components for k in result.knockouts)))
    alone = [
        abs(metric(without(model().graph().valid, (name,))) - metric(without(circuit().edges, (name,))))
        for name in inside
    ]
    assert greedy[0].components == (inside[int(np.argmax(alone))],)


def test_a_circuit_of_one_edge_has_nothing_to_knock_out() -> None:
    direct = Circuit.from_names(model().graph(), ["input->logits"])
    result = acdc.completeness(model(), prompts(), direct)
    assert [k.kind for k in result.knockouts] == ["none"]


# ---- minimality -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [64, 8])
def test_each_edge_is_knocked_out_of_the_circuit(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acdc.evaluation.minimality.CIRCUITS_AT_ONCE", at_once)
    monkeypatch.setattr("acdc.engine.circuits.CIRCUITS_AT_ONCE", at_once - 3)
    result = acdc.minimality(model(), prompts(), circuit())
    assert [e.edge for e in result.edges] == circuit().edge_names()
    assert len(result.edges) == 20
    assert result.circuit == pytest.approx(metric(circuit().edges))
    for importance in result.edges:
        less = circuit().edges.copy()
        less[model().graph().edge(importance.edge)] = False
        assert importance.change == pytest.approx(result.circuit - metric(less), abs=1e-12)
        assert importance.share == pytest.approx(
            abs(importance.change) / abs(result.full - result.empty), abs=1e-12
        )
        assert importance.without == ()


def test_needless_edges_are_those_below_the_share() -> None:
    result = acdc.minimality(model(), prompts(), circuit(), confidence=None)
    shares = {e.edge: e.share for e in result.edges}
    middle = float(np.median(list(shares.values())))
    needless = result.needless(middle)
    assert set(needless) == {edge for edge, share in shares.items() if share < middle}
    assert [shares[edge] for edge in needless] == sorted(shares[edge] for edge in needless)
    assert result.needless(0) == ()


def test_an_edge_is_shown_where_it_matters_most() -> None:
    """With other edges knocked out beside it."""
    some = circuit()
    alone = acdc.minimality(model(), prompts(), some, confidence=None)
    beside = acdc.minimality(model(), prompts(), some, random_sets=4, confidence=None)
    assert any(e.without for e in beside.edges)
    graph = model().graph()
    for one, most in zip(alone.edges, beside.edges, strict=True):
        assert most.share >= one.share - 1e-12
        base = some.edges & ~graph.edges_from_names(list(most.without))
        edge = graph.edge(most.edge)
        assert base[edge]
        less = base.copy()
        less[edge] = False
        assert most.change == pytest.approx(metric(base) - metric(less), abs=1e-12)


def test_sets_that_hold_the_edge_itself_show_it_by_adding_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edge that is knocked out beside others is measured by putting it back."""
    few, graph = circuit(0.3), model().graph()
    edges = np.argwhere(few.edges)
    gone = few.edges.copy()
    gone[tuple(edges[::2].T)] = False  # every other edge is in the set
    problem = Problem(model(), graph, prompts(), OUTCOMES["logit-difference"])
    values = _toggle(problem, few, units_of(graph, "edge"), gone, edges).mean(axis=1)
    assert values[0] == pytest.approx(metric(gone))
    for (d, s), value in zip(edges, values[1:], strict=True):
        other = gone.copy()
        other[d, s] = not gone[d, s]
        assert value == pytest.approx(metric(other))

    # With everything knocked out beside it, an edge into the logits is worth what it adds to the empty circuit.
    class Everything:
        def random(self, shape: Any = None) -> Any:
            return 0.9 if shape is None else np.zeros(shape)

    direct = Circuit.from_names(graph, ["input->logits", "input->m0", "m0->logits"])
    monkeypatch.setattr("acdc.evaluation.minimality.np.random.default_rng", lambda _: Everything())
    monkeypatch.setattr("acdc.evaluation.minimality.size", lambda a, b: float(abs((a - b).mean() - signed) < 1e-9))
    none = np.zeros_like(direct.edges)
    signed = metric(graph.edges_from_names(["input->logits"])) - metric(none)
    found = acdc.minimality(model(), prompts(), direct, random_sets=1, confidence=None).edges
    shown = {importance.edge: importance for importance in found}["input->logits"]
    assert shown.change == pytest.approx(signed)
    assert set(shown.without) == {"input->m0", "m0->logits"}


def test_a_true_circuit_is_minimal_and_an_edge_too_many_is_not() -> None:
    program, task = acdc.load("tracr-hist"), acdc.tasks.load("tracr-hist", size=64)
    truth = task.prepare(program).truth
    assert truth is not None
    graph = program.graph()
    true = Circuit(graph, truth.mask(graph))
    assert acdc.minimality(program, task, true, random_sets=3, confidence=None).needless(1e-6) == ()
    destination, source = np.argwhere(graph.valid & ~true.edges)[0]
    more = true.edges.copy()
    more[destination, source] = True
    result = acdc.minimality(program, task, Circuit(graph, more), confidence=None)
    assert graph.edge_name(destination, source) in result.needless(1e-6)
    assert acdc.completeness(program, task, true, random_sets=2).knockouts[0].incompleteness < 1e-3


def test_an_empty_circuit_has_no_edges_to_knock_out() -> None:
    graph = model().graph()
    assert acdc.minimality(model(), prompts(), Circuit(graph, np.zeros_like(graph.valid))).edges == ()


# ---- both -------------------------------------------------------------------------------------------------------


def test_held_out_prompts_are_used_if_there_are_any() -> None:
    other = problems.make_prompts(seed=1)
    data = Dataset("mine", other, prompts(), OUTCOMES["logit-difference"])
    few = Circuit.from_names(model().graph(), ["input->m0", "m0->logits"])
    for result in (
        acdc.completeness(model(), data, few, confidence=None),
        acdc.minimality(model(), data, few, confidence=None),
    ):
        assert (result.prompts, result.n_prompts) == ("held-out", len(prompts()))
        assert result.full == pytest.approx(metric(model().graph().valid))


@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_batches_do_not_change_the_numbers(ablation: str) -> None:
    few = circuit(0.1)
    whole, single = (
        (
            acdc.completeness(model(), prompts(), few, ablation=ablation, batch_size=size, greedy_candidates=99),
            acdc.minimality(model(), prompts(), few, ablation=ablation, batch_size=size, random_sets=1),
        )
        for size in (None, 2)
    )
    for a, b in zip(whole[0].knockouts, single[0].knockouts, strict=True):
        assert a.components == b.components
        assert dataclasses.astuple(b)[3:6] == pytest.approx(dataclasses.astuple(a)[3:6], abs=1e-12)
        assert b.interval == pytest.approx(a.interval, abs=1e-9, nan_ok=True)
    for c, d in zip(whole[1].edges, single[1].edges, strict=True):
        assert (d.share, *d.interval) == pytest.approx((c.share, *c.interval), abs=1e-9, nan_ok=True)


def test_progress_goes_from_nothing_to_all() -> None:
    seen: list[tuple[int, int | None]] = []
    acdc.minimality(
        model(),
        prompts(),
        circuit(),
        batch_size=2,
        random_sets=1,
        confidence=None,
        progress=lambda done, total, text: seen.append((done, total)),
    )
    dones = [done for done, _ in seen]
    assert dones == sorted(set(dones))
    assert {total for _, total in seen} == {dones[-1]}


def test_what_memory_it_takes_is_told_beside_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acdc.engine.problem.NOTED", 0)
    seen: list[tuple[int, int | None, str]] = []
    acdc.minimality(model(), prompts(), circuit(), progress=lambda *given: seen.append(given))
    told = [text for _, total, text in seen if total is None]
    assert told
    assert all("prompts at once" in text for text in told)
    counted = [(done, total) for done, total, _ in seen if total is not None]
    assert counted == sorted(counted)
    assert counted[-1][0] == counted[-1][1]


def test_without_a_confidence_there_are_no_intervals() -> None:
    few = Circuit.from_names(model().graph(), ["input->m0", "m0->logits"])
    one = acdc.completeness(model(), prompts(), few, confidence=None).knockouts[0].interval
    other = acdc.minimality(model(), prompts(), few, confidence=None).edges[0].interval
    assert np.isnan([one, other]).all()


def test_bad_input_is_one_line() -> None:
    with pytest.raises(AcdcError, match=r"unknown component 'a9\.h9'"):
        acdc.completeness(model(), prompts(), circuit(), classes={"far": ["a9.h9"]})
    with pytest.raises(AcdcError, match="greedy_steps of at least 0, got -1"):
        acdc.completeness(model(), prompts(), circuit(), greedy_steps=-1)
    with pytest.raises(AcdcError, match="random_sets of at least 0, got -2"):
        acdc.minimality(model(), prompts(), circuit(), random_sets=-2)
    graph = acdc.Graph(3, 2)
    with pytest.raises(AcdcError, match="n_layers=3 instead of 2"):
        acdc.minimality(model(), prompts(), Circuit(graph, graph.valid))


def test_of_a_circuit_of_nodes_each_node_is_knocked_out() -> None:
    """Against the circuits without each node, made by hand."""
    whole = acdc.load("induction-2l")
    task = acdc.tasks.load("induction", size=16)
    found = acdc.discover(whole, task, "guided", units="node")
    result = acdc.minimality(whole, task, found, random_sets=2, seed=1)
    plain = acdc.minimality(whole, task, found, confidence=None)
    data, units = task.prepare(whole), units_of(found.graph, "node")
    assert data.held_out is not None
    kept = units.of_edges(found.edges)
    problem = Problem(whole, found.graph, data.held_out, data.metric, data.ablation)
    circuits = [found.edges]
    circuits += [found.edges & units.mask(kept & (np.arange(units.n) != i)) for i in np.flatnonzero(kept)]
    values = measure_prompts(problem, circuits)[0].circuits.mean(axis=1)
    assert (plain.unit, [node.edge for node in plain.edges]) == ("node", units.names_of(kept))
    np.testing.assert_allclose([node.change for node in plain.edges], values[0] - values[1:], rtol=1e-4, atol=1e-5)
    assert all(a.share >= b.share for a, b in zip(result.edges, plain.edges, strict=True))
    assert any(node.without for node in result.edges)
    assert {name for node in result.edges for name in node.without} <= set(units.names_of(kept))
