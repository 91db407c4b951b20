"""Whole components by exact runs: what the model computes when some heads and MLPs write their references instead.

As long as components go whole, everything that is left reads one and the same residual stream, so a test is a plain
run of the model and not one in which every port has an input of its own, and only from the first layer that changes
on. A few hundred such tests say more about a large model than any ranking of its edges.
"""

from __future__ import annotations

import dataclasses
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from acdc.engine.measure import Measure, Measures
from acdc.engine.shelf import Shelf
from acdc.engine.stage import Stage
from acdc.graph import BoolArray, FloatArray, Graph
from acdc.model import forward, passes
from acdc.model.forward import Context
from acdc.model.trace import after_earlier, mix_after, project_normed


def weak_components_removed(
    measures: Measures, graph: Graph, weakness: FloatArray, allowance: float
) -> list[tuple[BoolArray, float]]:
    """Circuits without ever more of the components that may go whole, and their distances; first the whole model.

    The weakest half of the components goes if the distance rises by no more than their part of the allowance; if not,
    each half of it is tried, and so on down to single ones.

    Args:
        weakness: `[n_sources]`, from the weakest up; inputs stay.
        allowance: what all components together may cost.
    """
    components = Components(measures, graph)
    found = [(graph.valid, components.distance)]
    inner = np.arange(graph.n_inputs, graph.n_sources)
    groups = [inner[np.argsort(weakness[inner], kind="stable")]]
    while groups:
        group = groups.pop()
        fewer = components.kept.copy()
        fewer[group] = False
        rise = components.without(fewer) - components.distance
        if rise <= allowance * len(group) / len(inner):
            components.keep(fewer)
            found.append((graph.edges_from_sources(fewer), components.distance))
        elif len(group) > 1:
            groups += [group[len(group) // 2 :], group[: len(group) // 2]]
    return found


@dataclasses.dataclass
class _Batch:
    """One batch of prompts.

    Attributes:
        inputs: own and reference value of each input source, `[1, B, T, D]`; constant: added to them.
        outputs: references of each stage's components, compact, on the window.
        earlier: of the plain run at the positions before the window, each layer's keys and values; what its mixer
            reads, if it has one.
        streams: residual stream before each layer, `[1, B, W, D]`, in the model without what has gone.
    """

    context: Context
    measure: Measure
    inputs: list[tuple[Tensor, Tensor]]
    constant: Tensor | float
    outputs: list[Tensor]
    earlier: list[tuple[Tensor, ...]]
    streams: list[Tensor]
    tested: list[Tensor] = dataclasses.field(default_factory=list)


class Components:
    """The model without some of its components, and its distance from the whole one.

    Attributes:
        kept: `[n_sources]` components whose output is their own; the others' is their reference.
        distance: mean over the prompts of the metric's distance from the full model.
        tests: runs made.
    """

    def __init__(self, measures: Measures, graph: Graph) -> None:
        self.graph, self._all, batches = graph, measures.batches, measures.batches
        self.kept = np.ones(graph.n_sources, dtype=bool)
        self.tests = 0
        self._batches = Shelf[_Batch](on_disk=batches.offload and len(batches) > 1)
        for patching, measure in measures:
            self._model, self._stages = patching.model.decomposition, patching.stages
            clean, start, references = patching.clean, patching.start, patching.references
            outputs = [x[..., start:, :] for x in references.outputs]
            earlier = [
                tuple(x[..., :start, :].clone() for x in ((k, v) if layer.mixer is None else (read,)))
                for layer, k, v, read in zip(
                    self._model.layers, clean.k, clean.v, clean.attention_input, strict=True
                )
            ]
            streams = [x[..., start:, :].clone() for x in clean.attention_input]
            inputs = list(zip(patching.clean_inputs, references.inputs, strict=True))
            self._batches.add(
                _Batch(patching.context, measure, inputs, patching.constant, outputs, earlier, streams)
            )
        self.distance = 0.0  # of the whole model
        self._tested: tuple[BoolArray, float, int] | None = None

    def without(self, kept: BoolArray) -> float:
        """Distance from the full model if these components `[n_sources]` alone are kept."""
        changed = np.flatnonzero(kept != self.kept)
        layer = max(0, int(self.graph.source_layer[changed].min())) if len(changed) else self.graph.n_layers - 1
        found = []
        for batch in self._batches:
            distance, batch.tested = self._run(batch, kept, layer)
            found.append(distance)
        self.tests += 1
        self._tested = (kept.copy(), float(self._all.together(found).mean()), layer)
        return self._tested[1]

    def keep(self, kept: BoolArray) -> None:
        """Make the model that was tested last, which kept these components, the one to go on from."""
        assert self._tested is not None
        assert (self._tested[0] == kept).all()
        self.kept, self.distance, layer = self._tested
        for batch in self._batches:
            batch.streams[layer:] = batch.tested

    @torch.no_grad()
    def _run(self, batch: _Batch, kept: BoolArray, first: int) -> tuple[Tensor, list[Tensor]]:
        """Distance `[1, B]`, and the residual stream before each layer from `first` on."""
        context, streams = batch.context, list[Tensor]()
        x = batch.streams[first]
        if not first:
            pairs = zip(kept, batch.inputs, strict=False)
            chosen = [own if is_kept else reference.expand_as(own) for is_kept, (own, reference) in pairs]
            x = (torch.stack(chosen).sum(0) + batch.constant)[:, :, context.start :]
        passes.count(forward=x.shape[1])
        for _, together in groupby(self._stages, key=lambda stage: stage.sublayer.stage):
            written = x
            for stage in together:
                layer = stage.sublayer.layer
                if layer >= first:
                    if stage.place == "attention":
                        streams.append(x)
                    written = written + stage.total(self._outputs(batch, stage, x, kept))
            x = written
        logits = forward.readout(self._model, context.at_read(x), batch.measure.rows)
        return batch.measure.distance(logits), streams

    def _outputs(self, batch: _Batch, stage: Stage, x: Tensor, kept: BoolArray) -> Tensor:
        """Compact outputs of a stage that reads the stream `x`, the references' for what has gone."""
        components, reference = kept[stage.sublayer.outputs], batch.outputs[stage.index]
        if not components.any():
            return reference
        if stage.place == "mlp":
            own = forward.mlp(stage.layer, x)[None]
        elif stage.layer.mixer is None:
            own = self._heads(batch, stage, x)
        else:
            (read,) = batch.earlier[stage.sublayer.layer]
            own = mix_after(stage.layer, read, x, batch.context)[None]
        return torch.where(torch.as_tensor(components, device=x.device)[:, None, None, None, None], own, reference)

    def _heads(self, batch: _Batch, stage: Stage, x: Tensor) -> Tensor:
        """Attention results of all heads of a layer: `[H, 1, B, W, d_head]`."""
        attention, context = stage.layer.attention, batch.context
        normed = (x if attention.norm is None else attention.norm.module(x))[None]
        q, k, v = (project_normed(attention, port, normed, context) for port in "qkv")
        k, v = (
            after_earlier(earlier, new, context.start)
            for earlier, new in zip(batch.earlier[stage.sublayer.layer], (k, v), strict=True)
        )
        k, v = forward.per_head(attention, k), forward.per_head(attention, v)
        return forward.scaled_by_post_norm(attention, forward.attend(attention, q, k, v, context))
