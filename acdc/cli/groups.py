"""Options that many commands share, as one parameter: a dataclass whose fields are the command's options."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

from acdc.cli.options import (
    Device,
    Dtype,
    HeldOut,
    OnlyCorrectFlag,
    Revision,
    Size,
    Split,
    TaskFormatName,
    TaskOption,
    Tokenizer,
    Trust,
    given,
    options,
)
from acdc.errors import AcdcError


@dataclasses.dataclass(frozen=True)
class PromptOptions:
    """Which prompts of a task."""

    task_option: TaskOption = None
    task_format: TaskFormatName = None
    size: Size = None
    held_out: HeldOut = None
    split: Split = None
    only_correct: OnlyCorrectFlag = False

    @property
    def settings(self) -> dict[str, Any]:
        """Those that were given, and the task's own."""
        shared = given(
            size=self.size, held_out=self.held_out, split=self.split, only_correct=self.only_correct or None,
            format=self.task_format,
        )  # fmt: skip
        own = options(self.task_option)
        if twice := sorted(shared.keys() & own.keys()):
            raise AcdcError(f"{twice[0]} is given twice, as an option and as --task-option: leave one out")
        return shared | own


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded."""

    revision: Revision = None
    tokenizer: Tokenizer = None
    device: Device = "cpu"
    dtype: Dtype = "float32"
    trust_remote_code: Trust = False

    @property
    def loading(self) -> dict[str, Any]:
        """What `acdc.load` is given."""
        return dataclasses.asdict(self)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """A command in which the fields of each parameter of such a class stand for it, as options of their own."""
    types = typing.get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in types.items() if dataclasses.is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if (group := groups.get(parameter.name)) is None:
            parameters.append(parameter.replace(annotation=types[parameter.name]))
            continue
        own = typing.get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(field.name, parameter.KEYWORD_ONLY, default=field.default, annotation=own[field.name])
            for field in dataclasses.fields(group)
        ]

    @functools.wraps(command)
    def with_groups(*arguments: Any, **named: Any) -> None:
        for name, group in groups.items():
            named[name] = group(**{field.name: named.pop(field.name) for field in dataclasses.fields(group)})
        command(*arguments, **named)

    made: Any = with_groups
    made.__signature__ = inspect.Signature(parameters, return_annotation=None)
    made.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
    del made.__wrapped__
    return with_groups
