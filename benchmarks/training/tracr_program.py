"""What a program of the Tracr suite is: a RASP program beside a reference of its meaning in plain Python.

A program is built by a function of `rasp` and `lib`, the modules of the compiler, so that the programs, with their
references, can be read without the compiler being there. The references know nothing of RASP: tests compare the
shipped models with them.
"""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from acdc.model.programs.tracr import Value


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
    reference: Callable[[list[Value]], list[Value | None]]
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


Build = Callable[[Any, Any], Any]


def program(
    suite: dict[str, Program],
    name: str,
    description: str,
    *,
    reference: Callable[[Any], Iterable[Any]],
    vocabulary: Sequence[Value],
    max_length: int = 5,
    **options: Any,
) -> Callable[[Build], Build]:
    """Add the decorated builder to a suite of programs."""

    def register(build: Build) -> Build:
        suite[name] = Program(
            name, description, build, lambda x: list(reference(x)), tuple(vocabulary), max_length, **options
        )
        return build

    return register
