"""One loop over prompts for all that runs them: batch by batch, each a `Patching` that is made when its turn comes.

So the number of prompts is not bounded by memory. What a batch is made of belongs to all prompts (mean references), so
that a prompt's numbers do not depend on its batch, but for rounding. Where processes share the prompts (`ranks`), the
loop is over this one's batches, and what is found is put together with what the others find.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from acdc.engine.memory import give_back
from acdc.engine.patching import Patching
from acdc.engine.ranks import ALONE, Ranks
from acdc.tasks.prompts import Prompts


@dataclasses.dataclass
class Batches:
    """Prompts in batches. A single batch is made once and kept; one of several is made anew whenever it is run, unless
    all are to be kept.

    Attributes:
        prompts: all of them, also those of other processes.
        size: prompts a batch.
        make: the patching of a batch.
        tokens: how many a method runs at once, as so many circuits on one batch; always one circuit at least.
        offload: whether what a method keeps of each batch waits on disk for its turn.
        ranks: the processes that share the batches.
        keep: whether each of several batches is kept, too.
    """

    prompts: Prompts
    size: int
    make: Callable[[Prompts], Patching]
    tokens: int
    offload: bool = False
    ranks: Ranks = ALONE
    keep: bool = False
    _kept: dict[int, Patching] = dataclasses.field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Batches of this process."""
        return len(self._own())

    def __iter__(self) -> Iterator[Patching]:
        return (patching for _, patching in self.after(0))

    def after(self, done: int) -> Iterator[tuple[int, Patching]]:
        """The batches that are left when so many prompts are done, each with the number of prompts before it."""
        for start, prompts in self.slices(done):
            if start in self._kept:
                yield start, self._kept[start]
                continue
            keep = self.keep or len(self) == 1
            if not keep:
                give_back()
            patching = self.make(prompts)
            if keep:
                self._kept[start] = patching
            yield start, patching

    def slices(self, done: int = 0) -> Iterator[tuple[int, Prompts]]:
        """The prompts alone, as in `after`."""
        for start in range(max(done, self.first), self.last, self.size):
            yield start, self.prompts[start : start + self.size]

    @property
    def first(self) -> int:
        """How many prompts are before those of this process."""
        return self._own().start * self.size

    @property
    def last(self) -> int:
        """How many there are up to the end of those of this process."""
        return min(self._own().stop * self.size, len(self.prompts))

    def together(self, found: Sequence[Tensor]) -> Tensor:
        """What was found for each batch of this process, `[..., prompt]`, for all prompts in their order."""
        return self.ranks.gathered(torch.cat(list(found), dim=-1))

    def _own(self) -> range:
        return self.ranks.share(-(-len(self.prompts) // self.size))
