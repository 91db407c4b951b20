"""Arithmetic (Stolfo et al. 2023): sums and differences of numbers that are single tokens.

    Q: How much is 12 plus 34? A: → 46

The corrupted prompt has another first or second number, so that another answer is right: that is the wrong one. A
tokenizer that splits numbers into digits gets problems with one digit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Annotated, Literal

from acdc.errors import TaskError, unknown
from acdc.tasks.spans import placed
from acdc.tasks.tokenise import Encoder, ModelLike, TextPair

TEMPLATE = "Q: How much is {a} {operation} {b}? A:"
OPERATIONS = ("plus", "minus")


def pairs(
    model: ModelLike,
    rng: random.Random,
    *,
    operation: Annotated[Literal["plus", "minus", "both"], "sums, differences, or both"] = "both",
) -> Iterator[TextPair]:
    """Problems with `operation` "plus", "minus" or "both"."""
    if operation not in (*OPERATIONS, "both"):
        raise unknown("operation", operation, (*OPERATIONS, "both"))
    words = Encoder(model).words([str(n) for n in range(200)], what="numbers", at_least=6)
    numbers = {int(word) for word in words}
    signs = OPERATIONS if operation == "both" else (operation,)
    problems = [
        (a, sign, b, result)
        for a in sorted(numbers)
        for b in sorted(numbers)
        for sign in signs
        if (result := a + b if sign == "plus" else a - b) in numbers and max(a, b) < 100
    ]
    alike: dict[tuple[int | None, str, int | None], list[tuple[int, str, int, int]]] = {}
    for problem in problems:  # problems that have the first, or the second number in common
        a, sign, b, _ = problem
        alike.setdefault((a, sign, None), []).append(problem)
        alike.setdefault((None, sign, b), []).append(problem)
    if not any(len({result for *_, result in group}) > 1 for group in alike.values()):
        raise TaskError("task 'arithmetic': no two problems have operands and results that are single tokens")
    while True:
        a, sign, b, right = rng.choice(problems)
        x, _, y, wrong = rng.choice(alike[(a, sign, None) if rng.random() < 0.5 else (None, sign, b)])
        if right != wrong:
            named = {"a": "first", "operation": "operation", "b": "second"}
            clean, spans = placed(TEMPLATE, named, a=f"{a}", operation=sign, b=f"{b}")
            yield TextPair(
                clean=clean,
                corrupted=TEMPLATE.format(a=x, operation=sign, b=y),
                answers=(f" {right}",),
                wrong=(f" {wrong}",),
                spans=spans,
            )
