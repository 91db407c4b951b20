"""`acdc ablate`, `acdc patch-path` and `acdc roles`: direct questions about parts of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acdc.cli import terminal
from acdc.cli.groups import ModelOptions, PromptOptions
from acdc.cli.options import (
    PROMPTS,
    AblationName,
    BatchSize,
    Json,
    Memory,
    MetricName,
    ModelName,
    TaskName,
    prepared,
)
from acdc.errors import AcdcError

if TYPE_CHECKING:
    from acdc.inspection import PartEffect


def ablate(
    model: ModelName,
    parts: Annotated[
        list[str],
        typer.Argument(
            metavar="PARTS...",
            help="Nodes a2.h0, layers a2, edges 'a0.h1->m2', what a node reads 'a2.h3<k>'; each perhaps at a span or "
            "position: a2.h0@S2, m3@-1.",
        ),
    ],
    task: TaskName = None,
    *,
    prompts: PromptOptions,
    metric: MetricName = None,
    ablation: AblationName = None,
    seed: Annotated[int, typer.Option(help="Of the prompts.", rich_help_panel=PROMPTS)] = 0,
    batch_size: BatchSize = None,
    memory: Memory = None,
    weights: ModelOptions,
    json: Json = False,
) -> None:
    """Remove parts of a model, all at once: metric, faithfulness and divergence without them.

    Example: acdc ablate gpt2 a9.h9 a9.h6@end --task ioi --ablation mean
    """
    import acdc

    _ask(
        lambda *asked, **how: acdc.ablate(*asked, **how), model, parts, task, prompts.settings,
        weights.loading,
        {"metric": metric, "ablation": ablation, "seed": seed, "memory": memory},
        batch_size=batch_size, json=json,
    )  # fmt: skip


def patch_path(
    model: ModelName,
    path: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...", help="A node, what reads it, and so on to the logits: a0.h1 'a2.h3<k>' logits."
        ),
    ],
    task: TaskName = None,
    *,
    prompts: PromptOptions,
    metric: MetricName = None,
    ablation: AblationName = None,
    seed: Annotated[int, typer.Option(help="Of the prompts.", rich_help_panel=PROMPTS)] = 0,
    batch_size: BatchSize = None,
    memory: Memory = None,
    weights: ModelOptions,
    json: Json = False,
) -> None:
    """Let one path alone carry the corrupted prompt, and see what it does (path patching).

    Example: acdc patch-path induction-2l a0.h1 'a1.h1<k>' logits
    """
    import acdc

    _ask(
        lambda *asked, **how: acdc.patch_path(*asked, **how), model, path, task, prompts.settings,
        weights.loading,
        {"metric": metric, "ablation": ablation, "seed": seed, "memory": memory},
        batch_size=batch_size, json=json,
    )  # fmt: skip


def roles(
    model: ModelName,
    task: TaskName = None,
    head: Annotated[
        str | None,
        typer.Option(help="Of this head instead: what each source adds to its attention score, by query and key."),
    ] = None,
    query: Annotated[
        str | None, typer.Option(help="With --head: a span or position; otherwise where the metric reads.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="With --head: a span or position; otherwise the key attended to most.")
    ] = None,
    relative: Annotated[
        bool, typer.Option("--relative", help="With --head: the score less its mean over all keys seen.")
    ] = False,
    *,
    prompts: PromptOptions,
    metric: MetricName = None,
    ablation: AblationName = None,
    seed: Annotated[int, typer.Option(help="Of the prompts.", rich_help_panel=PROMPTS)] = 0,
    batch_size: BatchSize = None,
    memory: Memory = None,
    weights: ModelOptions,
    json: Json = False,
) -> None:
    """Label heads by what they do on a task's prompts: previous token, induction, mover, inhibition, copying, ….

    With --head, why one of them attends where it does: what each earlier source adds to its score.

    Example: acdc roles gpt2 --task ioi

    Example: acdc roles induction-2l --head a1.h1 --relative
    """
    if head is None and (query is not None or key is not None or relative):
        raise AcdcError("--query, --key and --relative are of one head's score: give --head too")
    with terminal.quiet_libraries():
        from acdc.inspection import head_roles, score_attribution

        subject, data = prepared(
            model, task, prompts.settings, metric=metric, ablation=ablation, seed=seed, memory=memory,
            loading=weights.loading,
        )  # fmt: skip
        with terminal.progress_bar() as progress:
            if head is not None:
                why = score_attribution(
                    subject, data, head, query=query, key=key, relative=relative, batch_size=batch_size, memory=memory,
                    progress=progress,
                )  # fmt: skip
            else:
                found = head_roles(subject, data, batch_size=batch_size, memory=memory, progress=progress)
    if head is not None:
        if json:
            values = dataclasses.asdict(why)
            terminal.print_json({name: x.tolist() if hasattr(x, "tolist") else x for name, x in values.items()})
            return
        terminal.print_table(*why.table())
        print()
        terminal.print_facts(why.facts().items())
        return
    if json:
        scores = {
            head: dict(zip(found.labels, row, strict=True))
            for head, row in zip(found.heads, found.scores.tolist(), strict=True)
        }
        effect = dict(zip(found.heads, found.effect.tolist(), strict=True))
        labels = [dataclasses.asdict(role) for role in found.roles]
        terminal.print_json({"roles": labels, "effect": effect, "scores": scores, "groups": found.groups()})
        return
    if found.roles:
        terminal.print_table(*found.table())
    else:
        terminal.print_line(found.nothing())


def _ask(
    question: Callable[..., PartEffect],
    model: str,
    parts: Sequence[str],
    task: str | None,
    settings: dict[str, Any],
    loading: dict[str, Any],
    chosen: dict[str, Any],
    *,
    batch_size: int | None,
    json: bool,
) -> None:
    with terminal.quiet_libraries():
        subject, data = prepared(model, task, settings, loading=loading, **chosen)
        with terminal.progress_bar() as progress:
            found = question(
                subject, data, parts, batch_size=batch_size, memory=chosen["memory"], progress=progress
            )
    if json:
        terminal.print_json(dataclasses.asdict(found))
    else:
        terminal.print_facts(found.facts().items())
