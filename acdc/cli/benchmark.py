"""`acdc benchmark`: methods against cases, as a table that resumes and a report."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acdc.cli import terminal
from acdc.cli.groups import ModelOptions, PromptOptions
from acdc.cli.options import AblationName, Memory, MetricName, given
from acdc.errors import AcdcError
from acdc.shown import counted

if TYPE_CHECKING:
    from acdc.benchmarks.summary import Line
    from acdc.benchmarks.table import Row
    from acdc.benchmarks.trials import Slot

MANY = "Many at once"


def benchmark(
    suite: Annotated[
        str | None,
        typer.Argument(
            help="tracr (default), tracr-zero, interp, smoke, trained, or a folder of InterpBench models.",
            show_default=False,
        ),
    ] = None,
    suite_option: Annotated[str | None, typer.Option("--suite", metavar="SUITE", help="The same.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A model of your own, instead of a suite, with --task.")
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="A task of it: a name, or a file.")] = None,
    truth: Annotated[
        str | None, typer.Option(metavar="RUN", help="Folder or circuit.json of its true circuit, if it is known.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Comma-separated, or all; otherwise all but trained masks. Random scores are always added.",
        ),
    ] = None,
    cases: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Comma-separated names or patterns, like 'sort*'; otherwise all."),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Comma-separated, of the prompts and all that is random.")
    ] = "0",
    retry: Annotated[bool, typer.Option("--retry", help="Run rows again that ended in an error.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a process, the same for every method.")] = 1,
    *,
    prompts: PromptOptions,
    metric: MetricName = None,
    ablation: AblationName = None,
    memory: Memory = None,
    weights: ModelOptions,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder of the table and the report; otherwise runs/benchmark-SUITE."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines, and nothing else.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=MANY,
            help="Processes of this machine; with --ray the most tasks at once, with --slurm the jobs of the array.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            rich_help_panel=MANY,
            help="Rows as tasks of a Ray cluster: local (started here), auto (the one that runs here), ray://head:10001.",
        ),
    ] = None,
    slurm: Annotated[
        Path | None,
        typer.Option(
            "--slurm",
            metavar="FILE",
            rich_help_panel=MANY,
            help="Only write a script for sbatch: an array of jobs that share the folder.",
        ),
    ] = None,
) -> None:
    """Compare methods on known circuits, and write a report.

    What the folder's table has already is not run again, so an interrupted benchmark goes on where it was, and
    several processes can work on one folder.

    Example: acdc benchmark tracr --methods guided,acdc,eap-ig --workers 4 -o runs/tracr
    """
    settings = prompts.settings | given(metric=metric)
    loading = {name: value for name, value in weights.loading.items() if value != getattr(ModelOptions, name)}
    own: dict[str, Any] = {"--model": model, "--task": task, "--truth": truth, "--ablation": ablation}
    own |= {f"--{name.replace('_', '-')}": True for name in (*settings, *loading)}
    if any(own.values()) and (suite or suite_option or cases or not (model and task)):
        flags = ", ".join(flag for flag, value in own.items() if value)
        raise AcdcError(f"a model of your own takes --model and --task, and no suite or cases; got {flags}")
    name = "own" if model else suite or suite_option or "tracr"
    if suite_option not in (None, name):
        raise AcdcError(f"expected one suite, got {suite!r} and --suite {suite_option!r}")
    folder = out or Path("runs") / f"benchmark-{Path(name).name}"
    if ray is not None and slurm is not None:
        raise AcdcError("--ray runs the rows and --slurm writes a script that does: give one of them")
    with terminal.quiet_libraries():
        import torch

        from acdc.benchmarks.report import check_folder, write_report
        from acdc.benchmarks.runner import run, trials_of
        from acdc.benchmarks.suites import get_suite, own_suite
        from acdc.benchmarks.summary import leaderboard
        from acdc.benchmarks.table import Table
        from acdc.methods import METHODS

        torch.set_num_threads(threads)
        if model and task:
            chosen = own_suite(model, task, truth=truth, ablation=ablation, task_options=settings, loading=loading)
        else:
            chosen = get_suite(name, cases=_split(cases))
        check_folder(folder)
        names = list(METHODS) if "all" in (_split(methods) or ()) else _split(methods)
        numbers = _integers(seeds)
        if slurm is not None:
            asked = trials_of(chosen, methods=names, seeds=numbers)  # refused here, not by each job
            if retry:  # by each job it would forget what another has found
                Table(folder).forget_errors(asked)
            _write_script(slurm, folder, jobs=workers or 8, threads=threads, memory=memory)
            if json:
                terminal.print_json({"files": {"slurm": slurm}})
            return
        try:
            with (
                _slots(folder, workers, ray, threads=threads, memory=memory) as slots,
                terminal.progress_bar() as progress,
            ):
                rows = run(
                    chosen, folder, methods=names, seeds=numbers, retry=retry, memory=memory, slots=slots,
                    progress=progress,
                )  # fmt: skip
            files = write_report(folder, chosen.name, command=shlex.join(["acdc", *sys.argv[1:]]))
        except KeyboardInterrupt:
            terminal.say(
                "interrupted", f"finished rows are in {folder}; the same command goes on from there", "bold"
            )
            sys.exit(terminal.interrupted_status())
        lines = leaderboard(rows)
    for row in rows:
        if row.error is not None:
            terminal.warn(f"{row.case}, {row.method}, seed {row.seed}: {row.error}")
    if json:
        terminal.print_json(
            {
                "rows": [dataclasses.asdict(row) for row in rows],
                "leaderboard": [dataclasses.asdict(line) for line in lines],
                "files": files,
            }
        )
        refuse_errors_alone(rows)
        return
    figures = ("f1", "edge_auc", "average_precision", "faithfulness", "cmd")
    shown = [figure for figure in figures if any(figure in line.figures for line in lines)]
    terminal.print_table(
        ("method", "cases", "truth found", "edges", *(figure.replace("_", " ") for figure in shown), "seconds"),
        (
            (
                line.method,
                f"{line.cases}" + (f" ({counted(line.errors, 'error')})" if line.errors else ""),
                "" if line.found is None else f"{line.found.mean:.0%}",
                _edges(line),
                *(f"{line.figures[figure].mean:.3f}" if figure in line.figures else "" for figure in shown),
                f"{line.costs['seconds']:.3g}" if "seconds" in line.costs else "",
            )
            for line in lines
        ),
    )
    print()
    terminal.print_facts((kind, str(path)) for kind, path in files.items())
    refuse_errors_alone(rows)


def refuse_errors_alone(rows: Sequence[Row]) -> None:
    """Fail where nothing was measured, so that a script that runs benchmarks notices."""
    if all(row.error is not None for row in rows):
        raise AcdcError("every row ended in an error, so nothing was measured; --retry computes them again")


def _slots(
    folder: Path, workers: int | None, ray: str | None, *, threads: int, memory: str | None
) -> contextlib.AbstractContextManager[Sequence[Slot]]:
    """What computes the rows instead of this process; nothing if that is not asked for."""
    if ray is not None:
        from acdc.benchmarks.on_ray import ray_slots

        return ray_slots(ray, folder, threads=threads, memory=memory, at_once=workers)
    if workers is not None:
        from acdc.benchmarks.processes import processes

        return processes(workers, folder, threads=threads)
    return contextlib.nullcontext(())


def _edges(line: Line) -> str:
    """How many edges its circuits keep, and of all how many: random scores are faithful with nearly all of them."""
    if "n_edges" not in line.figures:
        return ""
    edges, share = line.figures["n_edges"].mean, line.figures.get("share_kept")
    return f"{edges:,.0f}" + (f" ({100 * share.mean:.3g}%)" if share is not None else "")


def _write_script(path: Path, folder: Path, *, jobs: int, threads: int, memory: str | None) -> None:
    from acdc.benchmarks.slurm import MADE_BY, script
    from acdc.store.writing import write_atomically

    replace = terminal.check_new_file(path, force=False, own=MADE_BY.encode(), option="--slurm", forcible=False)
    again = [word for word in _without(sys.argv[1:], "--slurm", "--workers", "-o", "--out") if word != "--retry"]
    command = [sys.executable, "-m", "acdc", *again, "--out", str(folder.absolute())]
    text = script(command, Path.cwd(), jobs=jobs, threads=threads, memory=memory)
    write_atomically(path, text, replace=replace)
    terminal.say("written", f"{path}; start it with: sbatch {shlex.quote(str(path))}", "bold")


def _without(arguments: Sequence[str], *options: str) -> list[str]:
    """A command line without options that take a value."""
    kept: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument in options:
            next(left, None)
        elif not argument.startswith(tuple(f"{option}=" for option in options)):
            kept.append(argument)
    return kept


def _split(text: str | None) -> list[str] | None:
    """The names in a comma-separated list; None stays."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise AcdcError(f"expected comma-separated names, got {text!r}")
    return names


def _integers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise AcdcError(f"expected comma-separated whole numbers as seeds, like 0,1,2, got {text!r}")
    return [int(part) for part in parts]
