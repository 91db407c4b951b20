"""The command line: reads options, calls the API, shows what comes back. Nothing is computed here.

Heavy imports are made inside the commands, so that help is instant. What can be checked is checked before the long
work, and what is written is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from acdc.cli import curve as cli_curve
from acdc.cli import neurons as cli_neurons
from acdc.cli import positions as cli_positions
from acdc.cli import processes, questions, report, terminal
from acdc.cli import view as cli_view
from acdc.cli.acting import run
from acdc.cli.again import found_on, judged_on, load_again, naming_task_of, placed, settings_again, unseen
from acdc.cli.audit import audit
from acdc.cli.benchmark import benchmark
from acdc.cli.certificates import certify, verify
from acdc.cli.commands import Command, Group
from acdc.cli.compare import compare
from acdc.cli.cut import cut
from acdc.cli.draw import draw
from acdc.cli.exchange import export, import_circuit
from acdc.cli.failures import TRACEBACK, explain
from acdc.cli.folder import write_run
from acdc.cli.groups import ModelOptions, PromptOptions, expanded
from acdc.cli.lists import methods, metrics, models, tasks
from acdc.cli.options import (
    OUTPUT,
    PROMPTS,
    AblationName,
    AggregateName,
    BatchSize,
    Device,
    Dtype,
    Force,
    Json,
    Memory,
    MetricName,
    ModelName,
    RandomCircuits,
    Run,
    SelectRule,
    TaskName,
    Trust,
    as_used,
    command_digest,
    flags_given,
    load_model,
    load_task,
    options,
    own_task,
    short,
)
from acdc.cli.positions import positions
from acdc.cli.trace import trace
from acdc.errors import AcdcError, unknown
from acdc.shown import are, counted

app = typer.Typer(
    cls=Group,
    help="Find, judge, draw and exchange circuits in transformer language models.",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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


def discover(
    context: typer.Context,
    model: ModelName,
    task: TaskName = None,
    method: Annotated[
        str | None,
        typer.Option(help="guided (otherwise), acdc, eap-ig, eap, exact, …; all of one: `acdc methods NAME`."),
    ] = None,
    edges: Annotated[
        int | None, typer.Option(min=1, help="Keep this many edges; with --units node, so many nodes.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Keep edges that matter more than this; see `acdc methods`.")
    ] = None,
    faithfulness: Annotated[
        float | None, typer.Option(help="Keep the fewest edges that are so faithful: 0.9.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="An option of the method (`acdc methods NAME` lists them); may be repeated."
        ),
    ] = None,
    select: SelectRule = "top",
    aggregate: AggregateName = None,
    front: Annotated[
        bool, typer.Option("--front", help="Search on to no edge at all: the whole front of size against distance.")
    ] = False,
    qkv: Annotated[
        Literal["split", "merged"], typer.Option(help="q, k and v of a head apart or together.")
    ] = "split",
    units: Annotated[
        Literal["edge", "node", "neuron", "position"],
        typer.Option(
            help="What is kept or removed as one; neuron and position: edges first, then neurons in the nodes that "
            "stay, or the positions where the edges are needed."
        ),
    ] = "edge",
    inside: cli_neurons.InsideName = "mlps",
    inputs: Annotated[
        Literal["single", "split", "token"],
        typer.Option(help="Token and position together, apart, or tokens alone."),
    ] = "single",
    *,
    prompts: PromptOptions,
    metric: MetricName = None,
    ablation: AblationName = None,
    seed: Annotated[int, typer.Option(help="Of all that is random.", rich_help_panel=PROMPTS)] = 0,
    random_circuits: RandomCircuits = 10,
    batch_size: BatchSize = None,
    memory: Memory = None,
    weights: ModelOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="Folder to write; otherwise runs/MODEL-TASK-METHOD, with a number where that is taken.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    certify: Annotated[
        bool,
        typer.Option(
            "--certify", help="Write certificate.json too, as `acdc certify` does.", rich_help_panel=OUTPUT
        ),
    ] = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Find a circuit, judge it, and write it with its picture to a folder.

    Example: acdc discover gpt2 --task ioi --method eap-ig --faithfulness 0.9 -o runs/ioi
    """
    started = time.perf_counter()
    with terminal.quiet_libraries(), contextlib.ExitStack() as held:
        import acdc
        from acdc.certificates import record
        from acdc.circuit.selection import AGGREGATES
        from acdc.engine.neurons import inner_of
        from acdc.methods import DEFAULT_SEARCH, METHODS, check_options
        from acdc.store.resume import ResumeFile, spent_before
        from acdc.store.writing import write_atomically

        if units != "neuron" and flags_given(context, "inside"):
            raise AcdcError(f"--inside {inside} is of --units neuron, and these are {units}s: leave it out")
        method = method or DEFAULT_SEARCH
        method_options = options(option)
        if front:
            fronts = [other.name for other in METHODS.values() if "front" in other.options]
            if method not in fronts:
                raise AcdcError(f"{method} has no front of size against distance; use {' or '.join(fronts)}")
            method_options["front"] = True
        check_options(method, method_options)
        if aggregate is not None and aggregate not in AGGREGATES:
            raise unknown("aggregate", aggregate, AGGREGATES)
        name = task or own_task(model)
        default = Path("runs") / "-".join(dict.fromkeys((short(model), short(name), method)))
        command = command_digest(context)
        team, device = processes.join(weights.device)
        claim = held.enter_context(processes.claimed(team, out, default=default, command=command, force=force))
        held.enter_context(terminal.going_on(claim.progress))
        since = started - spent_before(claim.progress).seconds  # all that the user has waited for
        settings = prompts.settings
        recipe = load_task(name, settings, metric=metric, ablation=ablation, seed=seed, memory=memory)
        subject = load_model(model, **weights.loading | {"device": device})
        data = recipe.prepare(subject)
        for warning in data.warnings:
            terminal.warn(warning)
        if units == "neuron":
            inner_of(subject, subject.graph(), inside)  # refused before the search, where there are none
        if units == "position":
            cli_positions.places_of(subject, data)
        if METHODS[method].search is not None and not data.exact and len(data.discovery) < report.FEW_PROMPTS:
            terminal.warn(report.few_prompts(len(data.discovery)))
        with terminal.progress_bar() as progress:
            circuit = acdc.discover(
                subject, data, method, edges=edges, threshold=threshold, faithfulness=faithfulness, select=select,
                aggregate=aggregate,  # type: ignore[arg-type]
                graph=subject.graph(qkv=qkv, inputs=inputs), units="node" if units == "node" else "edge",
                batch_size=batch_size, memory=memory, seed=seed, progress=progress,
                resume=ResumeFile(claim.progress, stays=True), **method_options,
            )  # fmt: skip
            evaluation = acdc.evaluate(
                subject, data, circuit, batch_size=batch_size, memory=memory, random_circuits=random_circuits,
                seed=seed, progress=progress,
            )  # fmt: skip
            if team.rank:
                return
            held.enter_context(acdc.alone())
            certificate = None
            if certify:
                try:
                    certificate = acdc.certify(subject, data, circuit, memory=memory, seed=seed, progress=progress)
                except AcdcError as error:  # the circuit is worth keeping without
                    terminal.warn(str(error))
            inner = None
            if units == "neuron":
                inner = cli_neurons.inside(
                    subject, data, circuit, inside, faithfulness, batch_size, memory, progress
                )
            at_places = None
            if units == "position":
                at_places = cli_positions.inside(subject, data, circuit, batch_size, memory, progress)
        dangling = circuit.provenance.selection.get("dangling")
        if isinstance(dangling, int) and dangling:
            terminal.say(
                "note",
                f"{counted(dangling, 'more edge')} at the threshold {are(dangling)} left out: on no path to the logits",
                "bold",
            )
        made = circuit.provenance.having(
            task=name, task_options=as_used(settings, recipe), command=("acdc", *sys.argv[1:])
        )
        circuit = dataclasses.replace(circuit, provenance=made)
        with claim.whole() as place:
            if inner is not None:
                inner[0].save(place, evaluation=inner[1])
            if at_places is not None:
                at_places[0].save(place / cli_positions.NAME)
            if front:
                write_atomically(place / "front.csv", report.front_csv(circuit))
            circuit, picture, measured = write_run(
                place, circuit, evaluation, data, since=since, neurons=None if inner is None else inner[0].kept
            )
            if certificate is not None:  # which is of the circuit's file
                record.write(certificate, place)
        folder = claim.folder
    report.show_note(picture)
    files = {"folder": str(folder), "picture": str(folder / "circuit.svg")}
    if front:
        files["front"] = str(folder / "front.csv")
    if certificate is not None:
        files["certificate"] = str(folder / record.NAME)
    if at_places is not None:
        files["positions"] = str(folder / cli_positions.NAME)
    if json:
        more = {} if inner is None else cli_neurons.record(*inner)
        if at_places is not None:
            found_there = cli_positions.record(at_places[0]) | dataclasses.asdict(at_places[1])
            more = {"at_positions": found_there | cli_positions.truth_beside(subject, data, at_places[0])}
        terminal.print_json(report.record(circuit) | measured | more | files)
        return
    report.show_edges(circuit)
    if certificate is not None:
        terminal.print_facts([("claim", claim) for claim in certificate.claims()])
    if inner is not None:
        cli_neurons.show(*inner)
    if at_places is not None:
        cli_positions.show(*at_places, cli_positions.truth_beside(subject, data, at_places[0]))
    if front:
        report.show_front(circuit)
    report.show_evaluation(evaluation, {"seconds": f"{measured['seconds']:.3g}"} | files)


def evaluate(
    run: Run,
    task: TaskName = None,
    *,
    prompts: PromptOptions,
    metric: MetricName = None,
    ablation: AblationName = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the prompts; otherwise the circuit's.", rich_help_panel=PROMPTS)
    ] = None,
    random_circuits: RandomCircuits = 10,
    curve: Annotated[bool, typer.Option("--curve", help="Faithfulness over circuit sizes; CPR and CMD.")] = False,
    completeness: Annotated[
        bool, typer.Option("--completeness", help="Knock the same parts out of circuit and model, and compare.")
    ] = False,
    minimality: Annotated[bool, typer.Option("--minimality", help="What each kept edge is worth.")] = False,
    missed: Annotated[
        bool,
        typer.Option("--missed", help="Bound what any edge that was left out does alone, by random sets of them."),
    ] = False,
    batch_size: BatchSize = None,
    memory: Memory = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    trust_remote_code: Trust = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="With --curve: its table (.csv), or its plot (.svg, .png, .pdf).",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure a circuit again: on other prompts, by another metric, under another ablation.

    Example: acdc evaluate runs/ioi --metric kl --ablation mean
    """
    if out is not None:
        cli_curve.check_place(out, curve=curve, force=force)
    with terminal.quiet_libraries():
        import acdc
        from acdc.evaluation.missed import check_left_out

        team, device = processes.join(device)
        circuit = acdc.Circuit.load(run)
        if curve and circuit.scores is None:
            raise AcdcError(f"{run} has no scores to make circuits of other sizes from; leave out --curve")
        if missed:
            check_left_out(circuit)
        cli_neurons.say_unused(run)
        made = placed(run, circuit.provenance)
        own = task in (None, made.task, circuit.provenance.task)
        settings = settings_again(made, prompts.settings) if own else prompts.settings
        own_seed = made.seed or 0
        with naming_task_of(made) if task is None else contextlib.nullcontext():
            recipe = load_task(
                made.task if task is None or own else task, settings, metric=metric or made.metric,
                ablation=ablation or made.ablation, seed=own_seed if seed is None else seed, memory=memory,
            )  # fmt: skip
        as_it_was = own and settings == made.task_options and seed in (None, own_seed)
        found_here = as_it_was and bool(made.prompts_sha256)  # an imported circuit does not say
        if not as_it_was:  # other prompts were asked for
            warnings.filterwarnings("ignore", message="the (held-out )?prompts of .* differ")
        subject = load_again(made, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        data = recipe.prepare(subject)
        for warning in data.warnings:
            terminal.warn(warning)
        known = None if as_it_was else found_on(made, data, subject)
        if not as_it_was:
            data, found_here = unseen(data, known)
        with terminal.progress_bar() as progress:
            evaluation = acdc.evaluate(
                subject, data, circuit, batch_size=batch_size, memory=memory, random_circuits=random_circuits,
                seed=data.seed, progress=progress,
            )  # fmt: skip
            if not as_it_was:
                evaluation = judged_on(evaluation, found_here if known is not None else None)
            elif not made.prompts_sha256:
                evaluation = judged_on(evaluation, None)
            more: dict[str, Any] = {}
            if curve:
                assert circuit.scores is not None
                more["curve"] = acdc.curve(
                    subject, data, circuit.scores, batch_size=batch_size, memory=memory, seed=data.seed,
                    aggregate="order" if circuit.scores.order is not None else "signed", progress=progress,
                )  # fmt: skip
            if completeness:
                more["completeness"] = acdc.completeness(
                    subject, data, circuit, batch_size=batch_size, memory=memory, seed=data.seed, progress=progress
                )
            if minimality:
                more["minimality"] = acdc.minimality(
                    subject, data, circuit, batch_size=batch_size, memory=memory, seed=data.seed, progress=progress
                )
            if missed:
                more["missed"] = acdc.missed(
                    subject, data, circuit, batch_size=batch_size, memory=memory, seed=data.seed, progress=progress
                )
    if team.rank:
        return
    if out is not None:
        cli_curve.write(more["curve"], out, name=circuit.provenance.method or "circuit", force=force)
    if json:
        found = {
            name: value.record() if name == "missed" else dataclasses.asdict(value) for name, value in more.items()
        }
        terminal.print_json(report.record(circuit) | dataclasses.asdict(evaluation) | found)
        return
    report.show_evaluation(evaluation, found_here=found_here)
    if curve:
        report.show_curve(more["curve"])
    if completeness:
        report.show_completeness(more["completeness"])
    if minimality:
        report.show_minimality(more["minimality"])
    if missed:
        report.show_missed(more["missed"])


COMMANDS = {
    "Find and judge": (discover, cut, evaluate, compare, benchmark),
    "Trust": (audit, certify, verify),
    "Look inside": (
        draw, cli_view.view, trace, positions, cli_neurons.neurons, questions.roles, questions.ablate,
        questions.patch_path,
    ),
    "Take elsewhere": (run, export, import_circuit),
    "What there is": (methods, metrics),
}  # fmt: skip
"""By the panel of the help that they stand in."""
for panel, commands in COMMANDS.items():
    for command in commands:
        name = "import" if command is import_circuit else None  # otherwise the function's own
        app.command(name, rich_help_panel=panel)(expanded(command))
app.add_typer(models, name="models", rich_help_panel=panel)
app.add_typer(tasks, name="tasks", rich_help_panel=panel)
for group in (app, models, tasks):
    for registered in group.registered_commands:
        registered.cls = Command


def main() -> None:
    """The `acdc` command: a user's error is one line and exit status 2, an interruption 130, or 143 by SIGTERM."""
    processes.only_first_speaks()
    terminal.quiet_bars()
    try:
        with terminal.usable_streams(), terminal.signals_interrupt(), processes.together(sys.argv[1:]):
            status = app(sys.argv[1:] or ["--help"], prog_name="acdc", standalone_mode=False)
    except KeyboardInterrupt:
        status = 130
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # extensions written in Rust raise what is no Exception
        if os.environ.get(TRACEBACK):
            raise
        if terminal.interrupted():
            status = 130
        else:
            failure = explain(error)
            processes.fail(error)
            terminal.say("error", failure.text, "bold red")
            processes.wait_for_words()
            status = failure.status
    if status == 130:
        status = terminal.interrupted_status()
        terminal.say("interrupted", "nothing was written", "bold")
    sys.exit(status)
