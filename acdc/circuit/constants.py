"""Constants that removed edges carry under optimal ablation, as arrays: one vector for every source of a graph.

They are learned once, on the prompts that a circuit is found on (`acdc.engine.optimal`), and stay with its scores, in
memory and in `scores.safetensors`: whoever judges the circuit, on whatever prompts, uses the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from acdc.errors import AcdcError
from acdc.graph import FloatArray

_PREFIX = "constants."


@dataclasses.dataclass(frozen=True, eq=False)
class Constants:
    """What the sources of a graph are replaced by.

    Attributes:
        inputs: of each input source `[d_model]`.
        outputs: of each stage's components in execution order `[component, X]`, as compact as the engine keeps them
            (a head's attention result of `d_head` numbers, what an MLP writes).

    Raises:
        AcdcError: NaN or infinity, or arrays of other dimensions.
    """

    inputs: tuple[FloatArray, ...]
    outputs: tuple[FloatArray, ...]

    def __post_init__(self) -> None:
        for name, n in (("inputs", 1), ("outputs", 2)):
            for array in getattr(self, name):
                if array.ndim != n or not np.isfinite(array).all():
                    raise AcdcError(f"constants of optimal ablation: expected {name} of {n} dimensions, all finite")

    def arrays(self) -> dict[str, FloatArray]:
        """By the names that they have in a file."""
        return {
            f"{_PREFIX}{kind}.{i}": array
            for kind in ("inputs", "outputs")
            for i, array in enumerate(getattr(self, kind))
        }


def taken_out(arrays: Mapping[str, Any]) -> tuple[dict[str, Any], Constants | None]:
    """A file's other arrays, and the constants among them, if there are any.

    Raises:
        AcdcError: some are missing, or there are others than those of a graph's sources.
    """
    rest = {name: array for name, array in arrays.items() if not name.startswith(_PREFIX)}
    kinds: dict[str, list[FloatArray]] = {"inputs": [], "outputs": []}
    for kind, found in kinds.items():
        while (name := f"{_PREFIX}{kind}.{len(found)}") in arrays:
            found.append(np.asarray(arrays[name], dtype=np.float64))
    if sum(map(len, kinds.values())) != len(arrays) - len(rest):
        raise AcdcError("the constants of optimal ablation are incomplete: expected inputs.0 …, outputs.0 …")
    if len(rest) == len(arrays):
        return rest, None
    return rest, Constants(tuple(kinds["inputs"]), tuple(kinds["outputs"]))
