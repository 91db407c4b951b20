"""What tests of the command line share: what a command gives back (the fixture `command` runs one), and prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import acdc


class Result(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Result]


def write_prompts(path: Path, *, right: int, wrong: int) -> None:
    """Prompts that induction-2l gets right, and as many as asked with answer and wrong answer exchanged."""
    prompts = acdc.tasks.load("induction", size=right + wrong).prepare(acdc.load("induction-2l")).discovery
    assert prompts.answers is not None
    assert prompts.wrong is not None
    rows = []
    for i in range(right + wrong):
        answers = [int(prompts.answers[i, 0, 0]), int(prompts.wrong[i, 0, 0])]
        names = ("answer_tokens", "wrong_tokens") if i < right else ("wrong_tokens", "answer_tokens")
        tokens = {"clean_tokens": prompts.clean[i].tolist(), "corrupted_tokens": prompts.corrupted[i].tolist()}
        rows.append(tokens | dict(zip(names, answers, strict=True)))
    path.write_text("\n".join(map(json.dumps, rows)))
