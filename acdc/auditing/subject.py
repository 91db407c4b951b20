"""What every check is given: the circuit, prompts to judge it on, and how far circuits are from the model on each.

Distances are *shares*: how far a circuit moves a prompt's metric from the full model's, in units of what separates the
full model from no circuit at all, cut off at 1. A prompt on which little separates the two is measured by what does on
average, so that no small denominator makes a share large. Where outputs are exact, as a compiled program's, a share is
0 or 1: the output is the model's, or it is not.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from acdc.auditing.prompts import FEWEST, NOT_KNOWN, Fresh, fresh_prompts
from acdc.auditing.record import Level, NotApplicable, OutOfTime
from acdc.circuit import Circuit
from acdc.circuit.constants import Constants
from acdc.engine.batches import Batches
from acdc.engine.belonging import prompts_digest
from acdc.engine.circuits import Measured, measure_prompts
from acdc.engine.measure import Measures
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import AcdcError
from acdc.evaluation.reproduction import SAME_OUTPUT
from acdc.graph import BoolArray, FloatArray, Graph, Units, units_of
from acdc.methods.groups import Groups
from acdc.metrics import OUTCOMES, Outcome
from acdc.model.model import Model
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts
from acdc.tasks.task import Dataset

LEAST_TOLERANCE = 1e-3
"""Share that rounding may cost where a claim leaves nothing open."""
SLACK = 1.5
"""Of what a claim leaves open, how many times may lie between circuit and model on other prompts."""
BROKEN = 0.25
"""Share of what separates model and empty circuit that conditions other than its own may cost."""
MANY, MANY_SHIFTED = 2048, 256
"""Prompts that tell small effects, and those drawn of a second task."""
TINY, SMALL = 200_000, 2_000_000
"""Parameters up to which a model is small: hundreds of prompts and thousands of runs cost seconds."""
Circuits = Sequence[BoolArray] | BoolArray


@dataclasses.dataclass(eq=False)
class Subject:
    """A circuit under audit.

    Attributes:
        task: the recipe, dataset or prompts that were given; dataset: the same made ready.
        claim: faithfulness that the circuit is held to.
        fresh: prompts it was not found on; where: what they are, in words.
        other: a second task of the user's, whose prompts are a shift of this one's.
        searches: on other samples of prompts; None: as many as the level says.
        until: `time.monotonic()` at which the audit is to end; None: never.
    """

    model: Model
    task: Any
    dataset: Dataset
    circuit: Circuit
    claim: float
    level: Level
    seed: int = 0
    memory: float | None = None
    batch_size: int | None = None
    progress: Progress = no_progress
    size: int | None = None
    other: Any = None
    searches: int | None = None
    until: float | None = None

    # ---- what it is --------------------------------------------------------------------------------------------

    @property
    def graph(self) -> Graph:
        return self.circuit.graph

    @property
    def edges(self) -> BoolArray:
        return self.circuit.edges

    @property
    def units(self) -> Units:
        """What the circuit is made of: edges, or nodes."""
        return units_of(self.graph, self.circuit.unit)

    @property
    def exact(self) -> bool:
        return self.dataset.exact

    @cached_property
    def small(self) -> bool:
        return sum(p.numel() for p in self.model.module.parameters()) <= SMALL

    @cached_property
    def tiny(self) -> bool:
        return sum(p.numel() for p in self.model.module.parameters()) <= TINY

    @property
    def tolerance(self) -> float:
        """Largest mean share from the model that the claim allows on other prompts."""
        return 0.0 if self.exact else min(1.0, max(LEAST_TOLERANCE, SLACK * (1 - self.claim)))

    @property
    def broken(self) -> float:
        """Largest mean share that anything but the claim's own conditions may cost.

        Raises:
            NotApplicable: so low a claim allows all that there can be.
        """
        return self.refutable(0.0 if self.exact else max(BROKEN, 2 * self.tolerance))

    def refutable(self, allowed: float) -> float:
        """A mean share that the claim allows, if more is possible.

        Raises:
            NotApplicable: there can be no more.
        """
        if allowed >= 1:
            raise NotApplicable(f"so low a claim, a faithfulness of {self.claim:.3g}, allows all that there can be")
        return allowed

    # ---- prompts -----------------------------------------------------------------------------------------------

    @cached_property
    def _drawn(self) -> Fresh:
        quick = self.level == "quick"
        size = self.size or (512 if self.tiny else (128 if quick else 256) if self.small else 64)
        found = fresh_prompts(self.task, self.model, self.dataset, size, seed=self.seed)
        if (n := len(found.prompts)) < FEWEST:
            raise AcdcError(
                f"an audit needs {FEWEST} prompts to judge a circuit on, and there are {n}: give more with --task "
                "FILE, or find the circuit on more"
            )
        digest = self.circuit.provenance.prompts_sha256
        if not found.unseen and digest and digest != prompts_digest(self.dataset.discovery):
            return found._replace(where=NOT_KNOWN)
        return found

    @property
    def fresh(self) -> Prompts:
        return self._drawn.prompts

    @property
    def where(self) -> str:
        return self._drawn.where

    @property
    def unseen(self) -> bool:
        """Whether the circuit was not found on the fresh prompts."""
        return self._drawn.unseen

    @property
    def has_others(self) -> bool:
        """Whether the fresh prompts are other ones than those of discovery, known or not."""
        return self.fresh is not self.dataset.discovery

    def need_others(self) -> None:
        """Raises NotApplicable: what is chosen on the discovery prompts could be judged on nothing else."""
        if not self.has_others:
            raise NotApplicable(f"what is chosen on the discovery prompts is judged on others: {self.where}")

    @cached_property
    def shifted(self) -> Dataset | None:
        """The user's further prompts, judged by this task's metric and ablation: many, where they can be drawn."""
        if self.other is None:
            return None
        data = as_dataset(self.other, self.model, metric=self.dataset.metric, ablation=self.dataset.ablation)
        many = fresh_prompts(self.other, self.model, data, MANY_SHIFTED, seed=self.seed)
        return (
            dataclasses.replace(data, discovery=many.prompts) if len(many.prompts) > len(data.discovery) else data
        )

    def problem(self, prompts: Prompts | None = None, **changes: Any) -> Problem:
        """Prompts (None: the fresh ones) as a problem of the circuit's graph."""
        if changes.get("ablation", self.dataset.ablation) == "optimal":
            changes["constants"] = self._constants
        given: dict[str, Any] = {
            "model": self.model, "graph": self.graph, "prompts": self.fresh if prompts is None else prompts,
            "outcome": self.dataset.metric, "ablation": self.dataset.ablation, "batch_size": self.batch_size,
            "seed": self.seed, "memory_limit": self.memory,
        }  # fmt: skip
        return Problem(**(given | changes))

    @cached_property
    def _constants(self) -> Constants | None:
        """Of optimal ablation: the circuit's own, or learned on the discovery prompts, never on those that judge."""
        if self.circuit.constants is not None:
            return self.circuit.constants
        return Problem(
            self.model, self.graph, self.dataset.discovery, self.dataset.metric, "optimal", self.batch_size
        ).constants

    @cached_property
    def on_fresh(self) -> Scale:
        """How far circuits are from the model on the fresh prompts."""
        return Scale(self.problem(), exact=self.exact)

    @cached_property
    def on_many(self) -> Scale:
        """The same on `MANY` where a circuit's run costs nothing; for the few circuits that small effects hang on."""
        if not self.tiny or self.size is not None:
            return self.on_fresh
        many = fresh_prompts(self.task, self.model, self.dataset, MANY, seed=self.seed)
        if len(many.prompts) <= len(self.fresh):
            return self.on_fresh
        return Scale(self.problem(many.prompts), exact=self.exact)

    @cached_property
    def on_discovery(self) -> Scale:
        """The same on the discovery prompts."""
        return Scale(self.problem(self.dataset.discovery), exact=self.exact)

    # ---- time --------------------------------------------------------------------------------------------------

    @cached_property
    def seconds_of_circuit(self) -> float:
        """Seconds for the circuit on the fresh prompts."""
        return self._timed(self.edges)

    @cached_property
    def seconds_of_model(self) -> float:
        """Seconds for the model without the circuit on the fresh prompts, and for anything with most edges."""
        return self._timed(self.graph.valid & ~self.edges)

    def _timed(self, edges: BoolArray) -> float:
        scale = self.on_fresh
        started = time.perf_counter()
        scale.shares([edges])
        return time.perf_counter() - started

    def share_of_fresh(self, n_prompts: int) -> float:
        """So many prompts as a share of the fresh ones, by which what they take is told from what these take."""
        return n_prompts / len(self.fresh)

    def check_time(self, seconds: Callable[[Subject], float], name: str) -> None:
        """Refuse work that will not end in time.

        Raises:
            OutOfTime: says how long it would take, and how to run it.
        """
        if self.until is None:
            return
        need, left = seconds(self), self.until - time.monotonic()
        if need > left:
            raise OutOfTime(
                f"it would take about {need:,.0f} s, and {max(left, 0):,.0f} s are left: run it alone with "
                f"--checks {name} and a longer --limit"
            )


class Scale:
    """How far circuits are from the model, prompt by prompt, on the prompts of one problem.

    Attributes:
        full, empty, corrupted: `[prompt]` metric of the full model, of no edge, and of the corrupted prompts.
        unit: `[prompt]` what a share is a share of.

    Raises:
        AcdcError: nothing separates the full model from no edge at all, on any prompt.
    """

    def __init__(self, problem: Problem, *, exact: bool) -> None:
        self.problem, self.exact = problem, exact
        self.outcome: Outcome = OUTCOMES["l2"] if exact else problem.outcome
        self.batches: Batches = problem.batches(keep=True)
        nothing = np.zeros_like(problem.graph.valid)
        measured = self._measure([nothing])
        self.full, self.corrupted, self.empty = measured.full, measured.corrupted, measured.circuits[0]
        apart = np.abs(self.full - self.empty)
        usual = float(apart.mean())
        if usual == 0:
            raise AcdcError(
                "nothing to audit: the metric is the same with all edges and with none on every prompt, so every "
                "circuit is as good as any; take another metric, other corrupted prompts or another ablation"
            )
        self.unit: FloatArray = np.maximum(apart, usual)

    def __len__(self) -> int:
        return len(self.full)

    def _measure(self, circuits: Circuits, outcome: Outcome | None = None) -> Measured:
        given = [circuits] if isinstance(circuits, np.ndarray) else circuits
        (found,) = measure_prompts(self.problem, given, [outcome or self.outcome], batches=self.batches)
        return found

    def values(self, circuits: Circuits, outcome: Outcome | None = None) -> FloatArray:
        """`[C, prompt]` metric of circuits: masks, or one stack of them."""
        return self._measure(circuits, outcome).circuits

    def shares(self, circuits: Circuits) -> FloatArray:
        """`[C, prompt]` share of each circuit from the full model, between 0 and 1."""
        return self.apart(self.values(circuits), self.full)

    def apart(self, a: FloatArray, b: FloatArray) -> FloatArray:
        """Share between two metrics `[…, prompt]`."""
        if self.exact:
            return (np.abs(a - b) > SAME_OUTPUT).astype(np.float64)
        return np.clip(np.abs(a - b) / self.unit, 0.0, 1.0)

    def between(self, first: Circuits, second: Circuits) -> FloatArray:
        """`[C, prompt]` share between circuits, one by one."""
        a, b = self.values(first), self.values(second)
        return self.apart(a, b)

    def search(self, edges: BoolArray) -> Groups:
        """A circuit from which groups of edges are removed, where only what a removal changes is run."""
        return Groups(Measures(self.outcome, self.batches), kept=edges)
