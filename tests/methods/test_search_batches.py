"""A search whose prompts come in batches decides as one that has them all at once, in memory or on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import acdc
import problems
from acdc.engine.batches import Batches
from acdc.engine.measure import Measures
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.engine.shelf import Shelf
from acdc.methods.search import Search
from acdc.metrics import OUTCOMES
from acdc.tasks.prompts import Prompts

SIZES = (1, 3, 7)
CASES = [
    ("induction-2l", "induction", "acdc"),
    ("tracr-reverse", "tracr-reverse", "guided"),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("induction-2l", "induction", "guided"),
            ("tracr-hist", "tracr-hist", "acdc"),
            ("tracr-hist", "tracr-hist", "guided"),
            ("tiny-tasks-gqa", "greater-than", "acdc"),
            ("tiny-tasks-gqa", "greater-than", "guided"),
        )
    ),
]


def assert_same(found: acdc.Circuit, expected: acdc.Circuit) -> None:
    assert found.edge_names() == expected.edge_names()
    assert found.scores is not None
    assert expected.scores is not None
    assert found.scores.removal is not None
    scale = np.nanmax(np.abs(expected.scores.removal), initial=0.0)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.scores.removal, expected.scores.removal, atol=1e-4 * scale)
    np.testing.assert_allclose(found.scores.values, expected.scores.values, atol=1e-4 * scale)


@pytest.mark.parametrize(("name", "task", "method"), CASES)
def test_batches_of_any_size_give_the_same_circuit(name: str, task: str, method: str) -> None:
    model = acdc.load(name)
    data = acdc.tasks.load(task, size=9).prepare(model)
    share = {"faithfulness": 0.7} if method == "guided" else {}
    expected = acdc.discover(model, data, method, **share)
    assert 0 < expected.n_edges < model.graph().n_edges
    for size in SIZES:
        assert_same(acdc.discover(model, data, method, batch_size=size, **share), expected)


def measures(family: str, size: int, prompts: Prompts, *, offload: bool, ablation: Any = "resample") -> Measures:
    model = problems.tiny(family)
    problem = Problem(model, model.graph(), prompts, OUTCOMES["kl"], ablation, size)
    return Measures(OUTCOMES["kl"], dataclasses.replace(problem.batches("search"), offload=offload))


@pytest.mark.parametrize(
    ("family", "ablation", "offload"),
    [
        ("gpt2-scaled-by-layer", "resample", True),
        ("olmo2", "mean", False),
        ("gpt-neox-parallel", "zero", True),
        ("llama", "resample", False),
    ],
)
def test_batches_that_differ_in_where_prompts_begin_to_differ(family: str, ablation: str, offload: bool) -> None:
    """And in whether all positions after that are read."""
    prompts = problems.make_prompts(size=5, reads=3, shared=1)
    prompts.corrupted[:2, :3] = prompts.clean[:2, :3]
    kept = problems.tiny(family).graph().valid.copy()
    kept[np.random.default_rng(0).random(kept.shape) < 0.3] = False
    found = []
    for size, on_disk in ((5, False), (2, offload)):
        batches = measures(family, size, prompts, offload=on_disk, ablation=ablation)
        search = Search(batches, kept=kept)
        tau = 0.01 * search.measures.separation()
        for share in (1.0, 4.0):
            search.sweep(lambda new, old, tau=share * tau: new - old < tau)  # type: ignore[misc]
        alone = Search(batches, kept=search.kept)
        alone.sweep(lambda new, old: False, expected=False)
        found.append((search.kept, search.distance, alone.removal(), alone.distance))
    whole, parts = found
    assert 0 < whole[0].sum() < kept.sum()
    for ours, theirs in zip(parts, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


def test_what_waits_on_disk_is_gone_with_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    search = Search(measures("gpt2", 2, problems.make_prompts(size=5), offload=True))
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == 3
    search.sweep(lambda new, old: False)
    sizes = [file.stat().st_size for file in folder.iterdir()]
    for _ in range(3):
        search.sweep(lambda new, old: False)
    assert [file.stat().st_size for file in folder.iterdir()] == sizes  # places are used again
    del search
    assert not list(tmp_path.iterdir())


def test_what_waits_on_disk_takes_no_memory_and_comes_back_as_it_was_left() -> None:
    shelf = Shelf[dict[str, Any]](on_disk=True)
    for i in range(3):
        shelf.add({"numbers": [torch.full((2, 3), i), torch.tensor(i % 2 == 1)], "name": str(i)})
    opened = [(thing, thing["numbers"][0]) for thing in shelf]
    assert all(tensor.numel() == 0 for _, tensor in opened)
    for thing in shelf:
        thing["numbers"][0] += 10  # written to
        thing["numbers"][1] = torch.arange(5.0)[1::2]  # replaced
        thing["more"] = torch.ones(1000)  # and new
    for i, thing in enumerate(shelf):
        assert thing["name"] == str(i)
        assert thing["numbers"][0].tolist() == [[10 + i] * 3] * 2
        assert thing["numbers"][1].tolist() == [1.0, 3.0]
        assert thing["more"].sum() == 1000


def test_one_batch_of_many_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    living = set[int]()
    start, stop = Patching.__init__, getattr(Patching, "__del__", None)
    assert stop is None

    def born(self: Patching, *args: Any, **options: Any) -> None:
        living.add(id(self))
        alive.append(len(living))
        start(self, *args, **options)

    monkeypatch.setattr(Patching, "__init__", born)
    monkeypatch.setattr(Patching, "__del__", lambda self: living.discard(id(self)), raising=False)
    Search(measures("gpt2", 1, problems.make_prompts(size=5), offload=True)).sweep(lambda new, old: False)
    assert len(alive) >= 5
    assert max(alive) <= 2  # the next is made while the last one's name still holds it


def test_a_metric_that_is_no_number_names_the_prompt_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = measures("gpt2", 2, problems.make_prompts(size=5), offload=False)
    search = Search(batches)
    for part in search._parts:
        part.state.final_x[-1, -1] = float("nan")
    with pytest.raises(acdc.AcdcError, match="prompts 2, 4, 5"):
        search.sweep(lambda new, old: False)


def test_batches_are_made_once_if_there_is_one_only() -> None:
    prompts = problems.make_prompts(size=3)
    made: list[Prompts] = []
    model = problems.tiny("gpt2")

    def make(some: Prompts) -> Patching:
        made.append(some)
        return Patching(model, model.graph(), some)

    one = Batches(prompts, 3, make, 9)
    assert list(one) == list(one)
    assert len(made) == 1
    several = Batches(prompts, 2, make, 9)
    assert torch.equal(torch.cat([p.prompts.clean for _ in range(2) for p in several]), prompts.clean.repeat(2, 1))
    assert len(made) == 5
    kept = Batches(prompts, 2, make, 9, keep=True)
    assert list(kept) == list(kept)
    assert len(made) == 7
