"""Two processes that share the prompts find what one finds, and one of them that fails ends the work of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import two_processes
from acdc.engine.ranks import ALONE, Ranks

EXACTLY = ("acdc", "guided", "faithful", "exact, resumed", "guided, resumed")
"""Circuits, whose edges are to be the same."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[dict[str, Any], str, str]]]:
    folder = tmp_path_factory.mktemp("two")
    return folder, two_processes.run(folder)


Found = tuple[Path, list[tuple[dict[str, Any], str, str]]]


@pytest.mark.filterwarnings("ignore")
def test_two_processes_find_what_one_finds(found: Found) -> None:
    (first, *_), (second, *_) = found[1]
    alone = two_processes.everything()
    for name, expected in alone.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        if expected.dtype == bool:
            assert (first[name] == expected).all(), name
        else:
            np.testing.assert_allclose(first[name], expected, rtol=1e-6, atol=1e-9, err_msg=name)
    assert alone["acdc"].any()
    assert 0 < alone["guided, cut"].sum() < alone["guided"].sum() < alone["guided"].size


@pytest.mark.filterwarnings("ignore")
def test_what_was_interrupted_goes_on_in_each(found: Found, tmp_path: Path) -> None:
    alone = two_processes.resumed(tmp_path)
    for own, *_ in found[1]:
        assert (own["exact, resumed"] == alone["exact, resumed"]).all()
        assert (own["guided, resumed"] == alone["guided, resumed"]).all()
    first = found[1][0][0]
    assert first["exact, noted"] == ["progress of exact", "progress of exact.1"]
    assert first["guided, noted"] == ["progress of guided"]
    assert first["exact, left"] == first["guided, left"] == []


def test_a_failure_of_one_is_that_of_all(found: Found) -> None:
    (first, *_), (second, *_) = found[1]
    assert "ValueError: no such number" in second["refused"]["failed"]
    assert first["refused"]["failed"] == second["refused"]["failed"] + " (process 2 of 2)"
    for own in (first, second):
        assert "were given different work" in own["refused"]["different"]


def test_only_the_first_speaks_and_writes(found: Found) -> None:
    folder, ((first, out, err), (second, *silent)) = found
    assert first["status"] == second["status"] == [0, 2]  # the second time the folder exists
    assert silent[0] == ""
    assert "faithfulness" in out
    assert err.count("error: ") == 1
    assert "run exists" in err
    assert (folder / "run" / "circuit.json").is_file()


def test_a_call_of_one_process_waits_for_nobody(found: Found) -> None:
    assert all(own["alone"] for own, *_ in found[1])


@given(st.integers(1, 9), st.integers(0, 90), st.integers(1, 40))
def test_all_have_some_prompts_and_none_is_left(count: int, more: int, most: int) -> None:
    prompts = count + more
    size = ALONE.size_of_batch(prompts, most) if count == 1 else Ranks(0, count).size_of_batch(prompts, most)
    batches = -(-prompts // size)
    shares = [list(Ranks(rank, count).share(batches)) for rank in range(count)]
    assert 1 <= size <= most
    assert [i for share in shares for i in share] == list(range(batches))
    assert all(shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
