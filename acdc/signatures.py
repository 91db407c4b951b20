"""The options of a record: the keyword-only arguments of its function, with type, default and meaning.

`Annotated[int, "what it means"]` says what an option means; lists and the reference show it.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import pydantic

from acdc.errors import AcdcError

NOTHING = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class Option:
    """An option as a signature has it.

    Attributes:
        annotation: its type; `NOTHING` if it has none.
        meaning: what it means, in words; "" where nothing says so.
    """

    name: str
    default: Any
    annotation: Any
    meaning: str = ""

    @property
    def expects(self) -> str:
        """What a value has to be, in words."""
        return "anything" if self.annotation is NOTHING else in_words(self.annotation)

    def checked(self, value: object, owner: str) -> Any:
        """A plain Python value, checked against the annotation.

        Raises:
            AcdcError: it is of another type; with the `owner`, as in "method 'eap'".
        """
        if isinstance(value, int) and abs(value) >= 2**63:
            raise AcdcError(f"{owner}: {self.name}={str(value)[:20]}… is too large")
        if self.annotation is NOTHING:
            return value
        try:
            return pydantic.TypeAdapter(self.annotation).validate_python(value, strict=True)
        except pydantic.ValidationError:
            like = f" like {self.default!r}" if self.default is not None else ""
            raise AcdcError(
                f"{owner}: expected {self.name} to be {in_words(self.annotation)}{like}, got {value!r:.60}"
            ) from None


_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def in_words(annotation: Any) -> str:
    """What a value of this type is, for messages and lists of options: "a whole number", "one of a, b"."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(part) for part in parts if part is not type(None))
    if isinstance(origin, type) and issubclass(origin, Iterable) and parts:
        return f"a list of {_WORDS.get(parts[0], str(parts[0]))}s"
    word = _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return word if annotation is bool else f"a {word}"


def options_of(function: Callable[..., object] | None) -> dict[str, Option]:
    """The options of a function by name; none of no function."""
    if function is None:
        return {}
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # an annotation that only type checkers can read
        signature = inspect.signature(function)
    found = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        default, annotation, meaning = parameter.default, parameter.annotation, ""
        if isinstance(annotation, str):
            annotation = NOTHING if default is None else type(default)
        if typing.get_origin(annotation) is Annotated:
            annotation, *texts = typing.get_args(annotation)
            meaning = next((text for text in texts if isinstance(text, str)), "")
        found[name] = Option(name, default, annotation, meaning)
    return found
