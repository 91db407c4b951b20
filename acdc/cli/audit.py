"""`acdc audit`: a circuit put to every check, as lines, as `audit.json` and as a page, `audit.html`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acdc.auditing.names import NAMES
from acdc.cli import terminal
from acdc.cli.again import found_on, load_again, placed, settings_again
from acdc.cli.groups import PromptOptions
from acdc.cli.neurons import say_unused
from acdc.cli.options import (
    MODEL,
    OUTPUT,
    PROMPTS,
    AblationName,
    BatchSize,
    Device,
    Dtype,
    Force,
    Json,
    Memory,
    MetricName,
    Run,
    TaskFormatName,
    TaskName,
    TaskOption,
    Trust,
    listed,
    load_task,
)
from acdc.errors import AcdcError, unknown

if TYPE_CHECKING:
    from acdc.tasks import Task

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def audit(
    run: Run,
    quick: Annotated[bool, typer.Option("--quick", help="Only the checks that cost seconds.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Also searches on large models, and more of everything.")
    ] = False,
    checks: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help=f"Comma-separated, to run these alone: {', '.join(NAMES)}."),
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Leave out what would not end in time: 2h, 10min, 90s.", rich_help_panel=MODEL
        ),
    ] = None,
    faithfulness: Annotated[
        float | None, typer.Option(help="What the circuit is held to; otherwise what it was searched for.")
    ] = None,
    task: TaskName = None,
    task_option: TaskOption = None,
    task_format: TaskFormatName = None,
    metric: MetricName = None,
    ablation: AblationName = None,
    shift: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Further prompts that it ought to hold on.", rich_help_panel=PROMPTS),
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Fresh prompts to draw.", rich_help_panel=PROMPTS)] = None,
    searches: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Search again on so many other samples of prompts: how often is each edge kept? (3 with --full)",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.", rich_help_panel=PROMPTS)] = 0,
    batch_size: BatchSize = None,
    memory: Memory = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    trust_remote_code: Trust = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FOLDER", help="Otherwise the run's own folder.", rich_help_panel=OUTPUT
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Put a circuit to every test: held out, chance, adversary, rivals, stability, shift and more.

    The same command, given again, goes on from what was noted. A circuit that fails a check still ends in status 0.

    Example: acdc audit runs/ioi --quick
    """
    if quick and full:
        raise AcdcError("--quick and --full exclude each other")
    seconds = None if limit is None else seconds_of(limit)
    with terminal.quiet_libraries():
        import acdc
        from acdc.auditing.audit import report_json
        from acdc.auditing.page import page
        from acdc.auditing.prompts import Beside, draws
        from acdc.engine.belonging import prompts_digest
        from acdc.store.writing import write_atomically

        names = None if checks is None else listed(checks, "checks")
        for name in names or ():
            if name not in NAMES:
                raise unknown("check", name, NAMES)
        circuit = acdc.Circuit.load(run)
        say_unused(run)
        made = placed(run, circuit.provenance)
        if not (task or made.task):
            raise AcdcError(
                f"{run} does not say for which task the circuit is: give --task a name or a file of prompts"
            )
        if not made.model:
            raise AcdcError(f"{run} does not say of which model the circuit is")
        folder = out or (run.parent if run.is_file() else run)
        if not folder.is_dir() and folder.exists():
            raise AcdcError(f"cannot write to {folder}: it is no folder")
        where = folder / "audit.json"
        settings = PromptOptions(task_option, task_format).settings
        own = task in (None, made.task, circuit.provenance.task)
        settings = settings_again(made, settings) if own else settings
        recipe: Task = load_task(
            made.task if task is None or own else task, settings, metric=metric or made.metric or None,
            ablation=ablation or made.ablation or None, seed=made.seed or 0, memory=memory,
        )  # fmt: skip
        other = None if shift is None else load_task(shift, {})
        subject = load_again(made, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        if force:
            where.unlink(missing_ok=True)
        if not draws(recipe):
            data = recipe.prepare(subject)
            changed = prompts_digest(data.discovery) != made.prompts_sha256
            if changed and (made.prompts_sha256 or not own):  # an imported circuit goes by the task it was given
                recipe = Beside(recipe, found_on(made, data, subject))
        folder.mkdir(parents=True, exist_ok=True)
        with terminal.going_on(where), terminal.progress_bar() as progress:
            report = acdc.audit(
                subject, recipe, circuit, level="quick" if quick else "full" if full else "usual", checks=names,
                faithfulness=faithfulness, shift=other, size=size, searches=searches, limit=seconds,
                batch_size=batch_size, memory=memory, seed=seed, notes=where, progress=progress,
            )  # fmt: skip
        write_atomically(folder / "audit.html", page(report))
    if json:
        sys.stdout.write(report_json(report))
        return
    terminal.print_table(
        ("check", "verdict", "what was found"), ((f.check, f.verdict, f.found) for f in report.findings)
    )
    print()
    facts = dict(report.facts())
    for finding in report.findings:
        if finding.verdict == "fail":
            facts[finding.check] = finding.advice
    terminal.print_facts((facts | {"page": str(folder / "audit.html"), "record": str(where)}).items())


def seconds_of(text: str) -> float:
    """An amount of time like 2h, 10min, 90s, or seconds.

    Raises:
        AcdcError: it is none.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|m|min|h)?\s*", text)
    value = float(found[1]) * _UNITS[found[2] or "s"] if found else 0.0
    if not 0 < value < 1e9:
        raise AcdcError(f"expected a time like 2h, 10min or 90s, got {text!r:.40}")
    return value
