"""Parts of a model by name, for questions about them: nodes, edges, what a node reads, layers, anywhere or at places.

a2.h0            what a head writes, to everybody        m3, input: likewise; a2: all heads of a layer
a0.h1->a2.h3<k>  an edge
a2.h3<k>         all edges into a destination
a2.h0@S2         where a span is; @5, @-1: at a position, counted from the start or the end
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from acdc.errors import AcdcError, TaskError, check_type, unknown
from acdc.graph import BoolArray, Graph
from acdc.tasks.prompts import Prompts
from acdc.tasks.spans import REST


def edges_of(graph: Graph, name: str) -> BoolArray:
    """`[n_destinations, n_sources]`: the edges of a part.

    Raises:
        AcdcError: there is no part of that name.
    """
    if "->" in name:
        return graph.edges_from_names([name])
    edges = np.zeros_like(graph.valid)
    if name in graph.source_index:
        edges[:, graph.source_index[name]] = True
    elif name in graph.destination_index:
        edges[graph.destination_index[name]] = True
    elif own := [x for x in graph.sublayers if x.name == name and len(x.sources)]:
        edges[:, own[0].outputs] = True
    else:
        layers = [sublayer.name for sublayer in graph.sublayers if len(sublayer.sources)]
        raise unknown("part of the model", name, {*graph.sources, *graph.destinations, *layers})
    return edges & graph.valid


def place_of(prompts: Prompts, where: str) -> Tensor:
    """`[prompt, position]` bool: the positions that a name or a number means.

    Raises:
        AcdcError: an unknown span, or one that some prompt lacks; a position outside of some prompt.
    """
    mask = prompts.own
    if where == REST and prompts.spans:
        return mask & ~torch.stack(list(prompts.spans.values())).any(0)
    if where in prompts.spans:
        found = prompts.spans[where]
    elif where.removeprefix("-").isdecimal():
        number = mask.long().cumsum(1) - 1
        wanted = int(where)
        found = mask & (number == (wanted if wanted >= 0 else mask.sum(1, keepdim=True) + wanted))
    elif prompts.spans:
        raise unknown("span", where, (*prompts.spans, REST))
    else:
        raise TaskError(f"the prompts name no spans, so there is no {where!r}: give a position, like @-1")
    lacking = (~found.any(1)).nonzero().flatten().tolist()
    if lacking:
        raise TaskError(f"prompt {lacking[0] + 1} has no {where!r}")
    return found


def parts_of(names: str | Sequence[str]) -> list[tuple[str, str]]:
    """Names of parts, each with where: "" for everywhere."""
    every = [names] if isinstance(names, str) else list(names)
    if not every:
        raise AcdcError("expected at least one part of the model, like a2.h0, got none")
    found = []
    for name in every:
        check_type("the name of a part of the model, like a2.h0", name, str)
        part, at, where = name.partition("@")
        if at and not where:
            raise AcdcError(f"{name!r}: expected a span or a position after @, like @S2 or @-1")
        found.append((part, where))
    return found


def masks_of(graph: Graph, prompts: Prompts, names: str | Sequence[str]) -> tuple[BoolArray, Tensor | None]:
    """The edges of some parts by place, `[place, n_destinations, n_sources]`, and the place of each position
    `[prompt, position]`; without places `[n_destinations, n_sources]` and None."""
    parts = parts_of(names)
    everywhere = np.zeros_like(graph.valid)
    for name, where in parts:
        if not where:
            everywhere |= edges_of(graph, name)
    local = [(edges_of(graph, name), place_of(prompts, where)) for name, where in parts if where]
    if not local:
        return everywhere, None
    covers = torch.stack([place for _, place in local], -1)  # [prompt, position, part]
    kinds, places = covers.flatten(0, 1).unique(dim=0, return_inverse=True)
    edges = np.stack([everywhere.copy() for _ in kinds])
    for i, kind in enumerate(kinds.tolist()):
        for here, (own, _) in zip(kind, local, strict=True):
            if here:
                edges[i] |= own
    return edges, places.view(prompts.mask.shape)
