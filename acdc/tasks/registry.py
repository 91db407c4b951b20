"""Tasks by name: the built-in generators and those of other packages, the Tracr tasks, and files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from acdc.errors import AcdcError, TaskError, unknown
from acdc.registry import Registry
from acdc.tasks import file_task, generate
from acdc.tasks.check import OnlyCorrect
from acdc.tasks.generate import Generator
from acdc.tasks.language import (
    arithmetic,
    choice,
    docstring,
    fact_recall,
    gendered_pronoun,
    greater_than,
    induction,
    ioi,
    sva,
)
from acdc.tasks.prompt_files import FORMATS, SUFFIXES
from acdc.tasks.prompts import check_padding
from acdc.tasks.task import Metric, Task, check_ablation, resolve_metric

GENERATORS: Registry[Generator] = Registry(
    "acdc.tasks",
    "a Generator",
    {
        generator.name: generator
        for generator in (
            Generator(
                "induction",
                "the second copy of a random sequence of tokens; needs no tokenizer",
                "logit-difference",
                induction.pairs,
            ),
            Generator(
                "ioi",
                "indirect object: When Mary and John went to the store, John gave a drink to → Mary",
                "logit-difference",
                ioi.pairs,
            ),
            Generator(
                "greater-than",
                "a later year: The war lasted from the year 1732 to the year 17 → 33 … 99",
                "probability-difference",
                greater_than.pairs,
            ),
            Generator(
                "docstring",
                "the next argument of a Python function in its docstring",
                "logit-margin",
                docstring.pairs,
            ),
            Generator(
                "gendered-pronoun",
                "the pronoun of a name: So Anna is a really great friend, isn't → she",
                "logit-difference",
                gendered_pronoun.pairs,
            ),
            Generator(
                "sva",
                "subject–verb agreement past an attractor: The keys near the cabinet → are",
                "probability-difference",
                sva.pairs,
            ),
            Generator(
                "fact-recall",
                "the capital of a country: The capital of France is the city of → Paris",
                "logit-difference",
                fact_recall.pairs,
            ),
            Generator(
                "mcqa",
                "multiple choice by letter, the answer in the prompt: The box is brown. What colour is the box? …",
                "logit-difference",
                choice.copied_pairs,
            ),
            Generator(
                "arc",
                "multiple choice by letter, simple science questions in the style of ARC",
                "logit-difference",
                choice.science_pairs,
            ),
            Generator(
                "arithmetic",
                "sums and differences: Q: How much is 12 plus 34? A: → 46",
                "logit-difference",
                arithmetic.pairs,
            ),
        )
    },
    fits=lambda given: isinstance(given, Generator),
    name=lambda generator: generator.name,
    also=lambda: _tracr_tasks() | _interp_tasks(),
)
"""The tasks that draw their prompts, by name."""

_MADE_FOR = {"induction-2l": "induction", "tiny-tasks": "ioi", "tiny-tasks-gqa": "ioi"}


_LONGEST_NAME = 255  # characters of a file's name, in the usual file systems


class TaskInfo(NamedTuple):
    """A task as `acdc tasks` lists it."""

    name: str
    description: str


def names() -> list[TaskInfo]:
    """Every built-in task: those of any language model first, then those of programs."""
    language = [TaskInfo(generator.name, generator.description) for generator in GENERATORS.values()]
    programs = _tracr_tasks() | _interp_tasks()
    return [*language, *(TaskInfo(name, description) for name, description in programs.items())]


def _of_programs() -> dict[str, tuple[str, str]]:
    """Options of tasks of compiled programs: what each expects and means."""
    from acdc.tasks.programs.inputs import DISTRIBUTIONS

    return {
        "distribution": (f"one of {', '.join(DISTRIBUTIONS)}", "in what clean and corrupted inputs differ"),
        "witnesses": ("true or false", "whether pairs chosen with the truth lead the discovery prompts"),
    }


def describe(name: str) -> dict[str, Any]:
    """Everything about a built-in task: description, metric, prompts, and its options with their defaults.

    Raises:
        AcdcError: there is no task of that name.
    """
    if name in GENERATORS:
        generator = GENERATORS[name]
        return {
            "task": name,
            "description": generator.description,
            "metric": generator.metric,
            "ablation": "resample",
            "prompts": f"{generate.DEFAULT_SIZE} pairs, and as many held out; --size for more",
            "options": generator.defaults,
            "expects": {name: option.expects for name, option in generator.options.items()},
            "means": {name: option.meaning for name, option in generator.options.items()},
        }
    programs = _tracr_tasks() | _interp_tasks()
    if name not in programs:
        raise unknown("task", name, _all_names())
    task, of_programs = load(name), _of_programs()
    size = getattr(task, "size", None)
    return {
        "task": name,
        "description": programs[name],
        "metric": task.metric,
        "ablation": task.ablation,
        "prompts": "drawn for the program"
        if size is None
        else f"{size} pairs, and as many held out; --size for more",
        "truth": "known: acdc draw --truth, acdc evaluate",
        "options": {option: getattr(task, option, None) for option in of_programs},
        "expects": {option: expects for option, (expects, _) in of_programs.items()},
        "means": {option: means for option, (_, means) in of_programs.items()},
    }


def default_task(model_name: str) -> str | None:
    """The task a built-in model, or a folder with a compiled program, was made for; None for other models."""
    if _is_program(model_name):
        return model_name
    name = Path(model_name).name
    if name in _tracr_tasks() | _interp_tasks():
        return name
    return _MADE_FOR.get(name)


def load(
    name_or_path: str | Path,
    *,
    metric: Metric | None = None,
    size: int | None = None,
    seed: int = 0,
    held_out: str | Path | None = None,
    split: float | None = None,
    ablation: str | None = None,
    padding: str = "right",
    only_correct: bool = False,
    memory: str | None = None,
    format: str | None = None,
    **options: Any,
) -> Task:
    """A task by name, or from a file of your own.

    Args:
        name_or_path: one of `names()`, or a path. `acdc.tasks.prompt_files` says what formats
            are read, `acdc.tasks.records` what a record holds.
        metric: name of an outcome metric, an `Outcome` or a function; None: the task's own. A file's own is
            logit-difference with wrong answers, probability with answers only, kl with neither.
        size: discovery prompts. A built-in task has as many held out; a file is used whole by default.
        seed: of the prompts drawn, and of the split.
        held_out: file of held-out prompts, for a file.
        split: or the fraction of a file's prompts to hold out.
        ablation: "resample", "zero", "mean", "mean-position" or "optimal"; None: the task's own.
        padding: the side on which shorter prompts are filled up, "right" or "left".
        only_correct: leave out the prompts that the model gets wrong; memory: how much may be used to find out, beside
            the weights, like "4GB".
        format: of a file: a name of `acdc.tasks.peer_formats.FORMATS`; None: as its first record's fields say.
        options: of the task: `corruption` and `order` of ioi, `length` of induction, `distribution` and `witnesses` of
            Tracr tasks.

    Raises:
        AcdcError: an unknown name, metric or option (names the nearest), or bad lines in the file.
    """
    _check_kinds(
        size=size,
        seed=seed,
        held_out=held_out,
        split=split,
        padding=padding,
        only_correct=only_correct,
        format=format,
    )
    if only_correct:
        settings: dict[str, Any] = {
            "metric": metric,
            "size": size,
            "seed": seed,
            "held_out": held_out,
            "split": split,
            "format": format,
        }
        every = load(name_or_path, ablation=ablation, padding=padding, **settings, **options)
        return OnlyCorrect(every, memory)
    outcome = None if metric is None else resolve_metric(metric)
    chosen = None if ablation is None else check_ablation(ablation)
    side = check_padding(padding)
    if size is not None and size < 1:
        raise TaskError(f"expected a size of at least 1 prompt, got {size}")
    if size is not None and size > MOST_PROMPTS:
        raise TaskError(f"expected a size of at most {MOST_PROMPTS:,} prompts, got {size:,}")
    if seed < 0:
        raise TaskError(f"expected a seed of at least 0, got {seed}")
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TaskError(f"expected the name of a task or a path, got {type(name_or_path).__name__}")
    name = str(name_or_path)
    path = Path(name_or_path)
    if "\0" in name or len(name) > 4 * _LONGEST_NAME or any(len(part) > _LONGEST_NAME for part in path.parts):
        raise TaskError(f"expected the name of a task or a path, got {name!r:.60}, which can be neither")
    program = name in _tracr_tasks() or _is_program(name)
    if not program and name not in GENERATORS:
        if path.is_dir() or not os.path.lexists(path):
            raise _no_task(name, path)
        if options:
            raise TaskError(
                f"{path.name}: a file has no option {next(iter(options))!r}; options are of built-in tasks"
            )
        return file_task.load_file(
            path,
            metric=outcome,
            size=size,
            seed=seed,
            held_out=None if held_out is None else Path(held_out),
            split=split,
            ablation=chosen or "resample",
            padding=side,
            format=format,
        )
    if held_out is not None or split is not None or format is not None:
        given = "held_out" if held_out is not None else "split" if split is not None else "format"
        if given == "format":
            raise TaskError(f"format is for a file of your own; task {name!r} draws its prompts")
        raise TaskError(f"{given} is for a file of your own; task {name!r} brings its own held-out prompts")
    if not program:
        return generate.make(
            GENERATORS[name],
            outcome=outcome,
            size=size,
            seed=seed,
            ablation=chosen or "resample",
            padding=side,
            options=options,
        )
    return _load_program(name, metric=outcome, size=size, seed=seed, ablation=chosen, options=options)


MOST_PROMPTS = 1_000_000
"""Prompts of the largest task that is made; more would be drawn for hours."""


def _check_kinds(**given: object) -> None:
    """Refuse arguments of the wrong kind; they come from files and command lines too."""
    kinds: dict[str, tuple[type, ...]] = {
        "size": (int,),
        "seed": (int,),
        "held_out": (str, Path),
        "split": (int, float),
        "padding": (str,),
        "format": (str,),
        "only_correct": (bool,),
    }
    for name, value in given.items():
        wrong = isinstance(value, bool) and bool not in kinds[name]
        if value is not None and (wrong or not isinstance(value, kinds[name])):
            expected = {
                int: "a whole number",
                float: "a number",
                str: "a text",
                bool: "true or false",
                Path: "a path",
            }
            raise TaskError(f"expected {name} to be {expected[kinds[name][-1]]}, got {value!r:.60}")


def _no_task(name: str, path: Path) -> AcdcError:
    if path.is_dir():
        return TaskError(f"{path} is a folder; expected a task's name or a file of prompts")
    if "/" in name or path.suffix.lower() in SUFFIXES:
        return TaskError(f"no such file: {name!r}; expected {FORMATS}, or the name of a task (see acdc tasks)")
    error = unknown("task", name, _all_names())
    return AcdcError(f"{error}; nor is it a file")


def _all_names() -> list[str]:
    return [info.name for info in names()]


def _is_program(name: str) -> bool:
    """Whether it is the folder of a model with its true circuits, or the name of a built-in one trained for them."""
    from acdc.model.programs.interpbench import is_interpbench
    from acdc.tasks.programs import interp

    path = Path(name)
    compiled = (path / "truth.json").is_file() and (path / "config.json").is_file()
    return compiled or interp.is_interp(name) or is_interpbench(path)


def _tracr_tasks() -> dict[str, str]:
    from acdc.tasks.programs import tracr

    return {name: tracr.describe(name) for name in tracr.task_names()}


def _interp_tasks() -> dict[str, str]:
    from acdc.tasks.programs import interp

    return {name: interp.describe_task(name) for name in interp.builtin_names()}


def _load_program(name: str, *, options: dict[str, Any], **settings: Any) -> Task:
    from acdc.model.programs.interpbench import is_interpbench
    from acdc.tasks.programs import interp, interpbench, tracr

    if is_interpbench(name):
        if options:
            raise TaskError(f"task {name!r} has no option {next(iter(options))!r}")
        return interpbench.make(name, **settings)
    known = ["distribution", "witnesses"]
    for option in options:
        if option not in known:
            raise unknown(f"option of task {name!r}", option, known)
    kind = interp.InterpTask if interp.is_interp(name) else tracr.TracrTask
    return kind.of(name, **settings, **options)
