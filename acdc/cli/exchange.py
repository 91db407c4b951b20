"""`acdc export` and `acdc import`: circuits to and from other programs."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from acdc.cli import terminal
from acdc.cli.acting import EXPORTS, export_with_model
from acdc.cli.groups import ModelOptions, PromptOptions
from acdc.cli.neurons import say_unused
from acdc.cli.options import (
    OUTPUT,
    AblationName,
    Force,
    MetricName,
    RolesFile,
    Run,
    TaskFormatName,
    TaskName,
    TaskOption,
    load_model,
    load_task,
    own_task,
    roles_of,
)
from acdc.errors import AcdcError, UnknownGraphError


def export(
    run: Run,
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="mib, node-link, graphml, dot, csv or circuit-tracer; mib-submission or mib-circuits for a folder; "
            "checkpoint, circuit-model or lists, which take the model.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="File to write, or folder; otherwise standard output.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    roles: RolesFile = None,
    ablation: AblationName = None,
    force: Force = False,
) -> None:
    """Write a circuit in another program's format, or as a model.

    `checkpoint` is the model with all nodes outside the circuit silenced, as a folder that transformers opens;
    `circuit-model` runs any circuit (acdc.load); `lists` names heads to prune and modules to adapt.

    Example: acdc export runs/ioi --to graphml -o ioi.graphml
    """  # fmt: skip
    with terminal.quiet_libraries():
        from acdc import Circuit, formats
        from acdc.store.folders import whole_folder
        from acdc.store.writing import write_atomically

        if roles is not None and to != "circuit-tracer":
            raise AcdcError(f"--roles is for circuit-tracer, whose supernodes they are, and {to} has none")
        if to in EXPORTS:
            text = export_with_model(run, to, out, force, ablation)
        elif ablation is not None:
            raise AcdcError(f"--ablation is for {', '.join(EXPORTS)}, and {to} holds the circuit as it was found")
        elif to in formats.FOLDERS:
            if out is None:
                raise AcdcError(f"{to} is a folder of files: say where with -o/--out")
            folder, files = formats.export_folder(Circuit.load(run), to)
            with whole_folder(out / folder, force=force) as place:
                for name, content in files.items():
                    write_atomically(place / name, content)
            text = f"{out / folder}\n"
        else:
            if out is not None:
                terminal.check_new_file(out, force=force)
            if has_positions(run):
                text = _with_positions(run, to, roles)
            else:
                circuit = Circuit.load(run)
                say_unused(run)
                groups = roles_of(roles, circuit.graph, circuit.provenance) if to == "circuit-tracer" else None
                text = formats.export(circuit, to, roles=groups)
            if out is not None:
                write_atomically(out, text, replace=force)
                return
    sys.stdout.write(text)


def has_positions(run: Path) -> bool:
    """Whether it is a file of `acdc positions`."""
    from acdc.store.reading import read_text, strict_json
    from acdc.tracing.positional_circuit import FORMAT

    if not run.is_file():
        return False
    try:
        record = strict_json(read_text(run))
    except (AcdcError, ValueError):
        return False  # what it is instead is said where runs are loaded
    return isinstance(record, dict) and record.get("format") == FORMAT


def _with_positions(path: Path, to: str, roles: Path | None) -> str:
    from acdc.tracing import PositionalCircuit

    if to != "circuit-tracer":
        raise AcdcError(f"{path} is a circuit with positions, which circuit-tracer holds, and {to} does not")
    circuit = PositionalCircuit.load(path)
    return circuit.attribution_graph(None if roles is None else roles_of(roles, circuit.graph))


def import_circuit(
    source: Annotated[Path, typer.Argument(help="File, or folder of MIB's, that another program wrote.")],
    model: Annotated[str, typer.Option(help="The model it is a circuit of, as `acdc discover` takes it.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write the run to.", rich_help_panel=OUTPUT)],
    format: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="FORMAT",
            help="mib, eap-pt, node-link, graphml, csv, circuit-tracer, mib-submission, or mib-circuits: the largest "
            "of its nine.",
        ),
    ],
    task: TaskName = None,
    task_option: TaskOption = None,
    task_format: TaskFormatName = None,
    metric: MetricName = None,
    ablation: AblationName = None,
    edges: Annotated[
        int | None, typer.Option(min=1, help="Keep this many of the best edges, by the file's scores.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the prompts; otherwise the file's, if it says one, or 0.")
    ] = None,
    *,
    weights: ModelOptions,
    force: Force = False,
) -> None:
    """Make a run of a circuit that another program found, to judge, draw and view it like any other.

    Example: acdc import ioi.json --from mib --model gpt2 --task ioi -o runs/theirs
    """
    with terminal.quiet_libraries():
        from acdc import formats
        from acdc.circuit import Provenance

        name = task or own_task(model)
        settings = PromptOptions(task_option, task_format).settings
        try:
            theirs = formats.import_circuit(source, format)
        except UnknownGraphError:  # then it is the model's
            theirs = None
        said = Provenance(versions={}) if theirs is None else theirs.provenance
        if (said.model, said.task) == (model, name):  # a circuit of acdc's own comes back with its question
            settings = settings or dict(said.task_options)
            metric, ablation = metric or said.metric or None, ablation or said.ablation or None
            seed = said.seed if seed is None else seed
        elif said.model:
            terminal.warn(
                f"{source} says that it is of {said.task} on {said.model}; it is taken for {name} on {model}"
            )
        seed = seed or 0
        recipe = load_task(name, settings, metric=metric, ablation=ablation, seed=seed)
        subject = load_model(model, **weights.loading)
        if theirs is None:
            theirs = formats.import_circuit(source, format, subject.graph())
        graph = theirs.graph
        expected = subject.graph(qkv=graph.qkv, group_kv=graph.group_kv, inputs=graph.inputs)
        if graph != expected:
            raise AcdcError(f"{source} is not of the model {model}: its graph has {graph.unlike(expected)}")
        if edges is not None:
            if theirs.scores is None:
                raise AcdcError(f"{source} has no scores to choose {edges} edges by; leave out --edges")
            theirs = theirs.scores.top(edges)
        made = theirs.provenance.having(
            model=model, revision=weights.revision, tokenizer=weights.tokenizer, config_hash=subject.config_hash(),
            d_model=subject.d_model, task=name, task_options=settings, metric=recipe.metric, ablation=recipe.ablation,
            seed=seed, method=theirs.provenance.method or format, measured={},
            weights_sha256="", prompts_sha256="", held_out_sha256="", dtype="",
        )  # fmt: skip
        asked = ("model", "task", "task_options", "metric", "ablation", "seed")
        if any(getattr(made, field) != getattr(said, field) for field in asked):
            made = made.having(n_prompts=None, command=())  # which were of another question
        dataclasses.replace(theirs, provenance=made).save(out, force=force)
    terminal.print_line(out)
