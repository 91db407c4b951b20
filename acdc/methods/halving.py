"""A selection that is still good enough and much smaller: the ranking is cut by bisection, then groups go that can.

Whether a selection is good enough is for the caller to say, by a run. Selections are bool arrays of any shape, over
whatever is switched: edges at places, neurons.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from acdc.errors import AcdcError, check_whole
from acdc.graph import BoolArray, FloatArray

Judge = Callable[[BoolArray], bool]


def check_runs(runs: int, *, one_by_one: bool) -> None:
    """Raise an `AcdcError` for a number of runs that cannot be, or none to test units in one by one."""
    check_whole("a number of runs", runs, least=0)
    if one_by_one and not runs:
        raise AcdcError("one_by_one tests each unit in a run, and runs is 0, which cuts the ranking: choose one")


def fewest(enough: Judge, sizes: FloatArray) -> BoolArray:
    """The fewest best that are enough, as if more were always better; all with a size above 0 if none are.

    Args:
        sizes: what is ranked, by size; of size 0 nothing is taken.
    """
    order = np.argsort(-sizes, axis=None, kind="stable")

    def best(n: int) -> BoolArray:
        kept = np.zeros(sizes.shape, dtype=bool)
        kept.flat[order[:n]] = sizes.flat[order[:n]] > 0
        return kept

    most = int((sizes > 0).sum())
    low, high = 0, min(8, most)
    while high < most and not enough(best(high)):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(best(middle)) else (middle, high)
    return best(high)


def pruned(
    enough: Judge, kept: BoolArray, sizes: FloatArray, runs: int, *, one_by_one: bool = False
) -> tuple[BoolArray, bool]:
    """Without what can go, the least first, in groups that halve where they cannot go together.

    When something goes, what could not go before may do so now: all that is left is tested again, one by one, until
    nothing goes.

    Args:
        kept: to start from; as it is if it is not enough itself.
        runs: most tests.
        one_by_one: no groups: nothing goes that cannot go alone, though two that undo each other could.

    Returns:
        What is left, and whether none of it can go alone: each was tested in what is left.
    """
    kept = kept.copy()
    if not enough(kept):
        return kept, False
    order = np.flatnonzero(kept)[np.argsort(sizes.flat[np.flatnonzero(kept)], kind="stable")]
    groups, tests = np.array_split(order, len(order) if one_by_one else 2), 0
    needed: set[int] = set()  # in the selection as it is
    while groups and tests < runs:
        group = groups.pop(0)
        if not len(group):
            continue
        without = kept.copy()
        without.flat[group] = False
        tests += 1
        if enough(without):
            kept, needed = without, set()
        elif len(group) > 1:
            groups = [group[: len(group) // 2], group[len(group) // 2 :], *groups]
        else:
            needed.add(int(group[0]))
        if not groups:
            groups = [np.array([i]) for i in order if kept.flat[i] and i not in needed]
    return kept, needed.issuperset(np.flatnonzero(kept).tolist())
