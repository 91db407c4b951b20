"""What an evaluation says of a circuit is what plain runs of the model and of the circuit give."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import acdc
import families
import problems
from acdc.circuit import Circuit, Scores
from acdc.engine.circuits import measure_circuits, measure_prompts
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.engine.references import NOT_LEARNED
from acdc.errors import AcdcError
from acdc.evaluation.judging import random_circuits_like, warn_if_useless
from acdc.graph import units_of
from acdc.metrics import MIB_SHARES, OUTCOMES
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts
from acdc.tasks.task import Dataset


@functools.cache
def model() -> Model:
    return families.tiny("gpt2-scaled-by-layer", torch.float64)


@functools.cache
def prompts(seed: int = 0, size: int = 4) -> Prompts:
    """Prompts that the model gets right: the answer is what it says, the wrong one what it says when corrupted."""
    pairs = problems.make_prompts(seed=seed, size=size)
    answers, wrong = (plain_logits(tokens).argmax(-1) for tokens in (pairs.clean, pairs.corrupted))
    return Prompts.from_tokens(pairs.clean, pairs.corrupted, answers, wrong)


@torch.no_grad()
def plain_logits(tokens: Tensor) -> Tensor:
    """The module's own at the last position, `[B, V]`."""
    return model().plain_logits(tokens, torch.ones_like(tokens, dtype=torch.bool))[:, -1]


def logit_difference(on: Prompts, tokens: Tensor) -> float:
    assert on.answers is not None
    assert on.wrong is not None
    logits = plain_logits(tokens)
    return float((logits.gather(1, on.answers[:, 0]) - logits.gather(1, on.wrong[:, 0])).mean())


@functools.cache
def dataset() -> Dataset:
    return Dataset("mine", prompts(0), prompts(1), OUTCOMES["logit-difference"])


@functools.cache
def many() -> Dataset:
    """With prompts enough for intervals."""
    return dataclasses.replace(dataset(), held_out=prompts(1, 80))


def circuit(density: float = 0.7, seed: int = 0) -> Circuit:
    graph = model().graph()
    return Circuit(graph, graph.valid & (np.random.default_rng(seed).random(graph.valid.shape) < density))


def everything() -> Circuit:
    return circuit(density=2)


def nothing() -> Circuit:
    return circuit(density=-1)


def test_the_whole_model_is_faithful_and_nothing_is_not() -> None:
    for whole, expected in ((everything(), 1), (nothing(), 0)):
        result = acdc.evaluate(model(), dataset(), whole)
        assert result.faithfulness == pytest.approx(expected, abs=1e-9)
        assert result.discovery_faithfulness == pytest.approx(expected, abs=1e-9)
        assert (result.n_edges, result.n_edges_total) == (whole.n_edges, model().graph().n_edges)
    result = acdc.evaluate(model(), dataset(), everything())
    assert result.kl == pytest.approx(0, abs=1e-9)
    assert result.exact_match == 1


def test_full_and_empty_are_the_plain_model_on_clean_and_corrupted_prompts() -> None:
    result = acdc.evaluate(model(), dataset(), circuit())
    assert result.full == pytest.approx(logit_difference(prompts(1), prompts(1).clean))
    assert result.empty == pytest.approx(logit_difference(prompts(1), prompts(1).corrupted))
    assert result.faithfulness == pytest.approx((result.circuit - result.empty) / (result.full - result.empty))


def test_held_out_and_discovery_prompts_are_told_apart() -> None:
    held_out = acdc.evaluate(model(), dataset(), circuit())
    assert (held_out.prompts, held_out.n_prompts) == ("held-out", len(prompts(1)))
    found_on = acdc.evaluate(model(), prompts(0), circuit())
    assert (found_on.prompts, found_on.n_prompts) == ("discovery", len(prompts(0)))
    assert found_on.faithfulness == found_on.discovery_faithfulness
    assert held_out.discovery_faithfulness == pytest.approx(found_on.faithfulness)
    judged_there = acdc.evaluate(model(), prompts(1), circuit())
    assert held_out.faithfulness == pytest.approx(judged_there.faithfulness)
    assert held_out.faithfulness != pytest.approx(found_on.faithfulness)


def test_divergence_and_matches_are_over_the_whole_vocabulary() -> None:
    result = acdc.evaluate(model(), prompts(), circuit())
    with torch.no_grad():
        run = Patching(model(), model().graph(), prompts()).logits(circuit().edges)[0, :, 0].log_softmax(-1)
    full = plain_logits(prompts().clean).log_softmax(-1)
    divergence = (full.exp() * (full - run)).sum(-1)  # [B]
    assert result.kl == pytest.approx(float(divergence.mean()))
    assert result.worst_kl == pytest.approx(float(divergence.max()))
    assert result.exact_match == pytest.approx(float((full.argmax(-1) == run.argmax(-1)).double().mean()))


def test_every_figure_has_an_interval_around_it() -> None:
    result = acdc.evaluate(model(), many(), circuit())
    for name in ("faithfulness", "normalised_faithfulness", "kl", "exact_match"):
        low, high = getattr(result, f"{name}_interval")
        assert low <= getattr(result, name) <= high
        assert low < high
    wider = acdc.evaluate(model(), many(), circuit(), confidence=0.999).faithfulness_interval
    assert wider[0] <= result.faithfulness_interval[0] < result.faithfulness_interval[1] <= wider[1]
    assert np.isnan(acdc.evaluate(model(), many(), circuit(), confidence=None).faithfulness_interval).all()
    whole = acdc.evaluate(model(), dataset(), everything(), metric="projection")
    assert whole.faithfulness_interval == pytest.approx((1, 1), abs=1e-9)


@pytest.mark.filterwarnings("ignore:prompts. the model does not do the task")  # it has no faithfulness there
def test_few_prompts_have_a_range_and_no_interval() -> None:
    result = acdc.evaluate(model(), dataset(), circuit(), random_circuits=0)
    assert np.isnan(result.faithfulness_interval).all()
    singly = [
        acdc.evaluate(model(), prompts(1)[i : i + 1], circuit(), random_circuits=0).faithfulness for i in range(4)
    ]
    assert result.faithfulness_range == pytest.approx((np.nanmin(singly), np.nanmax(singly)))


def test_normalised_faithfulness_is_prompt_by_prompt() -> None:
    on = [prompts(1)[i : i + 1] for i in range(len(prompts(1)))]
    singly = [
        acdc.evaluate(model(), one, circuit(), metric="projection", random_circuits=0).faithfulness for one in on
    ]
    expected = np.mean([1 - min(abs(1 - value), 1) for value in singly])
    result = acdc.evaluate(model(), dataset(), circuit(), metric="projection")
    assert result.normalised_faithfulness == pytest.approx(expected)
    zero = acdc.evaluate(model(), dataset(), nothing(), metric="projection", ablation="zero")
    assert zero.normalised_faithfulness != pytest.approx(0)  # against the corrupted prompts, whatever the ablation


@pytest.mark.parametrize("ablation", NOT_LEARNED)
def test_batches_do_not_change_the_numbers(ablation: str) -> None:
    """Nor do means, which are over all the prompts."""
    whole, single = (
        dataclasses.asdict(acdc.evaluate(model(), dataset(), circuit(), ablation=ablation, batch_size=size))
        for size in (None, 1)
    )
    assert whole["ablation"] == ablation
    for name, value in whole.items():
        if value is not None and not isinstance(value, str):
            assert single[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name


def test_another_metric() -> None:
    result = acdc.evaluate(model(), dataset(), circuit(), metric="kl")
    assert (result.metric, result.full) == ("kl", pytest.approx(0, abs=1e-12))
    assert result.circuit == pytest.approx(result.kl)

    def answer_logit(logits: Tensor, targets: Any) -> Tensor:
        return -logits[..., 0, 5]  # [..., prompt], better on these clean prompts

    own = acdc.evaluate(model(), prompts(), circuit(), metric=answer_logit)
    assert own.metric == "answer_logit"
    assert own.full == pytest.approx(-float(plain_logits(prompts().clean)[:, 5].mean()))


# ---- compared with ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_random_circuits_have_as_many_edges_and_lead_to_the_logits(density: float) -> None:
    like = circuit(density)
    graph = like.graph
    for edges in random_circuits_like(like, 4, seed=0):
        assert edges.sum() == like.n_edges
        assert not (edges & ~graph.valid).any()
        _, to_logits = graph.reachable(edges)
        assert to_logits[edges.any(axis=0)].all()


def test_random_circuits_depend_on_the_seed_alone() -> None:
    one, again, other = (
        acdc.evaluate(model(), prompts(), circuit(), random_circuits=5, seed=seed).random_faithfulness
        for seed in (1, 1, 2)
    )
    assert len(one) == 5
    assert one == again
    assert one != other
    assert len(set(one)) > 1
    assert acdc.evaluate(model(), prompts(), circuit(), random_circuits=0).random_faithfulness == ()


def test_a_given_truth_is_counted_edge_by_edge() -> None:
    found, truth = circuit(seed=0), circuit(seed=1)
    result = acdc.evaluate(model(), prompts(), found, truth=truth).truth
    assert result is not None
    assert result.true_positives == (found & truth).n_edges
    assert result.false_positives == (found - truth).n_edges
    assert result.missed == (truth - found).n_edges
    assert result.precision == result.true_positives / found.n_edges
    assert result.recall == result.true_positives / truth.n_edges
    assert result.f1 == pytest.approx(2 / (1 / result.precision + 1 / result.recall))
    assert acdc.evaluate(model(), prompts(), found).truth is None


def test_the_truth_of_a_compiled_program_comes_with_its_task() -> None:
    model, task = acdc.load("tracr-proportion"), acdc.tasks.load("tracr-proportion")
    graph = model.graph()
    result = acdc.evaluate(model, task, Circuit(graph, graph.valid))
    assert result.truth is not None
    assert result.truth.name == "resample/varied"
    assert result.truth.missed == 0
    assert result.truth.true_positives + result.truth.false_positives == graph.n_edges
    assert (result.kl, result.worst_kl, result.exact_match) == (None, None, None)  # its outputs are numbers
    empty = acdc.evaluate(model, task, Circuit(graph, np.zeros_like(graph.valid))).truth
    assert empty is not None
    assert empty.f1 == 0
    assert np.isnan(empty.precision)
    scores = acdc.score(model, task, "random")
    curve = acdc.curve(model, task, scores)
    assert (curve.kl, curve.kl_area, curve.kl_intervals, curve.kl_area_interval) == (None, None, None, None)
    assert (empty.true_positives, empty.false_positives, empty.missed) == (0, 0, result.truth.true_positives)


# ---- curves -----------------------------------------------------------------------------------------------------


def test_a_curve_of_nodes_is_of_whole_nodes() -> None:
    subject, data = model(), dataset()
    scores = acdc.score(subject, data, "eap-ig", units="node")
    graph, units = scores.graph, units_of(scores.graph, "node")
    curve = acdc.curve(subject, data, scores, aggregate=None)
    values = units.values_of(scores.sizes())
    sizes = [graph.prune(units.mask(values >= value)).sum() for value in sorted(values, reverse=True)]
    assert len(set(sizes)) > 4
    for share, n in zip(curve.shares, curve.n_edges, strict=True):
        assert n == max((size for size in sizes if size <= int(share * graph.n_edges)), default=0)
    assert curve.faithfulness[-1] == pytest.approx(1)


@pytest.mark.parametrize("by", ["absolute", "signed"])
def test_a_curve_is_the_faithfulness_of_each_size(by: Any) -> None:
    scores = acdc.score(model(), dataset(), "eap-ig")
    curve = acdc.curve(model(), dataset(), scores, by=by)
    assert curve.shares == MIB_SHARES
    for share, n_edges, value in zip(curve.shares, curve.n_edges, curve.faithfulness, strict=True):
        found = scores.top(int(share * scores.graph.n_edges), by=by, prune=False, aggregate="signed").prune()
        assert n_edges == found.n_edges
        assert value == pytest.approx(acdc.evaluate(model(), dataset(), found, random_circuits=0).faithfulness)
    assert curve.faithfulness[-1] == pytest.approx(1)
    assert curve.cpr == pytest.approx(np.trapezoid(curve.faithfulness, MIB_SHARES))
    assert curve.cmd == pytest.approx(np.trapezoid(np.abs(1 - np.array(curve.faithfulness)), MIB_SHARES))


def test_a_curve_has_the_divergence_and_an_interval_at_each_size() -> None:
    scores = acdc.score(model(), many(), "eap-ig")
    curve = acdc.curve(model(), many(), scores)
    assert curve.kl is not None
    assert curve.kl_intervals is not None
    rows = zip(curve.shares, curve.kl, curve.faithfulness_intervals, curve.kl_intervals, strict=True)
    for share, kl, faithfulness_interval, kl_interval in rows:
        found = scores.top(int(share * scores.graph.n_edges), prune=False, aggregate="signed").prune()
        alone = acdc.evaluate(model(), many(), found, random_circuits=0)
        assert alone.kl == pytest.approx(kl, abs=1e-12)
        assert alone.faithfulness_interval == pytest.approx(faithfulness_interval, abs=1e-9, nan_ok=True)
        assert alone.kl_interval == pytest.approx(kl_interval, abs=1e-9, nan_ok=True)
    assert curve.kl_area == pytest.approx(np.trapezoid(curve.kl, MIB_SHARES))
    for name in ("cpr", "cmd", "kl_area"):
        low, high = getattr(curve, f"{name}_interval")
        assert low <= getattr(curve, name) <= high
    assert curve.log_cpr < curve.cpr  # the small circuits, which are not faithful here, count more
    assert curve.log_cmd > curve.cmd


def test_a_curve_is_of_the_papers_ranking_unless_told_otherwise() -> None:
    scores, shares = acdc.score(model(), dataset(), "eap-ig"), [0.2, 0.3, 1.0]
    ours = acdc.curve(model(), dataset(), scores, shares=shares, aggregate=None)
    sizes = [int(share * scores.graph.n_edges) for share in shares]
    assert ours.n_edges == tuple(scores.top(n, prune=False).prune().n_edges for n in sizes)
    assert ours.faithfulness != acdc.curve(model(), dataset(), scores, shares=shares).faithfulness


def test_a_curve_without_intervals() -> None:
    curve = acdc.curve(model(), dataset(), acdc.score(model(), dataset(), "eap-ig"), confidence=None)
    assert (curve.faithfulness_intervals, curve.kl_intervals) == ((), ())
    assert np.isnan([curve.cpr_interval, curve.cmd_interval, curve.kl_area_interval]).all()


@pytest.mark.parametrize("by", ["absolute", "signed"])
@pytest.mark.parametrize("method", ["eap-ig", "exact"])
def test_rankings_beat_chance_however_they_are_read(method: str, by: Any) -> None:
    """A random ranking has a CPR of about .25; signed scores put the edges that help first."""
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=16)
    curve = acdc.curve(model, task, acdc.score(model, task, method), by=by)
    assert curve.cpr > 0.7
    assert curve.cmd < 0.3
    chance = acdc.curve(model, task, acdc.score(model, task, "random"), by=by)
    assert chance.cpr < 0.45


# ---- bad input --------------------------------------------------------------------------------------------------


def test_a_circuit_of_another_model_is_refused() -> None:
    graph = acdc.Graph(3, 2)
    stranger = Circuit(graph, graph.valid)
    with pytest.raises(AcdcError, match="not one of model 'GPT2LMHeadModel': n_layers=3 instead of 2"):
        acdc.evaluate(model(), prompts(), stranger)
    with pytest.raises(AcdcError, match="n_layers=3 instead of 2"):
        acdc.curve(model(), prompts(), Scores(graph, np.zeros(graph.valid.shape)))
    with pytest.raises(AcdcError, match="true circuit is of another graph"):
        acdc.evaluate(model(), prompts(), circuit(), truth=stranger)


def test_a_circuit_that_was_found_by_ones_own_metric_is_not_silently_judged_by_another() -> None:
    def margin(logits: Tensor) -> Tensor:
        return logits[..., 1] - logits[..., 0]

    on = dataset()
    circuit = acdc.discover(model(), on, "eap", metric=margin, edges=5)
    with pytest.warns(
        UserWarning, match="found by the metric 'margin'.* judged by logit-difference: give it"
    ) as told:
        acdc.evaluate(model(), on, circuit, random_circuits=0)
    assert len(told) == 1
    for metric in (margin, "logit-difference"):  # as was asked for
        assert acdc.evaluate(model(), on, circuit, metric=metric, random_circuits=0).metric in ("margin", metric)


def test_a_batch_has_a_prompt() -> None:
    with pytest.raises(AcdcError, match="batch size of at least 1, got 0"):
        acdc.evaluate(model(), prompts(), circuit(), batch_size=0)


def test_a_model_that_does_not_do_the_task_is_a_warning_with_both_numbers() -> None:
    wrong = dataclasses.replace(prompts(), answers=prompts().wrong, wrong=prompts().answers)
    with pytest.warns(UserWarning, match="does not do the task") as caught:
        result = acdc.evaluate(model(), wrong, circuit())
    (message,) = (str(warning.message) for warning in caught)
    assert f"{result.full:.4g}" in message
    assert f"{result.empty:.4g}" in message


def test_discovery_prompts_that_the_model_cannot_do_are_a_warning_too() -> None:
    wrong = dataclasses.replace(prompts(), answers=prompts().wrong, wrong=prompts().answers)
    data = dataclasses.replace(dataset(), discovery=wrong)
    with pytest.warns(UserWarning, match="does not do the task: .* on discovery prompts and"):
        acdc.evaluate(model(), data, circuit(), random_circuits=0)


def test_a_difference_that_chance_could_make_is_a_warning() -> None:
    full, empty = np.tile([1.0, -0.9], 10), np.zeros(20)
    with pytest.warns(UserWarning, match="as far as 20 prompts can tell: .* is 0.05 on .* that is not told from 0"):
        warn_if_useless(dataset(), full, empty)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_useless(dataset(), full + 1, empty)
        warn_if_useless(dataset(), full[:4], empty[:4])  # too few to say so


def test_prompts_that_do_not_differ_have_no_faithfulness() -> None:
    same = dataclasses.replace(prompts(), corrupted=prompts().clean)
    with pytest.warns(UserWarning, match="does not do the task"):
        result = acdc.evaluate(model(), same, circuit())
    assert np.isnan(result.faithfulness)


def test_circuits_are_measured_on_every_prompt_once() -> None:
    problem = Problem(model(), model().graph(), prompts(), OUTCOMES["logit-difference"], batch_size=3)
    full, (empty,) = measure_circuits(problem, [nothing().edges])
    assert full == pytest.approx(logit_difference(prompts(), prompts().clean))
    assert empty == pytest.approx(logit_difference(prompts(), prompts().corrupted))


@pytest.mark.parametrize("batch_size", [None, 3])
def test_circuits_are_measured_alike_alone_and_together_by_one_metric_and_by_all(batch_size: int | None) -> None:
    problem = Problem(model(), model().graph(), prompts(), OUTCOMES["logit-difference"], batch_size=batch_size)
    some = [circuit(density, seed).edges for density in (0.1, 0.9) for seed in (0, 1, 2)]
    outcomes = [OUTCOMES[name] for name in ("logit-difference", "kl", "probability")]
    together = measure_prompts(problem, [some[0], np.stack(some[1:5]), some[5]], outcomes)
    for outcome, found in zip(outcomes, together, strict=True):
        (alone,) = measure_prompts(problem, some, [outcome])
        for name in ("full", "corrupted", "circuits"):
            np.testing.assert_allclose(getattr(found, name), getattr(alone, name), atol=1e-12)
        assert found.circuits.shape == (6, len(prompts()))
    (same,) = measure_prompts(problem, [everything().edges, nothing().edges])
    np.testing.assert_allclose(same.circuits, [same.full, same.corrupted], atol=1e-12)
