"""Do what a program says, on random inputs: the task of a model that was compiled from one, or trained to run one.

A task draws clean inputs and corrupts them by other random inputs. Its distribution says in what the two differ,
and so which circuit is the true one: the same ablation and distribution name it. By default tokens, lengths and
positions all differ ("varied"), which exercises the whole program. The pairs that show each true edge to matter
(witnesses, chosen with the truth) lead the discovery prompts, so that a search can find every edge and a miss is its
own; without them, prompts are random alone, as a user's would be.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from acdc.errors import TaskError, unknown
from acdc.metrics import Outcome
from acdc.shown import counted
from acdc.tasks.programs.inputs import DISTRIBUTIONS
from acdc.tasks.programs.truth import TrueCircuit, TrueCircuits
from acdc.tasks.prompts import Prompts
from acdc.tasks.task import Ablation, Dataset, ShownTask, check_ablation, check_metric, resolve_metric
from acdc.tasks.tokenise import ModelLike

DEFAULT_DISTRIBUTION = "varied"
DEFAULT_SIZE = 32


class Drawn(NamedTuple):
    """Prompts of a program, and the text of each token."""

    discovery: Prompts
    held_out: Prompts | None
    vocabulary: Sequence[object]


@dataclasses.dataclass(frozen=True, repr=False)
class ProgramTask(ShownTask, abc.ABC):
    """Do what a program does.

    Attributes:
        name: of the task and of the one model that does it, or the model's folder.
        outcome: the outcome metric.
        ablation: what a removed edge carries.
        distribution: in what clean and corrupted inputs differ: "fixed", "mixed", "permuted" or "varied".
        size: discovery prompts, and as many held out, or as there are.
        seed: the prompts are drawn with.
        witnesses: whether pairs chosen with the truth lead the discovery prompts.
    """

    name: str
    outcome: Outcome
    ablation: Ablation = "resample"
    distribution: str = DEFAULT_DISTRIBUTION
    size: int = DEFAULT_SIZE
    seed: int = 0
    witnesses: bool = True

    usual_metric: ClassVar[str]
    known_under: ClassVar[Sequence[str]]
    """Ablations that there is one true circuit for."""
    faithfulness: ClassVar[float]
    exact: ClassVar[bool] = False

    @classmethod
    def of(
        cls,
        name: str,
        *,
        metric: Outcome | str | None = None,
        size: int | None = None,
        seed: int = 0,
        distribution: str | None = None,
        ablation: str | None = None,
        witnesses: bool = True,
    ) -> ProgramTask:
        """The task of a model, by its name or folder; None: what is usual.

        Raises:
            AcdcError: an unknown name, metric, distribution or ablation; `witnesses` is neither true nor false.
        """
        distribution = DEFAULT_DISTRIBUTION if distribution is None else distribution
        if distribution not in DISTRIBUTIONS:
            raise unknown("distribution", distribution, DISTRIBUTIONS)
        if not isinstance(witnesses, bool):
            raise TaskError(f"expected witnesses to be true or false, got {witnesses!r}")
        task = cls(
            name=name,
            outcome=resolve_metric(cls.usual_metric if metric is None else metric),
            ablation=check_ablation(ablation or "resample"),
            distribution=distribution,
            size=DEFAULT_SIZE if size is None else size,
            seed=seed,
            witnesses=witnesses,
        )
        task.truths()
        return task

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """What the program computes, and which true circuit the task is for."""

    @property
    def metric(self) -> str:
        return self.outcome.name

    @abc.abstractmethod
    def truths(self) -> TrueCircuits:
        """All true circuits of the model."""

    @abc.abstractmethod
    def draw(self, model: ModelLike, witnessed: TrueCircuit | None) -> Drawn:
        """The prompts, led by the witnesses of a circuit.

        Raises:
            TaskError: the model is another, or the program has too few inputs.
        """

    @abc.abstractmethod
    def without_truth(self) -> str:
        """What to say where no true circuit is known."""

    def truth(self) -> TrueCircuit | None:
        """The true circuit for this ablation and distribution; None if there is none."""
        return self.truths().get(self.ablation, self.distribution) if self.ablation in self.known_under else None

    def prepare(self, model: ModelLike) -> Dataset:
        truth = self.truth()
        discovery, held_out, vocabulary = self.draw(model, truth if self.witnesses else None)
        check_metric(self.outcome, discovery, self.name)
        return Dataset(
            name=self.name,
            discovery=discovery.to(model.device),
            held_out=None if held_out is None else held_out.to(model.device),
            metric=self.outcome,
            ablation=self.ablation,
            seed=self.seed,
            warnings=self._warnings(truth),
            faithfulness=self.faithfulness,
            truth=truth,
            exact=self.exact,
            tokens=tuple(
                tuple(str(vocabulary[token]) if real else "" for token, real in zip(row, mask, strict=True))
                for row, mask in zip(discovery.clean.tolist(), discovery.mask.tolist(), strict=True)
            ),
        )

    def refuse(self, model: ModelLike) -> TaskError:
        """That the task is another model's."""
        return TaskError(f"task {self.name!r} is what the model {self.name!r} does, got model {model.name!r}")

    def _warnings(self, truth: TrueCircuit | None) -> tuple[str, ...]:
        case = f"under {self.ablation} ablation with {self.distribution!r} inputs"
        if truth is None:
            return (f"{self.name}: {self.without_truth()}",)
        if not truth.edges:
            return (f"{self.name}: no edge matters {case}; try another distribution",)
        if self.witnesses and len(truth.witnesses) > self.size:
            return (
                f"{self.name}: it takes {counted(len(truth.witnesses), 'prompt')} to show every true edge {case}",
            )
        return ()
