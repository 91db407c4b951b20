"""The command line: reads options, calls the API, shows what comes back. Nothing is computed here.

Heavy imports are made inside the commands, so that help is instant. What can be checked is checked before the long
work, and what is written is there whole or not at all.
"""

from __future__ import annotations

import dataclasses
import difflib
import json as json_module
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from acdc import report, terminal
from acdc.cli_benchmark import benchmark
from acdc.errors import AcdcError, unknown

if TYPE_CHECKING:
    from acdc.circuit import Circuit
    from acdc.graph import BoolArray
    from acdc.model.model import Model

app = typer.Typer(
    help="Find, judge, draw and exchange circuits in transformer language models.",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# ---- options that several commands share ------------------------------------------------------------------------

_PROMPTS, _MODEL, _OUTPUT = "Prompts", "Model", "Output"

ModelName = Annotated[str, typer.Argument(help="Built-in name (`acdc models`), Hugging Face name or local folder.")]
Run = Annotated[Path, typer.Argument(help="Folder that `acdc discover` wrote.")]
Task = Annotated[
    str | None,
    typer.Option(
        help="Name (`acdc tasks`) or JSONL file. Built-in models have their own.", rich_help_panel=_PROMPTS
    ),
]
TaskOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="An option of the task; may be repeated.", rich_help_panel=_PROMPTS),
]
Metric = Annotated[
    str | None,
    typer.Option(
        help="logit-difference, kl, probability-difference, …; otherwise the task's.", rich_help_panel=_PROMPTS
    ),
]
Ablation = Annotated[
    str | None,
    typer.Option(
        help="What removed edges carry: resample, zero, mean or mean-position; otherwise the task's.",
        rich_help_panel=_PROMPTS,
    ),
]
Size = Annotated[int | None, typer.Option(min=1, help="Number of prompt pairs.", rich_help_panel=_PROMPTS)]
HeldOut = Annotated[
    Path | None, typer.Option(help="File of held-out prompts, for a file of your own.", rich_help_panel=_PROMPTS)
]
Split = Annotated[
    float | None, typer.Option(help="Or the fraction of your prompts to hold out.", rich_help_panel=_PROMPTS)
]
RandomCircuits = Annotated[
    int, typer.Option(min=0, help="Random circuits of the same size to compare with.", rich_help_panel=_PROMPTS)
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Prompts a batch; otherwise what fits.", rich_help_panel=_MODEL)
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.", rich_help_panel=_MODEL)]
Dtype = Annotated[str, typer.Option(help="float32, float64, bfloat16 or float16.", rich_help_panel=_MODEL)]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with a hub model.", rich_help_panel=_MODEL)
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, for machines, and nothing else.", rich_help_panel=_OUTPUT)
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.", rich_help_panel=_OUTPUT)]


# ---- commands ---------------------------------------------------------------------------------------------------


def _version(asked: bool) -> None:
    if asked:
        print(f"acdc {metadata.version('acdc-circuits')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def discover(
    model: ModelName,
    task: Task = None,
    method: Annotated[str, typer.Option(help="How to search or rank (`acdc methods`).")] = "guided",
    edges: Annotated[int | None, typer.Option(min=1, help="Keep this many edges.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Keep edges that matter more than this; τ of acdc.")
    ] = None,
    faithfulness: Annotated[
        float | None, typer.Option(help="Keep the fewest edges that are so faithful: 0.9.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the method; may be repeated.")
    ] = None,
    select: Annotated[str, typer.Option(help="How a ranking is cut: top or greedy.")] = "top",
    qkv: Annotated[
        Literal["split", "merged"], typer.Option(help="q, k and v of a head apart or together.")
    ] = "split",
    inputs: Annotated[
        Literal["single", "split", "token"],
        typer.Option(help="Token and position together, apart, or tokens alone."),
    ] = "single",
    task_option: TaskOption = None,
    metric: Metric = None,
    ablation: Ablation = None,
    size: Size = None,
    held_out: HeldOut = None,
    split: Split = None,
    seed: Annotated[int, typer.Option(help="Of all that is random.", rich_help_panel=_PROMPTS)] = 0,
    random_circuits: RandomCircuits = 10,
    batch_size: BatchSize = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    trust_remote_code: Trust = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="Folder to write; otherwise runs/MODEL-TASK-METHOD.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Find a circuit, judge it, and write it with its picture to a folder.

    Example: acdc discover gpt2 --task ioi --method eap-ig --faithfulness 0.9 -o runs/ioi
    """
    with terminal.quiet_libraries():
        import acdc
        from acdc import viz
        from acdc.methods import METHODS

        if method not in METHODS:
            raise unknown("method", method, METHODS)
        name = task or _own_task(model)
        default = Path("runs") / "-".join(dict.fromkeys((_short(model), _short(name), method)))
        folder = terminal.free_folder(out, default=default, force=force)
        settings = _given(size=size, held_out=held_out, split=split) | _options(task_option)
        recipe = acdc.tasks.load(name, metric=metric, ablation=ablation, seed=seed, **settings)
        subject = _load(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        data = recipe.prepare(subject)
        for warning in data.warnings:
            terminal.warn(warning)
        started = time.perf_counter()
        with terminal.progress_bar() as progress:
            circuit = acdc.discover(
                subject, data, method, edges=edges, threshold=threshold, faithfulness=faithfulness, select=select,
                graph=subject.graph(qkv=qkv, inputs=inputs), batch_size=batch_size, seed=seed, progress=progress,
                **_options(option),
            )  # fmt: skip
            seconds = time.perf_counter() - started
            if not circuit.n_edges:
                terminal.warn("the circuit is empty: what was kept holds no path from the input to the logits")
            evaluation = acdc.evaluate(
                subject, data, circuit, batch_size=batch_size, random_circuits=random_circuits, seed=seed,
                progress=progress,
            )  # fmt: skip
        measured = terminal.plain(dataclasses.asdict(evaluation)) | {"seconds": seconds}
        made = circuit.provenance.having(
            task=name, task_options=settings, command=("acdc", *sys.argv[1:]), measured=measured
        )
        circuit = dataclasses.replace(circuit, provenance=made)
        with terminal.whole_folder(folder) as place:
            circuit.save(place)
            truth = None if data.truth is None else data.truth.mask(circuit.graph)
            picture = viz.draw(circuit, place / "circuit.svg", truth=truth)
    report.note(picture)
    files = {"folder": str(folder), "picture": str(folder / "circuit.svg")}
    if json:
        terminal.print_json(report.record(circuit) | measured | files)
        return
    report.show_edges(circuit)
    report.show_evaluation(evaluation, {"seconds": f"{seconds:.3g}"} | files)


@app.command()
def evaluate(
    run: Run,
    task: Task = None,
    task_option: TaskOption = None,
    metric: Metric = None,
    ablation: Ablation = None,
    size: Size = None,
    held_out: HeldOut = None,
    split: Split = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the prompts; otherwise the circuit's.", rich_help_panel=_PROMPTS)
    ] = None,
    random_circuits: RandomCircuits = 10,
    curve: Annotated[bool, typer.Option("--curve", help="Faithfulness over circuit sizes; CPR and CMD.")] = False,
    completeness: Annotated[
        bool, typer.Option("--completeness", help="Knock the same parts out of circuit and model, and compare.")
    ] = False,
    minimality: Annotated[bool, typer.Option("--minimality", help="What each kept edge is worth.")] = False,
    batch_size: BatchSize = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Measure a circuit again: on other prompts, by another metric, under another ablation.

    Example: acdc evaluate runs/ioi --metric kl --ablation mean
    """
    with terminal.quiet_libraries():
        import acdc

        circuit = acdc.Circuit.load(run)
        made = circuit.provenance
        settings = _given(size=size, held_out=held_out, split=split) | _options(task_option)
        if task in (None, made.task):
            settings = made.task_options | settings
        own_seed = made.seed or 0
        recipe = acdc.tasks.load(
            task or made.task,
            metric=metric or made.metric,
            ablation=ablation or made.ablation,
            seed=own_seed if seed is None else seed,
            **settings,
        )
        found_here = task in (None, made.task) and settings == made.task_options and seed in (None, own_seed)
        subject = _load(made.model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        data = recipe.prepare(subject)
        for warning in data.warnings:
            terminal.warn(warning)
        with terminal.progress_bar() as progress:
            evaluation = acdc.evaluate(
                subject, data, circuit, batch_size=batch_size, random_circuits=random_circuits, seed=data.seed,
                progress=progress,
            )  # fmt: skip
            more: dict[str, Any] = {}
            if curve:
                if circuit.scores is None:
                    raise AcdcError(f"{run} has no scores to make circuits of other sizes from; leave out --curve")
                more["curve"] = acdc.curve(
                    subject, data, circuit.scores, batch_size=batch_size, seed=data.seed, progress=progress
                )
            if completeness:
                more["completeness"] = acdc.completeness(
                    subject, data, circuit, batch_size=batch_size, seed=data.seed, progress=progress
                )
            if minimality:
                more["minimality"] = acdc.minimality(
                    subject, data, circuit, batch_size=batch_size, seed=data.seed, progress=progress
                )
    if json:
        found = {name: dataclasses.asdict(value) for name, value in more.items()}
        terminal.print_json(report.record(circuit) | dataclasses.asdict(evaluation) | found)
        return
    report.show_evaluation(evaluation, found_here=found_here)
    if curve:
        report.show_curve(more["curve"])
    if completeness:
        report.show_completeness(more["completeness"])
    if minimality:
        report.show_minimality(more["minimality"])


@app.command()
def draw(
    run: Run,
    format: Annotated[str | None, typer.Option(help="svg, pdf, png, dot or tikz; otherwise as FILE ends.")] = None,
    truth: Annotated[
        bool, typer.Option("--truth", help="Mark what is true, false and missed, where known.")
    ] = False,
    style: Annotated[str, typer.Option(help="paper, slides or dark.")] = "paper",
    detail: Annotated[
        Literal["port", "head", "layer"],
        typer.Option(help="port: q, k and v apart; head: together; layer: heads too."),
    ] = "port",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="File to write; otherwise RUN/circuit.svg.")
    ] = None,
    force: Force = False,
) -> None:
    """Draw a circuit.

    Example: acdc draw runs/ioi --style slides -o ioi.pdf
    """
    with terminal.quiet_libraries():
        from acdc import Circuit, viz

        circuit = Circuit.load(run)
        if out is not None:
            terminal.check_new_file(out, force=force)
        edges = _true_edges(circuit) if truth else None
        path = out or run / f"circuit.{format or 'svg'}"
        picture = viz.draw(circuit, path, format=format, truth=edges, style=style, detail=detail)
    report.note(picture)
    print(path)


@app.command()
def export(
    run: Run,
    to: Annotated[str, typer.Option(metavar="FORMAT", help="mib, node-link, graphml, dot, csv or circuit-tracer.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="File to write; otherwise standard output.")
    ] = None,
    force: Force = False,
) -> None:
    """Write a circuit in another program's format.

    Example: acdc export runs/ioi --to graphml -o ioi.graphml
    """
    with terminal.quiet_libraries():
        from acdc import Circuit, io

        if out is not None:
            terminal.check_new_file(out, force=force)
        text = io.export(Circuit.load(run), to)
        if out is not None:
            io.write_atomically(out, text)
    if out is None:
        sys.stdout.write(text)


@app.command()
def models(json: Json = False) -> None:
    """List the built-in models, and the architectures that can be loaded.

    Example: acdc models --json
    """
    with terminal.quiet_libraries():
        from acdc.model.load import FAMILIES, builtin_models

        builtin = builtin_models()
    if json:
        terminal.print_json({"models": builtin, "architectures": list(FAMILIES)})
        return
    terminal.print_table(("built-in model", "what it is"), builtin.items())
    print(f"\nand Hugging Face decoders, by hub name or local folder, of type {', '.join(FAMILIES)}")


@app.command()
def tasks(json: Json = False) -> None:
    """List the built-in tasks.

    Example: acdc tasks --json
    """
    with terminal.quiet_libraries():
        from acdc import tasks

        listed = [info._asdict() for info in tasks.names()]
    if json:
        terminal.print_json(listed)
        return
    terminal.print_table(("task", "what it is"), ((info["name"], info["description"]) for info in listed))
    print("\nand JSONL files of your own: acdc discover MODEL --task FILE.jsonl")


@app.command()
def methods(json: Json = False) -> None:
    """List the methods: what they give, what they cost, where they come from.

    Example: acdc methods --json
    """
    with terminal.quiet_libraries():
        from acdc.methods import METHODS

    fields = ("name", "gives", "description", "cost", "paper")
    listed = [{field: getattr(method, field) for field in fields} for method in METHODS.values()]
    if json:
        options = [dict(method.options) for method in METHODS.values()]
        terminal.print_json([row | {"options": given} for row, given in zip(listed, options, strict=True)])
        return
    terminal.print_table(("method", *fields[1:]), (tuple(row.values()) for row in listed))


app.command()(benchmark)


# ---- reading options --------------------------------------------------------------------------------------------


def _true_edges(circuit: Circuit) -> BoolArray:
    """The edges of the true circuit for the circuit's own task."""
    from acdc import tasks

    made = circuit.provenance
    settings: dict[str, Any] = dict(made.task_options)
    recipe = tasks.load(made.task, metric=made.metric, ablation=made.ablation, seed=made.seed or 0, **settings)
    data = recipe.prepare(_load(made.model))
    if data.truth is None:
        raise AcdcError(f"the true circuit of {made.model} on {made.task} is not known: draw without --truth")
    return data.truth.mask(circuit.graph)


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _options(texts: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE pairs; a value is a number, true or false, a list in brackets, or text."""
    options = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise AcdcError(f"expected an option like steps=10, got {text!r}")
        try:
            options[name] = json_module.loads(value)
        except ValueError:
            options[name] = value
    return options


def _load(name: str, **options: Any) -> Model:
    """The model; one thread for a tiny one, which more threads slow down."""
    import torch

    from acdc import load

    model = load(name, **options)
    if model.device.type == "cpu" and sum(p.numel() for p in model.module.parameters()) < 1_000_000:
        torch.set_num_threads(1)
    return model


def _own_task(model: str) -> str:
    """The task a built-in model was made for."""
    from acdc import builtin_models, tasks

    name = tasks.default_task(model)
    if name is None:
        known = builtin_models()
        if difflib.get_close_matches(model, known):
            raise unknown("model", model, known)
        raise AcdcError(f"which task should {model} do? Give --task a name (see acdc tasks) or a JSONL file")
    return name


def _short(name: str) -> str:
    """A model or task as part of a folder's name: the last part of a path, without the ending of a file."""
    return Path(name).stem if name.endswith((".jsonl", ".json", ".txt")) else Path(name).resolve().name


def main() -> None:
    """The `acdc` command: a user's error is one line and exit status 2, an interruption 130."""
    try:
        status = app(sys.argv[1:] or ["--help"], prog_name="acdc", standalone_mode=False)
    except AcdcError as error:
        terminal.say("error", error, "bold red")
        status = 2
    except typer.TyperException as error:
        terminal.say("error", error.format_message(), "bold red")
        status = error.exit_code
    except OSError as error:
        terminal.say("error", f"{error.filename or 'input or output'}: {error.strerror or error}", "bold red")
        status = 2
    except KeyboardInterrupt:
        status = 130
    if status == 130:
        terminal.say("interrupted", "nothing was written", "bold")
    sys.exit(status)
