"""Suites hold what their names say, and parts of them can be asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

import acdc
from acdc.benchmarks.suites import SUITES, check_digest, get_suite, own_suite
from acdc.errors import AcdcError
from acdc.model.programs.tracr import builtin_names
from command_line import write_prompts
from hooked_folder import write_case


def test_the_tracr_suite_is_every_shipped_program_with_a_truth() -> None:
    suite = get_suite("tracr")
    assert [case.model for case in suite.cases] == builtin_names()
    for case in suite.cases:
        task = acdc.tasks.load(case.task, ablation=case.ablation, **case.task_options)
        assert task.truth().name == "resample/varied"


@pytest.mark.parametrize("name", SUITES)
def test_every_case_has_a_name_of_its_own_and_a_task(name: str) -> None:
    suite = get_suite(name)
    assert len({case.name for case in suite.cases}) == len(suite.cases) > 0
    for case in suite.cases:
        assert acdc.tasks.load(case.task, ablation=case.ablation, **case.task_options).name == case.task


def test_cases_by_name_and_by_pattern() -> None:
    names = [case.name for case in get_suite("tracr", cases=["sort-*", "hist", "tracr-hist"]).cases]
    assert names == ["hist", "sort-descending", "sort-freq", "sort-unique"]


def test_unknown_names_name_the_nearest() -> None:
    with pytest.raises(AcdcError, match="unknown suite 'trace': did you mean tracr"):
        get_suite("trace")
    with pytest.raises(AcdcError, match="did you mean reverse"):
        get_suite("tracr", cases=["revers"])
    with pytest.raises(AcdcError, match=r"no case of suite 'smoke' is like 'x\*'; known: hist"):
        get_suite("smoke", cases=["x*"])


def test_cases_of_files_are_named_by_what_is_in_them(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_case(tmp_path / name / "19")
    first, same = (get_suite(str(tmp_path / name), cases=["1*"]).cases for name in ("first", "second"))
    assert first[0].name == same[0].name
    path = tmp_path / "second" / "19" / "ll_model.pth"
    path.write_bytes(path.read_bytes() + b" ")
    (other,) = get_suite(str(tmp_path / "second")).cases
    assert other.name.startswith("19-")
    assert other.name != first[0].name
    check_digest(other)
    with pytest.raises(AcdcError, match="are not those that the benchmark was started with"):
        check_digest(same[0])


def test_ones_own_cases_differ_by_all_that_they_are_of(tmp_path: Path) -> None:
    write_prompts(tmp_path / "pairs.jsonl", right=4, wrong=0)
    task = str(tmp_path / "pairs.jsonl")
    suites = [
        own_suite("one/gpt2", task), own_suite("two/gpt2", task), own_suite("one/gpt2", "ioi"),
        own_suite("one/gpt2", task, ablation="zero"), own_suite("one/gpt2", task, metric="kl"),
    ]  # fmt: skip
    assert len({suite.cases[0].name for suite in suites}) == len(suites)
