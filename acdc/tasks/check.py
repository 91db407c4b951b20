"""Is a task worth looking for a circuit in this model? One report, before hours are spent on the answer no.

The model is run once on the clean and once on the corrupted prompts. What makes a circuit meaningless (the model
does the task no better on clean prompts than on corrupted ones, or no better than can be told from the prompts) is a
problem; what makes it weaker is a remark.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from acdc.errors import TaskError
from acdc.metrics import OUTCOMES, Outcome, Targets, is_above_zero
from acdc.metrics.outcome import text_log_probabilities
from acdc.shown import are, counted
from acdc.store.amounts import bytes_of, size
from acdc.tasks.prompts import Prompts
from acdc.tasks.task import Dataset, Metric, OtherPrompts, Task, as_dataset
from acdc.tasks.tokenise import ModelLike

if TYPE_CHECKING:
    from acdc.model.model import Model

_FEW_RIGHT = 0.5
_STILL_RIGHT = 0.9
_HELD = "on the held-out prompts "
_POSITIONS = 512  # read positions of a batch whose logits are held at once


@dataclasses.dataclass(frozen=True)
class Quality:
    """How well a model does one set of prompts.

    Attributes:
        n_prompts: how many there are.
        clean, corrupted: mean outcome metric on clean and corrupted prompts.
        accuracy: share of clean prompts whose most likely token is an answer; None without answers.
        right: share of prompts where an answer beats every wrong answer (without wrong answers: the accuracy).
        guessed: the share of those that whoever guesses among answers and wrong answers gets; None without wrong ones.
        right_corrupted: the same as `right`, still counting the clean prompts' answers, on the corrupted prompts.
        changed: mean number of positions at which clean and corrupted prompts differ.
        lengths: fewest and most tokens of a prompt.
        duplicates: pairs of a clean and a corrupted prompt that occurred before.
    """

    n_prompts: int
    clean: float
    corrupted: float
    accuracy: float | None
    right: float | None
    guessed: float | None
    right_corrupted: float | None
    changed: float
    lengths: tuple[int, int]
    duplicates: int


@dataclasses.dataclass(frozen=True)
class TaskReport:
    """What `check_task` found.

    Attributes:
        held_out: None if the task has no held-out prompts.
        problems: why a circuit for this task would mean nothing, a sentence each; empty if the task is usable.
        remarks: what else to know of it, a sentence each.
    """

    task: str
    model: str
    metric: str
    discovery: Quality
    held_out: Quality | None
    problems: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def usable(self) -> bool:
        return not self.problems


@dataclasses.dataclass(frozen=True)
class _Run:
    """Per-prompt results of one set of prompts: values `[prompt]`, and bools `[prompt]` (None without answers)."""

    clean: Tensor
    corrupted: Tensor
    accurate: Tensor | None
    right: Tensor | None
    right_corrupted: Tensor | None


def check_task(
    model: Model,
    task: Task | Dataset | Prompts,
    *,
    metric: Metric | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
) -> TaskReport:
    """Report how well the model does the task, and whether its prompts are any good.

    Args:
        batch_size: prompts in a pass; None: as many as keep a few hundred rows of logits.
        memory: how much may be used beside the weights, like "4GB"; None: what is free.

    Raises:
        TaskError: the task cannot be prepared for the model, or the model's logits are not finite.
    """
    dataset = as_dataset(task, model, metric=metric)
    sets = {"": dataset.discovery} if dataset.held_out is None else {"": dataset.discovery, _HELD: dataset.held_out}
    runs = {where: _run(model, prompts, dataset.metric, batch_size, memory) for where, prompts in sets.items()}
    found = {where: _quality(prompts, runs[where]) for where, prompts in sets.items()}
    discovery, held_out = found[""], found.get(_HELD)
    problems = [text for where, quality in found.items() for text in _problems(dataset.metric, quality, where)]
    if not problems:
        problems = list(_untold(dataset.metric, runs.values()))
    return TaskReport(
        task=dataset.name,
        model=model.name,
        metric=dataset.metric.name,
        discovery=discovery,
        held_out=held_out,
        problems=tuple(problems),
        remarks=(*dataset.warnings, *_remarks(dataset, discovery, held_out)),
    )


def only_correct(
    model: Model,
    task: Task | Dataset | Prompts,
    *,
    metric: Metric | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
) -> Dataset:
    """The dataset without the prompts the model gets wrong: where a wrong answer beats the answers.

    Raises:
        TaskError: the prompts have no answers, or no prompt is left.
    """
    dataset = as_dataset(task, model, metric=metric)
    keep = _keep(model, dataset, dataset.discovery, "discovery", batch_size, memory)
    held_out = dataset.held_out
    if held_out is not None:
        held_out = held_out[_keep(model, dataset, held_out, "held-out", batch_size, memory)]
    tokens = dataset.tokens
    if tokens is not None:
        tokens = tuple(row for row, right in zip(tokens, keep.tolist(), strict=True) if right)
    return dataclasses.replace(dataset, discovery=dataset.discovery[keep], held_out=held_out, tokens=tokens)


@dataclasses.dataclass(frozen=True)
class OnlyCorrect(OtherPrompts):
    """A task without the prompts that the model at hand gets wrong.

    Attributes:
        memory: how much may be used to find out, beside the weights.
    """

    memory: str | None = None

    def prepare(self, model: ModelLike) -> Dataset:
        return only_correct(cast("Model", model), self.task, memory=self.memory)


def _keep(
    model: Model, dataset: Dataset, prompts: Prompts, what: str, batch_size: int | None, memory: str | None
) -> Tensor:
    """`[prompt]` bool: which prompts the model gets right."""
    right = _run(model, prompts, dataset.metric, batch_size, memory).right
    if right is None:
        raise TaskError(f"{dataset.name}: the prompts have no answers, so none can be called right or wrong")
    if not bool(right.any()):
        raise TaskError(f"{dataset.name}: {model.name} gets none of the {len(prompts)} {what} prompts right")
    return right.to(prompts.clean.device)


# ---- running ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def _run(model: Model, prompts: Prompts, metric: Outcome, batch_size: int | None, memory: str | None) -> _Run:
    at_once = batch_size or max(1, _POSITIONS // prompts.positions.shape[1])
    if memory is not None:
        at_once = min(at_once, _fitting(model, prompts, bytes_of(memory)))
    columns: list[list[Tensor]] = []
    for batch in _batches(prompts.to(model.device), at_once):
        swapped = batch.swapped()
        clean = _logits(model, batch, "clean")
        corrupted = _logits(model, swapped, "corrupted")
        texts = batch.branch is not None
        targets = Targets(batch.compared, batch.answers, batch.wrong, full=clean, corrupted=corrupted, texts=texts)
        row = [metric(clean, targets), metric(corrupted, targets)]
        if batch.answers is not None:
            accurate = OUTCOMES["accuracy"](clean, targets) > 0 if texts else _accurate(clean, batch.answers)
            row += [accurate if texts else _all_read(accurate, batch.positions)]
            for logits in (clean, corrupted):
                if texts:
                    row += [_text_beats(logits, targets)]
                else:
                    row += [_all_read(_beats(logits, batch.answers, batch.wrong), batch.positions)]
        columns.append([x.cpu() for x in row])
    joined = [torch.cat(column) for column in zip(*columns, strict=True)]
    return _Run(*joined) if len(joined) == 5 else _Run(joined[0], joined[1], None, None, None)


def _fitting(model: Model, prompts: Prompts, limit: float) -> int:
    """Prompts of a batch that fit in so many bytes: logits everywhere and where they are read, and one layer's run.

    Raises:
        TaskError: not one does.
    """
    T, P = prompts.clean.shape[1], prompts.positions.shape[1]
    V, D, itemsize = model.vocabulary_size, model.d_model, model.dtype.itemsize
    run = T * (24 * D + 4 * model.n_heads * T)
    needed = 1.2 * (itemsize * (2 * T * V + run) + 4 * 6 * P * V)
    if needed > limit:
        raise TaskError(
            f"not enough memory: one prompt of {T} tokens needs about {size(needed)}, and {size(limit)} is allowed; "
            f"use prompts shorter than {T} tokens, or more memory (--memory)"
        )
    return int(limit / needed)


def _batches(prompts: Prompts, size: int) -> Iterator[Prompts]:
    for start in range(0, len(prompts), size):
        yield prompts[start : start + size]


def _logits(model: Model, prompts: Prompts, what: str) -> Tensor:
    """Logits at the read positions `[B, P, V]`."""
    if not prompts.branched:
        read = _at_read(model, prompts)
    else:  # the module knows no branches
        assert prompts.branch is not None
        which, number = prompts.branch_read(), int(prompts.branch.max())
        parts = [_at_read(model, prompts.one_branch(b)) for b in range(1, number + 1)]
        read = parts[0]
        for b, part in enumerate(parts[1:], start=2):
            read = torch.where((which == b)[..., None], part, read)
    if not bool(torch.isfinite(read[prompts.positions >= 0]).all()):
        raise TaskError(f"the model's logits on the {what} prompts are not finite (NaN or infinite); try float32")
    return read


def _at_read(model: Model, prompts: Prompts) -> Tensor:
    logits = model.plain_logits(prompts.clean, prompts.mask, prompts.position_ids)
    at = prompts.positions.clamp(min=0)[..., None].expand(-1, -1, logits.shape[-1])
    return logits.gather(1, at).float()


def _accurate(logits: Tensor, answers: Tensor) -> Tensor:
    """`[B, P]`: the most likely token is an answer; True where there is none to give."""
    return (logits.argmax(-1, keepdim=True) == answers).any(-1) | (answers < 0).all(-1)


def _beats(logits: Tensor, answers: Tensor, wrong: Tensor | None) -> Tensor:
    """`[B, P]`: the best answer's logit is above every wrong answer's."""
    if wrong is None:
        return _accurate(logits, answers)

    def best(ids: Tensor) -> Tensor:
        return logits.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf).amax(-1)

    return (best(answers) > best(wrong)) | (answers < 0).all(-1)


def _text_beats(logits: Tensor, targets: Targets) -> Tensor:
    """`[B]`: the likeliest answer, of several tokens, is above every wrong one; without wrong ones, it is said."""
    if targets.wrong is None:
        return OUTCOMES["accuracy"](logits, targets) > 0
    right, wrong = (text_log_probabilities(logits, ids).amax(-1) for ids in (targets.answers, targets.wrong))
    return right > wrong


def _all_read(values: Tensor, positions: Tensor) -> Tensor:
    """`[B]`: at all positions that are read."""
    return (values | (positions < 0)).all(-1)


# ---- judging ----------------------------------------------------------------------------------------------------


def _rows(prompts: Prompts) -> list[tuple[int, ...]]:
    """Clean tokens, and positions if they are given, of each prompt without its padding."""
    ids = prompts.clean if prompts.position_ids is None else torch.stack((prompts.clean, prompts.position_ids), -1)
    return [tuple(row[mask].flatten().tolist()) for row, mask in zip(ids.cpu(), prompts.mask.cpu(), strict=True)]


def _quality(prompts: Prompts, run: _Run) -> Quality:
    def mean(values: Tensor | None) -> float | None:
        return None if values is None else float(values.double().mean())

    different = prompts.clean != prompts.corrupted
    if prompts.corrupted_position_ids is not None and prompts.position_ids is not None:
        different = different | (prompts.position_ids != prompts.corrupted_position_ids)
    return Quality(
        n_prompts=len(prompts),
        clean=float(run.clean.double().mean()),
        corrupted=float(run.corrupted.double().mean()),
        accuracy=mean(run.accurate),
        right=mean(run.right),
        guessed=mean(_guessed(prompts)),
        right_corrupted=mean(run.right_corrupted),
        changed=float((different & prompts.mask).sum(1).double().mean()),
        lengths=prompts.lengths,
        duplicates=len(prompts) - len(set(zip(_rows(prompts), _rows(prompts.swapped()), strict=True))),
    )


def _guessed(prompts: Prompts) -> Tensor | None:
    """`[B]`: how likely a guess among answers and wrong answers is right, at all positions that are read."""
    if prompts.answers is None or prompts.wrong is None:
        return None
    answers, wrong = prompts.answers >= 0, prompts.wrong >= 0
    if prompts.branched:  # the last axis is of whole answers
        answers, wrong = answers.any(1, keepdim=True), wrong.any(1, keepdim=True)
    n_answers, n_wrong = answers.sum(-1).double(), wrong.sum(-1).double()
    return torch.where(n_answers > 0, n_answers / (n_answers + n_wrong), 1.0).prod(-1)


def _problems(metric: Outcome, quality: Quality, where: str) -> Iterator[str]:
    """What the numbers of one set of prompts say against the task; where: which set it is, in words."""
    clean, corrupted = quality.clean, quality.corrupted
    numbers = f"{where}{metric.name} is {clean:.4g} on clean prompts and {corrupted:.4g} on corrupted ones"
    if metric.is_distance and corrupted <= clean + 1e-9:
        yield f"the corruption changes nothing in the model's output: {numbers}"
    elif not metric.is_distance and (clean <= corrupted) == metric.higher_is_better:
        yield f"the model does not do this task: {numbers}, so a circuit for it would mean nothing"
    elif quality.right is not None and quality.guessed is not None and quality.right <= quality.guessed < 1:
        yield (
            f"the model does not do this task: {where}it gets {quality.right:.0%} of the prompts right, and a guess "
            f"among the answers {quality.guessed:.0%}"
        )


def _untold(metric: Outcome, runs: Iterable[_Run]) -> Iterator[str]:
    """The same of what separates clean from corrupted prompts on average, if chance alone could have made it.

    All prompts are taken together, as many as there are to tell it by.
    """
    if metric.is_distance:
        return
    clean, corrupted = (torch.cat(part) for part in zip(*((run.clean, run.corrupted) for run in runs), strict=True))
    better = (clean - corrupted).double() * (1 if metric.higher_is_better else -1)
    if is_above_zero(better.numpy()) is False:
        yield (
            f"it is not told that the model does this task: {metric.name} is {clean.mean():.4g} on clean prompts and "
            f"{corrupted.mean():.4g} on corrupted ones, and from {counted(len(better), 'prompt')} that difference is "
            "not told from 0, so a circuit for it might mean nothing"
        )


def _remarks(dataset: Dataset, discovery: Quality, held_out: Quality | None) -> Iterator[str]:
    if discovery.right is not None and discovery.right < _FEW_RIGHT:
        yield f"the model gets {discovery.right:.0%} of the prompts right; --only-correct keeps those"
    elif discovery.right_corrupted is not None and discovery.right_corrupted > _STILL_RIGHT:
        yield f"the answer is still right on {discovery.right_corrupted:.0%} of the corrupted prompts"
    if discovery.duplicates:
        yield f"{counted(discovery.duplicates, 'discovery prompt')} occurred before"
    answers = dataset.discovery.answers
    if answers is not None and len(answers) > 1 and bool((answers == answers[:1]).all()):
        yield "every prompt has the same answer, so a constant would do the task"
    if held_out is None or dataset.held_out is None:
        yield "there are no held-out prompts, so faithfulness can only be measured on the discovery prompts"
        return
    if held_out.duplicates:
        yield f"{counted(held_out.duplicates, 'held-out prompt')} occurred before"
    known = set(_rows(dataset.discovery))
    shared = sum(row in known for row in _rows(dataset.held_out))
    if shared:
        some = counted(shared, "held-out prompt", of=held_out.n_prompts)
        yield f"{some} {are(shared)} among the discovery prompts too"
