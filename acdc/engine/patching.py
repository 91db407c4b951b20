"""The patched forward pass: running circuits of a model on prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from acdc.engine.attention_stage import take
from acdc.engine.demand import source_demand
from acdc.engine.edge_gradients import EdgeGradients
from acdc.engine.plain_run import embedded, full_context, plain_run
from acdc.engine.propagate import Plan, propagate
from acdc.engine.references import ABLATIONS, References, mean_references, zero_references
from acdc.engine.stages import stages_of
from acdc.engine.state import State, state_of
from acdc.errors import AcdcError, unknown
from acdc.graph import BoolArray, Graph
from acdc.model import forward
from acdc.model.model import Model
from acdc.model.trace import Outputs, Trace
from acdc.tasks.prompts import Prompts
from acdc.tasks.task import Ablation

if TYPE_CHECKING:
    from acdc.engine.neurons import Neurons

Direction = Literal["noise", "denoise"]


class Patching:
    """Runs circuits of one model on one batch of prompts.

    Args:
        graph: whose edges the circuits are made of.
        ablation: what removed edges carry; see `ABLATIONS`.
        direction: "noise" corrupts what is outside the circuit; "denoise" runs the corrupted prompts and restores
            the clean activation on the circuit's edges.
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
        if direction == "denoise" and ablation != "resample":
            raise AcdcError(
                f"denoising runs the corrupted prompts, so it needs ablation 'resample', got {ablation!r}"
            )
        if graph.inputs == "token" and prompts.corrupted_position_ids is not None:
            raise AcdcError('inputs="token" holds positions constant, but the corrupted prompts permute them')
        self.model, self.graph, self.ablation, self.direction = model, graph, ablation, direction
        prompts = prompts.to(model.device)
        self.prompts = prompts.swapped() if direction == "denoise" else prompts
        if references is None and ablation == "optimal":
            raise AcdcError("optimal ablation learns what removed edges carry: give references, or make a Problem")
        if references is None and ablation != "resample":
            references = (
                zero_references(model, graph)
                if ablation == "zero"
                else mean_references(model, graph, self.prompts, per_position=ablation == "mean-position")
            )
        self._given = references
        self.stages = stages_of(model, graph)
        self.coupled = [stage.sublayer for stage in self.stages if stage.coupled]
        with torch.no_grad():
            self.start = self._first_position()
            self.context = full_context(model, self.prompts, start=self.start)
            self.clean_inputs, self.constant = embedded(model, graph, self.prompts)
            self.state = self.reference_state()

    # ---- preparation -------------------------------------------------------------------------------------------

    def _same_context(self) -> bool:
        """Whether clean and corrupted runs differ in their token ids only (as far as attention is concerned)."""
        prompts = self.prompts
        same_mask = prompts.corrupted_mask is None or bool((prompts.corrupted_mask == prompts.mask).all())
        attends_by_position = self.model.decomposition.attends_by_position
        return same_mask and (prompts.corrupted_position_ids is None or not attends_by_position)

    def _first_position(self) -> int:
        """First position at which anything can differ from the reference run."""
        if (
            self._given is not None
            or not self._same_context()
            or not all(attention.causal for attention in self.model.decomposition.attentions)
        ):
            return 0
        differs = (self.prompts.clean != self.prompts.corrupted).any(dim=0)
        if self.prompts.corrupted_position_ids is not None:
            differs[:] = True
        first = int(differs.int().argmax()) if bool(differs.any()) else len(differs) - 1
        read = self.prompts.positions
        return min(first, int(read[read >= 0].min()))

    @cached_property
    def clean(self) -> Trace:
        """The plain run on the clean prompts."""
        with torch.no_grad():
            return plain_run(self.model, self.prompts, x=self._embedded(self.clean_inputs))[1]

    def adopt_clean(self, trace: Trace) -> None:
        """Use a plain run on the clean prompts that was made elsewhere, instead of making another."""
        self.__dict__["clean"] = trace.detached()

    @cached_property
    def corrupted(self) -> Trace:
        """The plain run on the corrupted prompts."""
        with torch.no_grad():
            return plain_run(self.model, self.prompts, corrupted=True)[1]

    def _embedded(self, inputs: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(inputs)).sum(0) + self.constant

    @cached_property
    def references(self) -> References:
        """The reference output of every source."""
        if self._given is not None:
            return self._given.of(self.prompts)
        inputs, _ = embedded(self.model, self.graph, self.prompts, corrupted=True)
        return References(inputs, tuple(stage.output(self.corrupted) for stage in self.stages))

    def reference_state(self, *, writable: bool = False) -> State:
        """The state in which every edge carries its reference."""
        if self._given is None and self._same_context():
            return state_of(self.stages, self.corrupted, self.start, None, writable=writable)
        references = self.references
        written: dict[str, list[Tensor]] = {"attention": [], "mlp": []}
        for place, totals in written.items():
            for layer in range(self.graph.n_layers):
                parts = [
                    stage.total(outputs)
                    for stage, outputs in zip(self.stages, references.outputs, strict=True)
                    if (stage.place, stage.sublayer.layer) == (place, layer)
                ]
                totals.append(torch.stack(parts).sum(0) if len(parts) > 1 else parts[0])
        x = self._embedded(references.inputs)
        _, trace = plain_run(self.model, self.prompts, x=x, instead=Outputs(**written))
        return state_of(self.stages, trace, self.start, references, writable=writable)

    def clean_state(self, *, writable: bool = False) -> State:
        """The state in which every edge is kept."""
        return state_of(self.stages, self.clean, self.start, None, writable=writable)

    @torch.no_grad()
    def source_differences(self, outputs: Sequence[Tensor] | None = None, used: BoolArray | None = None) -> Tensor:
        """R[s] − A[s] of the sources, R their reference and A their output, on the window.

        Args:
            outputs: compact ones of each stage on the window, of a run on the clean inputs; None: of the clean run.
            used: `[n_sources]`, which of them; None: all.

        Returns:
            `[used, B, W, D]`.
        """
        graph, start = self.graph, self.start
        used = np.ones(graph.n_sources, dtype=bool) if used is None else used
        if outputs is None:
            outputs = [stage.output(self.clean)[..., start:, :] for stage in self.stages]
        own = self.clean_inputs
        found = own[0].new_empty(int(used.sum()), *own[0][0, :, start:].shape)
        for i in np.flatnonzero(used[: graph.n_inputs]):
            found[int(used[:i].sum())] = (self.references.inputs[i] - own[i])[0, :, start:]
        for stage, reference, output in zip(self.stages, self.references.outputs, outputs, strict=True):
            place = stage.sublayer.outputs
            which = np.flatnonzero(used[place])
            if len(which):
                difference = take(reference[..., start:, :], which) - take(output, which)
                first = int(used[: place.start].sum())
                found[first : first + len(which)] = stage.write(difference, which)[:, 0]
        return found

    # ---- running -----------------------------------------------------------------------------------------------

    def logits(
        self,
        edges: BoolArray | Tensor,
        *,
        rows: Tensor | None = None,
        input_scale: float = 1.0,
        sparse: bool = False,
        by_prompt: bool = False,
        gradients: EdgeGradients | None = None,
        places: Tensor | None = None,
        neurons: Neurons | None = None,
    ) -> Tensor:
        """Logits of circuits at the read positions.

        Args:
            edges: `[C, n_destinations, n_sources]` (or without C): 1 kept, 0 removed; floats in between carry that
                share of the difference, and a tensor that requires a gradient gets one, at removed edges too.
            rows: vocabulary rows `[R]`; None: all.
            input_scale: share of the clean input's difference from the reference (integrated gradients).
            sparse: where a gradient is wanted, run what some kept edge leads to and no more, as without one: the
                gradient of edges that no circuit keeps is 0 then.
            by_prompt: `edges` is one circuit with shares of its own on each prompt, `[B, …]`.
            gradients: where backward passes from the logits leave the gradients of one circuit's edges, prompt by
                prompt; its own say nothing then.
            places: `[B, T]`, a number for each position: then `edges` is `[C, place, n_destinations, n_sources]` (or
                without C), and what is kept depends on the position at which a destination reads. No gradients.
            neurons: units inside nodes that are kept; None: all. One circuit of edges may be run with C sets of them.

        Returns:
            `[C, B, P, R]`; C is 1 by prompt.
        """
        weights = torch.as_tensor(
            np.array(edges) if isinstance(edges, np.ndarray) else edges, device=self.model.device
        )
        one = 2 if places is None else 3  # dimensions of a circuit
        weights = (weights if weights.dim() > one else weights[None]).to(self.model.dtype)
        valid = torch.as_tensor(self.graph.valid, device=weights.device)
        weights = weights * valid
        if self.direction == "denoise":
            weights = valid.to(weights.dtype) - weights
        weights = weights[..., torch.as_tensor(self.graph.port_destination, device=weights.device), :]
        if places is not None:
            return self._by_place(weights, places, rows, input_scale)
        carries = weights.detach() != 0
        kept = carries.any(0).cpu().numpy()
        if torch.is_grad_enabled() and weights.requires_grad:
            if sparse:
                weights = weights * carries.any(0)
            else:
                kept = np.array(self.graph.to_ports(self.graph.valid))
        if neurons is not None and len(weights) == 1:
            weights = weights.expand(neurons.circuits, -1, -1)
        demand = source_demand(self.graph, kept, self.coupled, dense=self.context.dense)
        plan = Plan(weights, kept, demand, neurons=neurons, gradients=gradients)
        circuits = 1 if by_prompt else len(weights)
        differences = self.input_differences(circuits, scale=input_scale)
        logits = propagate(self.model, self.graph, self.context, self.state, plan, inputs=differences, rows=rows)
        return logits.expand(circuits, -1, -1, -1)

    def _by_place(self, weights: Tensor, places: Tensor, rows: Tensor | None, input_scale: float) -> Tensor:
        """Logits of circuits with weights `[C, place, n_ports, n_sources]`."""
        kept = (weights != 0).flatten(0, 1).any(0).cpu().numpy()
        window = places.to(weights.device)[:, self.start :]
        read = self.context.at_read(window[..., None])[..., 0]
        demand = source_demand(self.graph, kept, self.coupled, dense=self.context.dense)
        plan = Plan(weights.movedim(1, 0), kept, demand, (window, read))
        differences = self.input_differences(len(weights), scale=input_scale)
        logits = propagate(self.model, self.graph, self.context, self.state, plan, inputs=differences, rows=rows)
        return logits.expand(len(weights), -1, -1, -1)

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
    def _plain_logits(self, trace: Trace, rows: Tensor | None) -> Tensor:
        assert trace.final_input is not None
        x = self.context.at_read(trace.final_input[:, :, self.start :])
        return forward.readout(self.model.decomposition, x, rows)[0]
