"""Real language models, where they are in the cache (`acdc models fetch`): run with `-m real`."""

from __future__ import annotations

import numpy as np
import pytest

import acdc
from acdc.model.pretrained import PRETRAINED, fetched_folder
from acdc.tasks.check import check_task

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("default")]
MODELS = [
    pytest.param(name, marks=pytest.mark.skipif(fetched_folder(name) is None, reason=f"acdc models fetch {name}"))
    for name in PRETRAINED
]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> acdc.Model:
    return acdc.load(request.param)


def test_it_does_the_tasks_and_says_what_it_was_quantised_to(model: acdc.Model) -> None:
    assert "4-bit" in model.note
    for task in ("ioi", "gendered-pronoun", "fact-recall", "greater-than", "docstring", "induction"):
        assert check_task(model, acdc.tasks.load(task, size=16)).usable, task


def test_scores_are_the_first_order_effect_of_removal(model: acdc.Model) -> None:
    """The strongest edges into the logits read a nearly linear part: exact removal and EAP-IG agree there."""
    task = acdc.tasks.load("ioi", size=4)
    scores = acdc.score(model, task, method="eap-ig")
    graph = scores.graph
    into_logits = np.flatnonzero(graph.valid[-1])
    best = into_logits[np.argsort(-np.abs(scores.values[-1, into_logits]))][:10]
    data = task.prepare(model)
    full = acdc.Circuit(graph, graph.valid)
    kept = acdc.evaluate(model, data, full, random_circuits=0)
    assert kept.faithfulness == pytest.approx(1)
    effects = []
    for source in best:
        edges = graph.valid.copy()
        edges[-1, source] = False
        judged = acdc.evaluate(
            model, data.discovery, acdc.Circuit(graph, edges), metric=data.metric, random_circuits=0
        )
        effects.append(judged.full - judged.circuit)
    assert np.corrcoef(effects, scores.values[-1, best])[0, 1] > 0.9


def test_the_best_edges_are_better_than_random_ones(model: acdc.Model) -> None:
    task = acdc.tasks.load("ioi", size=8)
    circuit = acdc.score(model, task, method="eap-ig").top(model.graph().n_edges // 5)
    judged = acdc.evaluate(model, task, circuit, random_circuits=1)
    assert judged.faithfulness > 0.6 > max(judged.random_faithfulness)
