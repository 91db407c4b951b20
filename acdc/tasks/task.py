"""Tasks: a `Task` is a recipe that knows no model; `prepare(model)` makes a `Dataset`, tensors and a metric.

Wherever a task is asked for, a dataset or bare `Prompts` do as well: `as_dataset` turns each into a dataset and
checks that the metric has what it needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import warnings
from collections.abc import Callable
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from acdc.errors import AcdcError, TaskError, check_type, unknown
from acdc.graph import BoolArray, Graph
from acdc.metrics import OUTCOMES, Outcome, Targets
from acdc.shown import Shown, are, counted
from acdc.tasks.prompts import Padding, Prompts, problems
from acdc.tasks.repeats import new_ones, repeats
from acdc.tasks.tokenise import STARTS_TWICE, Encoder, ModelLike, TokenPair, starts_twice, text_of

FAITHFULNESS = 0.95
"""What a circuit should reach where nobody says: 1 is the full model, 0 the circuit without edges."""
Ablation = Literal["resample", "zero", "mean", "mean-position", "optimal"]
MetricFunction = Callable[[Tensor, Targets], Tensor]
Metric = str | Outcome | MetricFunction | Callable[[Tensor], Tensor]
"""The name of an outcome metric, an `Outcome`, or a function of the logits, or of logits and targets."""


class Truth(Protocol):
    """A known true circuit of the model a task is for."""

    @property
    def name(self) -> str: ...
    @property
    def edges_are(self) -> str:
        """What its edges are, in words: "true edges", or less where they are not one circuit."""
        ...

    @property
    def scope(self) -> str:
        """Its name, and how sure it is that no edge lacks."""
        ...

    def mask(self, graph: Graph) -> BoolArray:
        """`[n_destinations, n_sources]` true edges of any graph of the model."""
        ...


@dataclasses.dataclass(frozen=True, repr=False)
class Dataset(Shown):
    """A task made ready for one model.

    Attributes:
        name: of the task.
        discovery: the prompts a circuit is found on.
        held_out: prompts to judge it on, none of them in discovery; None if there are none.
        metric: the outcome metric.
        ablation: what a removed edge carries.
        seed: the prompts were drawn with.
        warnings: what the user should know of the prompts, a sentence each.
        tokens: `[prompt][position]`, texts of the clean tokens of the discovery prompts; None without a tokenizer.
        faithfulness: what a circuit should reach if the user does not say.
        truth: the true circuit for this ablation and these prompts, if it is known.
        exact: whether outputs are free of noise, as a compiled program's, so that a circuit reproduces them or not.
    """

    name: str
    discovery: Prompts
    held_out: Prompts | None
    metric: Outcome
    ablation: Ablation = "resample"
    seed: int = 0
    warnings: tuple[str, ...] = ()
    tokens: tuple[tuple[str, ...], ...] | None = None
    faithfulness: float = FAITHFULNESS
    truth: Truth | None = None
    exact: bool = False

    def _summary(self) -> str:
        held_out = "none" if self.held_out is None else len(self.held_out)
        return f"{self.name}: {counted(len(self.discovery), 'prompt pair')}, {held_out} held out"

    def facts(self) -> dict[str, str]:
        """Sizes and settings."""
        return {
            "name": self.name,
            "discovery": str(self.discovery),
            "held out": "none" if self.held_out is None else str(self.held_out),
            "metric": self.metric.name,
            "ablation": self.ablation,
            "seed": str(self.seed),
        }


@runtime_checkable
class Task(Protocol):
    """A recipe for prompts, independent of the model; a seed gives the same prompts every time."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def ablation(self) -> str: ...
    @property
    def seed(self) -> int: ...
    def prepare(self, model: ModelLike) -> Dataset:
        """The prompts for this model.

        Raises:
            TaskError: the model or its tokenizer cannot do the task; names every prompt that is at fault.
        """
        ...


class ShownTask(Shown):
    """How a task shows itself: what every `Task` has, and the settings that its kind has besides."""

    def _summary(self: Task) -> str:
        return f"{self.name}: {self.description}"

    def facts(self: Task) -> dict[str, str]:
        """Name, description and settings."""
        found = {name: str(getattr(self, name)) for name in ("name", "description", "metric", "ablation", "seed")}
        for name in ("size", "distribution", "padding"):
            if hasattr(self, name):
                found[name] = str(getattr(self, name))
        return found | {name: str(value) for name, value in getattr(self, "options", {}).items()}


@dataclasses.dataclass(frozen=True)
class OtherPrompts:
    """A task that is another one but for its prompts, which a subclass prepares.

    Attributes:
        task: the other one.
    """

    task: Task

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def description(self) -> str:
        return self.task.description

    @property
    def metric(self) -> str:
        return self.task.metric

    @property
    def ablation(self) -> str:
        return self.task.ablation

    @property
    def seed(self) -> int:
        return self.task.seed


def resolve_metric(metric: Metric) -> Outcome:
    """The outcome metric of that name, or around that function.

    A function takes logits `[..., prompt, position, vocabulary]` at the read positions and, if it has a second
    argument, the `Targets`; it gives `[..., prompt]` or `[..., prompt, position]`, and more of it counts as better.

    Raises:
        AcdcError: there is no metric of that name, or the function takes other arguments. Later, when the metric is
            measured: the function fails, or gives something else.
    """
    if isinstance(metric, Outcome):
        if OUTCOMES.comes_with_acdc(metric.name) and OUTCOMES[metric.name] is metric:
            return metric
        return dataclasses.replace(metric, function=_checked(metric.function, metric.name))
    if isinstance(metric, str):
        if metric not in OUTCOMES:
            error = unknown("metric", metric, OUTCOMES)
            own = "in Python, one of your own is given itself: as_dataset(task, model, metric=FUNCTION)"
            raise AcdcError(f"{error} ({own})")
        outcome = OUTCOMES[metric]
        return outcome if OUTCOMES.comes_with_acdc(metric) else resolve_metric(outcome)
    if not callable(metric):
        raise TaskError(f"expected a metric's name, an Outcome or a function, got {type(metric).__name__}")
    name = getattr(metric, "__name__", type(metric).__name__)
    description = (getattr(metric, "__doc__", None) or "a function of the user's").strip().splitlines()[0]
    return Outcome(name, _checked(metric, name), "vocabulary", True, False, False, False, description)


def _checked(function: Callable[..., Tensor], name: str) -> MetricFunction:
    """The function with its failures and wrong answers as errors that name it.

    Values per prompt are repeated over the read positions, whose mean they then are.
    """
    n_arguments = _arguments(function, name)

    def values(logits: Tensor, targets: Targets) -> Tensor:
        try:
            found = function(*(logits, targets)[:n_arguments])
        except (AcdcError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            raise TaskError(
                f"metric {name!r} failed on logits {list(logits.shape)} (…, prompt, position, vocabulary): "
                f"{type(error).__name__}: {reason:.300}"
            ) from error
        *batch, positions, _ = logits.shape
        if not isinstance(found, Tensor):
            raise TaskError(f"metric {name!r}: expected a torch tensor of values, got {type(found).__name__}")
        if found.is_complex():
            raise TaskError(f"metric {name!r}: expected real values, got {found.dtype}")
        if not found.is_floating_point():
            found = found.to(logits.dtype)
        shape = list(found.shape)
        if shape == batch:
            return found.unsqueeze(-1).expand(*batch, positions)
        if shape != [*batch, positions]:
            raise TaskError(
                f"metric {name!r}: expected values {batch} (a prompt each) or {[*batch, positions]} (a position "
                f"each) for logits {list(logits.shape)}, got {shape}"
            )
        return found

    vars(values)["given"] = getattr(function, "given", function)  # what tells it from others (audits' notes)
    return values


def _arguments(function: Callable[..., Tensor], name: str) -> int:
    """How many arguments a metric's function takes: the logits alone, or logits and targets."""
    try:
        signature = inspect.signature(function.forward if isinstance(function, torch.nn.Module) else function)
    except (TypeError, ValueError):  # some built-in functions have none
        return 2
    for n in (2, 1):
        with contextlib.suppress(TypeError):
            signature.bind(*range(n))
            return n
    raise TaskError(
        f"metric {name!r}: expected a function of the logits, or of logits and targets, got {name}{signature}"
    )


def check_ablation(ablation: str) -> Ablation:
    """The ablation of that name."""
    for known in get_args(Ablation):
        if ablation == known:
            return known
    raise unknown("ablation", ablation, get_args(Ablation))


def as_dataset(
    task: Task | Dataset | Prompts,
    model: ModelLike,
    *,
    metric: Metric | None = None,
    ablation: str | None = None,
) -> Dataset:
    """A dataset for this model from a task, a dataset or bare prompts.

    Args:
        metric, ablation: instead of the task's own. For bare prompts the metric is the logit difference if they
            have answers and wrong answers, else KL.

    Warns:
        UserWarning: bare prompts have repeats, and how many; a dataset's held-out prompts are discovery prompts too,
            and are left out.

    Raises:
        TaskError: the prompts don't fit the model, or the metric needs answers they don't have.
    """
    check_type("a model (acdc.load)", model, ModelLike)
    if isinstance(task, Prompts):
        default = "kl" if task.answers is None or task.wrong is None else "logit-difference"
        _check_prompts(task, model)
        repeated = repeats(task)
        for line in repeated:  # bare prompts come from Python, where nobody reads a dataset's warnings
            warnings.warn(line, stacklevel=3)
        remarks = (*repeated, *_bos_warnings(task, model))
        dataset = Dataset("prompts", task, None, OUTCOMES[default], warnings=remarks)
    elif isinstance(task, Dataset):
        dataset = task
        for prompts in (task.discovery, task.held_out):
            if prompts is not None:
                _check_prompts(prompts, model)
    elif isinstance(task, Task):
        dataset = task.prepare(model)
    else:
        raise TaskError(f"expected a task (acdc.tasks.load), a Dataset or Prompts, got {type(task).__name__}")
    dataset = dataclasses.replace(
        dataset,
        metric=resolve_metric(dataset.metric if metric is None else metric),
        ablation=dataset.ablation if ablation is None else check_ablation(ablation),
    )
    check_metric(dataset.metric, dataset.discovery, dataset.name)
    apart = _held_apart(dataset)
    if isinstance(task, Dataset):
        for line in apart.warnings[len(dataset.warnings) :]:
            warnings.warn(line, stacklevel=3)
    return apart


def _held_apart(dataset: Dataset) -> Dataset:
    """The dataset without held-out prompts that under its ablation are run as discovery prompts are, and a warning."""
    if dataset.held_out is None:
        return dataset
    new = new_ones(dataset.held_out, dataset.discovery, dataset.ablation)
    n = len(dataset.held_out)
    left_out = n - (0 if new is None else len(new))
    if not left_out:
        return dataset
    of, verb = counted(left_out, "held-out prompt", of=n), are(left_out)
    why = f"{verb} left out, being {'a discovery prompt' if left_out == 1 else 'discovery prompts'} too"
    line = f"{dataset.name}: {of} {why} under {dataset.ablation} ablation"
    return dataclasses.replace(dataset, held_out=new, warnings=(*dataset.warnings, line))


def check_metric(metric: Outcome, prompts: Prompts, name: str) -> None:
    """Raise a `TaskError` if the metric needs answers that the prompts don't have, or of one token each."""
    if prompts.branch is not None and not takes_texts(metric):
        raise TaskError(
            f"{name}: some answers are of several tokens, and metric {metric.name!r} takes one; {takers_of_texts()}"
        )
    needs = (
        ("answers", metric.needs_answers, prompts.answers),
        ("wrong answers", metric.needs_wrong, prompts.wrong),
    )
    for what, needed, given in needs:
        if not needed:
            continue
        if given is None:
            raise TaskError(f"{name}: metric {metric.name!r} needs {what}, and the prompts have none; try kl")
        bare = ((prompts.positions >= 0) & (given < 0).all(-1)).all(1).nonzero().flatten().tolist()
        if bare:
            raise problems(
                name, [f"prompt {i + 1} has no {what}, which metric {metric.name!r} needs" for i in bare]
            )


def takes_texts(metric: Outcome) -> bool:
    """Whether answers may be of several tokens by this metric; one that needs none does not mind."""
    return metric.takes_texts or not metric.needs_answers


def takers_of_texts() -> str:
    """What to take for answers of several tokens, in words."""
    return "log-probability-difference and others take several (acdc metrics)"


def _check_prompts(prompts: Prompts, model: ModelLike) -> None:
    """Raise a `TaskError` for prompts the model cannot take."""
    length, context = prompts.clean.shape[1], model.context_length
    if context is not None and length > context and (longest := prompts.longest) > context:
        raise TaskError(f"prompts of {longest} tokens are longer than the model's context of {context}")
    if bool((prompts.positions >= length).any()) or bool((prompts.positions < 0).all(1).any()):
        raise TaskError(f"expected positions between 0 and {length - 1}, at least one a prompt; -1 pads")
    outputs = model.vocabulary_size
    inputs = getattr(model, "input_vocabulary_size", outputs)
    found = [*_outside(prompts.clean, 0, inputs, "clean"), *_outside(prompts.corrupted, 0, inputs, "corrupted")]
    if getattr(model, "program", None) is None:  # a program's outputs are not token ids
        for name in ("answers", "wrong"):
            ids = getattr(prompts, name)
            found += [] if ids is None else _outside(ids, -1, outputs, name)
    if found:
        raise problems("prompts", found)


def _outside(ids: Tensor, lowest: int, size: int, name: str) -> list[str]:
    """What is wrong with each prompt's token ids `[prompt, ...]` that should be from `lowest` and below `size`."""
    rows = ids.flatten(1)
    bad = (rows < lowest) | (rows >= size)
    return [
        f"prompt {i + 1}: token id {int(rows[i, bad[i]][0])} in {name} is outside of the model's vocabulary of {size}"
        for i in bad.any(1).nonzero().flatten().tolist()
    ]


def _bos_warnings(prompts: Prompts, model: ModelLike) -> tuple[str, ...]:
    firsts = (row[real][:2].tolist() for row, real in zip(prompts.clean, prompts.mask, strict=True))
    twice = sum(starts_twice(row, model) for row in firsts)
    return (f"{counted(twice, 'prompt', of=len(prompts))}: {STARTS_TWICE}",) if twice else ()


def pad_id(model: ModelLike) -> int:
    """The token that fills up shorter prompts; the engine never looks at it."""
    token = getattr(model.tokenizer, "pad_token_id", None)
    return token if isinstance(token, int) and token < model.vocabulary_size else 0


def to_prompts(pairs: list[TokenPair], model: ModelLike, *, padding: Padding, texts: bool = False) -> Prompts:
    """Checked pairs as tensors on the model's device.

    Args:
        texts: lay answers out as texts (`Prompts.branch`); needed where some are of several tokens.
    """
    spans = [{name: list(where) for name, where in pair.spans} for pair in pairs]
    if texts:
        clean, corrupted = [pair.clean for pair in pairs], [pair.corrupted for pair in pairs]
        answers, wrong = (
            [list(map(text_of, part)) for part in parts]
            for parts in ([pair.answers for pair in pairs], [pair.wrong for pair in pairs])
        )
        found = Prompts.from_continuations(
            clean, corrupted, answers, wrong, padding=padding, pad_id=pad_id(model), spans=spans
        )
        return found.to(model.device)
    return Prompts.from_tokens(
        [pair.clean for pair in pairs],
        [pair.corrupted for pair in pairs],
        [pair.answers for pair in pairs],
        [pair.wrong for pair in pairs],
        padding=padding,
        pad_id=pad_id(model),
        spans=spans,
    ).to(model.device)


def token_texts(prompts: Prompts, model: ModelLike) -> tuple[tuple[str, ...], ...] | None:
    """`[prompt][position]`: texts of the clean tokens, "" at padding; None without a tokenizer."""
    if model.tokenizer is None:
        return None
    encoder = Encoder(model)
    texts = {token: encoder.text(token) for token in prompts.clean.unique().tolist()}
    return tuple(
        tuple(texts[token] if real else "" for token, real in zip(row, mask, strict=True))
        for row, mask in zip(prompts.clean.tolist(), prompts.mask.tolist(), strict=True)
    )
