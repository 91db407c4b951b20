"""Another size of circuit from what was measured for one: what it is a part of, and what it is equal to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import acdc
import problems
from acdc.circuit import Circuit
from acdc.engine.measure import Measures, bind
from acdc.engine.optimal import references_of
from acdc.engine.patching import Patching
from acdc.errors import AcdcError, EmptyCircuitError
from acdc.methods.pruning import Pruning
from acdc.model.model import Model
from acdc.store import resume
from acdc.tasks.task import Dataset

SLACK = 1e-9  # of rounding, as a share of the budget


@pytest.fixture(scope="module")
def model() -> Model:
    return acdc.load("induction-2l", dtype="float64")


def prepared(model: Model, **settings: Any) -> Dataset:
    return acdc.tasks.load("induction", size=16, **settings).prepare(model)


@pytest.fixture(scope="module")
def data(model: Model) -> Dataset:
    return prepared(model)


@pytest.fixture(scope="module")
def searched(model: Model, data: Dataset) -> Circuit:
    return acdc.discover(model, data, faithfulness=0.99)


# ---- searches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", ["resample", "optimal"])
def test_each_is_certified_and_a_part_of_the_one_before(model: Model, ablation: str) -> None:
    data = prepared(model, ablation=ablation)
    circuit = acdc.discover(model, data, faithfulness=0.99)
    constants = circuit.constants
    references = None if constants is None else references_of(constants, model, circuit.graph)
    patching = Patching(model, circuit.graph, data.discovery, ablation=data.ablation, references=references)
    measure = bind(data.metric, patching)
    apart = Measures.of(patching, measure).separation()
    for faithfulness in (0.9, 0.6):
        budget = (1 - faithfulness) * apart
        part = acdc.cut(model, data, circuit, faithfulness=faithfulness)
        assert not (part.edges & ~circuit.edges).any()
        assert part.provenance.selection["inside"] == circuit.n_edges
        assert problems.distance(patching, measure, part.edges) <= budget * (1 + SLACK)
        for without in problems.all_but_one(part.graph, part.edges):
            assert problems.distance(patching, measure, without) > budget * (1 - SLACK)
        circuit = part
    assert circuit.n_edges < 20


def test_a_budget_is_a_faithfulness_in_the_units_of_the_metric(
    model: Model, data: Dataset, searched: Circuit
) -> None:
    by_share = acdc.cut(model, data, searched, faithfulness=0.8)
    budget = by_share.provenance.selection["budget"]
    assert isinstance(budget, float)
    assert acdc.cut(model, data, searched, threshold=budget) == by_share


def test_its_front_is_the_old_one_down_to_the_circuit_and_then_its_own(
    model: Model, data: Dataset, searched: Circuit
) -> None:
    part = acdc.cut(model, data, searched, faithfulness=0.8)
    assert searched.scores is not None
    assert part.scores is not None
    before, after = searched.scores.front, part.scores.front
    assert before is not None
    assert after is not None
    n = searched.n_edges
    np.testing.assert_array_equal(after[after[:, 0] > n], before[before[:, 0] > n])
    assert (np.diff(after[:, 0]) < 0).all()
    assert after[-1, 0] == part.n_edges
    assert part.scores.top(part.n_edges) == part
    assert part.scores.top(n) == searched
    larger = int(before[before[:, 0] > n][-1, 0])
    assert part.scores.top(larger) == searched.scores.top(larger)


def test_a_number_of_edges_of_a_search_is_its_front(model: Model, data: Dataset, searched: Circuit) -> None:
    assert searched.scores is not None
    for n in (10, searched.n_edges, 60):
        found = acdc.cut(model, data, searched, edges=n)
        assert found == searched.scores.top(n)
        assert found.provenance.measured == {}


def test_acdc_sweeps_what_an_earlier_sweep_left(model: Model, data: Dataset) -> None:
    first = acdc.discover(model, data, "acdc", threshold=0.01)
    part = acdc.cut(model, data, first, threshold=0.1)
    patching = Patching(model, first.graph, data.discovery)
    measure = bind(data.metric, patching)
    kept, _ = problems.naive_search(
        first.graph,
        lambda edges: problems.distance(patching, measure, edges),
        lambda new, old: new - old < 0.1,
        kept=first.edges,
    )
    np.testing.assert_array_equal(part.edges, first.graph.prune(kept))


@pytest.mark.parametrize(("method", "amount"), [("guided", "faithfulness"), ("acdc", "threshold")])
def test_nodes(model: Model, data: Dataset, method: str, amount: str) -> None:
    first, second = {"faithfulness": (0.95, 0.5), "threshold": (0.01, 1.0)}[amount]
    circuit = acdc.discover(model, data, method, units="node", **{amount: first})  # type: ignore[arg-type]
    part = acdc.cut(model, data, circuit, **{amount: second})  # type: ignore[arg-type]
    assert part.unit == "node"
    assert 0 < part.n_units < circuit.n_units
    assert set(part.nodes()) <= set(circuit.nodes())


def test_an_interrupted_one_goes_on_to_the_same(
    model: Model, data: Dataset, searched: Circuit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = acdc.cut(model, data, searched, faithfulness=0.6)
    note, noted = Pruning.note, 0

    def interrupted(self: Pruning, **options: Any) -> None:
        nonlocal noted
        note(self, **options)
        noted += 1
        if noted == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Pruning, "note", interrupted)
        patch.setattr(resume, "LEAST_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            acdc.cut(model, data, searched, faithfulness=0.6, resume=tmp_path / "progress")
    assert (tmp_path / "progress").exists()
    with pytest.raises(AcdcError, match="progress"):  # of another cut
        acdc.cut(model, data, searched, faithfulness=0.7, resume=tmp_path / "progress")
    again = acdc.cut(model, data, searched, faithfulness=0.6, resume=tmp_path / "progress")
    assert again == whole
    assert again.scores is not None
    assert whole.scores is not None
    np.testing.assert_array_equal(again.scores.order, whole.scores.order)  # type: ignore[arg-type]
    assert not (tmp_path / "progress").exists()


# ---- rankings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [{"edges": 12}, {"faithfulness": 0.7}, {"threshold": 0.2}], ids=str)
@pytest.mark.parametrize("how", [{}, {"aggregate": "rms"}, {"units": "node"}, {"select": "greedy"}], ids=str)
def test_a_ranking_is_cut_as_if_from_the_beginning(
    model: Model, data: Dataset, amount: dict[str, Any], how: dict[str, Any]
) -> None:
    if how.get("select") and "threshold" in amount:
        pytest.skip("a threshold needs no rule")
    units = {"units": how["units"]} if "units" in how else {}
    rule = {name: value for name, value in how.items() if name != "units"}
    first = acdc.discover(model, data, "eap-ig", edges=10 if units else 40, **units)
    found = acdc.cut(model, data, first, **amount, **rule)
    anew = acdc.discover(model, data, "eap-ig", **amount, **how)
    assert found == anew
    assert found.unit == anew.unit
    assert found.provenance.selection == anew.provenance.selection


# ---- bad input --------------------------------------------------------------------------------------------------


def test_what_cannot_be_cut_is_refused_with_the_way_out(model: Model, data: Dataset, searched: Circuit) -> None:
    swept = acdc.discover(model, data, "acdc", threshold=0.01)
    nodes = acdc.discover(model, data, units="node", faithfulness=0.5)
    ranked = acdc.discover(model, data, "eap", edges=30)
    bare = dataclasses.replace(searched, scores=None)
    other = acdc.load("induction-2l", dtype="float64")
    next(other.module.parameters()).data[0, 0] += 1
    refused: list[tuple[Callable[[], Circuit], str]] = [
        (lambda: acdc.cut(model, data, searched), "say how much to keep"),
        (lambda: acdc.cut(model, data, searched, edges=3, faithfulness=0.5), "expected one of edges"),
        (lambda: acdc.cut(model, data, bare, edges=3), "no scores to cut"),
        (lambda: acdc.cut(model, data, searched, faithfulness=0.999), "more than the budget"),
        (lambda: acdc.cut(model, data, searched, faithfulness=0.5, select="greedy"), "leave them out"),
        (lambda: acdc.cut(model, data, nodes, faithfulness=0.95), "more than the budget"),
        (lambda: acdc.cut(model, data, swept, threshold=0.001), "edges that 0.001 would keep are gone"),
        (
            lambda: acdc.cut(model, data, ranked, faithfulness=0.5, select="ilp"),
            "to a number of edges: give edges too",
        ),
        (lambda: acdc.cut(model, data, swept, edges=5), "acdc cannot go on from a circuit to edges"),
        (lambda: acdc.cut(model, data, swept, faithfulness=0.5), "with threshold it could"),
        (lambda: acdc.cut(model, prepared(model, metric="kl"), searched, edges=5), "found with metric"),
        (lambda: acdc.cut(model, prepared(model, ablation="zero"), searched, edges=5), "found with ablation"),
        (lambda: acdc.cut(model, prepared(model, seed=1), searched, edges=5), "the prompts of induction differ"),
        (lambda: acdc.cut(other, data, searched, edges=5), "the weights of .* differ"),
    ]
    for cut, message in refused:
        with pytest.raises(AcdcError, match=message):
            cut()
    with pytest.raises(EmptyCircuitError, match="Ask for more"):
        acdc.cut(model, data, searched, threshold=1e6)
