"""What every inspection needs: the prompts a circuit is judged on, plain runs on them, and tokens as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from acdc.engine.plain_run import input_sources, plain_run
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.engine.stages import stages_of
from acdc.evaluation.judging import judging_problem
from acdc.graph import Graph
from acdc.model import forward
from acdc.model.forward import Context
from acdc.model.model import Model
from acdc.model.trace import Trace
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts
from acdc.tasks.task import token_texts
from acdc.tasks.tokenise import Encoder

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Task


def judged(
    model: Model,
    task: Task | Dataset | Prompts,
    *,
    graph: Graph | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    progress: Progress = no_progress,
) -> Problem:
    dataset = as_dataset(task, model)
    return judging_problem(
        model, dataset, graph or model.graph(), batch_size=batch_size, memory=memory, progress=progress
    )


def plain_runs(
    problem: Problem, what: str, work: Literal["circuits", "everywhere"] = "circuits"
) -> Iterator[tuple[Prompts, Context, Trace]]:
    """Plain runs on the clean prompts, batch by batch, whose logits are read where the task does or everywhere."""
    for start, some in problem.batches(work).slices():
        problem.progress(start, len(problem.prompts), what)
        prompts = some.to(problem.model.device)
        yield prompts, *plain_run(problem.model, prompts)
    problem.progress(len(problem.prompts), len(problem.prompts), what)


def written(
    model: Model,
    graph: Graph,
    context: Context,
    trace: Trace,
    *,
    before: int | None = None,
    at: Callable[[Tensor], Tensor] = lambda x: x,
) -> tuple[list[Tensor], Tensor]:
    """What each source writes, `[B, T, D]` each, and what belongs to none, in a plain run.

    Args:
        before: sources of earlier layers than this one; None: all.
        at: takes some positions.
    """
    inputs, rest = input_sources(graph, forward.embed(model.decomposition, context))
    outputs = [at(x[0]) for x in inputs]
    constant = torch.zeros_like(outputs[0])
    if isinstance(rest, Tensor):
        constant = constant + at(rest[0].expand_as(inputs[0][0]))
    for stage in stages_of(model, graph):
        if before is None or stage.sublayer.layer < before:
            outputs += list(stage.write(at(stage.output(trace)))[:, 0])
            shift = stage.constant()
            constant = constant if shift is None else constant + shift
    return outputs, constant


def most_likely(model: Model, context: Context, trace: Trace) -> Tensor:
    """The model's own most likely token at the read positions, `[B, P]`."""
    assert trace.final_input is not None
    return forward.readout(model.decomposition, context.at_read(trace.final_input[0])).argmax(-1)


def input_texts(prompts: Prompts, model: Model) -> tuple[tuple[str, ...], ...]:
    """`[prompt][position]`: texts of the clean tokens, "" at padding; ids where there is no tokenizer."""
    texts = token_texts(prompts, model)
    if texts is not None:
        return texts
    names = None if model.program is None else model.program.program.vocabulary
    return tuple(
        tuple(
            (str(names[token] if names else token)) if real else "" for token, real in zip(row, mask, strict=True)
        )
        for row, mask in zip(prompts.clean.tolist(), prompts.mask.tolist(), strict=True)
    )


def output_texts(model: Model) -> Callable[[int], str]:
    """What gives an output token as text; its id without a tokenizer."""
    if model.program is not None:
        outputs = model.program.program.output_vocabulary
        return str if outputs is None else lambda token: str(outputs[token])
    return str if model.tokenizer is None else Encoder(model).text
