"""The true circuit of a Tracr model with positions, derived from single replacements as its true edges are.

A unit, an edge at a position, belongs to the truth exactly if giving its destination, there alone, what the source
writes on another input can change an output. That takes inputs whose positions correspond: of one length. These
units are *the* true circuit where they are enough alone, and from among them neither a unit can go nor an edge at all
its positions. Elsewhere there is no one true circuit of this grain: where a program does something twice, neither of
which matters alone; and where positions make up for each other, as keys that are permuted among themselves do.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool

from acdc.errors import unknown
from acdc.graph import BoolArray, Graph
from acdc.model.programs.tracr import TracrModel
from acdc.tasks.programs.derive import (
    TOLERANCE,
    circuit_outputs,
    covering,
    edge_effects,
    read_positions,
    structural_edges,
)
from acdc.tasks.programs.inputs import Pairs, random_pairs
from acdc.tasks.programs.rare_inputs import seen_to_act
from acdc.tasks.programs.truth import carried_over

ALIGNED = ("fixed", "permuted")
"""Distributions in which clean and corrupted inputs have one length."""
FRESH = 300
"""Pairs on which the units have to be enough alone."""


@dataclasses.dataclass(frozen=True)
class TruePositions:
    """Units that matter, and inputs that show it.

    Attributes:
        kept: `[position, n_destinations, n_sources]` of the finest graph, positions counted from the first token (BOS).
        witnesses: few pairs that together show each unit to matter, in the whole model and among the true ones.
        alone: how far an output moves, at most, with no unit but these, on pairs that they were not derived on.
        idle: how many of them, and of their edges at all positions, can go, each alone, from among them.
    """

    kept: Bool[BoolArray, "position destination source"]
    witnesses: Pairs
    alone: float
    idle: int

    @property
    def defined(self) -> bool:
        """Whether these units are the one true circuit."""
        return self.alone <= TOLERANCE and not self.idle

    def mask(self, graph: Graph) -> Bool[BoolArray, "position destination source"]:
        """The units in any graph of the model; raises as `TrueCircuit.mask`."""
        return np.stack([carried_over(fine, graph) for fine in self.kept])


def true_positions(
    model: TracrModel, *, ablation: str = "resample", distribution: str = "fixed", seed: int = 0
) -> TruePositions:
    """Derive the truth for an ablation ("resample" or "zero") and a distribution of inputs of one length.

    Pairs are added until as many again show no new unit.

    Raises:
        AcdcError: inputs of the distribution differ in length.
    """
    if distribution not in ALIGNED:
        raise unknown("distribution of inputs whose positions correspond", distribution, ALIGNED)
    rng = np.random.default_rng(seed)
    pairs, effects = seen_to_act(
        model, lambda some: unit_effects(model, some, ablation=ablation), distribution=distribution, rng=rng
    )
    kept = effects.max(-1) > TOLERANCE
    within = effects_within(model, pairs, kept, ablation=ablation)
    fresh = random_pairs(model, FRESH, distribution=distribution, rng=rng)
    chosen = covering(np.concatenate((effects[kept], within[within.max(-1) > TOLERANCE])))
    return TruePositions(
        kept=kept,
        witnesses=pairs[torch.tensor(chosen, dtype=torch.long)],
        alone=float(_moved(model, fresh, kept, ablation=ablation).max()),
        idle=int((within.max(-1) <= TOLERANCE).sum()),
    )


def unit_effects(model: TracrModel, pairs: Pairs, *, ablation: str) -> npt.NDArray[np.float64]:
    """`[position, n_destinations, n_sources, pair]`: how far replacing each unit alone moves an output."""
    some = structural_edges(model)
    every = range(pairs.clean.shape[1])
    return np.stack([edge_effects(model, pairs, ablation=ablation, only=some, position=p).numpy() for p in every])


def effects_within(model: TracrModel, pairs: Pairs, kept: BoolArray, *, ablation: str) -> npt.NDArray[np.float64]:
    """`[kept unit or edge, pair]`: how far an output moves with all kept units but one, or but those of one edge."""
    units, edges = np.argwhere(kept), np.argwhere(kept.any(0))
    every = []
    for where in (*((slice(p, p + 1), d, s) for p, d, s in units), *((slice(None), d, s) for d, s in edges)):
        without = kept.copy()
        without[where] = False
        every.append(_moved(model, pairs, without, ablation=ablation))
    return np.stack(every) if every else np.zeros((0, len(pairs)))


def _moved(model: TracrModel, pairs: Pairs, kept: BoolArray, *, ablation: str) -> npt.NDArray[np.float64]:
    """`[pair]`: how far outputs are from the model's own with these units alone."""
    full, circuit = circuit_outputs(model, pairs, kept, ablation=ablation)
    ignored = ~read_positions(model, pairs.clean_mask)
    moved: npt.NDArray[np.float64] = (full - circuit).abs().amax(-1).masked_fill(ignored, 0).amax(-1).numpy()
    return moved
