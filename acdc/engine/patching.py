"""The patched forward pass: running circuits of a model on prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from acdc.engine.propagate import Plan, propagate, source_demand
from acdc.engine.references import (
    ABLATIONS,
    References,
    full_context,
    input_sources,
    mean_references,
    zero_references,
)
from acdc.engine.state import State, state_of
from acdc.errors import AcdcError, unknown
from acdc.graph import BoolArray, Graph
from acdc.model import forward
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts
from acdc.tasks.task import Ablation

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
        attends_by_position = self.model.decomposition.attends_by_position
        return same_mask and (prompts.corrupted_position_ids is None or not attends_by_position)

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
        self.__dict__["clean"] = trace.detached()

    @cached_property
    def corrupted(self) -> forward.Trace:
        """The plain run on the corrupted prompts."""
        with torch.no_grad():
            context = full_context(self.model, self.prompts, corrupted=True)
            return forward.run(
                self.model.decomposition,
                context,
                torch.stack(forward.embed(self.model.decomposition, context)).sum(0),
            )

    def _embedded(self, inputs: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(inputs)).sum(0) + self.constant

    @cached_property
    def references(self) -> References:
        """The reference output of every source."""
        if self._given is not None:
            return self._given.of(self.prompts.mask)
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

    def logits(self, edges: BoolArray | Tensor, *, rows: Tensor | None = None, input_scale: float = 1.0) -> Tensor:
        """Logits of circuits at the read positions.

        Args:
            edges: `[C, n_destinations, n_sources]` (or without C): 1 kept, 0 removed; floats in between carry that
                share of the difference, and a tensor that requires a gradient gets one.
            rows: vocabulary rows `[R]`; None: all.
            input_scale: share of the clean input's difference from the reference (integrated gradients).

        Returns:
            `[C, B, P, R]`.
        """
        weights = torch.as_tensor(
            np.array(edges) if isinstance(edges, np.ndarray) else edges, device=self.model.device
        )
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
