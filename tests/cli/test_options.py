"""The command line's options are the API's: what both have has one default."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from typer.main import get_command

import acdc
from acdc import viz
from acdc.cli import lists, main
from command_line import Command

PAIRS: list[tuple[Callable[..., Any], Callable[..., Any]]] = [
    *((main.discover, api) for api in (acdc.discover, acdc.load, acdc.tasks.load, acdc.Graph, acdc.evaluate)),
    *((main.evaluate, api) for api in (acdc.evaluate, acdc.load, acdc.tasks.load)),
    (main.draw, viz.draw),
    *((lists.check, api) for api in (acdc.tasks.check_task, acdc.load, acdc.tasks.load)),
]


@pytest.mark.parametrize(("command", "api"), PAIRS)
def test_the_command_line_and_the_api_agree(command: Callable[..., Any], api: Callable[..., Any]) -> None:
    """An option that is left out is not passed on (None), or has the API's own default, if that is not None."""
    shared = inspect.signature(command).parameters.keys() & inspect.signature(api).parameters.keys()
    assert shared
    for name in shared:
        ours, theirs = (inspect.signature(each).parameters[name].default for each in (command, api))
        unsaid = (None, inspect.Parameter.empty)
        assert ours in unsaid or theirs in unsaid or ours == theirs, name


def test_every_command_that_takes_a_file_of_prompts_can_be_told_its_format() -> None:
    commands = get_command(main.app).commands  # type: ignore[attr-defined]
    options = {name: {parameter.name for parameter in command.params} for name, command in commands.items()}
    takes = {name for name, names in options.items() if "task" in names}
    assert {
        "discover",
        "evaluate",
        "audit",
        "ablate",
        "patch-path",
        "roles",
        "positions",
        "trace",
        "import",
    } <= takes
    assert not {name for name in takes if "task_format" not in options[name]}


def test_a_setting_of_the_prompts_is_given_once(command: Command) -> None:
    twice = command("discover", "induction-2l", "--size", 8, "--task-option", "size=16")
    assert (twice.status, "size is given twice" in twice.err) == (2, True)
