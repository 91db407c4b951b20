"""The RASP programs of the Tracr suite, each beside a reference of its meaning in plain Python.

A program is built by a function of `rasp` and `lib`, the modules of the compiler, so that this module, with the
references, can be read without the compiler being there. The references know nothing of RASP: tests compare the
shipped models with them.
"""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from acdc.model.tracr import Value

Sequence_ = Sequence[Value]
Output = list[Value | None]


@dataclasses.dataclass(frozen=True)
class Program:
    """One RASP program.

    Attributes:
        name: as in the model's name, "tracr-NAME".
        description: one line.
        build: `(rasp, lib) -> SOp`.
        reference: the outputs for an input, in plain Python; None where the program gives none.
        vocabulary: tokens of its inputs.
        max_length: greatest number of tokens.
        bos: whether inputs start with a BOS token.
        causal: whether positions attend to earlier ones only.
        distinct: whether inputs may not repeat a token.
        mlp_exactness: see `acdc.compile`.
    """

    name: str
    description: str
    build: Callable[[Any, Any], Any]
    reference: Callable[[Sequence_], Output]
    vocabulary: tuple[Value, ...]
    max_length: int
    bos: bool = True
    causal: bool = False
    distinct: bool = False
    mlp_exactness: int = 100

    @property
    def model_name(self) -> str:
        return f"tracr-{self.name}"

    @property
    def source(self) -> str:
        """Text of the function that builds the program."""
        text = textwrap.dedent(inspect.getsource(self.build))
        return text[text.index("def ") :]


PROGRAMS: dict[str, Program] = {}


def program(
    name: str,
    description: str,
    *,
    reference: Callable[[Any], Any],
    vocabulary: Sequence[Value],
    max_length: int = 5,
    **options: Any,
) -> Callable[[Callable[[Any, Any], Any]], Callable[[Any, Any], Any]]:
    """Register the decorated builder as a program; `reference` may return any iterable."""

    def register(build: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        PROGRAMS[name] = Program(
            name,
            description,
            build,
            lambda values: list(reference(values)),
            tuple(vocabulary),
            max_length,
            **options,
        )
        return build

    return register


# ---- the compiler's own library ---------------------------------------------------------------------------------


@program(
    "reverse",
    "the input backwards",
    vocabulary="abc",
    reference=lambda x: x[::-1],
)
def reverse(rasp: Any, lib: Any) -> Any:
    return lib.make_reverse(rasp.tokens)


@program(
    "proportion",
    'the fraction of tokens up to here that are "x" (frac_prevs)',
    vocabulary="xyz",
    reference=lambda x: [x[: i + 1].count("x") / (i + 1) for i in range(len(x))],
)
def proportion(rasp: Any, lib: Any) -> Any:
    return lib.make_frac_prevs(rasp.tokens == "x")


@program(
    "hist",
    "how often each token occurs in the input",
    vocabulary="abcd",
    reference=lambda x: [x.count(token) for token in x],
)
def hist(rasp: Any, lib: Any) -> Any:
    return lib.make_hist()


@program(
    "sort",
    "the input sorted",
    vocabulary=(1, 2, 3, 4),
    reference=sorted,
)
def sort(rasp: Any, lib: Any) -> Any:
    return lib.make_sort(rasp.tokens, rasp.tokens, max_seq_len=5, min_key=1)
