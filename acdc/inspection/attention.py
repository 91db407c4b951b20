"""Where heads attend: on average over the prompts, and on some of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from acdc.engine import memory
from acdc.engine.problem import Progress, no_progress
from acdc.errors import check_names, unknown
from acdc.graph import FloatArray
from acdc.inspection.runs import input_texts, judged, plain_runs
from acdc.model import forward
from acdc.model.architecture import Attention
from acdc.model.forward import Context
from acdc.model.model import Model
from acdc.model.trace import Trace
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Task


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionPatterns:
    """Where heads attend.

    Attributes:
        heads: names like `a0.h1`.
        tokens: `[example][position]`, texts of the example prompts' tokens, "" at padding.
        mean: `[head, query, key]`, over the prompts in which both are real tokens; NaN where there are none.
        examples: `[head, example, query, key]`, NaN at padding.
        n_prompts: how many prompts the mean is over.
    """

    heads: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]
    mean: Float64[FloatArray, "head query key"]
    examples: Float64[FloatArray, "head example query key"]
    n_prompts: int

    def head(self, name: str) -> FloatArray:
        """The mean pattern of one head, `[query, key]`."""
        if name not in self.heads:
            raise unknown("head", name, self.heads)
        mean: FloatArray = self.mean[self.heads.index(name)]
        return mean


@memory.explained
@torch.inference_mode(False)
@torch.no_grad()
def attention_patterns(
    model: Model,
    task: Task | Dataset | Prompts,
    *,
    heads: Collection[str] | None = None,
    examples: int = 4,
    batch_size: int | None = None,
    memory: str | None = None,
    progress: Progress = no_progress,
) -> AttentionPatterns:
    """Attention of heads on a task's held-out prompts (on its discovery prompts if there are no others).

    Args:
        heads: names like `a0.h1`; None: all.
        examples: show this many prompts apart, the first ones; 0: none.
    """
    if heads is not None:
        check_names("heads", heads)
    problem = judged(model, task, batch_size=batch_size, memory=memory, progress=progress)
    graph = model.graph()
    names = graph.names("head")
    chosen = names if heads is None else list(heads)
    for name in chosen:
        if name not in names:
            raise unknown("head", name, names)
    wanted = [(row.layer, row.number) for row in map(graph.component, chosen)]
    examples = max(0, examples)
    some = problem.prompts[: max(1, examples)]  # there are no prompts without one
    T = some.clean.shape[1]
    total, shown = np.zeros((len(chosen), T, T)), np.full((len(chosen), len(some), T, T), np.nan)
    count = np.zeros((T, T))
    first = 0
    for prompts, context, trace in plain_runs(problem, "attention"):
        real = prompts.mask[:, :, None] & prompts.mask[:, None, :]  # [B, query, key]
        count += real.sum(0).cpu().numpy()
        here = slice(first, min(first + len(prompts), len(some)))
        for layer in sorted({layer for layer, _ in wanted}):
            weights = pattern_of(model.decomposition.layers[layer].attention, trace, layer, context)  # [H, B, T, T]
            for i, (own, head) in enumerate(wanted):
                if own == layer:
                    pattern = torch.where(real, weights[head], 0.0).double()
                    total[i] += pattern.sum(0).cpu().numpy()
                    some_patterns = torch.where(real, pattern, torch.nan)[: max(0, here.stop - first)]
                    shown[i, here] = some_patterns.cpu().numpy()
        first += len(prompts)
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    texts, shown = input_texts(some, model)[:examples], shown[:, :examples]
    return AttentionPatterns(tuple(chosen), texts, mean, shown, len(problem.prompts))


def pattern_of(attention: Attention, trace: Trace, layer: int, context: Context) -> Tensor:
    """Attention weights `[H, B, query, key]` of a run."""
    q, k = trace.q[layer][:, 0], forward.per_head(attention, trace.k[layer])[:, 0]
    if attention.gate is not None:
        q = q[..., : -attention.gate.width]
    return forward.attention_weights(attention, q[:, None], k[:, None], context)[:, 0]
