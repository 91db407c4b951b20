"""What a run is of, had again: its model, its task, and whether prompts are those that its circuit was found on."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acdc.cli import terminal
from acdc.cli.options import load_model, load_task
from acdc.errors import AcdcError

if TYPE_CHECKING:
    from acdc.circuit import Circuit, Provenance
    from acdc.evaluation.evaluate import Evaluation
    from acdc.model.model import Model
    from acdc.tasks import Task
    from acdc.tasks.prompts import Prompts
    from acdc.tasks.task import Dataset

_FROM = "a path is taken from the current folder, or else from the folders above the run"

_TELLING = ("config.json", "adapter_config.json", "tokenizer_config.json", "ll_model.pth")
"""Files of which the folder of a model, a tokenizer or a compiled program has one."""


# ---- model and task ---------------------------------------------------------------------------------------------


def placed(run: Path, made: Provenance) -> Provenance:
    """What a run says of itself, with its paths as they lead from here to what they named.

    A relative path that does not lead anywhere from the current folder is tried from each folder above the run, the
    nearest first, so that runs that are used from elsewhere, or moved with all that they are of, find their own.
    """
    options = dict(made.task_options)
    if isinstance(held_out := options.get("held_out"), str):
        options["held_out"] = nearby(run, held_out)
    return made.having(
        model=nearby(run, made.model),
        tokenizer=made.tokenizer and nearby(run, made.tokenizer),
        task=nearby(run, made.task),
        task_options=options,
    )


def nearby(run: Path, name: str) -> str:
    """A name that a run gives to its model, or to a file, as a path that leads there from here if it is one."""
    from acdc.model.load import builtin_models
    from acdc.tasks import names

    try:
        if not name or name in builtin_models() or name in {task.name for task in names()} or Path(name).exists():
            return name
        for folder in run.resolve().parents:
            path = folder / name
            if path.is_file() or any((path / part).is_file() for part in _TELLING):
                return str(path)
    except (OSError, ValueError):  # no name of a file; what it is then is said where it is loaded
        pass
    return name


def load_again(made: Provenance, **options: Any) -> Model:
    """The model that a result is of, at its revision and with its tokenizer."""
    try:
        return load_model(made.model, revision=made.revision, tokenizer=made.tokenizer, **options)
    except AcdcError as error:
        names = [name for name in (made.model, made.tokenizer) if name and repr(name) in str(error)]
        if not names or any(Path(name).exists() for name in names):
            raise
        raise AcdcError(f"{error} (the run names {names[0]!r}: if that was a local folder, {_FROM})") from None


def task_again(made: Provenance, *, ablation: str | None = None, memory: str | None = None) -> Task:
    """The task that a result is of, with the settings it was found with, but for what is given."""
    with naming_task_of(made):
        return load_task(
            made.task, dict(made.task_options), metric=made.metric or None,
            ablation=ablation or made.ablation or None, seed=made.seed or 0, memory=memory,
        )  # fmt: skip


def settings_again(made: Provenance, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings a result's task had, under those that are given now, which win."""
    ways = {"held_out", "split"}  # to have held-out prompts: one of them is meant
    before = {k: v for k, v in made.task_options.items() if not (k in ways and ways & settings.keys())}
    return before | settings


@contextlib.contextmanager
def naming_task_of(made: Provenance) -> Iterator[None]:
    """An error about a task is said to be of the task that a run names."""
    try:
        yield
    except AcdcError as error:
        if made.task not in str(error) and made.metric not in str(error):  # it is of what was given beside them
            raise
        raise AcdcError(
            f"{error} (the run names {made.task!r} as its task and {made.metric!r} as its metric: {_FROM}, and prompts "
            "or a metric that only Python had are not in the run)"
        ) from None


def as_found(
    run: Path, *, ablation: str | None = None, memory: str | None = None, **loading: Any
) -> tuple[Circuit, Model, Task]:
    """The circuit of a run, its model, and its task as it was found on.

    Raises:
        AcdcError: the run does not say of which model or for which task it is.
    """
    from acdc import Circuit

    circuit = Circuit.load(run)
    for what, name in (("of which model", circuit.provenance.model), ("for which task", circuit.provenance.task)):
        if not name:
            raise AcdcError(f"{run} does not say {what} the circuit is, so neither can be loaded again")
    made = placed(run, circuit.provenance)
    task = task_again(made, ablation=ablation, memory=memory)  # before the long work
    return circuit, load_again(made, **loading), task


# ---- prompts ----------------------------------------------------------------------------------------------------

UNKNOWN = "it is not known whether the circuit was found on these prompts"


def found_on(made: Provenance, data: Dataset, model: Model) -> Prompts | None:
    """The prompts that a circuit was found on: those at hand, if they are the same, or its own task's, made again.

    None, and a note, if they cannot be had as they were.
    """
    from acdc.engine.belonging import prompts_digest

    why = "the run does not say on which it was"
    if made.prompts_sha256:
        if prompts_digest(data.discovery) == made.prompts_sha256:
            return data.discovery
        try:
            own = task_again(made).prepare(model).discovery
            if prompts_digest(own) == made.prompts_sha256:
                return own
            why = f"those of {made.task!r}, which the run names, have changed"
        except (AcdcError, OSError) as error:
            why = str(error)
    terminal.say("note", f"{UNKNOWN}: {why}", "bold")
    return None


def unseen(data: Dataset, known: Prompts | None) -> tuple[Dataset, bool]:
    """Without those prompts to judge a circuit on that it was found on, which a note counts.

    Discovery prompts stay beside held-out ones, whatever they were to the circuit: they only judge where there are no
    others, and constants of optimal ablation are of all of them.

    Returns:
        The dataset, and whether all its discovery prompts are among those. Where no prompt to judge it on is new, none
        is left out, and they count as those of discovery.
    """
    from acdc.tasks.repeats import new_ones

    if known is None:
        return data, False
    found_here = new_ones(data.discovery, known, data.ablation) is None
    judged = data.discovery if data.held_out is None else data.held_out
    n, left = len(judged), new_ones(judged, known, data.ablation)
    some = "prompts" if data.held_out is None else "held-out prompts"
    where = "among those that the circuit was found on"
    if left is None and data.held_out is not None:
        terminal.say("note", f"under {data.ablation} ablation all {n} {some} are {where}", "bold")
        return dataclasses.replace(data, discovery=data.held_out, held_out=None, tokens=None), True
    if left is None or len(left) == n:
        return data, found_here
    terminal.say("note", f"{n - len(left)} of {n} {some} are {where}: left out", "bold")
    if data.held_out is None:
        return dataclasses.replace(data, discovery=left, tokens=None), False
    return dataclasses.replace(data, held_out=left), found_here


def judged_on(evaluation: Evaluation, found_here: bool | None) -> Evaluation:
    """An evaluation on other prompts than a run's own that says what they are, which a digest of all does not tell.

    Args:
        found_here: whether the circuit was found on the discovery prompts; None: it is not known.
    """
    prompts = {True: "discovery", False: "other", None: "given"}[found_here]
    changed = tuple(what for what in evaluation.changed if what != "prompts" or not found_here)
    where = evaluation.prompts if evaluation.prompts == "held-out" else prompts
    return dataclasses.replace(evaluation, prompts=where, changed=changed)
