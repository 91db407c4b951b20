"""Which components must be computed, and where: a component all of whose readers read only the metric's positions is
computed only there, and one that nobody reads is not computed at all."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from acdc.graph import BoolArray, Graph, IntArray, Sublayer

NOWHERE, AT_READ, EVERYWHERE = 0, 1, 2


def port_demand(graph: Graph, source_demand: IntArray) -> IntArray:
    """Where each port's input is needed `[n_ports]`, given where each component's output is."""
    demand = np.append(source_demand, AT_READ)[graph.port_source]
    demand[(demand > NOWHERE) & graph.reads_everywhere] = EVERYWHERE
    return demand


def source_demand(graph: Graph, kept: BoolArray, coupled: Iterable[Sublayer], *, dense: bool) -> IntArray:
    """Where each source's output is needed (`NOWHERE`, `AT_READ`, `EVERYWHERE`): `[n_sources]`.

    Args:
        kept: kept edges per port `[n_ports, n_sources]`.
        coupled: those whose components' outputs depend on one another.
        dense: the read positions are the whole window.
    """
    demand = np.zeros(graph.n_sources, dtype=np.int64)
    for stage in range(int(graph.port_stage.max()), 0, -1):
        ports = np.flatnonzero(graph.port_stage == stage)
        couple(demand, stage, coupled)
        level = port_demand(graph, demand)[ports]
        np.maximum(demand, (kept[ports] * level[:, None]).max(axis=0), out=demand)
    if dense:
        demand[demand > NOWHERE] = EVERYWHERE
    return demand


def couple(demand: IntArray, stage: int, coupled: Iterable[Sublayer]) -> None:
    """Raise all components of the coupled sublayers of a stage to the highest demand among them, in place."""
    for sublayer in coupled:
        if sublayer.stage == stage:
            demand[sublayer.outputs] = demand[sublayer.outputs].max()
