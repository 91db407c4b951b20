"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acdc.cli import terminal
from acdc.errors import AcdcError, near_misses, unknown

if TYPE_CHECKING:
    from acdc.circuit import Provenance
    from acdc.graph import Graph
    from acdc.model.model import Model
    from acdc.tasks import Task
    from acdc.tasks.task import Dataset

PROMPTS, MODEL, OUTPUT = "Prompts", "Model", "Output"


def _amount(text: str | None) -> str | None:
    """An amount of memory, refused before any work if it is none."""
    from acdc.store.amounts import bytes_of

    if text is not None:
        bytes_of(text)
    return text


ModelName = Annotated[
    str, typer.Argument(help="Name (`acdc models`), Hugging Face name, local folder or GGUF file.")
]
Run = Annotated[Path, typer.Argument(help="Folder that `acdc discover` wrote.")]
TaskName = Annotated[
    str | None,
    typer.Option(
        help="Name (`acdc tasks`) or a file of prompts; otherwise the run's, or a built-in model's own.",
        rich_help_panel=PROMPTS,
    ),
]
TaskOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="An option of the task; may be repeated.", rich_help_panel=PROMPTS),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        help="logit-difference, probability, kl, … (all: `acdc metrics`); otherwise the run's or task's.",
        rich_help_panel=PROMPTS,
    ),
]
AblationName = Annotated[
    str | None,
    typer.Option(
        help="What removed edges carry: resample, zero, mean, mean-position or optimal; otherwise the run's or task's.",
        rich_help_panel=PROMPTS,
    ),
]
Size = Annotated[int | None, typer.Option(min=1, help="Number of prompt pairs.", rich_help_panel=PROMPTS)]
HeldOut = Annotated[
    Path | None, typer.Option(help="File of held-out prompts, for a file of your own.", rich_help_panel=PROMPTS)
]
Split = Annotated[
    float | None, typer.Option(help="Or the fraction of your prompts to hold out.", rich_help_panel=PROMPTS)
]
TaskFormatName = Annotated[
    str | None,
    typer.Option(
        help="Format of a file of prompts, where its fields do not tell; see `acdc tasks formats`.",
        rich_help_panel=PROMPTS,
    ),
]
OnlyCorrectFlag = Annotated[
    bool,
    typer.Option("--only-correct", help="Only prompts that the model gets right.", rich_help_panel=PROMPTS),
]
RandomCircuits = Annotated[
    int, typer.Option(min=0, help="Random circuits of the same size to compare with.", rich_help_panel=PROMPTS)
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Prompts a batch; otherwise what fits.", rich_help_panel=MODEL)
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Most memory to use beside the weights: 4GB; otherwise what is free.",
        rich_help_panel=MODEL, callback=_amount,
    ),
]  # fmt: skip
Device = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, cuda:1, mps, auto; disk: weights stay in their files; cuda+cpu, cuda+disk: beside a GPU.",
        rich_help_panel=MODEL,
    ),
]
Dtype = Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.", rich_help_panel=MODEL)]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with a hub model.", rich_help_panel=MODEL)
]
Revision = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of a hub model: a training checkpoint.", rich_help_panel=MODEL),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        help="Hugging Face name or folder of another tokenizer than the model's own.", rich_help_panel=MODEL
    ),
]
SelectRule = Annotated[
    str,
    typer.Option(help="How a ranking is cut: top, greedy; to --edges also ilp, pnr or bootstrap, like pnr=0.7."),
]
AggregateName = Annotated[
    str | None,
    typer.Option(help="What a ranking makes of scores on single prompts: mean-absolute (default), rms or signed."),
]
RolesFile = Annotated[
    Path | None,
    typer.Option(
        "--roles",
        metavar="FILE",
        help="What heads do: what `acdc roles --json` prints, or {ROLE: [NODES]}; otherwise as published, if known.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, for machines, and nothing else.", rich_help_panel=OUTPUT)
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.", rich_help_panel=OUTPUT)]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def options(texts: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs; a value is a number, true or false, a list in brackets, or text."""
    from acdc.store.reading import strict_json

    options: dict[str, Any] = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise AcdcError(f"expected an option like steps=10, got {text!r}")
        if name in options:
            raise AcdcError(f"option {name!r} is given twice")
        try:
            options[name] = strict_json(value)
        except ValueError:
            options[name] = value
    return options


def roles_of(path: Path | None, graph: Graph, made: Provenance | None = None) -> dict[str, tuple[str, ...]] | None:
    """Components by what they do, of a file that `acdc roles --json` printed or of `{"role": ["a0.h1", …]}`.

    Args:
        path: None: those of the published circuit of this task in this model, or None if there is none.

    Raises:
        AcdcError: it is no such file, or names what the graph has not.
    """
    from acdc.evaluation.published import published
    from acdc.store.reading import read_text, strict_json

    if path is None:
        known = None if made is None else published(made.model, made.task)
        return None if known is None else {role: tuple(names) for role, names in known.roles.items()}
    try:
        record = strict_json(read_text(path))
        groups = record.get("groups", record)
        roles = {str(role): tuple(names) for role, names in groups.items() if not isinstance(names, str)}
        unknown_names = [name for names in roles.values() for name in names if name not in graph.nodes]
    except (ValueError, TypeError, AttributeError):
        roles, unknown_names = {}, []
    if not roles:
        raise AcdcError(
            f'expected {path} to be what acdc roles --json prints, or nodes by role like {{"mover": ["a2.h1"]}}'
        )
    if unknown_names:
        raise AcdcError(f"{path} names {unknown_names[0]!r}, which is no node of the circuit's graph")
    return roles


def listed(text: str, what: str) -> list[str]:
    """The names in a comma-separated list, each once.

    Raises:
        AcdcError: there are none.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise AcdcError(f"expected comma-separated {what}, got {text!r}")
    return names


def command_digest(context: typer.Context) -> str:
    """What tells a command from others: what it was given, but for where it writes and how it shows it."""
    values = {**context.params, "memory": None, "out": None, "force": None, "json": None}
    return hashlib.sha256(repr(values).encode()).hexdigest()


def load_task(name: str | Path, settings: dict[str, Any], **given: Any) -> Task:
    """The task, from settings of its own and from what commands have options for, which must not say it twice."""
    from acdc import tasks

    for taken in settings.keys() & {"name_or_path", *given}:
        flag = "--task" if taken == "name_or_path" else f"--{taken}"
        raise AcdcError(f"{taken!r} is no option of a task: give it by {flag}")
    return tasks.load(name, **given, **settings)


def flags_given(context: typer.Context, *names: str) -> list[str]:
    """Of options, by the names of a command's arguments, those that are on the command line, as flags."""
    sources = {name: getattr(context.get_parameter_source(name), "name", "") for name in names}
    return [f"--{name.replace('_', '-')}" for name, source in sources.items() if source == "COMMANDLINE"]


def as_used(settings: dict[str, Any], recipe: Task) -> dict[str, Any]:
    """The settings of a task with the size that there was, where a file has fewer prompts than were asked for."""
    lines = getattr(getattr(recipe, "task", recipe), "lines", None)
    if lines is None or "size" not in settings:
        return settings
    return settings | {"size": min(settings["size"], len(lines))}


def load_model(name: str, **options: Any) -> Model:
    """The model; one thread for a tiny one, which more threads slow down."""
    import torch

    from acdc.model.load import load

    model = load(name, **options)
    if model.note:
        terminal.say("note", f"{name}: {model.note}", "bold")
    if model.device.type == "cpu" and sum(p.numel() for p in model.module.parameters()) < 1_000_000:
        torch.set_num_threads(1)
    return model


def prepared(
    model: str, task: str | None, settings: dict[str, Any], *, loading: dict[str, Any], **chosen: Any
) -> tuple[Model, Dataset]:
    """A model, and its task's prompts, with what is to be said of these said.

    Args:
        task: None: the model's own.
        loading: of the model; chosen: metric, ablation, seed and memory.
    """
    recipe = load_task(task or own_task(model), settings, **chosen)
    subject = load_model(model, **loading)
    data = recipe.prepare(subject)
    for warning in data.warnings:
        terminal.warn(warning)
    return subject, data


def own_task(model: str) -> str:
    """The task a built-in model was made for."""
    from acdc import builtin_models, tasks

    name = tasks.default_task(model)
    if name is None:
        known = builtin_models()
        if near_misses(model, known):
            raise unknown("model", model, known)
        raise AcdcError(f"which task should {model} do? Give --task a name (see acdc tasks) or a file of prompts")
    return name


def short(name: str) -> str:
    """A model or task as part of a folder's name: the last part of a path, without the ending of a file."""
    from acdc.tasks.prompt_files import SUFFIXES

    return Path(name).stem if name.lower().endswith(SUFFIXES) else Path(name).resolve().name
