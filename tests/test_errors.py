"""Errors for unknown names, and for arguments of other types."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

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
