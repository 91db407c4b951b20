"""Specificity: does it do this task and not others, and do other circuits not do this one?

A double dissociation. The circuit is run on the other tasks that the model does, kept alone and knocked out; a circuit
of this task serves its own at least as well as any other. With circuits of other tasks (`others`), theirs on this task
are told too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from typing import Any

import numpy as np
from scipy import stats

from acdc.auditing.record import Check, NotApplicable, Result
from acdc.auditing.subject import Scale, Subject
from acdc.errors import AcdcError
from acdc.metrics import OUTCOMES
from acdc.metrics.hypotheses import any_of
from acdc.tasks import registry
from acdc.tasks.task import Dataset

SIZE = 64
DOES = 0.5
"""Share of prompts whose answer is the most likely token, from which a model does a task."""
MARGIN = 0.1


def _specificity(subject: Subject) -> Result:
    tasks = _others(subject)
    if not tasks:
        raise NotApplicable("no other task is known that this model does")
    own = subject.on_fresh.shares([subject.edges])[0][:512]
    rest = subject.graph.valid & ~subject.edges
    hurt = subject.on_fresh.shares([rest])[0]
    rows: dict[str, dict[str, float]] = {
        subject.dataset.name: {"kept alone": float(own.mean()), "knocked out": float(hurt.mean())}
    }
    tests = []
    for name, data in tasks.items():
        with contextlib.suppress(AcdcError):
            scale = Scale(
                subject.problem(data.discovery, outcome=data.metric, ablation=subject.dataset.ablation), exact=False
            )
            kept, knocked = scale.shares([subject.edges, rest])
            rows[name] = {"kept alone": float(kept.mean()), "knocked out": float(knocked.mean())}
            tests.append(_serves_better(kept, own))
    if not tests:
        raise NotApplicable("the other tasks cannot be measured under this ablation")
    best = min((name for name in rows if name != subject.dataset.name), key=lambda name: rows[name]["kept alone"])
    mean, other = float(own.mean()), rows[best]["kept alone"]
    return Result(
        statistic="share of the way to no circuit on its own task, less the least on another",
        value=mean - other,
        threshold=MARGIN,
        p=any_of(tests),
        found=(
            f"it is {mean:.0%} of the way from the model to no circuit on its own task, and {other:.0%} on {best}, the "
            f"nearest of {len(tests)} others; knocked out it costs its own {hurt.mean():.0%}, and others "
            f"{np.mean([rows[name]['knocked out'] for name in rows if name != subject.dataset.name]):.0%}"
        ),
        advice="it serves another task better than its own: was it found on other prompts, or is it mislabelled?",
        details={"share of the way to the empty circuit": rows},
    )


def _serves_better(other: Any, own: Any) -> float:
    """p-value of the hypothesis that the circuit is at most a margin further from the model on its own task."""
    if np.ptp(own) == 0 and np.ptp(other) == 0:
        return 0.0 if own.mean() > other.mean() + MARGIN else 1.0
    return float(stats.ttest_ind(own - MARGIN, other, equal_var=False, alternative="greater").pvalue)


def _others(subject: Subject) -> dict[str, Dataset]:
    """The other built-in tasks that the model does."""
    if subject.model.program is not None or subject.exact:
        return {}
    found: dict[str, Dataset] = {}
    for name in registry.GENERATORS:
        if name == subject.dataset.name:
            continue
        with contextlib.suppress(AcdcError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = registry.load(name, size=SIZE, seed=subject.seed).prepare(subject.model)
            problem = subject.problem(data.discovery, outcome=data.metric)
            if _does(subject, problem, data):
                found[name] = dataclasses.replace(data, held_out=None)
    return found


def _does(subject: Subject, problem: Any, data: Dataset) -> bool:
    """Whether an answer of the task is what the model finds more likely than the wrong ones, on most prompts."""
    if data.discovery.answers is None or data.discovery.wrong is None:
        return False
    problem = dataclasses.replace(problem, outcome=OUTCOMES["logit-difference"])
    full = Scale(problem, exact=False).full
    return bool((full > 0).mean() >= DOES)


SPECIFICITY = Check(
    name="specificity",
    question="Does it do this task, and not others as well?",
    run=_specificity,
    level="usual",
    seconds=lambda subject: (
        len(registry.GENERATORS)
        * subject.share_of_fresh(SIZE)
        * (subject.seconds_of_circuit + 3 * subject.seconds_of_model)
    ),
)
