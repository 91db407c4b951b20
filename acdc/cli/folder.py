"""What `acdc discover` and `acdc cut` write of a circuit: its files, its picture and what it was measured to be."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acdc.cli import terminal

if TYPE_CHECKING:
    from acdc.circuit import Circuit
    from acdc.evaluation.evaluate import Evaluation
    from acdc.graph import BoolArray
    from acdc.tasks.task import Dataset
    from acdc.viz import Drawing


def write_run(
    place: Path,
    circuit: Circuit,
    evaluation: Evaluation,
    data: Dataset,
    *,
    since: float,
    neurons: Mapping[str, BoolArray] | None = None,
) -> tuple[Circuit, Drawing, dict[str, Any]]:
    """Write a circuit and its picture, with the true edges and the kept neurons in it where these are known.

    Args:
        since: when the work began, by `time.perf_counter`.

    Returns:
        The circuit with what was measured, the picture, and what was measured.
    """
    from acdc import viz

    truth = None if data.truth is None else data.truth.mask(circuit.graph)
    picture = viz.draw(circuit, place / "circuit.svg", truth=truth, neurons=neurons)
    measured = terminal.plain(dataclasses.asdict(evaluation) | {"seconds": time.perf_counter() - since})
    circuit = dataclasses.replace(circuit, provenance=circuit.provenance.having(measured=measured))
    circuit.write(place)
    return circuit, picture, measured
