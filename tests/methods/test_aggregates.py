"""The sizes of scores are what single prompts say: each prompt scored alone, and then aggregated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import acdc
import problems
from acdc.circuit import Scores
from acdc.errors import AcdcError
from acdc.tasks.prompts import Prompts


def pairs() -> Prompts:
    return problems.make_prompts(size=5, padding="both")


@pytest.mark.parametrize("batch_size", [2, 5])
@pytest.mark.parametrize("method", ["eap", "eap-ig", "clean-corrupted", "exact"])
def test_are_those_of_prompts_scored_one_by_one(method: str, batch_size: int) -> None:
    model, prompts = problems.tiny("llama"), pairs()
    how: dict[str, Any] = {"metric": "logit-difference", "graph": model.graph(group_kv=True)}  # ports are merged
    alone = np.stack([acdc.score(model, prompts[i : i + 1], method, **how).values for i in range(len(prompts))])
    scores = acdc.score(model, prompts, method, batch_size=batch_size, **how)
    assert scores.absolute is not None
    assert scores.rms is not None
    expected = alone.mean(0), np.abs(alone).mean(0), np.sqrt(np.square(alone).mean(0))
    for found, wanted in zip((scores.values, scores.absolute, scores.rms), expected, strict=True):
        assert np.abs(found - wanted).max() < 1e-9 * wanted.max()
    assert (np.abs(scores.values) < 0.5 * scores.absolute)[scores.graph.valid].any()  # prompts do cancel here


def test_rankings_go_by_the_mean_of_absolute_scores_unless_told_otherwise() -> None:
    scores = acdc.score(problems.tiny("gpt2"), pairs(), "eap-ig", metric="logit-difference")
    assert scores.absolute is not None
    best = [np.argsort(-scores.sizes(how).ravel())[:9] for how in ("mean-absolute", "rms", "signed")]
    for how, expected in zip((None, "rms", "signed"), best, strict=True):
        circuit = scores.top(9, aggregate=how, prune=False)
        assert set(np.flatnonzero(circuit.edges)) == set(expected)
        assert circuit.provenance.selection["aggregate"] == (how or "mean-absolute")
        assert (circuit.sizes() == scores.sizes(how)).all()
    assert len({tuple(sorted(edges)) for edges in best}) > 1
    assert scores.threshold(0.0, by="signed").provenance.selection["aggregate"] == "signed"


def test_discover_ranks_by_the_aggregate_that_it_is_given() -> None:
    how: dict[str, Any] = {"metric": "kl", "edges": 12}
    found = [
        acdc.discover(problems.tiny("gpt2"), pairs(), "eap-ig", aggregate=aggregate, **how)
        for aggregate in (None, "mean-absolute", "signed")
    ]
    assert found[0] == found[1] != found[2]
    assert [c.aggregate for c in found] == ["mean-absolute", "mean-absolute", "signed"]


def test_a_method_without_scores_of_single_prompts_has_only_the_signed_mean() -> None:
    model, prompts = problems.tiny("gpt2"), pairs()
    scores = acdc.score(model, prompts, "random", metric="kl")
    assert scores.aggregate == "signed"
    assert scores.top(5, prune=False).provenance.selection["aggregate"] == "signed"
    with pytest.raises(AcdcError, match=r"by 'random' have no rms over prompts.*use aggregate 'signed'"):
        scores.top(5, aggregate="rms")
    with pytest.raises(AcdcError, match="aggregate='rms' is of a ranking, and guided searches"):
        acdc.discover(model, prompts, metric="kl", aggregate="rms")
    with pytest.raises(AcdcError, match="unknown aggregate 'mean': did you mean mean-absolute"):
        acdc.discover(model, prompts, "eap-ig", metric="kl", aggregate="mean")  # type: ignore[arg-type]
    with pytest.raises(AcdcError, match="by='signed' ranks by the signed mean"):
        scores.top(5, by="signed", aggregate="rms")
    graph = model.graph()
    with pytest.raises(AcdcError, match="expected absolute scores of at least 0, got -1"):
        Scores(graph, np.zeros(graph.valid.shape), absolute=-np.ones(graph.valid.shape))
