"""Nodes as units: every ranking and every search does what a plain loop over nodes does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import acdc
import problems
from acdc.circuit import Circuit
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.graph import BoolArray, units_of
from acdc.methods import METHODS, Target
from acdc.metrics import OUTCOMES


def make(family: str = "gpt2", **options: Any) -> Problem:
    model = problems.tiny(family)
    given = {"ablation": "resample", "batch_size": 2, "unit": "node"} | options
    return Problem(model, model.graph(), problems.make_prompts(size=5), OUTCOMES["logit-difference"], **given)


def measured(problem: Problem, kept: BoolArray) -> tuple[float, float]:
    """Metric and distance of the circuit of these nodes, on all prompts at once."""
    return of_edges(problem, problem.units.mask(kept))


def of_edges(problem: Problem, edges: BoolArray) -> tuple[float, float]:
    """The same of these edges."""
    patching = problem._patching(problem.prompts)
    from acdc.engine.measure import bind

    measure = bind(problem.outcome, patching)
    with torch.no_grad():
        found = measure.both(patching.logits(edges, rows=measure.rows))
    value, distance = (float(x.mean()) for x in found)
    return value, distance


@pytest.mark.parametrize(
    ("family", "ablation"),
    [
        *(("gpt2", ablation) for ablation in ("resample", "zero", "mean")),
        ("gpt-neox-parallel", "resample"), ("llama", "mean-position"), ("gemma2", "resample"), ("olmo2", "zero"),
    ],
)  # fmt: skip
def test_exact_is_a_loop_over_nodes(family: str, ablation: str) -> None:
    problem = make(family, ablation=ablation)
    score = METHODS["exact"].score
    assert score is not None
    whole = problem.graph.valid
    full, _ = of_edges(problem, whole)
    others = [np.arange(problem.units.n) != i for i in range(problem.units.n)]
    expected = [full - of_edges(problem, whole & kept)[0] for kept in others]  # without what it writes
    assert score(problem).values == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("method", ["eap", "eap-ig", "clean-corrupted"])
def test_attribution_of_a_node_is_the_sum_over_its_edges(method: str) -> None:
    score = METHODS[method].score
    assert score is not None
    nodes, edges = score(make()), score(make(unit="edge"))
    assert nodes.values == pytest.approx(edges.values.sum(axis=0))
    assert nodes.absolute is not None
    assert (nodes.absolute >= np.abs(nodes.values) - 1e-12).all()


@pytest.mark.parametrize(
    ("tau", "options"),
    [
        *((tau, {}) for tau in (1e-3, 0.02, 0.1, 1.0)),
        (0.02, {"family": "olmo2", "ablation": "zero"}),  # heads that share a norm
        (0.02, {"family": "gpt-neox-parallel", "ablation": "mean", "batch_size": 1}),
        (0.05, {"family": "llama", "batch_size": None}),
    ],
    ids=str,
)
def test_acdc_is_the_loop_of_the_paper_over_nodes(tau: float, options: dict[str, Any]) -> None:
    problem = make(**options)
    kept = np.ones(problem.units.n, dtype=bool)
    _, distance = measured(problem, kept)
    for node in reversed(range(len(kept))):
        without = kept & (np.arange(len(kept)) != node)
        new = measured(problem, without)[1]
        if new - distance < tau:
            kept, distance = without, new
    search = METHODS["acdc"].search
    assert search is not None
    found = search(problem, Target(threshold=tau)).edges
    connected = problem.units.of_edges(problem.graph.prune(problem.units.mask(kept)))
    assert (found == kept).all() or (found == connected).all()


@pytest.mark.parametrize(("faithfulness", "family"), [(0.5, "gpt2"), (0.9, "gpt2"), (0.8, "olmo2")])
def test_guided_leaves_nodes_of_which_each_is_needed(faithfulness: float, family: str) -> None:
    problem = make(family)
    search = METHODS["guided"].search
    assert search is not None
    found = search(problem, Target(faithfulness=faithfulness))
    budget = found.selection["budget"]
    value, distance = measured(problem, found.edges)
    assert distance <= budget + 1e-9
    assert found.removal is not None
    for node in np.flatnonzero(found.edges):
        without, worse = measured(problem, found.edges & (np.arange(len(found.edges)) != node))
        assert worse > budget
        assert found.removal[node] == pytest.approx(value - without, abs=1e-9)
    assert np.isnan(found.removal[~found.edges]).all()


def test_node_circuits_are_scored_saved_loaded_evaluated_and_drawn(tmp_path: Path) -> None:
    model = acdc.load("tracr-add-first-last")
    data = acdc.tasks.load("tracr-add-first-last").prepare(model)
    scores = acdc.score(model, data, "eap-ig", units="node")
    circuit = acdc.discover(model, data, "acdc", units="node")
    units = units_of(circuit.graph, "node")
    assert circuit.unit == scores.unit == "node"
    assert circuit.n_units == units.of_edges(circuit.edges).sum() == len(circuit.nodes()) - 1
    loaded = Circuit.load(circuit.save(tmp_path / "run"))
    assert (loaded, loaded.unit, loaded.n_units) == (circuit, "node", circuit.n_units)
    assert loaded.scores is not None
    assert loaded.scores.unit == "node"
    evaluation = acdc.evaluate(model, data, loaded, random_circuits=2)
    assert evaluation.faithfulness > 0.9
    from acdc import viz

    assert f"{circuit.n_units} of {units.n} nodes" in viz.draw(loaded).content.decode()
    few = scores.top(3)
    assert (few.unit, few.n_units) == ("node", 3)
    assert acdc.discover(model, data, "eap-ig", units="node", edges=3) == few
    with pytest.raises(AcdcError, match="did you mean node"):
        acdc.score(model, data, "eap-ig", units="nodes")  # type: ignore[arg-type]
