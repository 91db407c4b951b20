"""Guided pruning keeps its promise: within the budget, and no edge of the result can go."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch

import acdc
import families
import problems
from acdc.circuit import selection
from acdc.engine.measure import Measure, Measures, bind
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.errors import AcdcError, EmptyCircuitError
from acdc.graph import BoolArray, FloatArray, IntArray
from acdc.methods import guided as module
from acdc.methods import pruning as pruning_module
from acdc.methods.aggregates import Estimates
from acdc.methods.attribution import attribute
from acdc.methods.guided import circuit_scores, guided
from acdc.methods.pruning import AS_NEAR, CERTIFIED, CERTIFY, ONE_BY_ONE, RANKING, SHARES, SHRINK, Pruning
from acdc.metrics import OUTCOMES

SLACK = 1e-9  # of rounding, as a share of the budget


def make(
    family: str, *, metric: str = "kl", ablation: Any = "resample", **prompts: Any
) -> tuple[Problem, Patching, Measure]:
    """A problem, and an independent patching to judge its result by."""
    patching, measure = problems.make(family, metric=metric, ablation=ablation, **prompts)
    problem = Problem(patching.model, patching.graph, patching.prompts, OUTCOMES[metric], ablation)
    return problem, patching, measure


def assert_certified(kept: BoolArray, budget: float, patching: Patching, measure: Measure) -> None:
    """Within the budget as it is, and over it without any one edge, or without all that dangles if anything does."""
    assert problems.distance(patching, measure, kept) <= budget * (1 + SLACK)
    connected = patching.graph.prune(kept)
    if (connected != kept).any():  # its biases are needed, where a reference does not hold them
        assert problems.distance(patching, measure, connected) > budget * (1 - SLACK)
    for circuit in problems.all_but_one(patching.graph, kept):
        assert problems.distance(patching, measure, circuit) > budget * (1 - SLACK)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_edge_is_needed(family: str) -> None:
    problem, patching, measure = make(family, padding="both")
    found = guided(problem, faithfulness=0.6)
    kept, scores = found.kept, found.scores.values
    assert 0 < kept.sum() < patching.graph.n_edges
    assert_certified(kept, 0.4 * Measures.of(patching, measure).separation(), patching, measure)
    assert scores.shape == kept.shape
    assert np.isfinite(scores).all()
    assert (kept == patching.graph.prune(kept)).all()


@pytest.mark.parametrize(
    ("family", "metric", "ablation", "prompts"),
    [
        ("gpt2-scaled-by-layer", "kl", "zero", {}),
        ("gpt2-scaled-by-layer", "logit-difference", "zero", {"padding": "left"}),
        ("gpt2-scaled-by-layer", "logit-difference", "mean", {"padding": "right"}),
        ("gpt-neox-parallel", "kl", "mean-position", {}),
        ("gpt-neox-parallel", "l2", "zero", {}),
        ("llama", "kl", "zero", {"reads": 3}),
        ("llama", "logit-difference", "mean", {}),
        ("qwen2", "probability-difference", "zero", {}),
        ("olmo2", "kl", "mean", {"shared": 3}),
    ],
)
@pytest.mark.parametrize("share", [0.7, 0.3])
def test_every_edge_is_needed_under_other_ablations(
    family: str, metric: str, ablation: str, prompts: dict[str, Any], share: float
) -> None:
    """Where a component that nothing feeds still writes something (its biases) that its reference is not."""
    problem, patching, measure = make(family, metric=metric, ablation=ablation, **prompts)
    budget = share * Measures.of(patching, measure).separation()
    kept = guided(problem, budget=budget).kept
    assert_certified(kept, budget, patching, measure)


@pytest.mark.parametrize("ablation", ["resample", "zero"])
@pytest.mark.parametrize("edges", [1, 5, 20, 10_000])
def test_a_number_of_edges_is_what_one_gets(edges: int, ablation: str) -> None:
    problem, patching, _ = make("gpt2-scaled-by-layer", ablation=ablation)
    try:
        kept = guided(problem, edges=edges).kept
    except EmptyCircuitError as error:  # the best path is longer
        least = int(str(error).rpartition(" ")[2])
        assert edges < least < 5
        kept = guided(problem, edges=(edges := least)).kept
    assert kept.sum() == min(edges, patching.graph.n_edges)
    assert (kept == patching.graph.prune(kept)).all()
    if edges == 10_000:
        assert (kept == patching.graph.valid).all()


@pytest.mark.parametrize("how", [{"faithfulness": 0.6}, {"edges": 10}], ids=str)
def test_the_same_problem_gives_the_same_circuit(how: dict[str, Any]) -> None:
    found, again = (guided(make("gpt2-scaled-by-layer", padding="left")[0], **how) for _ in range(2))
    assert (found.kept == again.kept).all()
    assert (found.scores.values == again.scores.values).all()
    assert (found.order == again.order).all()


@pytest.mark.parametrize(("faithfulness", "edges"), [(0.0, 0), (1.0, None)])
def test_the_ends_of_the_budget(faithfulness: float, edges: int | None) -> None:
    """No faithfulness asks for no edge, full faithfulness for no distance at all."""
    problem, patching, measure = make("gpt2-scaled-by-layer")
    kept = guided(problem, faithfulness=faithfulness).kept
    if edges is not None:
        assert kept.sum() == edges
    else:
        assert problems.distance(patching, measure, kept) < 1e-9 * Measures.of(patching, measure).separation()


def test_a_budget_is_in_the_units_of_the_metric() -> None:
    problem, patching, measure = make("gpt2-scaled-by-layer", metric="logit-difference")
    by_share = guided(problem, faithfulness=0.75).kept
    by_budget = guided(problem, budget=0.25 * Measures.of(patching, measure).separation()).kept
    assert (by_share == by_budget).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -1.0}, "budget of at least 0, got -1"),
        ({"faithfulness": 1.5}, "between 0 and 1, got 1.5"),
        ({"edges": 0}, "at least one edge, got 0"),
        ({"steps": 0}, "steps of at least 1, got 0"),
    ],
)
def test_impossible_requests_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AcdcError, match=message):
        guided(make("gpt2-scaled-by-layer")[0], **options)


# ---- the front --------------------------------------------------------------------------------------------------


def test_few_edges_go_one_by_one_and_the_cheapest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acdc.methods.pruning.SMALLEST_SHARE", 1.0)  # no shares while that is cheap
    problem, patching, measure = make("gpt2")
    graph = problem.graph
    found = guided(problem, edges=10, front=True)
    left = np.where(graph.valid, np.floor(found.order), 0)
    circuits = [left >= step for step in np.unique(left[left > 0])]
    few = [circuit for circuit in circuits if circuit.sum() <= ONE_BY_ONE]
    assert len(few) > 3
    for before, after in itertools.pairwise(few[:-1]):  # the last is the one of ten that was asked for
        without = []
        for edge in np.flatnonzero(before):
            smaller = before.copy()
            smaller.flat[edge] = False
            without.append(problems.distance(patching, measure, graph.prune(smaller)))
        assert problems.distance(patching, measure, after) == pytest.approx(min(without), rel=1e-9)


def test_the_front_is_of_circuits_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """From all edges to none, each size with the distance of the circuit that the order of going gives for it."""
    monkeypatch.setattr(module, "MOST_SWAPPED", 0)  # a swap brings back an edge that had gone before
    problem, patching, measure = make("gpt2-scaled-by-layer")
    found = guided(problem, faithfulness=0.6, front=True)
    sizes, distances = found.front.T
    assert (np.diff(sizes) < 0).all()
    assert (np.diff(distances) > 0).all()
    assert sizes[-1] == 0
    assert distances[-1] == pytest.approx(Measures.of(patching, measure).separation())
    for n, distance in found.front[:-1]:
        circuit = selection.top(patching.graph, found.order, int(n), by="signed")
        assert circuit.sum() == n
        assert problems.distance(patching, measure, circuit) == pytest.approx(distance, rel=1e-9, abs=1e-12)
    assert (selection.top(patching.graph, found.order, int(found.kept.sum())) == found.kept).all()
    assert (found.kept == guided(problem, faithfulness=0.6).kept).all()  # going on below changes nothing above
    assert (guided(problem, edges=12).kept.sum()) == 12


@pytest.mark.parametrize("nearer", [True, False])
def test_it_begins_with_the_nearer_of_components_and_ranking(nearer: bool) -> None:
    """Components go in the order in which they went; what goes at once, in the order of the scores."""
    problem, patching, measure = make("gpt2-scaled-by-layer")
    graph, n = problem.graph, 20
    sizes = np.where(graph.valid, np.random.default_rng(0).random(graph.valid.shape), 0.0)
    measures = Measures(problem.outcome, problem.searched())
    pruning = Pruning(problem, measures, np.inf, Estimates(sizes, sizes, sizes))
    between, given = (graph.prune(selection.top(graph, -sizes, count, by="signed")) for count in (2 * n, n))
    count = int(given.sum())
    best = graph.prune(selection.top(graph, sizes, count, prune=False))
    distance = problems.distance(patching, measure, best)
    near = distance / AS_NEAR + (1e-6 if nearer else -1e-6)
    pruning.start([(graph.valid, 0.0), (between, near), (given, near)])
    assert (pruning.kept == (best if nearer else given)).all()
    step = np.where(pruning.kept, 2.0, between & ~pruning.kept)
    beside = sizes + (0.0 if nearer else step)
    beside[pruning.kept] = np.inf
    for size in (int(between.sum()), 2 * int(pruning.kept.sum())):
        larger = selection.top_pruned(graph, pruning.order(), size)
        assert (larger == selection.top_pruned(graph, beside, size)).all()
    assert (selection.top_pruned(graph, pruning.order(), int(between.sum())) == between).all() != nearer
    assert np.isfinite(pruning.distances[int(between.sum())]) or nearer
    assert pruning.distances[int(larger.sum())] == pytest.approx(problems.distance(patching, measure, larger))


@pytest.mark.parametrize("early", [True, False])
def test_it_goes_on_from_fewer_of_the_best_edges_where_they_are_within_the_budget(
    early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before smaller shares only if they are few beside the edges left, after them in any case."""
    problem, patching, measure = make("gpt2-scaled-by-layer")
    graph = problem.graph
    sizes = np.where(graph.valid, np.random.default_rng(0).random(graph.valid.shape), 0.0)

    def best(n: int) -> BoolArray:
        return graph.prune(selection.top(graph, sizes, n, prune=False))

    def distance(n: int) -> float:
        return problems.distance(patching, measure, best(n))

    budget = distance(graph.n_edges // 3) * (1 + 1e-6)
    pruning = Pruning(
        problem, Measures(problem.outcome, problem.searched()), budget, Estimates(sizes, sizes, sizes)
    )
    pruning.start([(graph.valid, 0.0)])
    pruning.phase = RANKING
    left: list[int] = []
    monkeypatch.setattr(pruning_module, "RANKED_SHARE", 1 / 3 if early else 0.1)
    # As if nothing more could go.
    monkeypatch.setattr(Pruning, "shrink", lambda self, limit: left.append(int(self.kept.sum())))
    pruning.to_budget()
    n = int(pruning.kept.sum())
    assert (left[0] < graph.n_edges) == early
    assert left[-1] == n
    assert pruning.phase == CERTIFY
    assert 0 < n < graph.n_edges
    assert pruning.search.distance <= budget < distance(n - 1)
    assert any((pruning.kept == best(count)).all() for count in range(n, graph.n_edges))
    assert (pruning.kept == selection.top_pruned(graph, pruning.order(), n)).all()


def test_edges_that_dangle_stay_where_corrupted_prompts_have_other_lengths() -> None:
    """A head that nothing feeds attends to the clean prompt's places, so it writes what no corrupted run wrote."""
    model = acdc.load("tracr-reverse")
    data = acdc.tasks.load("tracr-reverse").prepare(model)
    assert not data.discovery.same_places
    circuit = acdc.discover(model, data, faithfulness=0.5)
    patching = Patching(model, circuit.graph, data.discovery)
    measure = bind(data.metric, patching)
    budget = circuit.provenance.selection["budget"]
    assert isinstance(budget, float)
    assert_certified(circuit.edges, budget, patching, measure)
    assert (circuit.edges & ~circuit.graph.prune(circuit.edges)).any()


def test_edges_that_dangle_do_not_make_components_a_larger_circuit() -> None:
    """A ranking of as many edges as whole components have among them, most of which dangle, would be nearer."""
    problem, patching, measure = make("gpt2-scaled-by-layer")
    graph = problem.graph
    sizes = np.where(graph.valid, np.random.default_rng(2).random(graph.valid.shape), 0.0)
    measures = Measures(problem.outcome, problem.searched())
    pruning = Pruning(problem, measures, np.inf, Estimates(sizes, sizes, sizes))
    loose = selection.top(graph, np.where(graph.valid, 1 - sizes, 0.0), graph.n_edges // 2, prune=False)
    given = graph.prune(loose)
    few, many = (
        problems.distance(patching, measure, graph.prune(selection.top(graph, sizes, int(x.sum()), prune=False)))
        for x in (given, loose)
    )
    assert many < few
    pruning.start([(graph.valid, 0.0), (loose, (many + few) / 2 / AS_NEAR)])
    assert (pruning.kept == given).all()


def test_inputs_that_cancel_go_together() -> None:
    """Without `input->m1` or `m0->m1` alone what is left of the two breaks the budget; without both it is nearer."""
    model = acdc.load("induction-2l")
    data = acdc.tasks.load("induction", metric="kl", ablation="mean").prepare(model)
    problem = Problem(model, model.graph(), data.discovery, data.metric, data.ablation)
    assert guided(problem, faithfulness=0.95).kept.sum() == 8


def test_one_edge_goes_in_where_two_can_go_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Swaps make no circuit larger, and what they give is certified like any other."""
    budgets = (0.1, 0.2, 0.3, 0.5)
    problem, patching, measure = make("gpt2")
    apart = Measures.of(patching, measure).separation()
    swapped = [guided(problem, budget=share * apart).kept for share in budgets]
    monkeypatch.setattr(module, "MOST_SWAPPED", 0)
    plain = [guided(problem, budget=share * apart).kept for share in budgets]
    for share, circuit, other in zip(budgets, swapped, plain, strict=True):
        assert circuit.sum() < other.sum() or (circuit == other).all()
        assert_certified(circuit, share * apart, patching, measure)


# ---- scores inside a circuit ------------------------------------------------------------------------------------


class Notes:
    """A resume file that keeps all that was noted, or goes on from one note."""

    def __init__(self, first: dict[str, Any] | None = None) -> None:
        self.first, self.noted = first or {}, list[dict[str, Any]]()

    def load(self, expected: object, *, endless: object = ()) -> dict[str, Any]:
        return self.first

    def save(self, **arrays: Any) -> None:
        self.noted.append({name: np.atleast_1d(np.array(array)) for name, array in arrays.items()})


@pytest.mark.parametrize(
    ("family", "faithfulness", "share", "ranked"),
    [
        ("llama", 0.9, 0.1, [False, False]),
        ("gemma2", 0.95, 0.1, [False, True, False]),
        ("gemma2", 0.95, 0.99, [True, False]),  # before smaller shares
    ],
)
def test_from_every_note_the_search_ends_the_same(
    family: str, faithfulness: float, share: float, ranked: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, _, _ = make(family)
    notes: Any = Notes()
    asked: list[bool] = []
    ask = Pruning._go_on_from_ranking
    monkeypatch.setattr(pruning_module, "RANKED_SHARE", share)
    with monkeypatch.context() as watched:
        watched.setattr(
            Pruning, "_go_on_from_ranking", lambda self, most: asked.append(ask(self, most)) or asked[-1]
        )
        whole = guided(dataclasses.replace(problem, resume=notes), faithfulness=faithfulness)
    assert asked == ranked
    phases = [int(note["numbers"][0]) for note in notes.noted]
    assert set(phases) - {RANKING} == {SHARES, SHRINK, CERTIFY, CERTIFIED}
    some = [i for i, phase in enumerate(phases) if phase == SHRINK or phase != phases[i - 1]]
    some.append(phases.index(CERTIFIED) - 1)  # where most edges are certified
    for note in [notes.noted[i] for i in some]:
        again: Any = Notes(note)
        found = guided(dataclasses.replace(problem, resume=again), faithfulness=faithfulness)
        np.testing.assert_array_equal(found.kept, whole.kept)
        np.testing.assert_array_equal(found.order, whole.order)
        np.testing.assert_array_equal(found.removal, whole.removal)
        np.testing.assert_array_equal(found.front, whole.front)


@pytest.mark.parametrize(
    ("together", "expected"),
    [
        ({3: 0.36}, [0, 1, 2]),  # little more than the .3 of all three
        ({3: 0.5, 1: 0.1}, [0]),  # far more, so that only the cheapest goes
        ({3: 0.36, "budget": 0.05}, []),
    ],
)
def test_tested_edges_go_together_if_that_costs_little_more(
    together: dict[Any, float], expected: list[int]
) -> None:
    pruning = object.__new__(Pruning)
    pruning.budget, pruning.rise = together.get("budget", 1.0), np.array([[0.1, 0.1, 0.1, 3.0]])

    class Search:
        distance, kept = 0.0, np.ones(60, dtype=bool)

        def distance_without(self, group: IntArray) -> float:
            return together[len(group)]

    search: Any = Search()
    pruning.search = search
    assert pruning._fitting(np.arange(4)).tolist() == expected


def test_scores_in_the_full_circuit_are_eap() -> None:
    patching, measure = problems.make("llama", padding="both")
    summed = attribute(patching, measure.outcome, alphas=[1.0]).sum(0).numpy()
    expected = patching.graph.from_ports(summed / len(patching.prompts))
    assert_close(circuit_scores(Measures.of(patching, measure), patching.graph.valid, [1.0]), expected)


@pytest.mark.parametrize("family", ["gpt2", "gpt-neox-parallel", "olmo2"])
def test_scores_in_a_circuit_are_what_removing_a_little_costs(family: str) -> None:
    patching, measure = problems.make(family)
    graph, step = patching.graph, 1e-5
    kept = graph.prune(graph.valid & (np.random.default_rng(0).random(graph.valid.shape) < 0.6))
    scores = circuit_scores(Measures.of(patching, measure), kept, [1.0])
    assert not scores[~kept].any()
    edges = np.argwhere(kept)[::7]
    circuits = np.repeat(kept[None].astype(float), 2 * len(edges), axis=0)
    for i, (destination, source) in enumerate(edges):
        circuits[i, destination, source] -= step
        circuits[len(edges) + i, destination, source] += step
    less, more = np.split(problems.values(patching, measure, circuits), 2)
    slope = (less - more) / (2 * step) / len(patching.prompts)
    assert np.abs(scores[tuple(edges.T)] - slope).max() < 1e-6 * np.abs(scores).max()


def test_scores_in_the_empty_circuit_are_none() -> None:
    patching, measure = problems.make("gpt2-scaled-by-layer")
    assert not circuit_scores(Measures.of(patching, measure), np.zeros_like(patching.graph.valid), [0.0, 1.0]).any()


def assert_close(ours: FloatArray, theirs: FloatArray) -> None:
    assert np.abs(ours - theirs).max() < 1e-9 * np.abs(theirs).max()


def test_float32_keeps_the_budget_too() -> None:
    model = families.tiny("gpt2", torch.float32)
    problem = Problem(model, model.graph(), problems.make_prompts(padding="both"), OUTCOMES["kl"])
    kept = guided(problem, faithfulness=0.7).kept
    patching = Patching(model, model.graph(), problem.prompts)
    measure = bind(OUTCOMES["kl"], patching)
    assert problems.distance(patching, measure, kept) <= 0.3 * Measures.of(patching, measure).separation() * (
        1 + 1e-4
    )


def test_half_of_the_edges_go_at_once_only_where_that_takes_little_of_their_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = acdc.load("tiny-tasks")
    data = acdc.tasks.load("gendered-pronoun", size=32, metric="kl").prepare(model)
    steps: list[tuple[float, float]] = []  # of the edges left, and of their part of the budget left
    take = Pruning._take

    def noted(self: Pruning, group: IntArray) -> None:
        share, before = len(group) / self.kept.sum(), self.search.distance
        take(self, group)
        if self.phase == SHARES:
            steps.append((share, (self.search.distance - before) / ((self.budget - before) * share)))

    monkeypatch.setattr(Pruning, "_take", noted)
    acdc.discover(model, data, "guided", faithfulness=0.8)
    assert any(share > 0.4 for share, _ in steps)
    assert any(cost > pruning_module.LITTLE for _, cost in steps)
    for share, cost in steps:
        assert cost <= (1 if share <= pruning_module.LARGEST_SHARE else pruning_module.LITTLE)
