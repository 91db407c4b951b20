"""Suites: what methods are compared on.

A case is a model, a task of it and the graph whose edges count. Where the true circuit is known it comes with the
task, for the same ablation and the same distribution of inputs as the prompts.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from acdc.errors import AcdcError, unknown
from acdc.model.tracr import builtin_names


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem for every method.

    Attributes:
        name: unique in its suite.
        task, task_options: as for `acdc.tasks.load`.
        ablation: what removed edges carry; None: the task's own.
        inputs: whether token and position are one source of the graph, or two ("split").
        gradient_metric: the metric that methods are given, instead of the task's, that see only its gradient at the
            clean prompt: there a distance from the full model has none.
    """

    name: str
    model: str
    task: str
    task_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ablation: str | None = None
    inputs: Literal["single", "split", "token"] = "single"
    gradient_metric: str | None = None


@dataclasses.dataclass(frozen=True)
class Suite:
    """Cases that are reported together."""

    name: str
    description: str
    cases: tuple[Case, ...]


def _tracr(names: Sequence[str], *, ablation: str = "resample", distribution: str = "varied") -> tuple[Case, ...]:
    return tuple(
        Case(
            name.removeprefix("tracr-"), name, name, {"distribution": distribution}, ablation, inputs="split",
            gradient_metric="projection",
        )
        for name in names
    )  # fmt: skip


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "tracr",
            "compiled programs; resample ablation, inputs that differ in tokens, lengths and positions",
            _tracr(builtin_names()),
        ),
        Suite(
            "tracr-zero",
            "compiled programs; zero ablation, inputs of mixed lengths",
            _tracr(builtin_names(), ablation="zero", distribution="mixed"),
        ),
        Suite(
            "smoke",
            "a few small compiled programs, to try things out",
            _tracr([f"tracr-{name}" for name in ("hist", "reverse", "proportion", "sort", "weighted")]),
        ),
        Suite(
            "trained",
            "a trained model, whose true circuit nobody knows: faithfulness only",
            tuple(
                Case(f"induction-2l-{ablation}", "induction-2l", "induction", ablation=ablation)
                for ablation in ("resample", "mean", "zero")
            ),
        ),
    )
}
"""Every suite by name."""


def get_suite(name: str, *, cases: Sequence[str] | None = None) -> Suite:
    """A suite, or a part of it.

    Args:
        cases: names of cases, or patterns like "sort*"; None: all.

    Raises:
        AcdcError: there is no such suite or case.
    """
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    suite = SUITES[name]
    if cases is None:
        return suite
    known = [case.name for case in suite.cases]
    chosen: set[str] = set()
    for pattern in cases:
        pattern = pattern.removeprefix("tracr-")
        found = fnmatch.filter(known, pattern)
        if not found:
            if set("*?[") & set(pattern):
                raise AcdcError(f"no case of suite {name!r} is like {pattern!r}; known: {', '.join(known)}")
            raise unknown(f"case of suite {name!r}", pattern, known)
        chosen.update(found)
    return dataclasses.replace(suite, cases=tuple(case for case in suite.cases if case.name in chosen))
