"""Rules that cut a ranking to a number of edges, against all circuits there are, or loops over resamples."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from acdc.circuit import Circuit, Provenance, Scores, rules
from acdc.errors import AcdcError, EmptyCircuitError
from acdc.graph import Graph

SMALL = Graph(n_layers=1, n_heads=1)


def scores(graph: Graph, seed: int = 0, prompts: int = 20) -> tuple[Scores, np.ndarray]:
    """Scores, and what they are means of, `[prompt, n_destinations, n_sources]`."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(prompts, *graph.valid.shape)) + rng.normal(size=graph.valid.shape)
    effects = np.where(graph.valid, effects, 0.0)
    rms = np.sqrt(np.square(effects).mean(0))
    return Scores(graph, effects.mean(0), absolute=np.abs(effects).mean(0), rms=rms), effects


@pytest.mark.parametrize(
    "graph", [SMALL, Graph(n_layers=1, n_heads=2, n_kv_heads=1, group_kv=True)], ids=["one", "group"]
)
@pytest.mark.parametrize("n", [1, 3, 5])
def test_an_integer_program_finds_the_best_of_all_circuits(graph: Graph, n: int) -> None:
    made, _ = scores(graph, seed=n)
    values, places = made.sizes(), np.argwhere(graph.valid)
    best = 0.0
    for k in range(1, n + 1):
        for chosen in itertools.combinations(range(len(places)), k):
            edges = np.zeros_like(graph.valid)
            edges[tuple(places[list(chosen)].T)] = True
            if (graph.prune(edges) == edges).all():
                best = max(best, float(values[edges].sum()))
    circuit = made.top(n, select="ilp").edges
    assert circuit.sum() <= n
    assert (graph.prune(circuit) == circuit).all()
    assert float(values[circuit].sum()) == pytest.approx(best)


def test_a_ratio_of_signs_is_kept_before_what_dangles_goes() -> None:
    graph = Graph(n_layers=2, n_heads=3)
    made, _ = scores(graph)
    order = rules.by_ratio(graph, made.values, made.sizes(), 0.7)
    sign = made.values.ravel()[order] > 0
    for length in (10, 20, len(order)):
        assert abs(sign[:length].mean() - 0.7) <= 1 / length
    for kind in (sign, ~sign):
        sizes = made.sizes().ravel()[order[kind]]
        assert (np.diff(sizes) <= 0).all()
    with pytest.warns(UserWarning, match=r"50% of the kept edges have a positive score instead of 70%"):
        assert made.top(12, select="pnr=0.7").n_edges >= 12


def test_the_share_of_resamples_that_keep_a_sign() -> None:
    graph = Graph(n_layers=2, n_heads=3)
    made, effects = scores(graph, prompts=40)
    drawn = np.random.default_rng(1).integers(40, size=(3000, 40))
    means = np.stack([effects[rows].mean(0) for rows in drawn])
    expected = (np.sign(means) == np.sign(made.values)).mean(0)
    found = rules.consistency(made, 40)
    assert np.abs(found - expected)[graph.valid].max() < 0.04
    circuit = made.top(12, select="bootstrap=0.9", prompts=40)
    assert (found[circuit.edges] >= 0.9).all()


def test_scores_that_were_saved_are_still_resampled(tmp_path: Path) -> None:
    made, _ = scores(Graph(n_layers=2, n_heads=3), prompts=40)
    made = dataclasses.replace(made, provenance=Provenance(n_prompts=40))
    made.top(12).save(tmp_path / "run")
    again = Circuit.load(tmp_path / "run").scores
    assert again is not None
    assert again.top(12, select="bootstrap=0.9") == made.top(12, select="bootstrap=0.9", prompts=40)


@pytest.mark.parametrize(
    ("select", "what"),
    [
        ("best", "selection"),
        ("pnr=2", "between 0 and 1"),
        ("pnr=x", "between 0 and 1"),
        ("ilp=0", "seconds above 0"),
        ("top=3", "no number"),
        ("bootstrap", "at least 8 prompts"),
    ],
)
def test_what_cannot_be_is_refused(select: str, what: str) -> None:
    made, _ = scores(SMALL)
    with pytest.raises(AcdcError, match=what):
        made.top(3, select=select)


def test_rules_say_what_they_lack() -> None:
    made, _ = scores(SMALL)
    with pytest.raises(AcdcError, match="single prompts"):
        Scores(SMALL, made.values).top(3, select="bootstrap", prompts=20)
    with pytest.raises(AcdcError, match="at least 8"):
        made.top(3, select="bootstrap", prompts=4)
    one_hinders = SMALL.valid.astype(float)
    one_hinders.flat[np.flatnonzero(SMALL.valid)[0]] = -1
    with pytest.raises(EmptyCircuitError, match="the 2 best edges with this ratio"):
        Scores(SMALL, one_hinders).top(3, select="pnr=0.01")
    for select in ("pnr=0.5", "bootstrap"):
        with pytest.raises(AcdcError, match="all by 'eap' have one sign"):
            dataclasses.replace(made, values=np.abs(made.values), method="eap").top(3, select=select, prompts=20)
    with pytest.raises(AcdcError, match="dangles"):
        made.top(3, select="ilp", prune=False)
    large = Graph(n_layers=12, n_heads=20)
    assert large.n_edges > rules.MOST_EDGES
    with pytest.raises(AcdcError, match="too large"):
        Scores(large, large.valid.astype(float)).top(10, select="ilp")
