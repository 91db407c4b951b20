"""The stages of a graph: what runs each of its sublayers, by the kind of its components."""

from __future__ import annotations

from acdc.engine import attention_stage, mixer_stage, mlp_stage  # noqa: F401 (they say what kinds there are)
from acdc.engine.stage import KINDS, Stage
from acdc.graph import Graph
from acdc.model.model import Model


def stages_of(model: Model, graph: Graph) -> tuple[Stage, ...]:
    """What runs the components of a graph, in execution order; inputs and logits are none's."""
    run = [sublayer for sublayer in graph.sublayers if sublayer.kind in KINDS]
    return tuple(KINDS[sublayer.kind](model, graph, sublayer, i) for i, sublayer in enumerate(run))
