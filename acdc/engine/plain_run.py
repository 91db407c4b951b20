"""Context, embed, run: the plain model on the clean or the corrupted prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.model import forward
from acdc.model.architecture import Decomposition
from acdc.model.forward import Context
from acdc.model.model import Model
from acdc.model.trace import Added, Outputs, Trace, whole_run
from acdc.tasks.prompts import Prompts


def full_context(model: Model, prompts: Prompts, *, corrupted: bool = False, start: int = 0) -> Context:
    """The context of the clean (or corrupted) prompts."""
    tokens, mask, position_ids = prompts.clean, prompts.mask, prompts.position_ids
    if corrupted:
        tokens = prompts.corrupted
        mask = mask if prompts.corrupted_mask is None else prompts.corrupted_mask
        if prompts.corrupted_position_ids is not None:
            position_ids = prompts.corrupted_position_ids
    read = prompts.positions
    read = torch.where(read >= 0, read, read.max(dim=1, keepdim=True).values)
    branch = prompts.branch if prompts.branched else None
    return forward.make_context(
        model.decomposition, tokens, mask, position_ids, read=read, start=start, branch=branch
    )


def plain_run(
    model: Model,
    prompts: Prompts,
    *,
    corrupted: bool = False,
    x: Tensor | None = None,
    instead: Outputs | None = None,
    ungrouped: bool = False,
    added: Added | None = None,
    dropped: int | None = None,
    decomposition: Decomposition | None = None,
) -> tuple[Context, Trace]:
    """Run the model.

    Args:
        corrupted: on the corrupted prompts, not on the clean ones.
        x: `[1, B, T, D]` in place of the embedding.
        instead, ungrouped, added, dropped: as for `whole_run`.
        decomposition: in place of the model's own (`acdc.model.backward`).
    """
    context = full_context(model, prompts, corrupted=corrupted)
    ran = decomposition or model.decomposition
    trace = whole_run(ran, context, x, instead=instead, added=added, dropped=dropped, ungrouped=ungrouped)
    return context, trace


def embedded(
    model: Model, graph: Graph, prompts: Prompts, *, corrupted: bool = False
) -> tuple[tuple[Tensor, ...], Tensor | float]:
    """The embedding as input sources, each `[1, B, T, D]`, and the constant that belongs to none."""
    parts = forward.embed(model.decomposition, full_context(model, prompts, corrupted=corrupted))
    return input_sources(graph, parts)


def input_sources(graph: Graph, parts: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Tensor | float]:
    """Embedding parts as input sources, and the constant that belongs to none."""
    if graph.inputs == "single":
        return (torch.stack(list(parts)).sum(0),), 0.0
    if graph.inputs == "token":
        return (parts[0],), parts[1] if len(parts) > 1 else 0.0
    if len(parts) == 1:
        raise AcdcError('inputs="split" needs position embeddings, and this model has none (rotary): use "single"')
    return tuple(parts), 0.0
