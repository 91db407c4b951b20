"""Errors for unknown names, and for arguments of other types."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

import acdc
from acdc.auditing.checks import CHECKS
from acdc.errors import AcdcError, near_misses, unknown
from acdc.formats.registry import FORMATS
from acdc.methods import METHODS
from acdc.metrics import OUTCOMES
from acdc.tasks.registry import GENERATORS


def test_near_misses_are_named() -> None:
    assert str(unknown("method", "guded", ["guided", "acdc"])) == "unknown method 'guded': did you mean guided?"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("eapp", ["eap"]), ("EAP", ["eap"]), ("eap_ig", ["eap-ig"]), ("iio", ["ioi"]),
        ("smollm2", ["smollm2-135m-q4"]),
        ("greater_than", ["greater-than"]), ("arithmetic", ["mib-arithmetic"]),
    ],
)  # fmt: skip
def test_a_slip_is_a_near_miss(given: str, meant: list[str]) -> None:
    names = [
        "eap", "eap-ig", "peap", "ioi", "mib-ioi", "smollm2-135m-q4", "greater-than", "mib-greater-than",
        "mib-arithmetic",
    ]  # fmt: skip
    near = near_misses(given, names)
    assert near == meant


@pytest.mark.parametrize(
    "given",
    ["attribution", "shapley", "gradient", "lime", "entropy", "position", "foo", "abc", "test", "json", ""],
)
def test_another_word_is_none(given: str) -> None:
    """What nobody meant is not suggested: the names are listed instead."""
    for known in (METHODS, OUTCOMES, CHECKS, FORMATS, GENERATORS):
        assert near_misses(given, known) == []
        assert "known: " in str(unknown("name", given, known))


def test_few_names_are_listed_and_many_are_cut() -> None:
    assert str(unknown("style", "x", ["b", "a"])) == "unknown style 'x': known: a, b"
    message = str(unknown("source", "x", [f"a{layer:02}.h0" for layer in range(50)]))
    assert message.endswith("a18.h0, a19.h0 and 30 more")


def test_a_name_of_any_length_gives_a_line_that_can_be_read() -> None:
    assert len(str(unknown("edge", "x" * 10**5, ["input->logits"]))) < 300


def test_what_is_not_even_a_name_is_unknown_too() -> None:
    assert str(unknown("order", 3, ["abba"])) == "unknown order 3: known: abba"


def test_arguments_of_other_types_are_refused_by_name() -> None:
    model = acdc.load("tracr-reverse")
    task = acdc.tasks.load("tracr-reverse", size=4)
    graph = model.graph()
    circuit = acdc.Circuit(graph, graph.valid)
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: acdc.evaluate(None, task, circuit), "a model"),  # type: ignore[arg-type]
        (lambda: acdc.evaluate(model, task, graph), "a Circuit, got Graph"),  # type: ignore[arg-type]
        (lambda: acdc.completeness(model, task, graph), "a Circuit, got Graph"),  # type: ignore[arg-type]
        (lambda: acdc.minimality(model, task, None), "a Circuit, got NoneType"),  # type: ignore[arg-type]
        (lambda: acdc.curve(model, task, circuit), "Scores"),  # type: ignore[arg-type]
        (lambda: acdc.evaluate(model, task, circuit, truth=graph), "as the truth, got Graph"),  # type: ignore[arg-type]
        (lambda: acdc.evaluate(model, task, circuit, random_circuits=-1), "random circuits of at least 0"),
        (lambda: acdc.evaluate(model, task, circuit, random_circuits=10**30), "random circuits of at most 100000"),
        (lambda: acdc.evaluate(model, task, circuit, batch_size=2.5), "a batch size"),  # type: ignore[arg-type]
        (lambda: acdc.score(model, task, "eap-ig", seed=True), "a seed"),
        (lambda: acdc.score(model, task, "eap-ig", graph=circuit), "a graph"),  # type: ignore[arg-type]
        (lambda: acdc.discover(model, task, edges=np.zeros(3)), "a number of edges"),  # type: ignore[arg-type]
        (lambda: acdc.load("tracr-reverse", tokenizer=[1]), "a tokenizer"),
        (lambda: acdc.load("tracr-reverse", device=10**30), "a device"),  # type: ignore[arg-type]
        (lambda: acdc.load("tracr-reverse", dtype=np.zeros(3)), "dtype"),  # type: ignore[arg-type]
        (lambda: acdc.load("tracr-reverse", trust_remote_code="no"), "True or False"),  # type: ignore[arg-type]
    ]
    for call, message in wrong:
        with pytest.raises(AcdcError, match=message):
            call()


def _circuit() -> acdc.Circuit:
    graph = acdc.Graph(n_layers=2, n_heads=2)
    return acdc.Circuit(graph, graph.valid, acdc.Scores(graph, graph.valid.astype(float)))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda c: c.scores.top(10.5), "a number of edges as a whole number of at least 0, got 10.5"),
        (lambda c: c.scores.top(True), "a number of edges as a whole number"),
        (lambda c: c.scores.top("5"), "a number of edges as a whole number"),
        (lambda c: c.scores.threshold("a"), "a threshold as a number"),
        (lambda c: c.scores[3], "the name of an edge, like 'a0.h1->m2', got int"),
        (lambda c: 3 in c, "the name of an edge"),
        (lambda c: acdc.Circuit.from_names(c.graph, "input->logits"), "edges as a list of names"),
        (lambda c: acdc.Circuit.from_names(c.graph, None), "edges as a list of names"),
        (lambda c: acdc.Circuit(None, c.edges), "a Graph"),
        (lambda c: acdc.Circuit(c.graph, c.edges, scores=3), "scores as Scores"),
        (lambda c: acdc.Circuit(c.graph, c.edges, provenance={}), "the provenance"),
        (lambda c: acdc.Scores(c.graph, c.scores.values + 5j), "scores as real numbers, got complex"),
        (lambda c: acdc.Circuit.load(None), "a path, got None"),
        (lambda c: c.save(""), "a path, got ''"),
        (lambda c: acdc.viz.draw(None), "a Circuit"),
        (lambda c: acdc.viz.draw(c.scores), "a Circuit"),
        (lambda c: acdc.viz.draw(c, max_edges="a"), "max_edges as a whole number"),
        (lambda c: acdc.viz.write_page(None), "a Circuit, or circuits by name"),
        (lambda c: acdc.metrics.spearman(c.scores, c.scores), "scores as an array of numbers, got Scores"),
        (lambda c: acdc.metrics.roc_auc("ab", [True, False]), "scores as an array of numbers, got str"),
    ],
)  # fmt: skip
def test_arguments_of_another_kind_are_named(call: Callable[[acdc.Circuit], object], expected: str) -> None:
    with pytest.raises(AcdcError, match=f"expected {re.escape(expected)}"):
        call(_circuit())


def test_autocast_is_refused() -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=8)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(AcdcError, match="outside of it"):
        acdc.score(model, task)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda m, t, c: acdc.score(m, t, "acdc", taus=[-1, 0.1]), "taus as thresholds above 0"),
        (lambda m, t, c: acdc.score(m, t, "acdc", taus=[]), "taus as thresholds above 0, at least one"),
        (lambda m, t, c: acdc.discover(m, t, "eap", threshold=0.1, select="greedy"), "a threshold needs none"),
        (lambda m, t, c: acdc.score(m, t, "eap", resume=3), "expected a path, got 3"),
        (lambda m, t, c: acdc.evaluate(m, t, c, confidence="a"), "a confidence as a number"),
        (lambda m, t, c: acdc.curve(m, t, c.scores, shares=0.5), "two shares of the edges or more"),
        (lambda m, t, c: acdc.curve(m, t, c.scores, shares=[0.1, 2]), "rising shares above 0 and up to 1"),
        (lambda m, t, c: acdc.completeness(m, t, c, classes=["a"]), "classes as a mapping"),
        (lambda m, t, c: acdc.ablate(m, t, 3), "parts as a list of names"),
        (lambda m, t, c: acdc.audit(m, t, c, checks="held-out"), "checks as a list of names"),
        (lambda m, t, c: acdc.CircuitModel.of(m, t, None), "a Circuit"),
        (lambda m, t, c: acdc.inspection.removal_effects(m, t, None), "a Circuit"),
        (lambda m, t, c: acdc.inspection.logit_lens(m, t, examples=-1), "a number of examples of at least 1"),
        (lambda m, t, c: acdc.inspection.attention_patterns(m, t, heads="a1.h1"), "heads as a list of names"),
    ],
)  # fmt: skip
def test_calls_refuse_what_they_cannot_use(call: Callable[..., object], expected: str) -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=8)
    graph = model.graph()
    circuit = acdc.Circuit(graph, graph.valid, acdc.Scores(graph, graph.valid.astype(float)))
    with pytest.raises(AcdcError, match=re.escape(expected)):
        call(model, task, circuit)
