"""The patched forward pass: running circuits.

In a circuit every destination reads its kept edges from the current run and its removed edges from a reference
run (corrupted prompts, zero, mean). Written as differences, destination d reads

    x_d = x_d(state) + Σ_{kept s→d} (A[s] − state[s])

where the *state* is any earlier run whose residual inputs are known. `Patching.logits` starts from the reference run,
where nothing is kept, and lets the clean input in through the kept edges; a search starts from the current circuit and
lets one changed destination out. Both are the one function `propagate`, which recomputes only components that are
reached by a change and that reach the logits, at the positions where that matters:

- before the first position at which clean and corrupted prompts differ, nothing changes;
- a component all of whose readers read only the metric's positions is computed only there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from acdc.errors import AcdcError, unknown
from acdc.graph import BoolArray, Graph, IntArray
from acdc.model import forward
from acdc.model.architecture import Attention, Layer
from acdc.model.forward import Context
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts

Ablation = Literal["resample", "zero", "mean", "mean-position"]
Direction = Literal["noise", "denoise"]
ABLATIONS = {
    "resample": "removed edges carry the corrupted prompt's activation",
    "zero": "removed edges carry zero",
    "mean": "removed edges carry the mean over the clean prompts and their positions",
    "mean-position": "removed edges carry the mean over the clean prompts at each position",
}


# ---- references: what removed edges carry -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class References:
    """The reference output of every source.

    Attributes:
        inputs: one per input source, `[1, B or 1, T or 1, D]`.
        z: per layer, scaled attention results `[H, 1, B or 1, T or 1, d_head]`.
        mlp: per layer, `[1, B or 1, T or 1, D]`.
    """

    inputs: tuple[Tensor, ...]
    z: tuple[Tensor, ...]
    mlp: tuple[Tensor, ...]

    def expanded(self, B: int, T: int) -> References:
        """Views with full prompt and position axes."""

        def full(x: Tensor) -> Tensor:
            return x.expand(*x.shape[:-3], B, T, x.shape[-1])

        return References(tuple(map(full, self.inputs)), tuple(map(full, self.z)), tuple(map(full, self.mlp)))


def input_sources(graph: Graph, parts: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Tensor | float]:
    """Embedding parts as input sources, and the constant that belongs to none."""
    if graph.inputs == "single":
        return (torch.stack(list(parts)).sum(0),), 0.0
    if graph.inputs == "token":
        return (parts[0],), parts[1] if len(parts) > 1 else 0.0
    if len(parts) == 1:
        raise AcdcError('inputs="split" needs position embeddings, and this model has none (rotary): use "single"')
    return tuple(parts), 0.0


@torch.no_grad()
def mean_references(
    model: Model, graph: Graph, prompts: Prompts, *, per_position: bool, batch_size: int | None = None
) -> References:
    """Mean of every source's output over the clean prompts' real tokens, at each position or over all of them."""
    sums: list[Tensor] | None = None
    axes = (-3,) if per_position else (-3, -2)
    count: Tensor | float = 0.0
    for start in range(0, len(prompts), batch_size or len(prompts)):
        batch = prompts[start : start + (batch_size or len(prompts))].to(model.device)
        context = full_context(model, batch)
        parts = forward.embed(model.decomposition, context)
        inputs, _ = input_sources(graph, parts)
        trace = forward.run(model.decomposition, context, torch.stack(parts).sum(0))
        weight = batch.mask[..., None].to(torch.promote_types(model.dtype, torch.float32))
        terms = [(x * weight).sum(axes, keepdim=True) for x in (*inputs, *trace.z, *trace.mlp_output)]
        sums = terms if sums is None else [a + b for a, b in zip(sums, terms, strict=True)]
        count = count + weight.sum((0,) if per_position else (0, 1), keepdim=True)
    assert sums is not None and isinstance(count, Tensor)
    means = [(x / count.clamp(min=1)).to(model.dtype) for x in sums]
    n = len(means) - 2 * model.n_layers
    return References(tuple(means[:n]), tuple(means[n : n + model.n_layers]), tuple(means[n + model.n_layers :]))


def zero_references(model: Model, graph: Graph) -> References:
    zero = model.decomposition.unembedding.new_zeros(1, 1, 1, model.d_model)
    z = tuple(
        zero.new_zeros(model.n_heads, 1, 1, 1, layer.attention.w_o.shape[1]) for layer in model.decomposition.layers
    )
    return References((zero,) * graph.n_inputs, z, (zero,) * model.n_layers)


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
    return forward.make_context(model.decomposition, tokens, mask, position_ids, read=read, start=start)


# ---- state: a run from which differences are taken --------------------------------------------------------------


class PortInputs:
    """Residual inputs of a layer's q, k and v ports: one that all share, and those that have come to differ."""

    def __init__(self, shared: Tensor) -> None:
        """`shared` `[1, B, W, D]`."""
        self._shared = shared
        self._own: dict[tuple[int, int], Tensor] = {}

    def get(self, which: int, heads: IntArray) -> Tensor:
        """`[len(heads) or 1, 1, B, W, D]`; `which` is 0, 1, 2 for q, k, v."""
        rows = [self._own.get((which, int(head))) for head in heads]
        if all(row is None for row in rows):
            return self._shared[None]
        return torch.stack([self._shared if row is None else row for row in rows])

    def own(self, which: int, head: int) -> Tensor:
        """The port's own input `[1, B, W, D]`, to be written to."""
        if (which, head) not in self._own:
            self._own[which, head] = self._shared.clone()
        return self._own[which, head]


@dataclasses.dataclass
class State:
    """A run with known residual inputs; lists are per layer.

    Attributes:
        heads_x: residual inputs of the q, k and v ports.
        q: `[H, 1, B, W, d_head]`; k, v: `[H, 1, B, T, d_head]`.
        reference_z: scaled attention results that differences are taken from, `[H, 1, B, W, d_head]`.
        mlp_x, reference_mlp: input, and output that differences are taken from, `[1, B, W, D]`.
        final_x: `[1, B, W, D]`.
        settled: whether every component's output is its reference, so that unchanged ones need not be run.
    """

    heads_x: list[PortInputs]
    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    reference_z: list[Tensor]
    mlp_x: list[Tensor]
    reference_mlp: list[Tensor]
    final_x: Tensor
    settled: bool


def state_of(
    model: Model, trace: forward.Trace, start: int, references: References | None, *, writable: bool = False
) -> State:
    """The state of a plain run (`references` None) or of a run on references.

    Args:
        writable: copy what a search will change in place.
    """
    layers = model.decomposition.layers
    assert trace.final_input is not None

    def window(x: Tensor) -> Tensor:
        return x[..., start:, :].clone() if writable else x[..., start:, :]

    def every_head(layer: Layer, x: Tensor) -> Tensor:
        repeated = forward.per_head(layer.attention, x)
        return repeated.clone() if writable and repeated is x else repeated

    z = [window(x) for x in trace.z]
    return State(
        heads_x=[PortInputs(x[..., start:, :]) for x in trace.attention_input],
        q=[window(x) for x in trace.q],
        k=[every_head(layer, x) for layer, x in zip(layers, trace.k, strict=True)],
        v=[every_head(layer, x) for layer, x in zip(layers, trace.v, strict=True)],
        reference_z=z if references is None else [window(x) for x in references.z],
        mlp_x=[window(x) for x in trace.mlp_input],
        reference_mlp=[window(x) for x in (trace.mlp_output if references is None else references.mlp)],
        final_x=window(trace.final_input),
        settled=references is None,
    )


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
    for stage in range(2 * graph.n_layers + 1, 0, -1):
        ports = np.flatnonzero(graph.port_stage == stage)
        if not len(ports):
            continue
        if stage % 2 == 1 and stage <= 2 * graph.n_layers:
            couple(graph, demand, (stage - 1) // 2, coupled)
        level = port_demand(graph, demand)[ports]
        np.maximum(demand, (kept[ports] * level[:, None]).max(axis=0), out=demand)
    if dense:
        demand[demand > NOWHERE] = EVERYWHERE
    return demand


def couple(graph: Graph, demand: IntArray, layer: int, coupled: Sequence[bool]) -> None:
    """Raise all heads of a coupled layer to the highest demand among them, in place."""
    if coupled[layer]:
        heads = slice(graph.first_source(layer), graph.first_source(layer) + graph.n_heads)
        demand[heads] = demand[heads].max()


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


@dataclasses.dataclass
class Journal:
    """New values of everything that was recomputed, so that a search can make one circuit of the batch its state."""

    context: Context
    entries: list[tuple[Callable[[], Tensor], Tensor, bool, int]] = dataclasses.field(default_factory=list)

    def note(self, target: Tensor, value: Tensor, *, read: bool) -> None:
        """`target` `[1, B, W, X]` becomes `value` `[C, B, W or P, X]` of the circuit that is committed."""
        self.entries.append((lambda: target, value, read, 0))

    def note_heads(self, target: Tensor, heads: IntArray, value: Tensor, *, read: bool, offset: int = 0) -> None:
        """The same for heads: `target` `[H, 1, B, T, X]`, written from position `offset` on; `value`
        `[len(heads), C, B, P, X]`."""
        for head, new in zip(heads, value, strict=True):
            self.entries.append((partial(target.__getitem__, int(head)), new, read, offset))

    def note_inputs(self, inputs: PortInputs, which: int, heads: IntArray, value: Tensor, *, read: bool) -> None:
        """The same for residual inputs of ports, which are copied only when they come to differ."""
        for head, new in zip(heads, value, strict=True):
            self.entries.append((partial(inputs.own, which, int(head)), new, read, 0))

    def commit(self, circuit: int) -> None:
        """Write the values of one circuit of the batch into the state."""
        prompts = torch.arange(self.context.read.shape[0], device=self.context.read.device)[:, None]
        for find, value, read, offset in self.entries:
            target, value = find(), value[circuit if value.shape[0] > 1 else 0]
            if read and not self.context.dense:
                target[0, prompts, self.context.read] = value
            else:
                target[0, :, offset:] = value


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
    x = pass_.port_input(np.array([graph.n_ports - 1]), context.at_read(state.final_x)[None], read=True)
    if x is None:
        x = context.at_read(state.final_x)[None]
    elif journal is not None:
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
    plan = Plan(context.read.new_zeros(0), kept, np.full(graph.n_sources, EVERYWHERE))
    pass_ = _Pass(model, graph, context, state, plan, seeds, None)
    if next(iter(seeds)) == graph.first_port(layer) + 3 * graph.n_heads:
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
            self.changes
            if context.dense
            else _Changes(needed + graph.n_inputs, differentiable=differentiable)
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
            touched |= self.plan.kept[np.ix_(ports, changes.ids)].any(axis=1)
        return touched

    def port_input(self, ports: IntArray, base: Tensor, *, read: bool) -> Tensor | None:
        """New residual inputs `[len(ports), C, B, P, D]` from the state's `[len(ports) or 1, 1, B, P, D]`, or None if
        no port reads a change."""
        changes = self.changes_at_read if read else self.changes
        x: Tensor | None = None
        if changes.ids and self.plan.kept[np.ix_(ports, changes.ids)].any():
            index = torch.as_tensor(ports, device=base.device)[:, None]
            weights = self.plan.weights[:, index, torch.as_tensor(changes.ids, device=base.device)]
            x = base + changes.mix(weights)
        for i, port in enumerate(ports):
            if int(port) in self.seeds:
                seed = self.seeds[int(port)]
                if x is None:
                    x = base.expand(len(ports), seed.shape[0], *base.shape[2:])
                if len(ports) == 1:
                    x = x + seed
                else:
                    x = x.clone()
                    x[i] += seed
        return x

    def mlp(self, index: int) -> tuple[int, Tensor, bool] | None:
        """Change of the MLP's output: (source, difference `[C, B, P, D]`, everywhere), or None."""
        graph, state = self.graph, self.state
        if not graph.mlp:
            return None
        source = graph.first_source(index) + graph.n_heads
        port = np.array([graph.first_port(index) + 3 * graph.n_heads])
        if self.plan.demand[source] == NOWHERE:
            return None
        read = bool(self.plan.demand[source] == AT_READ)
        base, reference = state.mlp_x[index], state.reference_mlp[index]
        if read:
            base, reference = self.context.at_read(base), self.context.at_read(reference)
        x = self.port_input(port, base[None], read=read)
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
        """Recompute the heads of a layer that change, those needed everywhere and those needed at the read positions."""
        graph = self.graph
        first = graph.first_source(index)
        demand = self.plan.demand[first : first + graph.n_heads]
        for level in (EVERYWHERE, AT_READ):
            heads = np.flatnonzero(demand == level)
            if len(heads):
                self._heads(index, heads, read=level == AT_READ)

    def _heads(self, index: int, heads: IntArray, *, read: bool) -> None:
        graph, state, context = self.graph, self.state, self.context
        attention = self.model.decomposition.layers[index].attention
        first_port = graph.first_port(index)
        port_ids = [first_port + i * graph.n_heads + heads for i in range(3)]
        touched = [self.touched(ids, read=read and i == 0) for i, ids in enumerate(port_ids)]
        active = touched[0] | touched[1] | touched[2]
        if attention.coupled and active.any():
            active[:] = True
        if not state.settled:
            active[:] = True
        if not active.any():
            return
        heads = heads[active]
        q, k, v = (
            self._projection(index, attention, i, heads, port_ids[i][active], touched[i][active], read=read and i == 0)
            for i in range(3)
        )
        z = forward.scaled_by_post_norm(attention, forward.attend(attention, q, k, v, context, read=read))
        reference = _select(state.reference_z[index], heads)
        if read:
            reference = context.at_read(reference)
        if self.journal is not None:
            self.journal.note_heads(state.reference_z[index], heads, z, read=read)
        difference = forward.write(attention, z - reference, heads=_some(heads, graph.n_heads))
        self.write([graph.first_source(index) + int(head) for head in heads], difference, everywhere=not read)

    def _projection(
        self, index: int, attention: Attention, which: int, heads: IntArray, ports: IntArray, touched: BoolArray, *, read: bool
    ) -> Tensor:
        """q, k or v of the heads: from the state where nothing changed, else recomputed."""
        state, context, graph = self.state, self.context, self.graph
        stored = (state.q, state.k, state.v)[which][index]
        old = _select(stored, heads)
        if read:
            old = context.at_read(old)
        if not touched.any():
            return old
        if getattr(attention, "qkv"[which]).norm_across_heads:
            touched = np.ones_like(touched)
        changed = heads[touched]
        inputs = state.heads_x[index]
        base = inputs.get(which, changed)
        if read:
            base = context.at_read(base)
        x = self.port_input(ports[touched], base, read=read)
        assert x is not None
        if x.shape[0] == 1 and len(changed) > 1:
            x = x.expand(len(changed), *x.shape[1:])
        new = forward.project(attention, "qkv"[which], x, context, heads=[int(h) for h in changed], read=read)
        offset = context.start if which > 0 else 0
        if self.journal is not None:
            self.journal.note_inputs(inputs, which, changed, x, read=read)
            self.journal.note_heads(stored, changed, new, read=read, offset=offset)
        if offset:
            earlier = _select(stored, changed)[..., :offset, :]
            new = torch.cat((earlier.expand(-1, new.shape[1], -1, -1, -1), new), dim=-2)
        if touched.all():
            return new
        place = torch.as_tensor(np.flatnonzero(touched), device=new.device)
        return old.expand(-1, new.shape[1], *old.shape[2:]).index_copy(0, place, new)


def _some(heads: IntArray, n_heads: int) -> list[int] | None:
    return None if len(heads) == n_heads else [int(head) for head in heads]


def _select(x: Tensor, heads: IntArray) -> Tensor:
    """The heads' slices of `[H, ...]`, without a copy where possible."""
    if len(heads) == x.shape[0]:
        return x
    first, last = int(heads[0]), int(heads[-1])
    if last - first + 1 == len(heads):
        return x[first : last + 1]
    return x[[int(head) for head in heads]]


# ---- circuits ---------------------------------------------------------------------------------------------------


class Patching:
    """Runs circuits of one model on one batch of prompts.

    Args:
        graph: whose edges the circuits are made of.
        ablation: what removed edges carry; see `ABLATIONS`.
        direction: "noise" corrupts what is outside the circuit; "denoise" runs the corrupted prompts and restores the
            clean activation on the circuit's edges.
        references: precomputed references (means over a larger set); None: made from these prompts.
    """

    def __init__(
        self,
        model: Model,
        graph: Graph,
        prompts: Prompts,
        *,
        ablation: Ablation = "resample",
        direction: Direction = "noise",
        references: References | None = None,
    ) -> None:
        if ablation not in ABLATIONS:
            raise unknown("ablation", ablation, ABLATIONS)
        if direction not in ("noise", "denoise"):
            raise unknown("direction", direction, ("noise", "denoise"))
        if graph.inputs == "token" and prompts.corrupted_position_ids is not None:
            raise AcdcError('inputs="token" holds positions constant, but the corrupted prompts permute them')
        self.model, self.graph, self.ablation, self.direction = model, graph, ablation, direction
        prompts = prompts.to(model.device)
        self.prompts = prompts.swapped() if direction == "denoise" else prompts
        if references is None and ablation != "resample":
            references = (
                zero_references(model, graph)
                if ablation == "zero"
                else mean_references(model, graph, self.prompts, per_position=ablation == "mean-position")
            )
        self._given = references
        with torch.no_grad():
            self.start = self._first_position()
            self.context = full_context(model, self.prompts, start=self.start)
            self.clean_inputs, self.constant = input_sources(
                graph, forward.embed(model.decomposition, full_context(model, self.prompts))
            )
            self.state = self.reference_state()
        self.coupled = [layer.attention.coupled for layer in model.decomposition.layers]

    # ---- preparation -------------------------------------------------------------------------------------------

    def _same_context(self) -> bool:
        """Whether clean and corrupted runs differ in their token ids only (as far as attention is concerned)."""
        prompts = self.prompts
        same_mask = prompts.corrupted_mask is None or bool((prompts.corrupted_mask == prompts.mask).all())
        return same_mask and (prompts.corrupted_position_ids is None or self.model.decomposition.rotary is None)

    def _first_position(self) -> int:
        """First position at which anything can differ from the reference run."""
        layers = self.model.decomposition.layers
        if self._given is not None or not self._same_context() or not all(x.attention.causal for x in layers):
            return 0
        differs = (self.prompts.clean != self.prompts.corrupted).any(dim=0)
        if self.prompts.corrupted_position_ids is not None:
            differs[:] = True
        first = int(differs.int().argmax()) if bool(differs.any()) else len(differs) - 1
        read = self.prompts.positions
        return min(first, int(read[read >= 0].min()))

    @cached_property
    def clean(self) -> forward.Trace:
        """The plain run on the clean prompts."""
        with torch.no_grad():
            context = full_context(self.model, self.prompts)
            return forward.run(self.model.decomposition, context, self._embedded(self.clean_inputs))

    def adopt_clean(self, trace: forward.Trace) -> None:
        """Use a plain run on the clean prompts that was made elsewhere, instead of making another."""
        self.__dict__["clean"] = trace

    @cached_property
    def corrupted(self) -> forward.Trace:
        """The plain run on the corrupted prompts."""
        with torch.no_grad():
            context = full_context(self.model, self.prompts, corrupted=True)
            return forward.run(
                self.model.decomposition, context, torch.stack(forward.embed(self.model.decomposition, context)).sum(0)
            )

    def _embedded(self, inputs: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(inputs)).sum(0) + self.constant

    @cached_property
    def references(self) -> References:
        """The reference output of every source."""
        B, T = self.prompts.clean.shape
        if self._given is not None:
            return self._given.expanded(B, T)
        context = full_context(self.model, self.prompts, corrupted=True)
        inputs, _ = input_sources(self.graph, forward.embed(self.model.decomposition, context))
        return References(inputs, tuple(self.corrupted.z), tuple(self.corrupted.mlp_output))

    def reference_state(self, *, writable: bool = False) -> State:
        """The state in which every edge carries its reference."""
        if self._given is None and self._same_context():
            return state_of(self.model, self.corrupted, self.start, None, writable=writable)
        references = self.references
        trace = forward.run(
            self.model.decomposition,
            full_context(self.model, self.prompts),
            self._embedded(references.inputs),
            instead=forward.Outputs(references.z, references.mlp),
        )
        return state_of(self.model, trace, self.start, references, writable=writable)

    # ---- running -----------------------------------------------------------------------------------------------

    def logits(
        self, edges: BoolArray | Tensor, *, rows: Tensor | None = None, input_scale: float = 1.0
    ) -> Tensor:
        """Logits of circuits at the read positions.

        Args:
            edges: `[C, n_destinations, n_sources]` (or without C): 1 kept, 0 removed; floats in between carry that
                share of the difference, and a tensor that requires a gradient gets one.
            rows: vocabulary rows `[R]`; None: all.
            input_scale: share of the clean input's difference from the reference (integrated gradients).

        Returns:
            `[C, B, P, R]`.
        """
        weights = torch.as_tensor(np.array(edges) if isinstance(edges, np.ndarray) else edges, device=self.model.device)
        weights = (weights if weights.dim() == 3 else weights[None]).to(self.model.dtype)
        valid = torch.as_tensor(self.graph.valid, device=weights.device)
        weights = weights * valid
        if self.direction == "denoise":
            weights = valid.to(weights.dtype) - weights
        weights = weights[:, torch.as_tensor(self.graph.port_destination, device=weights.device)]
        kept = (weights.detach() != 0).any(0).cpu().numpy()
        plan = Plan(weights, kept, source_demand(self.graph, kept, self.coupled, dense=self.context.dense))
        differences = self.input_differences(weights.shape[0], scale=input_scale)
        logits = propagate(self.model, self.graph, self.context, self.state, plan, inputs=differences, rows=rows)
        return logits.expand(weights.shape[0], -1, -1, -1)

    def input_differences(self, circuits: int, *, scale: float = 1.0) -> list[Tensor]:
        """What the clean input sources write beyond their reference, each `[circuits, B, W, D]`."""
        return [
            scale * (clean - reference)[..., self.start :, :].expand(circuits, -1, -1, -1)
            for clean, reference in zip(self.clean_inputs, self.references.inputs, strict=True)
        ]

    def clean_logits(self, rows: Tensor | None = None) -> Tensor:
        """Logits of the full model at the read positions, `[B, P, R]`."""
        return self._plain_logits(self.clean, rows)

    def corrupted_logits(self, rows: Tensor | None = None) -> Tensor:
        """Logits of the full model on the corrupted prompts, `[B, P, R]`."""
        return self._plain_logits(self.corrupted, rows)

    @torch.no_grad()
    def _plain_logits(self, trace: forward.Trace, rows: Tensor | None) -> Tensor:
        assert trace.final_input is not None
        x = self.context.at_read(trace.final_input[:, :, self.start :])
        return forward.readout(self.model.decomposition, x, rows)[0]
