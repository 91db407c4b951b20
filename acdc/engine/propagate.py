"""Letting a change travel: recompute only what a change reaches and what reaches the logits.

In a circuit every destination reads its kept edges from the current run and its removed edges from a reference
run (corrupted prompts, zero, mean). Written as differences, destination d reads

    x_d = x_d(state) + Σ_{kept s→d} (A[s] − state[s])

where the *state* is any earlier run whose residual inputs are known. `Patching.logits` starts from the reference
run, where nothing is kept, and lets the clean input in through the kept edges; a search starts from the current
circuit and lets one changed destination out. Both are the one function `propagate`, which recomputes only
components that are reached by a change and that reach the logits, at the positions where that matters:

- before the first position at which clean and corrupted prompts differ, nothing changes;
- a component all of whose readers read only the metric's positions is computed only there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from acdc.engine.state import Journal, State
from acdc.graph import BoolArray, Graph, IntArray
from acdc.model import forward, passes
from acdc.model.architecture import Attention
from acdc.model.forward import Context
from acdc.model.model import Model

# ---- demand: which components must be computed, and where -------------------------------------------------------

NOWHERE, AT_READ, EVERYWHERE = 0, 1, 2


def port_demand(graph: Graph, source_demand: IntArray) -> IntArray:
    """Where each port's input is needed `[n_ports]`, given where each component's output is."""
    demand = np.append(source_demand, AT_READ)[graph.port_source]
    demand[(demand > NOWHERE) & graph.reads_everywhere] = EVERYWHERE
    return demand


def source_demand(graph: Graph, kept: BoolArray, coupled: Sequence[bool], *, dense: bool) -> IntArray:
    """Where each source's output is needed (`NOWHERE`, `AT_READ`, `EVERYWHERE`): `[n_sources]`.

    Args:
        kept: kept edges per port `[n_ports, n_sources]`.
        coupled: per layer, whether a head's output depends on the other heads'.
        dense: the read positions are the whole window.
    """
    demand = np.zeros(graph.n_sources, dtype=np.int64)
    for stage in range(int(graph.port_stage.max()), 0, -1):
        ports = np.flatnonzero(graph.port_stage == stage)
        if not len(ports):
            continue
        couple(graph, demand, stage, coupled)
        level = port_demand(graph, demand)[ports]
        np.maximum(demand, (kept[ports] * level[:, None]).max(axis=0), out=demand)
    if dense:
        demand[demand > NOWHERE] = EVERYWHERE
    return demand


def couple(graph: Graph, demand: IntArray, stage: int, coupled: Sequence[bool]) -> None:
    """Raise all heads of a stage to the highest demand among them if their layer is coupled, in place."""
    for sublayer in graph.sublayers:
        if sublayer.stage == stage and sublayer.kind == "head" and coupled[sublayer.layer]:
            demand[sublayer.sources] = demand[sublayer.sources].max()


# ---- propagation ------------------------------------------------------------------------------------------------


class _Changes:
    """Differences A[s] − state[s] of the sources that changed, in execution order, and their sums into ports."""

    def __init__(self, capacity: int, *, differentiable: bool) -> None:
        self.ids: list[int] = []
        self._capacity = capacity
        self._blocks: list[Tensor] = []  # differentiable: kept apart, since in-place writes would break the graph
        self._buffer: Tensor | None = None
        self._differentiable = differentiable

    def append(self, ids: Sequence[int], difference: Tensor) -> None:
        """`difference` `[len(ids), C, B, P, D]`."""
        if self._differentiable:
            self._blocks.append(difference)
        else:
            if self._buffer is None:
                self._buffer = difference.new_empty(self._capacity, *difference.shape[1:])
            self._buffer[len(self.ids) : len(self.ids) + len(ids)] = difference
        self.ids += ids

    def _stack(self) -> Tensor:
        """`[len(ids), C, B, P, D]`."""
        if self._differentiable:
            if len(self._blocks) > 1:
                self._blocks = [torch.cat(self._blocks)]
            return self._blocks[0]
        assert self._buffer is not None
        return self._buffer[: len(self.ids)]

    def total(self) -> Tensor:
        """Sum over sources, `[C, B, P, D]`."""
        return self._stack().sum(0)

    def mix(self, weights: Tensor) -> Tensor:
        """Weighted sums: weights `[C or 1, port, len(ids)]` -> `[port, C, B, P, D]`."""
        stack = self._stack()
        n, C = stack.shape[:2]
        flat = stack.reshape(n, C, -1)
        if weights.shape[0] == 1:
            mixed = weights[0] @ flat.reshape(n, -1)
        else:
            mixed = torch.bmm(weights, flat.transpose(0, 1)).transpose(0, 1)
        return mixed.reshape(-1, *stack.shape[1:])


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `propagate` needs to know of the circuits: the same for every call on the same kept edges.

    Attributes:
        weights: `[C or 1, n_ports, n_sources]` float: 1 kept, 0 removed, in between for learned masks.
        kept: `[n_ports, n_sources]` bool: edges that some circuit of the batch keeps.
        demand: `[n_sources]`: where each source's output is needed.
    """

    weights: Tensor
    kept: BoolArray
    demand: IntArray


def propagate(
    model: Model,
    graph: Graph,
    context: Context,
    state: State,
    plan: Plan,
    *,
    inputs: Sequence[Tensor] = (),
    seeds: dict[int, Tensor] | None = None,
    from_layer: int = 0,
    rows: Tensor | None = None,
    journal: Journal | None = None,
) -> Tensor:
    """Recompute what changes, and return the logits at the read positions.

    Args:
        inputs: changes of the input sources, each `[C or 1, B, W, D]`.
        seeds: changes of single ports' residual inputs by port index, `[C, B, W or P, D]` (P where the port's
            demand is `AT_READ`).
        from_layer: first layer that can change.
        rows: vocabulary rows `[R]` to compute; None: all.

    Returns:
        `[C, B, P, R]`.
    """
    pass_ = _Pass(model, graph, context, state, plan, seeds or {}, journal)
    if inputs:
        pass_.write(list(range(len(inputs))), torch.stack(list(inputs)), everywhere=True)
    for index in range(from_layer, graph.n_layers):
        if graph.parallel:
            mlp = pass_.mlp(index)
            pass_.attention(index)
            pass_.publish(mlp)
        else:
            pass_.attention(index)
            pass_.publish(pass_.mlp(index))
    last = np.array([graph.n_ports - 1])
    (x,) = pass_.port_inputs([(last, context.at_read(state.final_x)[None])], read=True)
    if x is None:  # nothing reaches the logits
        x = context.at_read(state.final_x)[None]
    else:
        passes.count(forward=x.shape[1] * x.shape[2])
        if journal is not None:
            journal.note(state.final_x, x[0], read=True)
    return forward.readout(model.decomposition, x[0], rows)


def component_change(
    model: Model,
    graph: Graph,
    context: Context,
    state: State,
    seeds: dict[int, Tensor],
    layer: int,
) -> Tensor:
    """Change of what a layer's heads (or its MLP) write when residual inputs of their ports change.

    Args:
        seeds: changes by port index, `[C, B, W, D]`, all of the heads' or all of the MLP's.

    Returns:
        `[C, B, W, D]`, summed over the heads.
    """
    kept = np.zeros((graph.n_ports, graph.n_sources), dtype=bool)
    demand = np.full(graph.n_sources, NOWHERE)
    for sublayer in graph.sublayers_of(layer):
        demand[sublayer.sources] = EVERYWHERE
    plan = Plan(context.read.new_zeros(0), kept, demand)
    pass_ = _Pass(model, graph, context, state, plan, seeds, None)
    if next(iter(seeds)) not in graph.layer_heads(layer).every_port:
        pass_.publish(pass_.mlp(layer))
    else:
        pass_.attention(layer)
    return pass_.changes.total()


class _Pass:
    """One propagation: the changes so far, at every position of the window and at the read positions."""

    def __init__(
        self,
        model: Model,
        graph: Graph,
        context: Context,
        state: State,
        plan: Plan,
        seeds: dict[int, Tensor],
        journal: Journal | None,
    ) -> None:
        self.model, self.graph, self.context, self.state = model, graph, context, state
        self.plan, self.seeds, self.journal = plan, seeds, journal
        needed = int((plan.demand > NOWHERE).sum())
        differentiable = torch.is_grad_enabled()
        self.changes = _Changes(needed + graph.n_inputs, differentiable=differentiable)
        self.changes_at_read = (
            self.changes if context.dense else _Changes(needed + graph.n_inputs, differentiable=differentiable)
        )

    def write(self, ids: list[int], difference: Tensor, *, everywhere: bool) -> None:
        """Note that the sources `ids` changed by `difference` `[len(ids), C, B, P, D]`."""
        if everywhere:
            self.changes.append(ids, difference)
            if not self.context.dense:
                self.changes_at_read.append(ids, self.context.at_read(difference))
        else:
            self.changes_at_read.append(ids, difference)

    def publish(self, output: tuple[int, Tensor, bool] | None) -> None:
        """Note an MLP's change."""
        if output is not None:
            source, difference, everywhere = output
            self.write([source], difference[None], everywhere=everywhere)

    def touched(self, ports: IntArray, *, read: bool) -> BoolArray:
        """Which of the ports read a change: `[len(ports)]`."""
        changes = self.changes_at_read if read else self.changes
        touched = np.array([int(port) in self.seeds for port in ports])
        if changes.ids:
            touched |= self.plan.kept[ports[:, None], changes.ids].any(axis=1)
        return touched

    def port_inputs(self, parts: Sequence[tuple[IntArray, Tensor]], *, read: bool) -> list[Tensor | None]:
        """New residual inputs of several sets of ports, whose changes are summed in one matrix product.

        Args:
            parts: ports, and the state's inputs of them `[len(ports) or 1, 1, B, P, D]`.

        Returns:
            For each part `[len(ports), C, B, P, D]`, or None if no port reads a change.
        """
        changes = self.changes_at_read if read else self.changes
        every = np.concatenate([ports for ports, _ in parts])
        mixed: Tensor | None = None
        if changes.ids and self.plan.kept[every[:, None], changes.ids].any():
            device = self.plan.weights.device
            index = torch.as_tensor(every, device=device)[:, None]
            mixed = changes.mix(self.plan.weights[:, index, torch.as_tensor(changes.ids, device=device)])
        inputs, first = [], 0
        for ports, base in parts:
            x = None if mixed is None else mixed[first : first + len(ports)]
            if x is not None:
                x = base + x if torch.is_grad_enabled() else x.add_(base)
            inputs.append(self._with_seeds(ports, base, x))
            first += len(ports)
        return inputs

    def _with_seeds(self, ports: IntArray, base: Tensor, x: Tensor | None) -> Tensor | None:
        """`x`, which may be written to, or the state's own inputs if no change was mixed; seeds added."""
        seeded = [i for i, port in enumerate(ports) if int(port) in self.seeds]
        if not seeded:
            return x
        seeds = [self.seeds[int(ports[i])] for i in seeded]
        if len(ports) == 1:
            return (base if x is None else x) + seeds[0]
        if x is None:
            x = base.expand(len(ports), seeds[0].shape[0], *base.shape[2:]).clone()
        elif torch.is_grad_enabled():
            x = x.clone()
        for i, seed in zip(seeded, seeds, strict=True):
            x[i] += seed
        return x

    def mlp(self, index: int) -> tuple[int, Tensor, bool] | None:
        """Change of the MLP's output: (source, difference `[C, B, P, D]`, everywhere), or None."""
        graph, state = self.graph, self.state
        sublayer = graph.sublayer(index, "mlp")
        if sublayer is None:
            return None
        (source,), port = sublayer.sources, np.array(sublayer.every_port)
        if self.plan.demand[source] == NOWHERE:
            return None
        read = bool(self.plan.demand[source] == AT_READ)
        base, reference = state.mlp_x[index], state.reference_mlp[index]
        if read:
            base, reference = self.context.at_read(base), self.context.at_read(reference)
        (x,) = self.port_inputs([(port, base[None])], read=read)
        if x is None:
            if state.settled:
                return None
            x = base[None]
        new = forward.mlp(self.model.decomposition.layers[index], x[0])
        if self.journal is not None:
            self.journal.note(state.mlp_x[index], x[0], read=read)
            self.journal.note(state.reference_mlp[index], new, read=read)
        return source, new - reference, not read

    def attention(self, index: int) -> None:
        """Recompute the heads of a layer that change, each where it is needed."""
        sublayer = self.graph.layer_heads(index)
        if self.state.settled and not self._reaches(sublayer.every_port):
            return
        demand = self.plan.demand[sublayer.sources]
        for level in (EVERYWHERE, AT_READ):
            heads = np.flatnonzero(demand == level)
            if len(heads):
                self._heads(index, heads, read=level == AT_READ)

    def _reaches(self, ports: range) -> bool:
        """Whether any of these ports may read a change."""
        if any(port in ports for port in self.seeds):
            return True
        return bool(self.plan.kept[ports.start : ports.stop, self.changes_at_read.ids].any())

    def _heads(self, index: int, heads: IntArray, *, read: bool) -> None:
        graph, state, context = self.graph, self.state, self.context
        attention = self.model.decomposition.layers[index].attention
        sublayer = graph.layer_heads(index)
        port_ids = [np.array(ports)[heads] for ports in sublayer.ports.values()]
        touched = [self.touched(ids, read=read and i == 0) for i, ids in enumerate(port_ids)]
        active = touched[0] | touched[1] | touched[2]
        if attention.coupled and active.any():
            active[:] = True
        if not state.settled:
            active[:] = True
        if not active.any():
            return
        heads = heads[active]
        changed = [part[active] for part in touched]
        for i, port in enumerate("qkv"):
            if getattr(attention, port).norm_across_heads and changed[i].any():
                changed[i][:] = True
        x = self._head_inputs(index, heads, [ids[active] for ids in port_ids], changed, read=read)
        q, k, v = (
            self._projection(index, attention, i, heads, changed[i], x[i], read=read and i == 0) for i in range(3)
        )
        z = forward.attend(attention, q, k, v, context, heads=_some(heads, graph.n_heads), read=read)
        z = forward.scaled_by_post_norm(attention, z)
        reference = take(state.reference_z[index], heads)
        if read:
            reference = context.at_read(reference)
        if self.journal is not None:
            self.journal.note_heads(state.reference_z[index], heads, z, read=read)
        difference = forward.write(attention, z - reference, heads=_some(heads, graph.n_heads))
        self.write([sublayer.sources[head] for head in heads], difference, everywhere=not read)

    def _head_inputs(
        self, index: int, heads: IntArray, ports: list[IntArray], changed: list[BoolArray], *, read: bool
    ) -> list[Tensor | None]:
        """Residual inputs of the changed q, k and v ports."""
        inputs = self.state.heads_x[index]
        x: list[Tensor | None] = [None, None, None]
        for at_read in (False, True):  # keys and values are read everywhere, queries where the head is
            group = [i for i in range(3) if (read and i == 0) == at_read and changed[i].any()]
            if group:
                bases = [inputs.get(i, heads[changed[i]]) for i in group]
                bases = [self.context.at_read(base) for base in bases] if at_read else bases
                parts = [(ports[i][changed[i]], base) for i, base in zip(group, bases, strict=True)]
                for i, found in zip(group, self.port_inputs(parts, read=at_read), strict=True):
                    x[i] = found
        return x

    def _projection(
        self,
        index: int,
        attention: Attention,
        which: int,
        heads: IntArray,
        touched: BoolArray,
        x: Tensor | None,
        *,
        read: bool,
    ) -> Tensor:
        """q, k or v of the heads: from the state where nothing changed, else from the new inputs `x`."""
        state, context = self.state, self.context
        stored = (state.q, state.k, state.v)[which][index]
        old = take(stored, heads)
        if read:
            old = context.at_read(old)
        if x is None:
            return old
        changed = heads[touched]
        if x.shape[0] == 1 and len(changed) > 1:
            x = x.expand(len(changed), *x.shape[1:])
        some = _some(changed, self.graph.n_heads)
        new = forward.project(attention, "qkv"[which], x, context, heads=some, read=read)
        offset = context.start if which > 0 else 0
        if self.journal is not None:
            self.journal.note_inputs(state.heads_x[index], which, changed, x, read=read)
            self.journal.note_heads(stored, changed, new, read=read, offset=offset)
        if offset:
            earlier = take(stored, changed)[..., :offset, :]
            new = torch.cat((earlier.expand(-1, new.shape[1], -1, -1, -1), new), dim=-2)
        if touched.all():
            return new
        place = torch.as_tensor(np.flatnonzero(touched), device=new.device)
        return old.expand(-1, new.shape[1], *old.shape[2:]).index_copy(0, place, new)


def _some(heads: IntArray, n_heads: int) -> list[int] | None:
    return None if len(heads) == n_heads else [int(head) for head in heads]


def take(x: Tensor, index: IntArray) -> Tensor:
    """`x[index]` of ascending indices, without a copy where they are a range."""
    first, last = int(index[0]), int(index[-1])
    if last - first + 1 == len(index):
        return x[first : last + 1]
    return x[torch.as_tensor(index, device=x.device)]
