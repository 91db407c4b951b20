"""How well the true circuits of compiled programs with positions are recovered: by ranking, and by pruning.

    python -m acdc.benchmarks.measuring.positions -o docs/truths/positions.csv

For each program and distribution the truth is derived (`acdc.tasks.programs.positions`), and whether it is the one true
circuit. Prompts are led by pairs that show each true unit, as those of the benchmark are by pairs that show each true
edge. Guided pruning starts from the best by the exact ranking and takes out groups, ACDC tests all units one by one. A
row a program and distribution.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

import numpy as np

import acdc
from acdc.benchmarks.measuring import program_table
from acdc.metrics import roc_auc
from acdc.tasks.programs.inputs import random_pairs
from acdc.tasks.programs.positions import ALIGNED, TruePositions, true_positions
from acdc.tasks.programs.tracr import to_prompts
from acdc.tasks.programs.truth import TrueCircuit
from acdc.tasks.task import Dataset
from acdc.tracing import discover_positions, score_positions

PROMPTS = 32
"""Random pairs behind the witnesses."""
FAITHFULNESS = 1 - 1e-6
"""What pruning keeps: a unit may show in one output of one prompt alone, which is little on average over all."""


@dataclasses.dataclass(frozen=True)
class Recovery:
    """One program and distribution.

    Attributes:
        units, true: edges at positions, and how many of them are true.
        alone, idle, defined: of the truth, as of `TruePositions`.
        auc_…: area under the ROC curve of a ranking; NaN where no unit is true.
        acdc, guided: (true units kept, false ones kept).
    """

    program: str
    distribution: str
    units: int
    true: int
    alone: float
    idle: int
    defined: bool
    auc_exact: float
    auc_eap_ig: float
    acdc: tuple[int, int]
    guided: tuple[int, int]


def recovery(name: str, distribution: str, *, seed: int = 0) -> Recovery:
    """Measure one program on inputs of one length.

    Raises:
        TaskError: there are too few different inputs for any prompts.
    """
    model = acdc.load(name)
    assert model.program is not None
    truth = true_positions(model.program, distribution=distribution, seed=seed)
    graph = model.graph(inputs="split")
    true = truth.mask(graph)
    data = witnessed(
        acdc.tasks.load(name, distribution=distribution, size=8).prepare(model), model, truth, seed=seed
    )
    own = {"by": "position", "graph": graph}
    every = np.broadcast_to(graph.valid, true.shape)
    auc, kept = {}, {}
    for method in ("exact", "eap-ig"):
        scores = score_positions(model, data, method, **own)  # type: ignore[arg-type]
        auc[method] = roc_auc(scores.absolute[every], true[every]) if true.any() else np.nan
    for one_by_one in (True, False):
        try:
            found = discover_positions(
                model, data, method="exact", faithfulness=FAITHFULNESS, runs=10**9, one_by_one=one_by_one,
                **own,  # type: ignore[arg-type]
            ).kept  # fmt: skip
        except acdc.EmptyCircuitError:  # nothing matters
            found = np.zeros_like(true)
        kept[one_by_one] = int((found & true).sum()), int((found & ~true).sum())
    return Recovery(
        name, distribution, true.shape[0] * graph.n_edges, int(true.sum()), truth.alone, truth.idle, truth.defined,
        auc["exact"], auc["eap-ig"], kept[True], kept[False],
    )  # fmt: skip


def witnessed(data: Dataset, model: acdc.Model, truth: TruePositions, *, seed: int = 0) -> Dataset:
    """The task with discovery prompts that show each true unit, and random ones behind them."""
    assert model.program is not None
    assert isinstance(data.truth, TrueCircuit)
    assert data.truth.distribution is not None
    random = random_pairs(
        model.program, PROMPTS, distribution=data.truth.distribution, rng=np.random.default_rng(seed + 2)
    )
    return dataclasses.replace(data, discovery=to_prompts(model.program, truth.witnesses + random), held_out=None)


def _rows(names: list[str]) -> Iterator[Recovery]:
    for name in names:
        for distribution in ALIGNED:
            try:
                yield recovery(name, distribution)
            except acdc.TaskError as error:
                print(f"{name}, {distribution}: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    program_table.main(__doc__, Recovery, _rows)
