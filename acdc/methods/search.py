"""The edge-by-edge search that ACDC and guided pruning share, exact and fast.

Destinations are visited from the logits backwards. When the edges into a destination are tested, nothing upstream
has changed, so a removal changes that destination's input by a known vector, R[s] − A[s], and only the part of the
circuit that lies between it and the logits needs to be recomputed (`propagate`). A destination whose component has
no kept path to the logits needs no run at all.

Most edges are removed, so the search speculates: it assumes that the next K candidates all go, runs the K prefixes
{1}, {1, 2}, …, {1 … K} as one batch, and walks the results in order. While the decision is "remove", the next
prefix is the true next test; at the first "keep" the rest is discarded. The decisions are those of the sequential
search.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from acdc.errors import AcdcError
from acdc.graph import BoolArray, FloatArray
from acdc.measure import Measure
from acdc.model import forward
from acdc.patching import Patching
from acdc.propagate import (
    AT_READ,
    EVERYWHERE,
    NOWHERE,
    Plan,
    couple,
    port_demand,
    propagate,
    source_demand,
)
from acdc.state import Journal, State, state_of

Accept = Callable[[float, float], bool]
"""`(distance without the edge, distance with it) -> whether the edge may go`."""


class Search:
    """A circuit that shrinks: its kept edges, its distance from the full model, and its activations.

    Args:
        kept: `[n_destinations, n_sources]` edges to start from; None: all.

    Attributes:
        kept: edges that are left.
        distance: mean over the prompts of the metric's distance from the full model.
        tests: edges tested by running them; runs: batches run.
    """

    def __init__(self, patching: Patching, measure: Measure, kept: BoolArray | None = None) -> None:
        self.patching, self.measure, self.graph = patching, measure, patching.graph
        self.kept = self.graph.valid.copy() if kept is None else kept & self.graph.valid
        self.tests = self.runs = 0
        self._ahead = 4  # prefixes to run next
        self._device = patching.model.device
        self._weights = self._port_weights()
        with torch.no_grad():
            self._state, logits = self._start()
            self.distance = float(measure.distance(logits).mean())

    def _port_weights(self) -> Tensor:
        ports = np.ascontiguousarray(self.graph.to_ports(self.kept))
        return torch.as_tensor(ports, device=self._device).to(self.patching.model.dtype)[None]

    def _start(self) -> tuple[State, Tensor]:
        """State and logits of the kept circuit."""
        patching, graph = self.patching, self.graph
        if (self.kept == graph.valid).all():
            state = state_of(patching.model, patching.clean, patching.start, None, writable=True)
            return state, patching.clean_logits(self.measure.rows)[None]
        state = patching.reference_state(writable=True)
        kept = np.asarray(graph.to_ports(self.kept))
        demand = source_demand(graph, kept, patching.coupled, dense=patching.context.dense)
        journal = Journal(patching.context)
        logits = propagate(
            patching.model, graph, patching.context, state, Plan(self._weights, kept, demand),
            inputs=patching.input_differences(1), rows=self.measure.rows, journal=journal,
        )  # fmt: skip
        journal.commit(0)
        state.settled = True
        return state, logits

    @torch.no_grad()
    def sweep(
        self,
        accept: Accept,
        *,
        rank: FloatArray | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Test every kept edge once, destinations from the logits backwards; remove those that `accept` lets go.

        Args:
            accept: the rule.
            rank: `[n_destinations, n_sources]`; the edges into a destination are tested from the lowest rank up.
                None: from the latest source to the earliest.
            progress: called with (edges done, edges in all).

        Returns:
            Number of edges removed.
        """
        graph, patching = self.graph, self.patching
        total, done = int(self.kept.sum()), 0
        differences, row = self._source_differences()
        demand = np.zeros(graph.n_sources, dtype=np.int64)
        kept_ports = np.array(graph.to_ports(self.kept))
        coupled_down_to = graph.n_layers
        for destination in reversed(range(graph.n_destinations)):
            ports = np.flatnonzero(graph.port_destination == destination)
            layer = int(graph.destination_layer[destination])
            if layer < coupled_down_to and graph.port_source[ports[0]] != graph.first_source(layer) + graph.n_heads:
                couple(graph, demand, layer, patching.coupled)
                coupled_down_to = layer
            level = port_demand(graph, demand)[ports]
            if patching.context.dense:
                level[level > NOWHERE] = EVERYWHERE
            sources = np.flatnonzero(self.kept[destination])
            order = (
                sources[::-1].copy()
                if rank is None
                else sources[np.argsort(rank[destination, sources], kind="stable")]
            )
            if level.max() > NOWHERE:
                plan = Plan(self._weights, kept_ports, demand)
                removed = self._test(destination, ports, level, layer, order, plan, differences, row, accept)
            else:
                removed = order if accept(self.distance, self.distance) else order[:0]
                self._remove(destination, ports, removed, kept_ports)
            done += len(order)
            reads = kept_ports[ports] * level[:, None]
            np.maximum(demand, reads.max(axis=0), out=demand)
            if progress is not None:
                progress(done, total)
        return total - int(self.kept.sum())

    def _remove(self, destination: int, ports: np.ndarray, sources: np.ndarray, kept_ports: BoolArray) -> None:
        self.kept[destination, sources] = False
        kept_ports[np.ix_(ports, sources)] = False
        if len(sources):
            index = torch.as_tensor(ports, device=self._device)[:, None]
            self._weights[0, index, torch.as_tensor(sources, device=self._device)] = 0

    def _test(
        self,
        destination: int,
        ports: np.ndarray,
        level: np.ndarray,
        layer: int,
        order: np.ndarray,
        plan: Plan,
        differences: Tensor,
        row: np.ndarray,
        accept: Accept,
    ) -> np.ndarray:
        """Test the edges into one destination in order; returns the removed sources."""
        patching, context = self.patching, self.patching.context
        everywhere = bool((level == EVERYWHERE).any())
        largest = self._largest_batch(everywhere)
        removed: list[int] = []
        i, ahead = 0, min(self._ahead, largest)
        while i < len(order):
            batch = order[i : i + ahead]
            change = differences[torch.as_tensor(row[batch], device=self._device)]
            if not everywhere:
                change = context.at_read(change)
            change = change.cumsum(0)  # [K, B, W or P, D]
            seeds = {
                int(port): context.at_read(change) if everywhere and need == AT_READ else change
                for port, need in zip(ports, level, strict=True)
                if need > NOWHERE
            }
            journal = Journal(context)
            logits = propagate(
                patching.model, self.graph, context, self._state, plan,
                seeds=seeds, from_layer=layer, rows=self.measure.rows, journal=journal,
            )  # fmt: skip
            distances = self.measure.distance(logits).mean(-1).expand(len(batch)).tolist()
            self.runs += 1
            gone = 0
            while gone < len(batch):
                if not np.isfinite(distances[gone]):
                    raise AcdcError("the metric became NaN or infinite while edges were removed; try float32")
                self.tests += 1
                if not accept(distances[gone], self.distance):
                    break
                self.distance = distances[gone]
                gone += 1
            if gone:
                journal.commit(gone - 1)
                self._remove(destination, ports, batch[:gone], plan.kept)
                removed += [int(s) for s in batch[:gone]]
            if gone == len(batch):
                i += gone
                ahead = min(2 * ahead, largest)
            else:
                i += gone + 1
                ahead = max(1, gone)
        self._ahead = ahead
        return np.array(removed, dtype=np.int64)

    def _largest_batch(self, everywhere: bool) -> int:
        """How many prefixes to run at once: enough to fill the machine, few enough to stay in its caches."""
        B, W = self.patching.prompts.clean.shape[0], self.patching.prompts.clean.shape[1] - self.patching.start
        tokens = B * (W if everywhere else self.patching.context.read.shape[1])
        return max(1, (4096 if self._device.type == "cpu" else 65536) // tokens)

    def _source_differences(self) -> tuple[Tensor, np.ndarray]:
        """R[s] − A[s] of the sources with kept edges, `[n, B, W, D]`, and each source's row in it."""
        graph, patching, state = self.graph, self.patching, self._state
        used: BoolArray = np.asarray(self.kept.any(axis=0))
        row = np.cumsum(used) - 1
        start, references = patching.start, patching.references
        own = patching.clean_inputs
        blocks = [(references.inputs[i] - own[i])[:, :, start:] for i in range(graph.n_inputs) if used[i]]
        for index, layer in enumerate(patching.model.decomposition.layers):
            first = graph.first_source(index)
            heads = np.flatnonzero(used[first : first + graph.n_heads])
            if len(heads):
                z = references.z[index][..., start:, :] - state.reference_z[index]
                blocks.append(forward.write(layer.attention, z[heads], heads=heads.tolist())[:, 0])
            if graph.mlp and used[first + graph.n_heads]:
                blocks.append(references.mlp[index][..., start:, :] - state.reference_mlp[index])
        empty = own[0].new_zeros(0, *own[0][0, :, start:].shape)
        return torch.cat(blocks) if blocks else empty, row
