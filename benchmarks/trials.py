"""Rows computed elsewhere: one driver hands them out, one at a time to each slot, and writes what comes back.

A slot is whatever computes one row at a time: a process of this machine (`processes`), or a share of a Ray cluster
(`on_ray`). The driver alone claims rows and adds them to the table, so that a row is there once however often it was
begun, and what a process that ends had in work is handed out again. A row that has ended several processes is an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Protocol, TypeAlias

from acdc.benchmarks.suites import Case
from acdc.benchmarks.table import Row

PAUSE = 1.0
"""Seconds between looks at rows that others compute."""
MOST_TRIES = 3
"""Processes that may end while they compute one and the same row."""
Key: TypeAlias = tuple[str, str, str, int]


@dataclasses.dataclass(frozen=True)
class Trial:
    """What one row is of: a method on a case with a seed, and the memory that it may use beside the weights."""

    suite: str
    case: Case
    method: str
    seed: int
    memory: str | None = None

    @property
    def key(self) -> Key:
        return self.suite, self.case.name, self.method, self.seed

    @property
    def subject(self) -> tuple[str, int]:
        """What is made ready for it, and for other methods too."""
        return self.case.name, self.seed


class ProcessEnded(Exception):
    """The process that computed a row has ended without it."""


class Slot(Protocol):
    """Computes one row at a time."""

    def submit(self, trial: Trial) -> Future[Row]:
        """Begin a row; the future raises `ProcessEnded`, or what must end all work (an `AcdcError`)."""
        ...


def hand_out(
    trials: Sequence[Trial],
    slots: Sequence[Slot],
    claimed: Callable[[Key], contextlib.AbstractContextManager[bool]],
    add: Callable[[Row], None],
    lacks: Callable[[Key], bool],
    progress: Callable[[int, str], None],
) -> None:
    """Have every row computed that the table lacks, those too that other processes claimed and did not finish.

    Args:
        claimed, add: of the table: claims a row, for a `with` block; writes it.
        lacks: whether a row is still to be computed.
        progress: is told how many rows are done, and what is begun.

    Raises:
        AcdcError: what a slot raises; whatever else is in work is given up.
        WriteError: the table cannot be written to.
    """
    waiting = sorted(trials, key=lambda trial: trial.subject)
    elsewhere: list[Trial] = []  # claimed by other processes at the last look
    in_work: dict[Future[Row], tuple[Slot, Trial, contextlib.ExitStack]] = {}
    idle, last = list(slots), dict[int, tuple[str, int]]()
    tries: Counter[Key] = Counter()
    shuffled = random.Random(os.getpid())

    def begin() -> None:
        while idle and waiting:
            busy = {trial.subject for _, trial, _ in in_work.values()}
            slot, trial = _match(idle, waiting, last, busy, shuffled)
            waiting.remove(trial)
            if not lacks(trial.key):
                continue
            claim = contextlib.ExitStack()
            mine = claim.enter_context(claimed(trial.key))
            if not mine or not lacks(trial.key):  # it may be there since
                claim.close()
                if not mine:
                    elsewhere.append(trial)
                continue
            idle.remove(slot)
            last[id(slot)] = trial.subject
            done = len(trials) - len(waiting) - len(elsewhere) - len(in_work) - 1
            progress(done, f"{trial.case.name}: {trial.method}")
            in_work[slot.submit(trial)] = slot, trial, claim

    def end(future: Future[Row]) -> None:
        slot, trial, claim = in_work.pop(future)
        idle.append(slot)
        with claim:
            try:
                add(future.result())
            except ProcessEnded as error:
                tries[trial.key] += 1
                if tries[trial.key] < MOST_TRIES:
                    waiting.append(trial)
                else:
                    text = f"{error}; {MOST_TRIES} processes have ended while they computed this row"
                    add(Row(*trial.key, error=text, model=trial.case.model, task=trial.case.task))

    try:
        while waiting or elsewhere or in_work:
            if idle and not waiting:
                waiting, elsewhere = elsewhere, []
            begin()
            if in_work:
                for future in wait(in_work, PAUSE if idle else None, FIRST_COMPLETED).done:
                    end(future)
            elif elsewhere:
                progress(len(trials) - len(elsewhere), "waiting for rows in work by other processes")
                time.sleep(PAUSE)
    finally:
        for _, _, claim in in_work.values():
            claim.close()


def _match(
    idle: Sequence[Slot],
    waiting: Sequence[Trial],
    last: dict[int, tuple[str, int]],
    busy: set[tuple[str, int]],
    shuffled: random.Random,
) -> tuple[Slot, Trial]:
    """An idle slot and a row for it: of the subject it has ready, or else of one that no slot has."""
    for slot in idle:
        for trial in waiting:
            if last.get(id(slot)) == trial.subject:
                return slot, trial
    subjects = sorted({trial.subject for trial in waiting})
    free = [subject for subject in subjects if subject not in busy]
    chosen = shuffled.choice(free or subjects)
    return idle[0], next(trial for trial in waiting if trial.subject == chosen)
