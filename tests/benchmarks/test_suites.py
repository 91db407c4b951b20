"""Suites hold what their names say, and parts of them can be asked for."""

from __future__ import annotations

import pytest

import acdc
from acdc.benchmarks.suites import SUITES, get_suite
from acdc.errors import AcdcError
from acdc.model.programs.tracr import builtin_names


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
