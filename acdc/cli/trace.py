"""`acdc trace`: causal tracing, as a table, heat maps and a page."""

from __future__ import annotations

import contextlib
import csv
import io
import json as to_json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from acdc.cli import terminal
from acdc.cli.groups import ModelOptions, PromptOptions
from acdc.cli.options import (
    OUTPUT,
    PROMPTS,
    AblationName,
    BatchSize,
    Force,
    Json,
    Memory,
    MetricName,
    ModelName,
    TaskName,
    command_digest,
    listed,
    own_task,
    prepared,
    short,
)

if TYPE_CHECKING:
    from acdc.tracing import Tracing


def trace(
    context: typer.Context,
    model: ModelName,
    task: TaskName = None,
    sites: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Comma-separated, of residual, attention, mlp, head, q, k, v and pattern.",
        ),
    ] = "residual,attention,mlp",
    by: Annotated[
        Literal["position", "span", "all"],
        typer.Option(help="Single positions, named spans of the prompts, or all positions at once."),
    ] = "position",
    spans: Annotated[
        str | None, typer.Option(metavar="NAMES", help="By span: these alone, comma-separated: IO,S2,rest.")
    ] = None,
    direction: Annotated[
        Literal["noise", "denoise"],
        typer.Option(help="noise: break the clean run; denoise: restore clean values in the corrupted run."),
    ] = "noise",
    method: Annotated[
        Literal["exact", "first-order", "both"],
        typer.Option(help="Run each replacement, estimate all from one backward pass, or compare the two."),
    ] = "exact",
    *,
    prompts: PromptOptions,
    metric: MetricName = None,
    ablation: AblationName = None,
    seed: Annotated[int, typer.Option(help="Of the prompts.", rich_help_panel=PROMPTS)] = 0,
    batch_size: BatchSize = None,
    memory: Memory = None,
    weights: ModelOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="Folder to write; otherwise runs/MODEL-TASK-trace, with a number where that is taken.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Causal tracing: replace the values of a layer at one place after another, and see what it does to the metric.

    Writes a table (CSV), heat maps with the prompt's tokens (SVG, PDF) and a page (HTML) to a folder.

    Example: acdc trace gpt2 --task ioi --sites residual,head --by span
    """
    with terminal.quiet_libraries(), contextlib.ExitStack() as held:
        import acdc
        from acdc.store import folders
        from acdc.store.writing import write_atomically
        from acdc.tracing.sites import site_of

        chosen = [site_of(name).name for name in listed(sites, "sites")]
        named = None if spans is None else listed(spans, "spans")
        name = task or own_task(model)
        default = Path("runs") / "-".join(dict.fromkeys((short(model), short(name), "trace")))
        claim = held.enter_context(
            folders.claimed(out, default=default, command=command_digest(context), force=force)
        )
        subject, data = prepared(
            model, name, prompts.settings, metric=metric, ablation=ablation, seed=seed, memory=memory,
            loading=weights.loading,
        )  # fmt: skip
        with terminal.progress_bar() as progress:
            found = [
                acdc.trace(
                    subject, data, sites=chosen, by=by, spans=named, direction=direction, method=how,
                    batch_size=batch_size, memory=memory, progress=progress,
                )
                for how in (("exact", "first-order") if method == "both" else (method,))
            ]  # fmt: skip
        from acdc.viz.tracing import page, render

        with claim.whole() as place:
            write_atomically(place / "trace.csv", _csv(found))
            write_atomically(place / "trace.json", to_json.dumps(terminal.plain(_record(found, name)), indent=1))
            for format in ("svg", "pdf"):
                write_atomically(place / f"trace.{format}", render(found[0], format))
            write_atomically(place / "trace.html", page(found[0], found[1] if method == "both" else None))
        folder = claim.folder
    if json:
        cells = [row for each in found for row in _rows(each)]
        terminal.print_json(_record(found, name) | {"folder": str(folder), "cells": cells})
        return
    facts = list(found[0].facts().items())
    if method == "both":
        for site, (pearson, rank) in found[0].agreement(found[1]).items():
            facts.append((f"first order, {site}", f"correlation with exact {pearson:.3f}, of ranks {rank:.3f}"))
    terminal.print_facts([*facts, ("folder", str(folder)), ("page", str(folder / "trace.html"))])


def _rows(found: Tracing) -> list[dict[str, Any]]:
    return [{"method": found.method, **row} for row in found.rows()]


def _csv(found: list[Tracing]) -> str:
    """All cells as a table: a column for each axis of any site."""
    rows = [row for each in found for row in _rows(each)]
    columns = list(
        dict.fromkeys(name for row in rows for name in row if name not in ("effect", "low", "high", "share"))
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns, "effect", "low", "high", "share"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _record(found: list[Tracing], task: str) -> dict[str, Any]:
    """What was traced, and by which command."""
    first = found[0]
    record: dict[str, Any] = {
        "model": first.model,
        "task": task,
        "metric": first.metric,
        "ablation": first.ablation,
        "direction": first.direction,
        "methods": [each.method for each in found],
        "by": first.by,
        "sites": [each.site for each in first.maps],
        "n_prompts": len(first.clean),
        "clean": float(first.clean.mean()),
        "corrupted": float(first.corrupted.mean()),
        "seed": first.seed,
        "command": ["acdc", *sys.argv[1:]],
    }
    if len(found) > 1:
        names = ("correlation", "rank_correlation")
        record["agreement"] = {
            site: dict(zip(names, pair, strict=True)) for site, pair in first.agreement(found[1]).items()
        }
    return record
