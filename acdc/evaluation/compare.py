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
from acdc.tasks.repeats import among, new_ones

if TYPE_CHECKING:
    from acdc.model.model import Model
    from acdc.tasks import Task
    from acdc.tasks.prompts import Prompts
    from acdc.tasks.task import Dataset


FEWEST_RANKED = 3
"""Edges of which a rank correlation says something."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two circuits of one graph.

    Attributes:
        first, second: their names.
        jaccard: edges in both over edges in either; 1 if both are empty.
        shared: edges in both; only_first, only_second: names of the others.
        rank_correlation: Spearman's of the two rankings of all edges, or nodes where both are of nodes, each by the
            aggregate that its circuit was chosen by; of a circuit's own edges alone where its scores are of no other,
            as those of a file. None without scores, of fewer than three, or where they do not vary.
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
        ready = [(model, task.prepare(model)) for model, task in map(opened, circuits)]
        found_on = _found_on([data for _, data in ready], circuits)
        columns = []
        for place, (model, whole) in enumerate(ready):
            data, note = _unseen(whole, found_on, place, names)
            notes.extend(note)
            judged = []
            for other, circuit in enumerate(circuits):
                with warnings.catch_warnings():
                    if other != place:  # that it was found on other prompts is what is asked about
                        warnings.simplefilter("ignore", UserWarning)
                    elif data is not whole:
                        warnings.filterwarnings("ignore", message="the held-out prompts of .* differ")
                    judged.append(evaluate(model, data, circuit, random_circuits=0, confidence=None))
            prompts.append(judged[place].prompts if circuits[place].provenance.prompts_sha256 else "given")
            columns.append([float(x.faithfulness) for x in judged])
        faithfulness = tuple(zip(*columns, strict=True))
        if any(data.ablation == "optimal" for _, data in ready):
            notes.append("under optimal ablation each circuit has constants of its own, and its own empty circuit")
    counts = tuple(circuit.n_edges for circuit in circuits)
    return Comparison(tuple(names), counts, tuple(pairs), faithfulness, tuple(notes), tuple(prompts))


def _found_on(datasets: Sequence[Dataset], circuits: Sequence[Circuit]) -> list[Prompts | None]:
    """The prompts that each circuit was found on; None where it does not say, or they are not at hand."""
    return [
        data.discovery if circuit.provenance.prompts_sha256 == prompts_digest(data.discovery) else None
        for data, circuit in zip(datasets, circuits, strict=True)
    ]


def _unseen(
    data: Dataset, found_on: Sequence[Prompts | None], place: int, names: Sequence[str]
) -> tuple[Dataset, list[str]]:
    """One's task without the held-out prompts that another circuit was found on, and what to say of such prompts.

    Where no held-out prompt is left, or there are none, all stay.
    """
    judged = data.discovery if data.held_out is None else data.held_out
    others = {i: known for i, known in enumerate(found_on) if known is not None and i != place}
    seen = {i: n for i, known in others.items() if (n := sum(among(judged, known, data.ablation)))}
    if not seen:
        return data, []
    some = ", ".join(f"{names[i]} on {n}" for i, n in seen.items())
    note = f"of the {len(judged)} prompts of {names[place]}'s task circuits were found on some: {some}"
    left = data.held_out
    for i in seen:
        left = None if left is None else new_ones(left, others[i], data.ablation)
    if left is None:
        return data, [note]
    return dataclasses.replace(data, held_out=left), [f"{note}; all are judged on the other {len(left)}"]


def _pair(a: Circuit, b: Circuit, first: str, second: str) -> Pair:
    graph = a.graph
    return Pair(
        first,
        second,
        float(jaccard(a.edges, b.edges)),
        int((a.edges & b.edges).sum()),
        tuple(graph.edge_names(a.edges & ~b.edges)),
        tuple(graph.edge_names(b.edges & ~a.edges)),
        _rank_correlation(a, b),
    )


def _rank_correlation(a: Circuit, b: Circuit) -> float | None:
    if a.scores is None or b.scores is None:
        return None
    units = units_of(a.graph, a.scores.unit if a.scores.unit == b.scores.unit else "edge")
    x, y = (units.values_of(circuit.sizes())[units.valid] for circuit in (a, b))
    ranked = np.ones(len(x), dtype=bool)
    for edges, scores, sizes in ((a.edges, a.scores, x), (b.edges, b.scores, y)):
        own = units.of_edges(edges)[units.valid]
        if scores.absolute is None and scores.order is None and not sizes[~own].any():
            ranked &= own  # of a file, which has scores of its own edges alone
    x, y = x[ranked], y[ranked]
    if len(x) < FEWEST_RANKED or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(scipy.stats.spearmanr(x, y).statistic)
