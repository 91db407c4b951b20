"""Programs written for this suite, which together with the library's use every construct of RASP that compiles.

Map and SequenceMap between categorical values, Map to, from and between numbers, LinearSequenceMap, Select with
every comparison and with predicates of its own, Aggregate of values and of numbers, SelectorWidth, and selectors
that depend on what other selectors found; from one to six layers.
"""

from __future__ import annotations

import itertools
from typing import Any

from acdc.benchmarks.training.tracr_program import Program, program

OWN: dict[str, Program] = {}


@program(
    OWN, "increment", "each token plus one, modulo five",
    vocabulary=range(5), reference=lambda x: [(token + 1) % 5 for token in x],
)  # fmt: skip
def increment(rasp: Any, lib: Any) -> Any:
    return rasp.Map(lambda token: (token + 1) % 5, rasp.tokens)


@program(
    OWN, "caesar", "each token plus its index, modulo four",
    vocabulary=range(4), reference=lambda x: [(token + i) % 4 for i, token in enumerate(x)],
)  # fmt: skip
def caesar(rasp: Any, lib: Any) -> Any:
    return rasp.SequenceMap(lambda token, i: (token + i) % 4, rasp.tokens, rasp.indices)


@program(OWN, "first", "the first token, everywhere", vocabulary="abc", reference=lambda x: [x[0]] * len(x))
def first(rasp: Any, lib: Any) -> Any:
    return rasp.Aggregate(rasp.Select(rasp.indices, rasp.indices, lambda k, q: k == 0), rasp.tokens)


@program(OWN, "last", "the last token, everywhere", vocabulary="abc", reference=lambda x: [x[-1]] * len(x))
def last(rasp: Any, lib: Any) -> Any:
    return rasp.Aggregate(rasp.Select(rasp.indices, lib.make_length() - 1, rasp.Comparison.EQ), rasp.tokens)


@program(OWN, "next", "the token one place after", vocabulary="abc", reference=lambda x: [*x[1:], None])
def following(rasp: Any, lib: Any) -> Any:
    return rasp.Aggregate(rasp.Select(rasp.indices, rasp.indices, lambda k, q: k == q + 1), rasp.tokens)


@program(
    OWN, "swap-neighbours", "each token changed for its neighbour: first and second, third and fourth, and so on",
    vocabulary="abc", max_length=6,
    reference=lambda x: [x[i ^ 1] if i ^ 1 < len(x) else None for i in range(len(x))],
)  # fmt: skip
def swap_neighbours(rasp: Any, lib: Any) -> Any:
    return rasp.Aggregate(rasp.Select(rasp.indices, rasp.indices, lambda k, q: k == q ^ 1), rasp.tokens)


@program(OWN, "rotate", "the input rotated by one place", vocabulary="abc", reference=lambda x: [x[-1], *x[:-1]])
def rotate(rasp: Any, lib: Any) -> Any:
    source = rasp.SequenceMap(lambda i, n: (i - 1) % max(n, 1), rasp.indices, lib.make_length()).named("source")
    return rasp.Aggregate(rasp.Select(rasp.indices, source, rasp.Comparison.EQ), rasp.tokens)


@program(
    OWN, "same-as-previous", "whether a token equals the one before",
    vocabulary="abc", reference=lambda x: [None, *(a == b for a, b in itertools.pairwise(x))],
)  # fmt: skip
def same_as_previous(rasp: Any, lib: Any) -> Any:
    return rasp.SequenceMap(lambda a, b: a == b, rasp.tokens, lib.shift_by(1, rasp.tokens))


@program(
    OWN, "count-greater", "how many tokens are greater",
    vocabulary=(1, 2, 3, 4), reference=lambda x: [sum(other > token for other in x) for token in x],
)  # fmt: skip
def count_greater(rasp: Any, lib: Any) -> Any:
    return rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.GT))


@program(
    OWN, "count-at-least", "how many tokens are as great or greater, as a number",
    vocabulary=(1, 2, 3, 4), reference=lambda x: [sum(other >= token for other in x) for token in x],
)  # fmt: skip
def count_at_least(rasp: Any, lib: Any) -> Any:
    return rasp.numerical(rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.GEQ)))


@program(
    OWN, "count-different", "how many tokens differ from this one",
    vocabulary="abcd", reference=lambda x: [len(x) - x.count(token) for token in x],
)  # fmt: skip
def count_different(rasp: Any, lib: Any) -> Any:
    return rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.NEQ))


@program(
    OWN, "no-selection", "token plus the width of a selector that selects nothing",
    vocabulary=(0, 1, 2), reference=lambda x: x,
)  # fmt: skip
def no_selection(rasp: Any, lib: Any) -> Any:
    width = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.FALSE)).named("width")
    return rasp.SequenceMap(lambda token, n: token + n, rasp.tokens, width)


@program(
    OWN, "fraction-later", 'the fraction of later tokens that are "x", 0 at the end', vocabulary="xyz",
    reference=lambda x: [x[i:].count("x") / len(x[i:]) if x[i:] else 0 for i in range(1, len(x) + 1)],
)  # fmt: skip
def fraction_later(rasp: Any, lib: Any) -> Any:
    later = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.GT)
    return rasp.numerical(rasp.Aggregate(later, rasp.numerical(rasp.tokens == "x"), default=0))


def _so_far(x: list[Any], token: Any) -> list[float]:
    return [x[: i + 1].count(token) / (i + 1) for i in range(len(x))]


@program(
    OWN, "majority", 'whether at least half of the tokens so far are "x": 1 or 0, as a number',
    vocabulary="xy", reference=lambda x: [int(share >= 0.5) for share in _so_far(x, "x")],
)  # fmt: skip
def majority(rasp: Any, lib: Any) -> Any:
    return rasp.numerical(rasp.Map(lambda x: int(x >= 0.5), lib.make_frac_prevs(rasp.tokens == "x")))


@program(
    OWN, "leader", 'which of "x" and "y" was more frequent so far: "x", "y" or "tie"', vocabulary="xyz",
    reference=lambda x: [
        "x" if a > b else "y" if a < b else "tie" for a, b in zip(_so_far(x, "x"), _so_far(x, "y"), strict=True)
    ],
)  # fmt: skip
def leader(rasp: Any, lib: Any) -> Any:
    lead = lib.make_pair_balance(rasp.tokens, "x", "y")
    return rasp.Map(lambda d: "x" if d > 0.01 else "y" if d < -0.01 else "tie", lead)


@program(
    OWN, "weighted", 'twice the fraction of "x" so far minus half that of "y"', vocabulary="xyz",
    reference=lambda x: [2 * a - b / 2 for a, b in zip(_so_far(x, "x"), _so_far(x, "y"), strict=True)],
)  # fmt: skip
def weighted(rasp: Any, lib: Any) -> Any:
    a = lib.make_frac_prevs(rasp.tokens == "x").named("a")
    b = lib.make_frac_prevs(rasp.tokens == "y").named("b")
    return rasp.numerical(rasp.LinearSequenceMap(a, b, 2, -0.5))


@program(
    OWN, "only-unique", 'each token that occurs once, "-" for the others',
    vocabulary="abc", reference=lambda x: [token if x.count(token) == 1 else "-" for token in x],
)  # fmt: skip
def only_unique(rasp: Any, lib: Any) -> Any:
    return rasp.SequenceMap(lambda token, n: token if n == 1 else "-", rasp.tokens, lib.make_hist())


@program(OWN, "maximum", "the greatest token", vocabulary=(1, 2, 3, 4), reference=lambda x: [max(x)] * len(x))
def maximum(rasp: Any, lib: Any) -> Any:
    greater = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.GT)).named("greater")
    return rasp.Aggregate(rasp.Select(greater, greater, lambda k, q: k == 0), rasp.tokens)


@program(
    OWN, "sort-descending", "the input, which has no token twice, sorted from great to small",
    vocabulary=(1, 2, 3, 4, 5, 6), distinct=True, reference=lambda x: sorted(x, reverse=True),
)  # fmt: skip
def sort_descending(rasp: Any, lib: Any) -> Any:
    rank = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.GT)).named("rank")
    return rasp.Aggregate(rasp.Select(rank, rasp.indices, rasp.Comparison.EQ), rasp.tokens)


@program(
    OWN, "median", "the (upper) median of the input, which has no token twice",
    vocabulary=(1, 2, 3, 4, 5, 6), distinct=True, reference=lambda x: [sorted(x)[len(x) // 2]] * len(x),
)  # fmt: skip
def median(rasp: Any, lib: Any) -> Any:
    rank = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.LT)).named("rank")
    middle = rasp.Map(lambda n: n // 2, lib.make_length()).named("middle")
    return rasp.Aggregate(rasp.Select(rank, middle, rasp.Comparison.EQ), rasp.tokens)


@program(
    OWN, "occurrence", "how often the token occurred before",
    vocabulary="abc", reference=lambda x: [x[:i].count(token) for i, token in enumerate(x)],
)  # fmt: skip
def occurrence(rasp: Any, lib: Any) -> Any:
    pairs = rasp.SequenceMap(lambda token, i: (token, i), rasp.tokens, rasp.indices).named("pairs")
    return rasp.SelectorWidth(rasp.Select(pairs, pairs, lambda k, q: k[0] == q[0] and k[1] < q[1]))


@program(
    OWN, "count-distinct", "how many different tokens the input has",
    vocabulary="abc", reference=lambda x: [len(set(x))] * len(x),
)  # fmt: skip
def count_distinct(rasp: Any, lib: Any) -> Any:
    pairs = rasp.SequenceMap(lambda token, i: (token, i), rasp.tokens, rasp.indices).named("pairs")
    before = rasp.SelectorWidth(rasp.Select(pairs, pairs, lambda k, q: k[0] == q[0] and k[1] < q[1])).named(
        "before"
    )
    return rasp.SelectorWidth(rasp.Select(before, before, lambda k, q: k == 0))


@program(
    OWN, "depth", "how many more brackets were opened than closed so far", vocabulary="()",
    reference=lambda x: [x[: i + 1].count("(") - x[: i + 1].count(")") for i in range(len(x))],
)  # fmt: skip
def depth(rasp: Any, lib: Any) -> Any:
    pairs = rasp.SequenceMap(lambda token, i: (token, i), rasp.tokens, rasp.indices).named("pairs")
    opened = rasp.SelectorWidth(rasp.Select(pairs, rasp.indices, lambda k, q: k[0] == "(" and k[1] <= q))
    return rasp.SequenceMap(lambda n, i: 2 * n - i - 1, opened.named("opened"), rasp.indices)


@program(
    OWN, "add-first-last", "the first token plus the last",
    vocabulary=(0, 1, 2), reference=lambda x: [x[0] + x[-1]] * len(x),
)  # fmt: skip
def add_first_last(rasp: Any, lib: Any) -> Any:
    head = rasp.Aggregate(rasp.Select(rasp.indices, rasp.indices, lambda k, q: k == 0), rasp.tokens).named("head")
    end = (lib.make_length() - 1).named("end")
    tail = rasp.Aggregate(rasp.Select(rasp.indices, end, rasp.Comparison.EQ), rasp.tokens).named("tail")
    return rasp.SequenceMap(lambda a, b: a + b, head, tail)


@program(
    OWN, "mirrored", "whether each token equals the one as far from the other end",
    vocabulary="ab", reference=lambda x: [a == b for a, b in zip(x, x[::-1], strict=True)],
)  # fmt: skip
def mirrored(rasp: Any, lib: Any) -> Any:
    return rasp.SequenceMap(lambda a, b: a == b, rasp.tokens, lib.make_reverse(rasp.tokens))


@program(
    OWN, "palindrome", "whether the input reads the same backwards",
    vocabulary="ab", reference=lambda x: [x == x[::-1]] * len(x),
)  # fmt: skip
def palindrome(rasp: Any, lib: Any) -> Any:
    differs = rasp.SequenceMap(lambda a, b: a != b, rasp.tokens, lib.make_reverse(rasp.tokens)).named("differs")
    everywhere = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.TRUE)
    number = rasp.numerical(rasp.Map(int, differs)).named("number")
    share = rasp.numerical(rasp.Aggregate(everywhere, number, default=0)).named("share")
    return rasp.Map(lambda x: x == 0, share)
