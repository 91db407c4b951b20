"""Reading RASP programs: the expressions of DeepMind's `tracr.rasp`, before they are compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from acdc.errors import AcdcError
from acdc.model.programs.tracr import Value

UNSUPPORTED = {
    "LengthType": "rasp.length has no weights: use lib.make_length()",
    "Full": "a constant sequence (Full) cannot be compiled: put the constant into the function of a Map",
    "ConstantSOp": "a constant sequence cannot be compiled: put the constant into the function of a Map",
    "ConstantSelector": "a constant selector cannot be compiled: use Select with a predicate",
}
_COMBINED = (
    "selectors over different keys or queries cannot be combined with &, | or ~: "
    "pair the keys with a SequenceMap and use one Select"
)
UNSUPPORTED |= dict.fromkeys(("SelectorAnd", "SelectorOr", "SelectorNot"), _COMBINED)
"""Why the compiler cannot take a kind of expression; it fails on them without saying so."""


def rasp_modules() -> tuple[Any, Any]:
    """The compiler's modules `rasp` and `lib`.

    Raises:
        AcdcError: the extra `[tracr]` is not installed.
    """
    try:
        from tracr.compiler import lib
        from tracr.rasp import rasp
    except ImportError as error:
        raise AcdcError(
            f"compiling RASP programs needs the Tracr compiler ({error}): pip install 'acdc-circuits[tracr]'"
        ) from None
    return rasp, lib


def expressions(program: Any) -> Iterator[Any]:
    """The program's expressions, each once, those it depends on first."""
    seen: set[int] = set()

    def visit(expression: Any) -> Iterator[Any]:
        if id(expression) not in seen:
            seen.add(id(expression))
            for child in expression.children:
                yield from visit(child)
            yield expression

    return visit(program)


def number(program: Any) -> None:
    """Number the expressions in the order of the program, so that it always compiles to the same weights."""
    for index, expression in enumerate(expressions(program), start=1):
        expression.__dict__["unique_id"] = index


def why_not(program: Any) -> str | None:
    """Why a program cannot be compiled, as far as its kinds of expressions tell; None if nothing speaks against it."""
    if not program.children:
        return "it computes nothing: wrap it in a Map"
    kinds = [type(expression).__name__ for expression in expressions(program)]
    if "TokensType" not in kinds:
        return "it does not read rasp.tokens"
    return next((UNSUPPORTED[kind] for kind in kinds if kind in UNSUPPORTED), None)


def listing(program: Any) -> str:
    """A text of the program, one expression a line, like `hist_3 = SelectorWidth(same_tok_2)`."""
    lines = []
    for expression in expressions(program):
        arguments = [child.label for child in expression.children]
        if hasattr(expression, "predicate"):
            arguments.append(getattr(expression.predicate, "name", "predicate"))
        if arguments:
            lines.append(f"{expression.label} = {type(expression).__name__}({', '.join(arguments)})")
    return "\n".join([*lines, f"return {program.label}"]) + "\n"


def evaluator(program: Any, causal: bool) -> Callable[[list[Value]], Sequence[Value | None]]:
    """The program's own outputs on an input, by the RASP interpreter."""
    from tracr.rasp import causal_eval

    def evaluate(values: list[Value]) -> Sequence[Value | None]:
        try:
            result = causal_eval.evaluate(program, values) if causal else program(values)
        except Exception as error:
            raise AcdcError(f"the RASP program fails on {values}: {type(error).__name__}: {error}") from error
        return list(result)

    return evaluate
