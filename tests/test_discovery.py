"""`score` and `discover`: known circuits are found, requests mean what they say, bad ones get one clear line."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor

import acdc
import families
import problems
from acdc.circuit import Circuit
from acdc.engine.circuits import measure_circuits
from acdc.engine.problem import Problem
from acdc.errors import AcdcError, EmptyCircuitError, TaskError
from acdc.methods import METHODS
from acdc.metrics import OUTCOMES, Targets, faithfulness
from acdc.model.model import Model
from acdc.tasks.programs.tracr import truth_of
from acdc.tasks.prompts import Prompts
from acdc.tasks.task import Dataset

RANKINGS = [name for name, method in METHODS.items() if method.gives == "scores"]


def few_steps(method: str) -> dict[str, Any]:
    """Options with which a learned mask is quick."""
    return {"steps": 300} if METHODS[method].options.get("steps", 0) > 300 else {}


@functools.cache
def model() -> Model:
    return families.tiny("gpt2-scaled-by-layer", torch.float64)


@functools.cache
def prompts(seed: int = 0) -> Prompts:
    """Prompts that the model gets right: the answer is what it says, the wrong one what it says when corrupted."""
    pairs = problems.make_prompts(seed=seed, size=4)
    with torch.no_grad():
        answers, wrong = (
            model().plain_logits(tokens, pairs.mask)[:, -1].argmax(-1) for tokens in (pairs.clean, pairs.corrupted)
        )
    return Prompts.from_tokens(pairs.clean, pairs.corrupted, answers, wrong)


@functools.cache
def dataset() -> Dataset:
    return Dataset("mine", prompts(0), prompts(1), OUTCOMES["logit-difference"])


def faithfulness_of(edges: np.ndarray, on: Prompts) -> float:
    graph = model().graph()
    problem = Problem(model(), graph, on, OUTCOMES["logit-difference"])
    full, (empty, value) = measure_circuits(problem, [np.zeros_like(edges), edges])
    return faithfulness(value, full=full, empty=empty)


# ---- known circuits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["guided", "acdc"])
@pytest.mark.parametrize("name", ["tracr-reverse", "tracr-proportion", "tracr-hist", "tracr-sort"])
def test_compiled_programs_are_recovered_exactly_by_default(name: str, method: str) -> None:
    model = acdc.load(name)
    circuit = acdc.discover(model, acdc.tasks.load(name), method)
    truth = truth_of(name).get("resample", "varied").mask(circuit.graph)
    assert circuit.edge_names() == circuit.graph.edge_names(truth)


@pytest.mark.parametrize("distribution", ["fixed", "mixed"])
@pytest.mark.parametrize("name", ["tracr-reverse", "tracr-hist"])
def test_another_ablation_has_another_truth_and_it_is_recovered(name: str, distribution: str) -> None:
    model = acdc.load(name)
    task = acdc.tasks.load(name, ablation="zero", distribution=distribution)
    circuit = acdc.discover(model, task, "acdc")
    truth = truth_of(name).get("zero", distribution).mask(circuit.graph)
    assert circuit.edge_names() == circuit.graph.edge_names(truth)


def test_the_induction_circuit_composes_a_previous_token_head_with_an_induction_head_through_k() -> None:
    model = acdc.load("induction-2l")
    circuit = acdc.discover(model, acdc.tasks.load("induction"))
    graph = circuit.to_networkx()
    through_keys = [
        (source, f"a1.h{head}")
        for source in ("a0.h0", "a0.h1", "a0.h2", "a0.h3")
        for head in range(model.n_heads)
        if graph.has_edge(source, f"a1.h{head}<k>")
    ]
    assert through_keys
    assert any(
        nx.has_path(graph, "input", source) and nx.has_path(graph, head, "logits") for source, head in through_keys
    )
    previous, _ = through_keys[0]
    assert attention_to_the_previous_token(model, int(previous[-1])) > 0.5


@torch.no_grad()
def attention_to_the_previous_token(model: Model, head: int) -> float:
    """Mean attention of a head of layer 0 from a position to the one before it, on random tokens."""
    tokens = torch.randint(1, model.vocabulary_size, (4, 20), generator=torch.Generator().manual_seed(0))
    model.module.set_attn_implementation("eager")
    pattern = model.module(tokens, output_attentions=True).attentions[0][:, head]  # [B, query, key]
    return float(pattern.diagonal(offset=-1, dim1=-2, dim2=-1)[:, 4:].mean())


# ---- what one asks for is what one gets -------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_circuit_of_a_number_of_edges(method: str) -> None:
    circuit = acdc.discover(model(), dataset(), method, edges=12, **few_steps(method))
    assert circuit.n_edges == 12
    assert circuit == circuit.prune()
    assert circuit.provenance.method == method
    assert circuit.provenance.selection["edges"] == 12
    assert (circuit.provenance.metric, circuit.provenance.task) == ("logit-difference", "mine")


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_finite_and_on_edges_only(method: str) -> None:
    if METHODS[method].score is None:
        with pytest.raises(AcdcError, match="gives a circuit, not scores; use discover, or one of"):
            acdc.score(model(), dataset(), method)
        return
    options: dict[str, Any] = {"taus": (0.1, 1.0)} if method == "acdc" else few_steps(method)
    scores = acdc.score(model(), dataset(), method, **options)
    assert scores.graph == model().graph()
    assert not scores.values[~scores.graph.valid].any()
    assert scores.values.any()
    assert scores.method == scores.provenance.method == method
    again = acdc.score(model(), dataset(), method, **options)
    assert (again.values == scores.values).all()


@pytest.mark.parametrize("metric", ["logit-difference", "kl", "probability"])
@pytest.mark.parametrize("method", ["exact", "eap-ig"])
def test_scores_are_positive_where_an_edge_helps(method: str, metric: str) -> None:
    """For a metric of which less is better, too: the signed ranking starts with the edges that help most."""
    scores = acdc.score(model(), prompts(), method, metric=metric)
    exact = acdc.score(model(), prompts(), "exact", metric=metric).values
    without = scores.graph.valid.copy()
    best = np.unravel_index(scores.values.argmax(), scores.values.shape)
    without[best] = False
    problem = Problem(model(), scores.graph, prompts(), OUTCOMES[metric])
    full, (value,) = measure_circuits(problem, [without])
    harm = full - value if OUTCOMES[metric].higher_is_better else value - full
    assert harm > 0
    assert exact[best] == pytest.approx(harm, rel=1e-9)


@pytest.mark.parametrize("method", ["eap-ig", "exact"])
@pytest.mark.parametrize("select", ["top", "greedy"])
@pytest.mark.parametrize("target", [0.5, 0.9])
def test_faithfulness_of_a_ranking_is_the_fewest_best_edges_that_reach_it(
    method: str, select: str, target: float
) -> None:
    circuit = acdc.discover(model(), dataset(), method, faithfulness=target, select=select)
    n = circuit.provenance.selection["edges"]
    assert isinstance(n, int)
    assert circuit.scores is not None
    assert circuit.provenance.selection["faithfulness"] == target
    assert faithfulness_of(circuit.edges, prompts(1)) >= target  # on the held-out prompts
    assert n == circuit.n_edges
    best = (circuit.scores.top(k, select=select, prune=False).prune() for k in itertools.count())  # type: ignore[arg-type]
    smaller = list(itertools.takewhile(lambda found: found != circuit, best))
    assert faithfulness_of(smaller[-1].edges, prompts(1)) < target


def test_without_held_out_prompts_faithfulness_is_that_of_the_discovery_prompts() -> None:
    circuit = acdc.discover(model(), prompts(0), "eap-ig", faithfulness=0.9)
    assert faithfulness_of(circuit.edges, prompts(0)) >= 0.9


def test_full_faithfulness_can_be_had() -> None:
    circuit = acdc.discover(model(), dataset(), "random", faithfulness=1)
    assert faithfulness_of(circuit.edges, prompts(1)) >= 1 - 1e-9


def test_faithfulness_of_guided_is_its_budget() -> None:
    circuit = acdc.discover(model(), dataset(), faithfulness=0.8)
    assert faithfulness_of(circuit.edges, prompts(0)) >= 0.8 - 1e-9
    assert circuit.provenance.selection["faithfulness"] == 0.8
    default = acdc.discover(model(), dataset())
    assert default.provenance.selection["faithfulness"] == dataset().faithfulness


def test_a_task_says_how_faithful_a_circuit_must_be() -> None:
    asked = acdc.discover(model(), dataset(), faithfulness=0.7)
    by_task = acdc.discover(model(), dataclasses.replace(dataset(), faithfulness=0.7))
    assert asked == by_task


def test_the_threshold_of_acdc_is_the_cost_per_edge() -> None:
    sizes = [acdc.discover(model(), dataset(), "acdc", threshold=tau).n_edges for tau in (0.001, 0.1, 1.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


@pytest.mark.parametrize("method", ["guided", "acdc", "eap", "exact"])
def test_an_empty_circuit_is_an_error_with_the_way_out(method: str) -> None:
    with pytest.raises(EmptyCircuitError, match=r"threshold|budget") as caught:
        acdc.discover(model(), dataset(), method, threshold=1e6)
    assert "Ask for more: a lower threshold" in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*does not do the task")
@pytest.mark.parametrize("options", [{}, {"edges": 5}, {"faithfulness": 0.9}], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_matters_nothing_is_found(method: str, options: dict[str, Any]) -> None:
    """Clean and corrupted prompts are the same, so that no edge changes anything and faithfulness is undefined."""
    same = dataclasses.replace(prompts(), corrupted=prompts().clean)
    if "edges" in options and method in ("random", "information-flow", "ibcircuit"):
        pytest.skip("it gives edges whatever they do")
    with pytest.raises(EmptyCircuitError, match="faithfulness is undefined and no edge matters"):
        acdc.discover(model(), same, method, **options, **few_steps(method))


def test_dangling_edges_above_a_threshold_are_left_out_and_counted() -> None:
    scores = acdc.score(model(), dataset(), "random")
    threshold = float(np.quantile(scores.values[scores.graph.valid], 0.8))
    above = int((scores.values >= threshold).sum())
    circuit = scores.threshold(threshold)
    assert circuit.provenance.selection["dangling"] == above - circuit.n_edges > 0


@pytest.mark.parametrize("method", ["eap", "guided"])
def test_fewer_edges_than_asked_for_is_a_warning(method: str) -> None:
    n = model().graph().n_edges
    with pytest.warns(UserWarning, match=f"^{n} edges are kept instead of {n + 1}: the graph has no more$"):
        assert acdc.discover(model(), dataset(), method, edges=n + 1).n_edges == n


def test_the_threshold_of_a_ranking_is_the_smallest_score() -> None:
    scores = acdc.score(model(), dataset(), "eap")
    threshold = float(np.quantile(np.abs(scores.values[scores.graph.valid]), 0.7))
    circuit = acdc.discover(model(), dataset(), "eap", threshold=threshold)
    assert circuit == scores.threshold(threshold)
    assert 0 < circuit.n_edges < scores.graph.n_edges


def test_the_ranking_of_acdc_is_its_sweep() -> None:
    """An edge scores the largest τ at which the search keeps it."""
    taus = (0.01, 0.1, 1.0)
    scores = acdc.score(model(), dataset(), "acdc", taus=taus)
    found = np.zeros_like(scores.values)
    for tau in taus:
        found[acdc.discover(model(), dataset(), "acdc", threshold=tau).edges] = tau
    assert (scores.values == found).all()


def test_other_graphs() -> None:
    graph = model().graph(qkv="merged")
    assert acdc.score(model(), dataset(), "eap", graph=graph).graph == graph
    assert acdc.discover(model(), dataset(), graph=graph).graph == graph


def test_random_scores_depend_on_the_seed_alone() -> None:
    one, again, other = (acdc.score(model(), dataset(), "random", seed=seed).values for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()


def test_progress_is_reported() -> None:
    seen: list[tuple[int, int | None, str]] = []
    for method in ("guided", "eap-ig", "exact"):
        acdc.discover(model(), dataset(), method, edges=5, progress=lambda *x: seen.append(x))
    assert all(total is None or 0 <= done <= total for done, total, _ in seen)
    assert {"attribution", "each edge alone"} <= {text for _, _, text in seen}


# ---- data and metrics of one's own ------------------------------------------------------------------------------


def test_plain_tensors_and_a_function_as_metric() -> None:
    generator = torch.Generator().manual_seed(3)
    clean, corrupted = torch.randint(families.VOCABULARY, (2, 4, 6), generator=generator)

    def first_logit(logits: Tensor, targets: Targets) -> Tensor:
        return logits[..., 0, 3]  # [..., prompt]

    own = Prompts.from_tokens(clean, corrupted)
    scores = acdc.score(model(), own, "exact", metric=first_logit)
    assert scores.provenance.metric == "first_logit"
    with torch.no_grad():
        full, empty = (model().plain_logits(x, own.mask)[:, -1, 3].mean() for x in (clean, corrupted))
    if full < empty:  # it is to be better on the clean prompts
        own = Prompts.from_tokens(corrupted, clean)
    circuit = acdc.discover(model(), own, metric=first_logit, faithfulness=0.8)
    result = acdc.evaluate(model(), own, circuit, metric=first_logit)
    assert result.full == pytest.approx(float(max(full, empty)))
    assert result.empty == pytest.approx(float(min(full, empty)))
    assert result.faithfulness >= 0.8 - 1e-9


def test_prompts_without_answers_are_judged_by_kl() -> None:
    bare = Prompts.from_tokens(prompts().clean, prompts().corrupted)
    circuit = acdc.discover(model(), bare, faithfulness=0.9)
    assert circuit.provenance.metric == "kl"
    assert 0 < circuit.n_edges < circuit.graph.n_edges


# ---- bad requests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("guidet", {}, "unknown method 'guidet': did you mean guided"),
        ("eap-ig", {"step": 3}, "unknown option of eap-ig 'step': did you mean steps"),
        ("eap", {"checkpoint": "progress"}, "checkpoint is now resume"),
        ("eap", {"steps": 3}, "unknown option of eap 'steps': known: backward"),
        ("eap-ig", {"steps": 0}, "steps of at least 1, got 0"),
        ("guided", {"steps": 0}, "steps of at least 1, got 0"),
        (
            "acdc",
            {"taus": (0.1,)},
            "'taus' of method 'acdc' is of its ranking, .*: give edges or faithfulness too",
        ),
        (
            "guided",
            {"metric": "logit-diference"},
            "unknown metric 'logit-diference': did you mean logit-difference",
        ),
        ("guided", {"metric": 3}, "expected a metric's name, an Outcome or a function, got int"),
        ("guided", {"ablation": "resampling"}, "unknown ablation 'resampling': did you mean resample"),
        ("eap", {"edges": 5, "select": "gready"}, "unknown selection 'gready': did you mean greedy"),
        ("eap", {"edges": 5, "threshold": 0.1}, "expected one of .*, got edges and threshold"),
        ("guided", {"edges": 5, "faithfulness": 0.9}, "got edges and faithfulness"),
        ("guided", {"threshold": -1.0}, "threshold of at least 0, got -1"),
        ("acdc", {"threshold": -1.0}, "threshold of at least 0, got -1"),
        ("eap", {"threshold": float("nan")}, "threshold of at least 0, got nan"),
        ("guided", {"edges": 0}, "number of edges of at least 1, got 0"),
        ("guided", {"faithfulness": 0}, "above 0 and at most 1, got 0"),
        ("guided", {"faithfulness": "0.9"}, "a faithfulness as a number, got '0.9'"),
        ("eap", {"threshold": True}, "a threshold as a number, got True"),
        ("guided", {"faithfulness": 2}, "above 0 and at most 1, got 2"),
        ("eap", {"batch_size": 0}, "batch size of at least 1, got 0"),
        ("eap", {"metric": "accuracy"}, "'accuracy' has no gradient"),
        ("guided", {"metric": "exact-match"}, "'exact-match' has no gradient; .* or use acdc or .*exact"),
        ("eap", {"metric": "kl"}, "gradient of 'kl' is zero at the clean prompt"),
        ("eap", {"graph": acdc.Graph(5, 2)}, "not one of model 'GPT2LMHeadModel': n_layers=5 instead of 2"),
    ],
    ids=str,
)
def test_bad_requests_get_one_clear_line(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AcdcError, match=message) as caught:
        acdc.discover(model(), dataset(), method, **options)
    assert "\n" not in str(caught.value)


def test_a_metric_that_needs_answers_says_so() -> None:
    bare = Prompts.from_tokens(prompts().clean, prompts().corrupted)
    with pytest.raises(TaskError, match="needs answers, and the prompts have none; try kl"):
        acdc.discover(model(), bare, metric="logit-difference")


def test_something_that_is_no_task_is_refused() -> None:
    with pytest.raises(TaskError, match=r"expected a task .* got str"):
        acdc.discover(model(), "induction")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["guided", "acdc", "eap-ig", "exact"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(method: str, bad: float) -> None:
    broken = families.tiny("gpt2-scaled-by-layer")
    with torch.no_grad():
        broken.decomposition.unembedding[7] = bad
    with pytest.raises(TaskError, match=r"logits on the clean prompts are not finite .*; try float32") as caught:
        acdc.discover(broken, prompts(), method, metric="kl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["guided", "eap", "random"])
def test_a_model_that_does_not_do_the_task_is_a_warning_with_both_numbers(method: str) -> None:
    wrong = dataclasses.replace(prompts(), answers=prompts().wrong, wrong=prompts().answers)
    problem = Problem(model(), model().graph(), wrong, OUTCOMES["logit-difference"])
    full, (empty,) = measure_circuits(problem, [np.zeros_like(model().graph().valid)])
    with pytest.warns(UserWarning, match="does not do the task") as caught:
        circuit = acdc.discover(model(), wrong, method, edges=5)
    assert isinstance(circuit, Circuit)
    (message,) = (str(warning.message) for warning in caught)
    assert f"{full:.4g}" in message
    assert f"{empty:.4g}" in message
    assert caught[0].filename == __file__


def test_a_model_that_does_the_task_is_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        acdc.discover(model(), dataset(), "eap", edges=5)
        acdc.discover(model(), dataset(), "eap-ig", edges=5, metric="kl")


# ---- metrics that are no number ---------------------------------------------------------------------------------


def no_number(bad: float, answer: int) -> Any:
    """A metric that is `bad` on the prompts with this answer alone."""

    def spoilt(logits: Tensor, targets: Targets) -> Tensor:
        assert targets.answers is not None
        return logits[..., 0].masked_fill((targets.answers == answer).any(-1), bad)

    return spoilt


@pytest.mark.parametrize("batch_size", [None, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", METHODS)
def test_a_metric_that_is_no_number_on_one_prompt_is_refused(
    method: str, bad: float, batch_size: int | None
) -> None:
    third = dataclasses.replace(prompts(), answers=torch.tensor([0, 0, 1, 0])[:, None, None])
    message = "metric 'spoilt' is NaN or infinite for the full model on prompt 3: expected a finite number"
    asked = {"metric": no_number(bad, 1), "batch_size": batch_size}
    with pytest.raises(TaskError, match=message) as caught:
        acdc.discover(model(), third, method, edges=5, **asked)
    assert "->" not in str(caught.value)
    if METHODS[method].score is not None and method != "acdc":
        with pytest.raises(TaskError, match=message):
            acdc.score(model(), third, method, **asked)
    if method == "random":
        circuit = Circuit(model().graph(), model().graph().valid, acdc.score(model(), prompts(), "random"))
        for judge in (acdc.evaluate, acdc.completeness, acdc.minimality):
            with pytest.raises(TaskError, match=message):
                judge(model(), third, circuit, **asked)
        with pytest.raises(TaskError, match=message):
            acdc.curve(model(), third, circuit.scores, **asked)


@pytest.mark.filterwarnings("ignore:.*does not do the task")
@pytest.mark.parametrize("method", ["exact", "acdc", "guided"])
def test_a_metric_that_becomes_no_number_without_edges_names_the_metric(method: str) -> None:
    def brittle(logits: Tensor, targets: Targets) -> Tensor:
        """NaN as soon as anything differs a little from the full and from the empty model."""
        assert targets.full is not None
        assert targets.corrupted is not None
        apart = [(logits - ends).abs().amax(-1) for ends in (targets.full, targets.corrupted)]
        return logits[..., 0].masked_fill((apart[0] > 1e-9) & (apart[1] > 1e-9), float("nan"))

    with pytest.raises(TaskError, match="metric 'brittle' is NaN or infinite") as caught:
        acdc.discover(model(), prompts(), method, metric=brittle)
    assert "->" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*does not do the task")
@pytest.mark.parametrize("method", ["eap", "eap-ig", "clean-corrupted", "guided"])
def test_a_metric_without_a_gradient_says_what_to_use_instead(method: str) -> None:
    def detached(logits: Tensor) -> Tensor:
        return logits[..., 0].detach()

    def argmax(logits: Tensor) -> Tensor:
        return logits.argmax(-1)

    for metric in (detached, argmax):
        with pytest.raises(
            TaskError, match=rf"metric '{metric.__name__}' has no gradient .* use a method that takes no gradient"
        ):
            acdc.discover(model(), prompts(), method, metric=metric, edges=5)
    assert acdc.discover(model(), prompts(), "exact", metric=detached, edges=5).n_edges == 5


def test_a_gradient_that_is_no_number_names_the_metric() -> None:
    def root(logits: Tensor) -> Tensor:
        return (logits[..., 0] - logits[..., 0].detach()).abs().sqrt() + logits[..., 1]

    with pytest.raises(
        TaskError, match=r"gradient of metric 'root' is NaN or infinite .* use a method that takes no gradient"
    ):
        acdc.score(model(), prompts(), "eap", metric=root)
