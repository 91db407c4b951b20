"""What every method is given: model, graph, prompts, metric and ablation, with batches made in one place.

Before prompts are run, what that needs is compared with the memory there is: it is said, and refused if it cannot fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property

from acdc.circuit.constants import Constants
from acdc.engine import memory, optimal, precision, ranks
from acdc.engine.batches import Batches
from acdc.engine.branches import refuse_branches
from acdc.engine.patching import Patching
from acdc.engine.references import References, mean_references
from acdc.engine.stages import stages_of
from acdc.errors import AcdcError, check_type, check_whole
from acdc.graph import Graph, Unit, Units, units_of
from acdc.metrics import Outcome
from acdc.model.check import check_prompts, refuse_unfit
from acdc.model.model import Model
from acdc.store.amounts import size
from acdc.store.resume import ResumeFile
from acdc.tasks.prompts import Prompts
from acdc.tasks.task import Ablation

Progress = Callable[[int, int | None, str], None]
"""`(done, total or None if unknown, what is being done)`."""


class NeedText(str):
    """A text for `Progress` that says what memory the work needs, in `bytes`."""

    bytes: float = 0.0


BUDGET = 2e9
"""Most bytes that a batch takes on a CPU, past which nothing gets faster."""
NOTED = 1e8
"""Bytes below which nobody needs to know."""


_MOST_ROWS = 64


def no_progress(done: int, total: int | None, text: str) -> None:
    """Report nothing."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A circuit discovery problem; when it is made, the model is compared with its module on some of the prompts.

    Attributes:
        prompts: the prompts a method may look at.
        batch_size: prompts a batch; None: as many as memory allows.
        seed: of everything random in a method.
        unit: what one switch is, "edge" or "node" (`acdc.graph.units`).
        resume: where a long method notes how far it is, and goes on from.
        memory_limit: bytes that may be used beside the weights; None: what is free.
        constants: what removed edges carry under optimal ablation, learned on the prompts of a circuit's discovery;
            None: learned on these prompts when the problem is made. Copies with other prompts keep them.

    Raises:
        AcdcError: the graph is not the model's.
        UnsupportedModelError: the module no longer computes what the decomposition does (`acdc.model.check`).
    """

    model: Model
    graph: Graph
    prompts: Prompts
    outcome: Outcome
    ablation: Ablation = "resample"
    batch_size: int | None = None
    seed: int = 0
    progress: Progress = no_progress
    resume: ResumeFile = dataclasses.field(default_factory=ResumeFile)
    unit: Unit = "edge"
    memory_limit: float | None = None
    constants: Constants | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            check_whole("a batch size", self.batch_size, least=1)
        check_whole("a seed", self.seed, least=0)
        check_type("a graph (Model.graph)", self.graph, Graph)
        units_of(self.graph, self.unit)
        given = self.graph
        expected = self.model.graph(qkv=given.qkv, group_kv=given.group_kv, inputs=given.inputs)
        if given != expected:
            raise AcdcError(f"the graph is not one of model {self.model.name!r}: {given.unlike(expected)}")
        refuse_unfit(self.model)
        refuse_branches(self.model, self.prompts)
        check_prompts(self.model, self.prompts[: self.batch_of("circuits")])
        if self.ablation == "optimal" and self.constants is None:
            object.__setattr__(self, "constants", optimal.learned(self))

    @cached_property
    def units(self) -> Units:
        """What a method switches as one."""
        return units_of(self.graph, self.unit)

    @cached_property
    def dangling_is_free(self) -> bool:
        """Whether edges on no path from the input to the logits change nothing when they go.

        A component that nothing feeds writes its reference only under resample ablation, and only if it attends to the
        places that it attended to in the corrupted run; and where heads share a norm, one that nothing reads matters to
        the others.
        """
        coupled = any(stage.coupled for stage in stages_of(self.model, self.graph))
        return self.ablation == "resample" and self.prompts.same_places and not coupled

    @cached_property
    def _references(self) -> References | None:
        if self.ablation == "optimal":
            assert self.constants is not None
            return optimal.references_of(self.constants, self.model, self.graph)
        if not self.ablation.startswith("mean"):
            return None
        return mean_references(
            self.model,
            self.graph,
            self.prompts,
            per_position=self.ablation == "mean-position",
            batch_size=self.batch_of("circuits"),
            ranks=self._ranks,
        )

    @property
    def _ranks(self) -> ranks.Ranks:
        """The processes that share the prompts."""
        return ranks.sharing(len(self.prompts))

    # ---- memory ------------------------------------------------------------------------------------------------

    def batch_of(self, work: memory.Work) -> int:
        """Prompts a batch: `batch_size`, or as many as fit.

        A search takes all of them if it can, and otherwise as few batches as it can, since it comes back to them again
        and again. Where a batch is run once with many circuits, half of the memory is for these. Of processes that
        share the prompts each takes its part of them.
        """
        most = self._largest_batch(work)
        return most if self._ranks.count == 1 else self._ranks.size_of_batch(len(self.prompts), most)

    def _largest_batch(self, work: memory.Work) -> int:
        need, most = self._need(work), -(-len(self.prompts) // self._ranks.count)
        if self.batch_size is not None:
            return min(self.batch_size, most)
        if self.memory_limit is None and work != "search":
            return need.fitting(self._room, most) or need.fitting(self._room, most, 0) or 1
        if need.of(most, 0) <= self._limit:
            return most
        share = self._limit / 2 if work in ("circuits", "exact") else self._limit
        batches = -(-most // max(1, need.fitting(share, most, 0)))
        return -(-most // batches)

    def circuits_at_once(self, prompts: int) -> int:
        """How many circuits to run as one batch on so many prompts."""
        need = self._need("circuits")
        if self.memory_limit is not None:
            at_once = 1 + max(0, int((self._limit - need.of(prompts)) / (prompts * need.row + need.fixed)))
        else:
            at_once = max(1, int(self._room / (prompts * need.row)))
        return at_once if self.batch_size is None else max(1, min(at_once, self.batch_size // prompts))

    def rows_at_once(self, work: memory.Work) -> int:
        """How many runs of a batch fit in the memory of the work, as one batch of so many times its prompts."""
        prompts = self.batch_of(work)
        fitting = self._need(work).fitting(self._room, _MOST_ROWS * prompts, 0)
        most = fitting if self.batch_size is None else min(fitting, self.batch_size)
        return max(1, most // prompts)

    def _tokens_at_once(self, work: memory.Work) -> int:
        """Tokens that a method is to run at once, of as many circuits on one batch as have so many."""
        return min(
            memory.tokens_at_once(self.model.device), self._need(work).tokens(self._limit, self.batch_of(work))
        )

    @cached_property
    def _limit(self) -> float:
        """Bytes there are for this process; the least of all that work together, which take batches of one size."""
        together, device = ranks.current(), self.model.device
        free = together.least(memory.available(device) / together.neighbours(device))
        return free if self.memory_limit is None else min(free, self.memory_limit)

    @property
    def _room(self) -> float:
        """Bytes that a batch may take if nothing is said: half of what is free; on a CPU at most the `BUDGET`."""
        half = self._limit / 2
        return min(half, BUDGET) if self.model.device.type == "cpu" else half

    @cached_property
    def _needs(self) -> dict[memory.Work, memory.Need]:
        return {}

    def _need(self, work: memory.Work) -> memory.Need:
        if work not in self._needs:
            need = memory.need(self.model, self.graph, self.prompts, self.outcome, self.ablation, work)
            if self.memory_limit is not None:
                need = dataclasses.replace(need, fixed=need.fixed + memory.OVERHEAD)
            self._needs[work] = need
        return self._needs[work]

    def check_memory(self, work: memory.Work) -> None:
        """Say what the work needs, if that is much: of a search, with one circuit at a time and with as many as it may.

        Raises:
            AcdcError: there is not so much; with what would fit.
        """
        need, at_once = self._need(work), self.batch_of(work)
        given = self.memory_limit is not None
        needed = need.of(at_once, min(need.least, self._tokens_at_once(work)))
        half = self.model.dtype.itemsize == 2
        sentence = memory.too_large(need, at_once, self._limit, given=given, half=half)
        if needed > self._limit:
            raise AcdcError(sentence)
        memory.expect(sentence)
        if needed > NOTED:
            there = f"{size(self._limit)} is {'allowed' if given else 'free'}"
            least = need.of(at_once, 0)
            amount = f"about {size(needed)}" if needed < 1.5 * least else f"{size(least)} to {size(needed)}"
            text = NeedText(f"{amount} for {at_once} prompts at once; {there}")
            text.bytes = needed
            self.progress(0, None, text)

    # ---- batches -----------------------------------------------------------------------------------------------

    def patching(self) -> Patching:
        """All prompts at once, in the precision of searches.

        Raises:
            AcdcError: there is not enough memory.
        """
        (patching,) = dataclasses.replace(self, batch_size=len(self.prompts)).searched()
        return patching

    def searched(self) -> Batches:
        """The prompts for a search, which keeps the activations of its circuit: at once, or in batches.

        In half precision, on a copy of the model in float32 if there is room for one (`acdc.engine.precision`).

        Raises:
            AcdcError: there is not enough memory.
        """
        return precision.searched(self).batches("search")

    def batches(self, work: memory.Work = "circuits", *, keep: bool = False) -> Batches:
        """The prompts in batches.

        Args:
            work: what they are for.
            keep: for who comes back to them again and again: their clean and corrupted runs are kept, where all of
                them take up to half of the memory.

        Raises:
            AcdcError: there is not enough memory.
        """
        self.check_memory(work)
        all_at_once = self._need(work).of(-(-len(self.prompts) // self._ranks.count), 0)
        return Batches(
            self.prompts,
            self.batch_of(work),
            self._patching,
            self._tokens_at_once(work),
            offload=all_at_once > self._limit,
            ranks=self._ranks,
            keep=keep and all_at_once <= self._limit / 2,
        )

    def _patching(self, prompts: Prompts) -> Patching:
        return Patching(self.model, self.graph, prompts, ablation=self.ablation, references=self._references)
