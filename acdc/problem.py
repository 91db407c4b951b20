"""What every method is given: model, graph, prompts, metric and ablation, with batches made in one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property

import torch

from acdc.checkpoint import Checkpoint
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.metrics import Outcome
from acdc.model.check import check_prompts
from acdc.model.model import Model
from acdc.patching import Patching
from acdc.references import Ablation, References, mean_references
from acdc.tasks.prompts import Prompts

Progress = Callable[[int, int | None, str], None]
"""`(done, total or None if unknown, what is being done)`."""


def no_progress(done: int, total: int | None, text: str) -> None:
    """Report nothing."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A circuit discovery problem; when it is made, the model is compared with its module on some of the prompts.

    Attributes:
        prompts: the prompts a method may look at.
        batch_size: prompts a batch; None: as many as memory allows.
        seed: of everything random in a method.
        checkpoint: where a long method notes how far it is, and goes on from.

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
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise AcdcError(f"expected a batch size of at least 1, got {self.batch_size}")
        if self.seed < 0:
            raise AcdcError(f"expected a seed of at least 0, got {self.seed}")
        given = self.graph
        expected = self.model.graph(qkv=given.qkv, group_kv=given.group_kv, inputs=given.inputs)
        if given != expected:
            pairs = [(f.name, getattr(given, f.name), getattr(expected, f.name)) for f in dataclasses.fields(Graph)]
            differences = ", ".join(f"{name}={a} instead of {b}" for name, a, b in pairs if a != b)
            raise AcdcError(f"the graph is not one of model {self.model.name!r}: {differences}")
        check_prompts(self.model, self.prompts[: self.prompts_per_batch])

    @cached_property
    def _references(self) -> References | None:
        if not self.ablation.startswith("mean"):
            return None
        return mean_references(
            self.model,
            self.graph,
            self.prompts,
            per_position=self.ablation == "mean-position",
            batch_size=self.prompts_per_batch,
        )

    @cached_property
    def prompts_per_batch(self) -> int:
        """`batch_size`, or as many prompts as fit: a pass keeps every source's output, and about as much again."""
        if self.batch_size is not None:
            return self.batch_size
        d_mlp = 4 * self.model.d_model
        per_token = (2 * self.graph.n_sources + 40) * self.model.d_model + self.graph.n_layers * d_mlp
        size = torch.finfo(self.model.dtype).bits // 8
        return max(1, int(_free_memory(self.model.device) / (per_token * size * self.prompts.clean.shape[1])))

    def patching(self) -> Patching:
        """All prompts at once, for searches, which keep the activations of their circuit."""
        return Patching(self.model, self.graph, self.prompts, ablation=self.ablation, references=self._references)

    def batches(self) -> Iterator[Patching]:
        """The prompts in batches."""
        size = self.prompts_per_batch
        for start in range(0, len(self.prompts), size):
            yield Patching(
                self.model,
                self.graph,
                self.prompts[start : start + size],
                ablation=self.ablation,
                references=self._references,
            )

    @property
    def n_batches(self) -> int:
        return -(-len(self.prompts) // self.prompts_per_batch)


def _free_memory(device: torch.device) -> float:
    """Bytes a batch may take: half of a GPU's free memory; on a CPU 2 GB, past which nothing gets faster."""
    if device.type == "cuda":
        return 0.5 * torch.cuda.mem_get_info(device)[0]
    return 2e9
