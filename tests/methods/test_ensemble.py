"""An ensemble is what its members say, each by its own measure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import problems
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.methods import METHODS, Estimates
from acdc.metrics import OUTCOMES


def estimates(name: str, metric: str = "logit-difference", **options: Any) -> Estimates:
    score, model = METHODS[name].score, problems.tiny("llama")
    assert score is not None
    return score(Problem(model, model.graph(), problems.make_prompts(), OUTCOMES[metric]), **options)


@pytest.mark.parametrize(("combine", "rule"), [("mean", np.mean), ("min", np.min), ("max", np.max)])
def test_an_edge_has_the_mean_least_or_largest_of_normalised_sizes(combine: str, rule: Any) -> None:
    members = [estimates("eap").absolute, estimates("clean-corrupted").absolute]
    expected = rule([m / m.max() for m in members if m is not None], axis=0)
    found = estimates("ensemble", members="eap, clean-corrupted", combine=combine)
    np.testing.assert_allclose(found.absolute, expected)
    np.testing.assert_allclose(np.abs(found.values), expected)


def test_ranks_do_not_know_units() -> None:
    found = estimates("ensemble", members="eap,relp", normalise="rank").absolute
    assert found is not None
    valid = problems.tiny("llama").graph().valid
    assert found[valid].max() <= 1
    assert found[valid].mean() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ("eap", "two members"),
        ("eap,eap", "each once"),
        ("eap,ensemble", "no ranking of its own"),
        ("eap,epa", "method"),
    ],
)
def test_members_that_cannot_be_are_refused(members: str, what: str) -> None:
    with pytest.raises(AcdcError, match=what):
        estimates("ensemble", members=members)


def test_a_member_that_cannot_take_the_metric_is_named() -> None:
    with pytest.raises(AcdcError, match="where eap takes it"):
        estimates("ensemble", metric="kl", members="eap,eap-ig")
