"""How commands show their help: a flag has no type, `<k>` is no tag, and a group's command may be what it lists."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command whose flags are shown without `<bool>`, which nobody can type, and named arguments without a type."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.help = _without_tags(self.help)

    def get_params(self, ctx: Any) -> Any:
        return _without_types(super().get_params(ctx))


class Group(TyperGroup):
    """The same for the options of a group."""

    def get_params(self, ctx: Any) -> Any:
        return _without_types(super().get_params(ctx))


class Named(Group):
    """A group in which an argument that is no command goes to the command `show`: `acdc tasks ioi`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["show", *args]
        return super().resolve_command(ctx, args)


def _without_tags(text: str | None) -> str | None:
    """What Markdown shows as it is: the key of a head is a2.h3<k>."""
    return None if text is None else re.sub(r"(?<!\\)<", r"\<", text)


def _without_types(params: Any) -> Any:
    for param in params:
        param.help = _without_tags(getattr(param, "help", None))
        if getattr(param, "is_flag", False) or (param.param_type_name == "argument" and param.metavar):
            param.display_type_rich = _no_type
    return params


def _no_type(ctx: Any = None) -> None:
    """Nothing to show."""
