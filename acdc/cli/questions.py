"""`acdc ablate`, `acdc patch-path` and `acdc roles`: direct questions about parts of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acdc.cli import terminal
from acdc.cli.options import (
    PROMPTS,
    AblationName,
    BatchSize,
    Device,
    Dtype,
    HeldOut,
    Json,
    Memory,
    MetricName,
    ModelName,
    OnlyCorrectFlag,
    Revision,
    Size,
    Split,
    TaskName,
    TaskOption,
    Tokenizer,
    Trust,
    given,
    load_model,
    load_task,
    options,
    own_task,
)

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
    task_option: TaskOption = None,
    metric: MetricName = None,
    ablation: AblationName = None,
    size: Size = None,
    held_out: HeldOut = None,
    split: Split = None,
    only_correct: OnlyCorrectFlag = False,
    seed: Annotated[int, typer.Option(help="Of the prompts.", rich_help_panel=PROMPTS)] = 0,
    batch_size: BatchSize = None,
    memory: Memory = None,
    revision: Revision = None,
    tokenizer: Tokenizer = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Remove parts of a model, all at once: metric, faithfulness and divergence without them.

    Example: acdc ablate gpt2 a9.h9 a9.h6@end --task ioi --ablation mean
    """
    import acdc

    settings = given(size=size, held_out=held_out, split=split, only_correct=only_correct or None)
    _ask(
        lambda *asked, **how: acdc.ablate(*asked, **how), model, parts, task, settings | options(task_option),
        {"revision": revision, "tokenizer": tokenizer, "device": device, "dtype": dtype,
         "trust_remote_code": trust_remote_code},
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
    task_option: TaskOption = None,
    metric: MetricName = None,
    ablation: AblationName = None,
    size: Size = None,
    held_out: HeldOut = None,
    split: Split = None,
    only_correct: OnlyCorrectFlag = False,
    seed: Annotated[int, typer.Option(help="Of the prompts.", rich_help_panel=PROMPTS)] = 0,
    batch_size: BatchSize = None,
    memory: Memory = None,
    revision: Revision = None,
    tokenizer: Tokenizer = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Let one path alone carry the corrupted prompt, and see what it does (path patching).

    Example: acdc patch-path induction-2l a0.h1 'a1.h1<k>' logits
    """
    import acdc

    settings = given(size=size, held_out=held_out, split=split, only_correct=only_correct or None)
    _ask(
        lambda *asked, **how: acdc.patch_path(*asked, **how), model, path, task, settings | options(task_option),
        {"revision": revision, "tokenizer": tokenizer, "device": device, "dtype": dtype,
         "trust_remote_code": trust_remote_code},
        {"metric": metric, "ablation": ablation, "seed": seed, "memory": memory},
        batch_size=batch_size, json=json,
    )  # fmt: skip


def roles(
    model: ModelName,
    task: TaskName = None,
    task_option: TaskOption = None,
    metric: MetricName = None,
    ablation: AblationName = None,
    size: Size = None,
    held_out: HeldOut = None,
    split: Split = None,
    only_correct: OnlyCorrectFlag = False,
    seed: Annotated[int, typer.Option(help="Of the prompts.", rich_help_panel=PROMPTS)] = 0,
    batch_size: BatchSize = None,
    memory: Memory = None,
    revision: Revision = None,
    tokenizer: Tokenizer = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Label heads by what they do on a task's prompts: previous token, induction, mover, inhibition, copying, ….

    Example: acdc roles gpt2 --task ioi
    """
    with terminal.quiet_libraries():
        from acdc.inspection import head_roles

        settings = given(size=size, held_out=held_out, split=split, only_correct=only_correct or None)
        recipe = load_task(
            task or own_task(model), settings | options(task_option), metric=metric, ablation=ablation, seed=seed,
            memory=memory,
        )  # fmt: skip
        subject = load_model(
            model, revision=revision, tokenizer=tokenizer, device=device, dtype=dtype,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        data = recipe.prepare(subject)
        for warning in data.warnings:
            terminal.warn(warning)
        with terminal.progress_bar() as progress:
            found = head_roles(subject, data, batch_size=batch_size, memory=memory, progress=progress)
    if json:
        scores = {
            head: dict(zip(found.labels, row, strict=True))
            for head, row in zip(found.heads, found.scores.tolist(), strict=True)
        }
        effect = dict(zip(found.heads, found.effect.tolist(), strict=True))
        labels = [dataclasses.asdict(role) for role in found.roles]
        terminal.print_json({"roles": labels, "effect": effect, "scores": scores, "groups": found.groups()})
        return
    terminal.print_table(*found.table())


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
        recipe = load_task(task or own_task(model), settings, **chosen)
        subject = load_model(model, **loading)
        data = recipe.prepare(subject)
        for warning in data.warnings:
            terminal.warn(warning)
        with terminal.progress_bar() as progress:
            found = question(
                subject, data, parts, batch_size=batch_size, memory=chosen["memory"], progress=progress
            )
    if json:
        terminal.print_json(dataclasses.asdict(found))
    else:
        terminal.print_facts(found.facts().items())
