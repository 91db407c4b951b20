"""Programs of the compiler's own library: those that compile and run exactly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from acdc.benchmarks.training.tracr_program import Program, program

LIBRARY: dict[str, Program] = {}


@program(LIBRARY, "reverse", "the input backwards", vocabulary="abc", reference=lambda x: x[::-1])
def reverse(rasp: Any, lib: Any) -> Any:
    return lib.make_reverse(rasp.tokens)


def _fractions(x: list[Any], token: Any) -> list[float]:
    return [x[: i + 1].count(token) / (i + 1) for i in range(len(x))]


@program(
    LIBRARY, "proportion", 'the fraction of tokens up to here that are "x" (frac_prevs)',
    vocabulary="xyz", reference=lambda x: _fractions(x, "x"),
)  # fmt: skip
def proportion(rasp: Any, lib: Any) -> Any:
    return lib.make_frac_prevs(rasp.tokens == "x")


@program(
    LIBRARY, "proportion-causal", 'the fraction of tokens up to here that are "x", with causal attention',
    vocabulary="xyz", causal=True, reference=lambda x: _fractions(x, "x"),
)  # fmt: skip
def proportion_causal(rasp: Any, lib: Any) -> Any:
    return lib.make_frac_prevs(rasp.tokens == "x")


@program(LIBRARY, "length", "the length of the input", vocabulary="abc", reference=lambda x: [len(x)] * len(x))
def length(rasp: Any, lib: Any) -> Any:
    return lib.make_length()


@program(
    LIBRARY, "position", "the number of tokens up to here: a selector's width under causal attention",
    vocabulary="abc", causal=True, reference=lambda x: range(1, len(x) + 1),
)  # fmt: skip
def position(rasp: Any, lib: Any) -> Any:
    return rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE))


@program(
    LIBRARY, "hist", "how often each token occurs in the input",
    vocabulary="abcd", reference=lambda x: [x.count(token) for token in x],
)  # fmt: skip
def hist(rasp: Any, lib: Any) -> Any:
    return lib.make_hist()


@program(
    LIBRARY, "hist-no-bos", "how often each token occurs in the input, as in the RASP paper, with no BOS token",
    vocabulary="abc", bos=False, reference=lambda x: [x.count(token) for token in x],
)  # fmt: skip
def hist_no_bos(rasp: Any, lib: Any) -> Any:
    light = rasp.numerical(rasp.Map(lambda i: int(i == 0), rasp.indices)).named("light")
    pairs = rasp.SequenceMap(lambda token, i: (token, i), rasp.tokens, rasp.indices).named("pairs")
    same_or_first = rasp.Select(pairs, rasp.tokens, lambda key, query: key[0] == query or key[1] == 0)
    fraction = rasp.numerical(rasp.Aggregate(same_or_first, light, default=0)).named("fraction")
    others = rasp.Map(lambda x: round(1 / x) - 1, fraction).named("others")
    first = rasp.Aggregate(rasp.Select(rasp.indices, rasp.indices, lambda k, q: k == 0), rasp.tokens).named("first")
    same_as_first = rasp.SequenceMap(lambda x, y: int(x == y), rasp.tokens, first).named("same_as_first")
    return rasp.SequenceMap(lambda x, y: x + y, others, same_as_first).named("hist")


@program(LIBRARY, "sort", "the input sorted", vocabulary=(1, 2, 3, 4), reference=sorted)
def sort(rasp: Any, lib: Any) -> Any:
    return lib.make_sort(rasp.tokens, rasp.tokens, max_seq_len=5, min_key=1)


@program(
    LIBRARY, "sort-unique", "the input, which has no token twice, sorted",
    vocabulary=(1, 2, 3, 4, 5, 6), distinct=True, reference=sorted,
)  # fmt: skip
def sort_unique(rasp: Any, lib: Any) -> Any:
    return lib.make_sort_unique(rasp.tokens, rasp.tokens)


@program(
    LIBRARY, "sort-freq", "tokens sorted by how often they occur, most often first, else in the order of the input",
    vocabulary=(1, 2, 3), reference=lambda x: sorted(x, key=lambda token: -x.count(token)),
)  # fmt: skip
def sort_freq(rasp: Any, lib: Any) -> Any:
    return lib.make_sort_freq(max_seq_len=5)


@program(
    LIBRARY, "pair-balance", 'the fraction of "(" up to here minus the fraction of ")"', vocabulary="()a",
    reference=lambda x: [a - b for a, b in zip(_fractions(x, "("), _fractions(x, ")"), strict=True)],
)  # fmt: skip
def pair_balance(rasp: Any, lib: Any) -> Any:
    return lib.make_pair_balance(rasp.tokens, "(", ")")


def _balanced(x: list[str], pairs: Iterable[str]) -> list[bool]:
    """Whether each kind of bracket, taken alone, is balanced."""
    for pair in pairs:
        depth = 0
        for token in x:
            depth += (token == pair[0]) - (token == pair[1])
            if depth < 0:
                return [False] * len(x)
        if depth:
            return [False] * len(x)
    return [True] * len(x)


@program(
    LIBRARY, "shuffle-dyck", "whether the brackets are balanced",
    vocabulary="()", max_length=6, reference=lambda x: _balanced(x, ["()"]),
)  # fmt: skip
def shuffle_dyck(rasp: Any, lib: Any) -> Any:
    return lib.make_shuffle_dyck(["()"])


@program(
    LIBRARY, "shuffle-dyck2", "whether the brackets of either kind, taken alone, are balanced",
    vocabulary="(){}", max_length=4, reference=lambda x: _balanced(x, ["()", "{}"]),
)  # fmt: skip
def shuffle_dyck2(rasp: Any, lib: Any) -> Any:
    return lib.make_shuffle_dyck2()


@program(
    LIBRARY, "count", 'how many tokens of the input are "a"',
    vocabulary="abc", reference=lambda x: [x.count("a")] * len(x),
)  # fmt: skip
def count(rasp: Any, lib: Any) -> Any:
    return lib.make_count(rasp.tokens, "a")


@program(
    LIBRARY, "count-less-freq", "how many tokens of the input occur at most twice",
    vocabulary="abc", reference=lambda x: [sum(x.count(token) <= 2 for token in x)] * len(x),
)  # fmt: skip
def count_less_freq(rasp: Any, lib: Any) -> Any:
    return lib.make_count_less_freq(2)


def _ends(x: list[str], pattern: str) -> list[bool | None]:
    n = len(pattern)
    return [None if i < n - 1 else x[i - n + 1 : i + 1] == list(pattern) for i in range(len(x))]


@program(
    LIBRARY, "detect-ab", 'whether "ab" ends here', vocabulary="abc", reference=lambda x: _ends(x, "ab")
)  # fmt: skip
def detect_ab(rasp: Any, lib: Any) -> Any:
    return lib.detect_pattern(rasp.tokens, "ab")


@program(
    LIBRARY, "detect-abc", 'whether "abc" ends here',
    vocabulary="abc", max_length=6, reference=lambda x: _ends(x, "abc"),
)  # fmt: skip
def detect_abc(rasp: Any, lib: Any) -> Any:
    return lib.detect_pattern(rasp.tokens, "abc")


@program(
    LIBRARY, "shift", "the token one place before",
    vocabulary="abc", reference=lambda x: [None, *x[:-1]],
)  # fmt: skip
def shift(rasp: Any, lib: Any) -> Any:
    return lib.shift_by(1, rasp.tokens)


@program(
    LIBRARY, "shift-two", "the token two places before",
    vocabulary="abc", reference=lambda x: [None, None, *x][: len(x)],
)  # fmt: skip
def shift_two(rasp: Any, lib: Any) -> Any:
    return lib.shift_by(2, rasp.tokens)


@program(
    LIBRARY, "sum-of-three", "token plus token minus its index, by a map of three sequences",
    vocabulary=(1, 2, 3), reference=lambda x: [2 * token - i for i, token in enumerate(x)],
)  # fmt: skip
def sum_of_three(rasp: Any, lib: Any) -> Any:
    return lib.make_nary_sequencemap(lambda x, y, z: x + y - z, rasp.tokens, rasp.tokens, rasp.indices)
