"""Shift: does it hold on other templates, names, lengths and orders, and on the user's second file?

Each option of a built-in task is a shift: names in one order only, another corruption, other lengths; for programs,
inputs that differ in less. The circuit is measured on each as on its own prompts.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from acdc.auditing.prompts import FEWEST
from acdc.auditing.record import Check, NotApplicable, Result
from acdc.auditing.subject import Scale, Subject
from acdc.errors import AcdcError
from acdc.metrics.hypotheses import any_of, mean_exceeds
from acdc.tasks.generate import GeneratedTask
from acdc.tasks.programs.program_task import ProgramTask
from acdc.tasks.prompts import Prompts

SIZE = 256
NARROWER = {
    "varied": ("fixed", "mixed", "permuted"),
    "mixed": ("fixed",),
    "permuted": ("fixed",),
    "fixed": (),
}
"""Inputs of programs that are among those of each distribution."""
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "ioi": ({"order": "abba"}, {"order": "baba"}, {"corruption": "swap"}),
    "induction": ({"length": 12}, {"length": 16}),
}
"""Variants of the built-in tasks."""


def _shift(subject: Subject) -> Result:
    rows: dict[str, dict[str, float]] = {}
    tests, allowed = [], subject.broken
    for name, prompts in _variants(subject):
        if len(prompts) < FEWEST:
            continue
        with contextlib.suppress(AcdcError):
            scale = Scale(subject.problem(prompts), exact=subject.exact)
            share = scale.shares([subject.edges])[0]
            tests.append(mean_exceeds(share, allowed))
            rows[name] = {"prompts": len(share), "share": float(share.mean()), "largest": float(share.max())}
    if not rows:
        raise NotApplicable(
            "no other distribution of these prompts is known: give a second task or file (--shift FILE)"
        )
    worst = max(rows, key=lambda name: rows[name]["share"])
    return Result(
        statistic="largest mean share of the way to the empty circuit on shifted prompts",
        value=rows[worst]["share"],
        threshold=allowed,
        p=any_of(tests),
        found=f"furthest on {worst}, of {len(rows)} kinds: {rows[worst]['share']:.1%} of the way to no circuit",
        advice="say on which prompts the circuit holds, or find it on a mixture of them",
        details={"kinds of prompts": rows},
    )


def _variants(subject: Subject) -> Iterator[tuple[str, Prompts]]:
    """Prompts of other distributions, with what they are."""
    task, model = subject.task, subject.model
    if isinstance(task, GeneratedTask):
        for options in OPTIONS.get(task.name, ()):
            if all(task.options.get(name) == value for name, value in options.items()):
                continue
            changed = dataclasses.replace(task, options={**task.options, **options}, seed=task.seed + 1, size=SIZE)
            with contextlib.suppress(AcdcError):
                text = ", ".join(f"{name} {value}" for name, value in options.items())
                yield text, changed.prepare(model).discovery
    if isinstance(task, ProgramTask):
        for distribution in NARROWER[task.distribution]:
            changed_program = dataclasses.replace(
                task, distribution=distribution, witnesses=False, seed=task.seed + 1
            )
            for size in (SIZE, 64, FEWEST):
                with contextlib.suppress(AcdcError):
                    drawn = dataclasses.replace(changed_program, size=size).prepare(model).discovery
                    yield f"{distribution} inputs", drawn
                    break
    if subject.shifted is not None:
        yield f"{subject.shifted.name} (given)", subject.shifted.discovery
    lengths = subject.fresh.own.sum(1)
    middle = float(lengths.float().median())
    for name, chosen in (("shorter prompts", lengths < middle), ("longer prompts", lengths > middle)):
        index = torch.as_tensor(np.flatnonzero(chosen.cpu().numpy()))
        if len(index) >= FEWEST:
            yield name, subject.fresh[index]


SHIFT = Check(
    name="shift",
    question="Does it hold on prompts of other kinds?",
    run=_shift,
    level="usual",
    seconds=lambda subject: (
        4 * subject.share_of_fresh(SIZE) * (subject.seconds_of_circuit + subject.seconds_of_model)
    ),
)
