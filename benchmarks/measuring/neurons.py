"""How well the true neurons of compiled programs are recovered: by ranking, and by pruning inside the true circuit.

    python -m acdc.benchmarks.measuring.neurons -o docs/truths/neurons.csv

For each program the truth is derived (`acdc.tasks.programs.neurons`), and that it is enough alone is checked on pairs
that it was not derived on. Prompts are led by pairs that show each true neuron, as those of the benchmark are by pairs
that show each true edge. A row a program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

import acdc
from acdc.benchmarks.measuring import program_table
from acdc.graph import BoolArray
from acdc.metrics import roc_auc
from acdc.neurons import NeuronCircuit, discover_neurons, score_neurons
from acdc.tasks.programs.inputs import random_pairs
from acdc.tasks.programs.neurons import TrueNeurons, keeping_alone, true_neurons
from acdc.tasks.programs.tracr import to_prompts
from acdc.tasks.task import Dataset

PROMPTS = 32
"""Random pairs behind the witnesses."""
FRESH = 300
"""Pairs on which the truth alone has to give every output."""
FAITHFULNESS = 1 - 1e-6
"""What pruning keeps: a neuron may show in one output of one prompt alone, which is little on average over all."""


@dataclasses.dataclass(frozen=True)
class Recovery:
    """One program.

    Attributes:
        neurons, true: hidden units, and how many of them are true.
        alone: how far an output moves, at most, with no neuron but the true ones.
        auc_…: area under the ROC curve of a ranking.
        one_by_one, groups: pruning from all neurons one by one, and in groups: (true ones kept, false ones kept).
        groups_alone: as `alone`, with those kept by pruning in groups.
    """

    program: str
    neurons: int
    true: int
    alone: float
    auc_exact: float
    auc_nap_ig: float
    one_by_one: tuple[int, int]
    groups: tuple[int, int]
    groups_alone: float


def recovery(name: str, *, seed: int = 0) -> Recovery:
    """Measure one program; areas are NaN where all or none of its neurons are true, and nothing is to rank."""
    model, task = acdc.load(name), acdc.tasks.load(name)
    assert model.program is not None
    truth = true_neurons(model.program, seed=seed)
    flat = np.concatenate(truth.kept)
    fresh = random_pairs(model.program, FRESH, distribution="varied", rng=np.random.default_rng(seed + 1))
    data = witnessed(task.prepare(model), model, truth, seed=seed)
    auc = {}
    for method in ("exact", "nap-ig"):
        scores = score_neurons(model, data, method)
        ranked = np.concatenate(list(scores.absolute.values()))
        auc[method] = roc_auc(ranked, flat) if 0 < flat.sum() < len(flat) else float("nan")
    assert data.truth is not None
    circuit = acdc.Circuit(model.graph(), data.truth.mask(model.graph()))
    every = 10 * len(flat) + 100
    kept = {}
    for one_by_one in (True, False):
        try:
            found = discover_neurons(
                model, data, circuit, faithfulness=FAITHFULNESS, runs=every, one_by_one=one_by_one
            )
            kept[one_by_one] = flags(found, truth)
        except acdc.AcdcError:  # no MLP is in the true circuit
            kept[one_by_one] = np.zeros_like(flat)
    parts = tuple(np.split(kept[False], np.cumsum(model.program.program.mlp_widths)[:-1]))
    one, groups = ((int((own & flat).sum()), int((own & ~flat).sum())) for own in (kept[True], kept[False]))
    alone, fewer = (
        float(keeping_alone(model.program, fresh, some, ablation="resample").max()) for some in (truth.kept, parts)
    )
    return Recovery(name, len(flat), int(flat.sum()), alone, auc["exact"], auc["nap-ig"], one, groups, fewer)


def witnessed(data: Dataset, model: acdc.Model, truth: TrueNeurons, *, seed: int = 0) -> Dataset:
    """The task with discovery prompts that show each true neuron, and random ones behind them."""
    assert model.program is not None
    random = random_pairs(model.program, PROMPTS, distribution="varied", rng=np.random.default_rng(seed + 2))
    return dataclasses.replace(data, discovery=to_prompts(model.program, truth.witnesses + random), held_out=None)


def flags(found: NeuronCircuit, truth: TrueNeurons) -> BoolArray:
    """Neurons that stay, of all layers in a row; none in MLPs that the circuit does not keep."""
    mlps = zip(found.circuit.graph.names("mlp"), truth.kept, strict=True)
    return np.concatenate([found.kept.get(mlp, np.zeros(len(units), dtype=bool)) for mlp, units in mlps])


def _rows(names: list[str]) -> Iterator[Recovery]:
    return map(recovery, names)


if __name__ == "__main__":
    program_table.main(__doc__, Recovery, _rows)
