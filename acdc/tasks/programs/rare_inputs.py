"""Inputs that make a compiled program do what it rarely does, and pairs of them.

A program whose output rarely changes on random inputs ("six alike", "all equal", balanced brackets) shows few of its
edges there. So inputs of every plain structure are added, and then changed, one place at a time, for as long as a
change makes some part of the model write what it has not written before: step by step this leads to counts and states
that random inputs do not reach. Where there are few inputs, all are taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from acdc.graph import FloatArray
from acdc.model.programs.tracr import TracrModel, TracrProgram, Value
from acdc.tasks.programs.derive import TOLERANCE, written_values
from acdc.tasks.programs.inputs import Pairs, lengths_of, pairs_of_inputs, random_inputs, random_pairs

Input = tuple[Value, ...]

MOST_PAIRS = 1_000_000
"""All pairs of inputs are tried where there are no more."""
AT_ONCE = 4096
FIRST = 200
"""Random pairs from which on as many again are drawn."""
ROUNDS = 40
"""Most rounds of changing inputs; nothing new usually comes after a few."""
KEPT = 300
"""Most inputs that are kept for doing something new."""


# ---- inputs -----------------------------------------------------------------------------------------------------


def structured_inputs(program: TracrProgram, *, rng: np.random.Generator, mixed: bool) -> list[Input]:
    """Constant, sorted, mirrored, periodic and nested inputs, and each token any number of times among others."""
    tokens, lengths = program.tokens, lengths_of(program)
    found: list[Input] = []
    for length in lengths if mixed else lengths[-1:]:
        drawn = [tuple(x) for x in _drawn(program, 4, length, rng)]
        found += [x for values in drawn for x in _ordered(tokens, values)]
        if program.distinct:
            continue
        found += [(token,) * length for token in tokens[:8]]
        for values in drawn:
            half = values[: (length + 1) // 2]
            found.append(half + half[: length // 2][::-1])
            found.append((values[:2] * length)[:length])
            found.append((values[:1] * (length // 2) + values[-1:] * length)[:length])
        for first, second in _two(tokens, rng):
            for count in range(length + 1):
                row = [first] * count + [second] * (length - count)
                found.append(tuple(row))
                found.append(tuple(row[i] for i in rng.permutation(length)))
        for token, count in itertools.product(tokens[:4], range(1, length)):
            others = [other for other in tokens if other != token] or list(tokens)
            row = [token] * count + [others[i % len(others)] for i in range(length - count)]
            found.append(tuple(row[i] for i in rng.permutation(length)))
    return list(dict.fromkeys(found))


def telling_inputs(model: TracrModel, *, rng: np.random.Generator, mixed: bool) -> list[Input]:
    """Random and structured inputs, and what comes of changing those that do something new, the newest last."""
    program = model.program
    waiting = [tuple(x) for x in random_inputs(program, 100, rng=rng, mixed=mixed)]
    waiting += structured_inputs(program, rng=rng, mixed=mixed)
    seen: set[tuple[int, int, int]] = set()
    kept: list[Input] = []
    tried: set[Input] = set()
    for _ in range(ROUNDS):
        waiting = [x for x in dict.fromkeys(waiting) if x not in tried]
        tried.update(waiting)
        new = _that_do_something_new(model, waiting, seen) if waiting else []
        kept += new
        if not new or len(kept) > KEPT:
            break
        waiting = [changed for x in new for changed in _changed(program, x, rng, mixed=mixed)]
    return kept


def changed_once(program: TracrProgram, values: Input, rng: np.random.Generator) -> Input:
    """The input with one token for another, or two places swapped where no token may occur twice."""
    row = list(values)
    i = int(rng.integers(len(row)))
    others = [token for token in program.tokens if token not in (row if program.distinct else row[i : i + 1])]
    if others:
        row[i] = others[int(rng.integers(len(others)))]
    elif len(row) > 1:
        j = (i + 1 + int(rng.integers(len(row) - 1))) % len(row)
        row[i], row[j] = row[j], row[i]
    return tuple(row)


def _changed(program: TracrProgram, values: Input, rng: np.random.Generator, *, mixed: bool) -> Iterator[Input]:
    for _ in range(6):
        yield changed_once(program, values, rng)
    if not program.distinct and len(values) > 1:  # one more of a token that is there
        for _ in range(6):
            i, j = rng.integers(len(values), size=2)
            yield (*values[:i], values[j], *values[i + 1 :])
    i, j = sorted(rng.integers(len(values), size=2).tolist())
    yield values[:i] + values[i:j][::-1] + values[j:]
    if mixed:
        lengths = lengths_of(program)
        if len(values) > 1:
            yield values[:-1]
        more = [token for token in program.tokens if not program.distinct or token not in values]
        if len(values) < lengths[-1] and more:
            yield (*values, more[int(rng.integers(len(more)))])


def _that_do_something_new(model: TracrModel, inputs: list[Input], seen: set[tuple[int, int, int]]) -> list[Input]:
    """The inputs on which some source writes, in some direction, a value that none before has written."""
    new: list[Input] = []
    for start in range(0, len(inputs), AT_ONCE):
        some = inputs[start : start + AT_ONCE]
        tokens, mask = model.encode(some)
        values = written_values(model, tokens, mask)  # [S, B, T, D]
        steps = (values * 20).round().long().masked_fill(~mask[None, :, :, None], 0)
        source, row, _, direction = steps.nonzero(as_tuple=True)
        written = torch.stack([row, source, direction, steps[steps != 0]], dim=1).unique(dim=0)
        for which, *what in written.tolist():
            if (key := tuple(what)) not in seen:
                seen.add(key)
                if not new or new[-1] is not some[which]:
                    new.append(some[which])
    return new


def _drawn(program: TracrProgram, n: int, length: int, rng: np.random.Generator) -> list[list[Value]]:
    return [
        [program.tokens[i] for i in rng.choice(len(program.tokens), size=length, replace=not program.distinct)]
        for _ in range(n)
    ]


def _ordered(tokens: tuple[Value, ...], values: Input) -> Iterator[Input]:
    rising = tuple(sorted(values, key=tokens.index))
    yield rising
    yield rising[::-1]
    yield values


def _two(tokens: tuple[Value, ...], rng: np.random.Generator) -> list[tuple[Value, Value]]:
    """Pairs of tokens: all, or a few of them."""
    pairs = list(itertools.permutations(tokens, 2))
    return [pairs[i] for i in rng.permutation(len(pairs))[:6]]


# ---- pairs ------------------------------------------------------------------------------------------------------


def telling_pairs(model: TracrModel, *, distribution: str, rng: np.random.Generator) -> Pairs:
    """Pairs of telling inputs: each beside itself with one token changed, both ways, and beside others."""
    program = model.program
    inputs = telling_inputs(model, rng=rng, mixed=distribution in ("mixed", "varied"))
    sides: list[tuple[Input, Input]] = []
    for x in inputs:
        near = changed_once(program, x, rng)
        sides += [(x, near), (near, x), (x, inputs[int(rng.integers(len(inputs)))])]
    random = [
        tuple(x) for x in random_inputs(program, len(inputs), rng=rng, mixed=distribution in ("mixed", "varied"))
    ]
    sides += list(zip(inputs, random, strict=True)) + list(zip(random, inputs, strict=True))
    return pairs_of_inputs(model, sides, distribution=distribution, rng=rng)


def seen_to_act(
    model: TracrModel, effects_of: Callable[[Pairs], FloatArray], *, distribution: str, rng: np.random.Generator
) -> tuple[Pairs, FloatArray]:
    """Pairs, and what each unit's replacement does on each of them: until as many again, and telling ones, add no unit.

    Args:
        effects_of: how far outputs move on some pairs, `[*units, pair]`.
    """
    pairs = random_pairs(model, FIRST, distribution=distribution, rng=rng)
    effects = effects_of(pairs)
    while True:
        more = random_pairs(model, len(pairs), distribution=distribution, rng=rng)
        more = more + telling_pairs(model, distribution=distribution, rng=rng)
        found = effects_of(more)
        new = (found.max(-1) > TOLERANCE) & ~(effects.max(-1) > TOLERANCE)
        pairs, effects = pairs + more, np.concatenate((effects, found), axis=-1)
        if not new.any():
            return pairs, effects


def number_of_inputs(program: TracrProgram, *, mixed: bool) -> int:
    """How many inputs there are."""
    n, lengths = len(program.tokens), lengths_of(program)
    return sum(
        int(np.prod(range(n - length + 1, n + 1), dtype=object)) if program.distinct else n**length
        for length in (lengths if mixed else lengths[-1:])
    )


def all_inputs(program: TracrProgram, *, mixed: bool = True) -> Iterator[Input]:
    """Every input, the short ones first."""
    lengths = lengths_of(program)
    for length in lengths if mixed else lengths[-1:]:
        if program.distinct:
            yield from itertools.permutations(program.tokens, length)
        else:
            yield from itertools.product(program.tokens, repeat=length)


def all_pairs(model: TracrModel, *, ablation: str, distribution: str) -> Iterator[Pairs] | None:
    """Every pair of inputs, in batches; with zeros every input, since the corrupted one does not matter.

    None if there are too many, and for permuted positions, of which there is one pair for each order.
    """
    program, mixed = model.program, distribution in ("mixed", "varied")
    n = number_of_inputs(program, mixed=mixed)
    zero = ablation == "zero"
    if (n if zero else n * n) > MOST_PAIRS or (not zero and distribution in ("permuted", "varied")):
        return None
    inputs = list(all_inputs(program, mixed=mixed))
    pairs: Iterator[tuple[Input, Input]] = (
        zip(inputs, inputs, strict=True) if zero else itertools.product(inputs, inputs)
    )
    rng = np.random.default_rng(0)
    return (
        pairs_of_inputs(model, some, distribution="mixed" if mixed else "fixed", rng=rng)
        for some in iter(lambda: tuple(itertools.islice(pairs, AT_ONCE)), ())
    )
