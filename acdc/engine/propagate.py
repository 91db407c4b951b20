"""Letting a change travel: recompute only what a change reaches and what reaches the logits.

In a circuit every destination reads its kept edges from the current run and its removed edges from a reference
run (corrupted prompts, zero, mean). Written as differences, destination d reads

    x_d = x_d(state) + Σ_{kept s→d} (A[s] − state[s])

where the *state* is any earlier run whose residual inputs are known. `Patching.logits` starts from the reference
run, where nothing is kept, and lets the clean input in through the kept edges; a search starts from the current
circuit and lets one changed destination out. Both are the one function `propagate`: a loop over stages, each of which
knows how its components are run (`acdc.engine.stage`), and recomputes only those that are reached by a change and
that reach the logits, at the positions where that matters:

- before the first position at which clean and corrupted prompts differ, nothing changes;
- a component all of whose readers read only the metric's positions is computed only there (`acdc.engine.demand`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from acdc.engine.changes import Changes
from acdc.engine.demand import EVERYWHERE, NOWHERE
from acdc.engine.edge_gradients import EdgeGradients
from acdc.engine.stage import Stage, StageState, Written
from acdc.engine.state import Journal, State
from acdc.graph import BoolArray, Graph, IntArray
from acdc.model import forward, passes
from acdc.model.forward import Context
from acdc.model.model import Model

if TYPE_CHECKING:
    from acdc.engine.neurons import Neurons


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `propagate` needs to know of the circuits: the same for every call on the same kept edges.

    Attributes:
        weights: `[C or 1, n_ports, n_sources]` float: 1 kept, 0 removed, in between for learned masks. Or
            `[B, n_ports, n_sources]` for a single circuit with weights of its own on each prompt, or
            `[place, C or 1, n_ports, n_sources]` where they depend on the position.
        kept: `[n_ports, n_sources]` bool: edges that some circuit of the batch keeps.
        demand: `[n_sources]`: where each source's output is needed.
        places: the place of each position of the window `[B, W]`, and of each read position `[B, P]`; None: all have
            the same weights.
        neurons: units inside nodes that are kept; None: all.
        gradients: where backward passes leave those of a single circuit's weights, of each prompt; None: nowhere.
    """

    weights: Tensor
    kept: BoolArray
    demand: IntArray
    places: tuple[Tensor, Tensor] | None = None
    neurons: Neurons | None = None
    gradients: EdgeGradients | None = None


def propagate(
    model: Model,
    graph: Graph,
    context: Context,
    state: State,
    plan: Plan,
    *,
    inputs: Sequence[Tensor] = (),
    seeds: dict[int, Tensor] | None = None,
    from_stage: int = 0,
    rows: Tensor | None = None,
    journal: Journal | None = None,
) -> Tensor:
    """Recompute what changes, and return the logits at the read positions.

    Args:
        inputs: changes of the input sources, each `[C or 1, B, W, D]`.
        seeds: changes of single ports' residual inputs by port index, `[C, B, W or P, D]` (P where the port's
            demand is `AT_READ`).
        from_stage: first stage that can change.
        rows: vocabulary rows `[R]` to compute; None: all.

    Returns:
        `[C, B, P, R]`.
    """
    run = Run(graph, context, state, plan, seeds or {}, journal)
    if inputs:
        run.write(Written(list(range(len(inputs))), torch.stack(list(inputs)), everywhere=True))
    for number, together in groupby(state.stages, key=lambda stage: stage.sublayer.stage):
        if number >= from_stage:
            for written in [change for stage in together for change in stage.rerun(run)]:
                run.write(written)
    last = np.array([graph.n_ports - 1])
    (x,) = run.port_inputs([(last, context.at_read(state.final_x)[None])], read=True)
    if x is None:  # nothing reaches the logits
        x = context.at_read(state.final_x)[None]
    else:
        passes.count(forward=x.shape[1] * x.shape[2])
        if journal is not None:
            journal.write(state.final_x, x[0], read=True)
    return forward.readout(model.decomposition, x[0], rows)


def stage_change(graph: Graph, context: Context, state: State, stage: Stage, seeds: dict[int, Tensor]) -> Tensor:
    """Change of what a stage writes when residual inputs of its ports change.

    Args:
        seeds: changes by port index, `[C, B, W, D]`.

    Returns:
        `[C, B, W, D]`, summed over its components.
    """
    kept = np.zeros((graph.n_ports, graph.n_sources), dtype=bool)
    demand = np.full(graph.n_sources, NOWHERE)
    demand[stage.sublayer.outputs] = EVERYWHERE
    run = Run(graph, context, state, Plan(context.read.new_zeros(0), kept, demand), seeds, None)
    for written in stage.rerun(run):
        run.write(written)
    return run.changes.total()


S = TypeVar("S", bound=StageState)


class Run:
    """One propagation: the changes so far, at every position of the window and at the read positions."""

    def __init__(
        self,
        graph: Graph,
        context: Context,
        state: State,
        plan: Plan,
        seeds: dict[int, Tensor],
        journal: Journal | None,
    ) -> None:
        self.context, self.state = context, state
        self.plan, self.seeds, self.journal = plan, seeds, journal
        most = int((plan.demand > NOWHERE).sum()) + graph.n_inputs
        differentiable, gradients = torch.is_grad_enabled(), plan.gradients
        self.changes = self.changes_at_read = Changes(most, differentiable=differentiable, gradients=gradients)
        if not context.dense:
            self.changes_at_read = Changes(most, differentiable=differentiable, gradients=gradients)

    def of(self, stage: Stage, kind: type[S]) -> S:
        """The state of a stage, which is of a kind that it knows."""
        found = self.state.parts[stage.index]
        assert isinstance(found, kind)
        return found

    def write(self, written: Written) -> None:
        """Note that some sources changed."""
        if written.everywhere:
            self.changes.append(written.sources, written.difference)
            if not self.context.dense:
                self.changes_at_read.append(written.sources, self.context.at_read(written.difference))
        else:
            self.changes_at_read.append(written.sources, written.difference)

    def reaches(self, ports: range) -> bool:
        """Whether any of these ports may read a change."""
        if any(port in ports for port in self.seeds):
            return True
        return bool(self.plan.kept[ports.start : ports.stop, self.changes_at_read.ids].any())

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
            kept = self.plan.kept[every[:, None], changes.ids]
            weights = self.plan.weights[..., index, torch.as_tensor(changes.ids, device=device)]
            if self.plan.places is None:
                mixed = changes.mix(weights, kept, every)
            else:
                mixed = changes.mix_by_place(weights, self.plan.places[1 if read else 0])
        sizes = [len(ports) for ports, _ in parts]
        pieces = [None] * len(parts) if mixed is None else mixed.split(sizes)
        inputs = []
        for (ports, base), x in zip(parts, pieces, strict=True):
            if x is not None:
                x = base + x if torch.is_grad_enabled() else x.add_(base)
            inputs.append(self._with_seeds(ports, base, x))
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
