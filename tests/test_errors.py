"""Errors for unknown names."""

from __future__ import annotations

from acdc.errors import unknown


def test_near_misses_are_named() -> None:
    assert str(unknown("method", "guded", ["guided", "acdc"])) == "unknown method 'guded': did you mean guided?"


def test_few_names_are_listed_and_many_are_cut() -> None:
    assert str(unknown("style", "x", ["b", "a"])) == "unknown style 'x': known: a, b"
    message = str(unknown("source", "x", [f"a{layer:02}.h0" for layer in range(50)]))
    assert message.endswith("a18.h0, a19.h0 and 30 more")


def test_what_is_not_even_a_name_is_unknown_too() -> None:
    assert str(unknown("order", 3, ["abba"])) == "unknown order 3: known: abba"
