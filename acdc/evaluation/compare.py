"""Circuits beside each other: the edges they share, whether they rank alike, what each is worth on the other's task."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.stats

from acdc.circuit import Circuit
from acdc.engine.belonging import prompts_digest
from acdc.errors import AcdcError
from acdc.evaluation.evaluate import evaluate
from acdc.graph import units_of
from acdc.metrics import jaccard
from acdc.tasks.repeats import among

if TYPE_CHECKING:
    from acdc.model.model import Model
    from acdc.tasks import Task
    from acdc.tasks.task import Dataset


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two circuits of one graph.

    Attributes:
        first, second: their names.
        jaccard: edges in both over edges in either; 1 if both are empty.
        shared: edges in both; only_first, only_second: names of the others.
        rank_correlation: Spearman's of the two rankings of all edges, or nodes where both are of nodes; None without
            scores, or where they do not vary.
    """

    first: str
    second: str
    jaccard: float
    shared: int
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    rank_correlation: float | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several circuits of one graph.

    Attributes:
        names: of the circuits; edges: how many each keeps.
        pairs: each with each.
        faithfulness: `[circuit][task]` of each circuit on the prompts of each one's task, in that one's model; None if
            nothing was run. NaN where it is undefined.
        notes: what a reader must know.
        prompts: of each task: "held-out", "discovery" (those its circuit was found on), "other", or "given" where
            the circuit does not say on which it was found.
    """

    names: tuple[str, ...]
    edges: tuple[int, ...]
    pairs: tuple[Pair, ...]
    faithfulness: tuple[tuple[float, ...], ...] | None
    notes: tuple[str, ...]
    prompts: tuple[str, ...] = ()


Opener = Callable[[Circuit], "tuple[Model, Task]"]
"""The model and the task that a circuit was found with."""


def compare(circuits: Sequence[Circuit], names: Sequence[str], *, opened: Opener | None = None) -> Comparison:
    """Compare circuits, each with each.

    Args:
        names: of the circuits, for people.
        opened: gives the model and the task of each, to judge all on each one's; None: nothing is run.

    Raises:
        AcdcError: fewer than two, names that are not one for each, or circuits of different graphs.
    """
    if len(circuits) < 2:
        raise AcdcError(f"expected two circuits or more to compare, got {len(circuits)}")
    if len(names) != len(circuits) or len(set(names)) < len(names):
        raise AcdcError(f"expected a name of its own for each of {len(circuits)} circuits, got {', '.join(names)}")
    for name, circuit in zip(names, circuits, strict=True):
        if circuit.graph != circuits[0].graph:
            apart = circuit.graph.unlike(circuits[0].graph)
            raise AcdcError(
                f"{name} is of another graph than {names[0]} ({apart}): only edges of one can be compared"
            )
    n = len(circuits)
    pairs = [_pair(circuits[i], circuits[j], names[i], names[j]) for i in range(n) for j in range(i + 1, n)]
    notes = []
    units = {circuit.unit for circuit in circuits}
    if len(units) > 1:
        notes.append("some circuits are of nodes, with all their edges, and some of single edges")
    hashes = {circuit.provenance.config_hash for circuit in circuits}
    if len(hashes) > 1:
        notes.append("the circuits were found in different models; each is judged in that of the task it is run on")
    faithfulness = None
    prompts: list[str] = []
    if opened is not None:
        columns, datasets = [], []
        for place, own in enumerate(circuits):
            model, task = opened(own)
            data = task.prepare(model)
            datasets.append(data)
            judged = []
            for other, circuit in enumerate(circuits):
                with warnings.catch_warnings():
                    if other != place:  # that it was found on other prompts is what is asked about
                        warnings.simplefilter("ignore", UserWarning)
                    judged.append(evaluate(model, data, circuit, random_circuits=0, confidence=None))
            prompts.append(judged[place].prompts if own.provenance.prompts_sha256 else "given")
            columns.append([float(x.faithfulness) for x in judged])
        faithfulness = tuple(zip(*columns, strict=True))
        notes.extend(_seen(datasets, circuits, names))
    counts = tuple(circuit.n_edges for circuit in circuits)
    return Comparison(tuple(names), counts, tuple(pairs), faithfulness, tuple(notes), tuple(prompts))


def _seen(datasets: Sequence[Dataset], circuits: Sequence[Circuit], names: Sequence[str]) -> list[str]:
    """What to say of prompts of one's task that another circuit was found on: it is not judged on new ones there.

    Of a circuit that does not say on which prompts it was found, or not on those that are at hand, nothing is known.
    """
    notes = []
    found_on = [
        data.discovery if circuit.provenance.prompts_sha256 == prompts_digest(data.discovery) else None
        for data, circuit in zip(datasets, circuits, strict=True)
    ]
    for place, data in enumerate(datasets):
        prompts = data.discovery if data.held_out is None else data.held_out
        seen = [0 if other is None else sum(among(prompts, other, data.ablation)) for other in found_on]
        some = ", ".join(f"{names[i]} on {n}" for i, n in enumerate(seen) if n and i != place)
        if some:
            notes.append(
                f"of the {len(prompts)} prompts of {names[place]}'s task circuits were found on some: {some}"
            )
    return notes


def _pair(a: Circuit, b: Circuit, first: str, second: str) -> Pair:
    graph, rho = a.graph, None
    if a.scores is not None and b.scores is not None:
        units = units_of(graph, a.scores.unit if a.scores.unit == b.scores.unit else "edge")
        x, y = (units.values_of(c.scores.sizes())[units.valid] for c in (a, b) if c.scores is not None)
        if np.ptp(x) > 0 and np.ptp(y) > 0:
            rho = float(scipy.stats.spearmanr(x, y).statistic)
    return Pair(
        first,
        second,
        float(jaccard(a.edges, b.edges)),
        int((a.edges & b.edges).sum()),
        tuple(graph.edge_names(a.edges & ~b.edges)),
        tuple(graph.edge_names(b.edges & ~a.edges)),
        rho,
    )
