"""The folders that MIB's circuit track takes: one a task and model, with importances of all edges, or nine circuits.

A folder is called `{task}_{model}` in MIB's own names. Inside is either `importances.json`, or a file for each share of
edges at which MIB judges, that says which edges are in the circuit of at most so many. Both are graph JSON (`mib`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from pathlib import Path

import numpy as np

from acdc.circuit import Circuit, Scores, selection
from acdc.errors import AcdcError, EmptyCircuitError
from acdc.formats import mib
from acdc.graph import BoolArray, Graph, units_of
from acdc.store.reading import read

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Shares of all edges at which MIB judges, the whole model left out."""
_TASKS = {"mcqa": "mcqa", "arc": "arc-easy", "arithmetic": "arithmetic-addition"}
_MODELS = {"gpt2": "gpt2", "llama-3": "llama3", "gemma-2": "gemma2", "qwen2.5": "qwen2.5"}
_IMPORTANCES = "importances"


def folder_name(circuit: Circuit) -> str:
    """`{task}_{model}` in MIB's names where it has any, else in ours."""
    made = circuit.provenance
    task, model = (Path(name).name.lower().replace("_", "-") for name in (made.task, made.model))
    task = task.removesuffix(Path(task).suffix) if Path(task).suffix in (".jsonl", ".json", ".csv") else task
    if not task or not model:
        raise AcdcError("MIB names a folder by task and model, and this circuit does not know them")
    return f"{_TASKS.get(task, task)}_{next((name for part, name in _MODELS.items() if part in model), model)}"


def write_importances(circuit: Circuit) -> dict[str, str]:
    """The scores of all edges, by file."""
    if circuit.scores is None:
        raise AcdcError("MIB's importances are scores, and this circuit has none: export it to mib")
    return {f"{_IMPORTANCES}.json": mib.write(circuit)}


def write_circuits(circuit: Circuit) -> dict[str, str]:
    """The best circuits of at most each share of the edges, by file; empty ones where the best edges do not connect."""
    scores = circuit.scores
    if scores is None:
        raise AcdcError("MIB's nine circuits are cut from scores, and this circuit has none: export it to mib")
    found = {}
    for share in SHARES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # fewer edges than the share are allowed
            edges = _cut(scores, int(share * circuit.graph.n_edges))
        found[f"{share:g}.json"] = mib.write(dataclasses.replace(circuit, edges=edges))
    return found


def _cut(scores: Scores, n: int) -> BoolArray:
    """At most `n` edges: the best, or of scored nodes those between the best."""
    if scores.unit != "edge":
        units = units_of(scores.graph, scores.unit)
        return selection.top_pruned_units(units, units.values_of(scores.sizes()), n)
    with contextlib.suppress(EmptyCircuitError):
        if n:
            return scores.top(n).edges
    return np.zeros_like(scores.graph.valid)


def read_folder(folder: Path, graph: Graph | None = None) -> Circuit:
    """A circuit from such a folder: its importances, or the largest of its circuits, scored by how many hold an edge.

    Raises:
        AcdcError: it holds neither, or circuits of different graphs.
    """
    inside = list(folder.iterdir())
    if len(inside) == 1 and inside[0].is_dir():  # of one task and model
        folder = inside[0]
    for suffix, reader in ((".json", mib.read), (".pt", mib.read_pt)):
        if (path := folder / f"{_IMPORTANCES}{suffix}").is_file():
            return reader(read(path), graph)
    paths = sorted(
        (path for path in folder.iterdir() if path.suffix in (".json", ".pt")), key=lambda path: path.name
    )
    if not paths:
        raise AcdcError(f"{folder} has neither {_IMPORTANCES}.json or .pt nor other circuits of MIB")
    circuits = [mib.read_pt(read(p), graph) if p.suffix == ".pt" else mib.read(read(p), graph) for p in paths]
    largest = max(circuits, key=lambda circuit: circuit.n_edges)
    if len(circuits) > 1:
        name = paths[circuits.index(largest)].name
        warnings.warn(
            f"of the {len(circuits)} circuits in {folder} the largest is taken, {name} of {largest.n_edges:,} edges: "
            "for another, import its file in the format mib (.json) or eap-pt (.pt)",
            stacklevel=3,
        )
    if odd := [p.name for p, circuit in zip(paths, circuits, strict=True) if circuit.graph != largest.graph]:
        raise AcdcError(f"{folder}: {odd[0]} is of another graph than the largest circuit")
    counts = np.sum([circuit.edges for circuit in circuits], axis=0).astype(np.float64)
    return dataclasses.replace(largest, scores=Scores(largest.graph, counts, "", largest.provenance, signs="none"))
