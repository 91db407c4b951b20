"""A circuit on disk: `circuit.json`, readable by eye and by any program, and `scores.safetensors` beside it.

Both come into place together (`folders`). The JSON holds the digest of the scores: a folder has a circuit if and only
if it has a whole `circuit.json`, and scores that belong to another circuit are noticed.

The version is `major.minor`. A file with a newer minor version may have fields that this version doesn't know; they
are ignored. In files of this version or older an unknown field is an error, and so is any other major version.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import safetensors
import safetensors.numpy

from acdc.circuit import Circuit, Provenance, Scores
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.io.files import complaints, parse_json, read
from acdc.io.folders import LAST, placed, whole_folder
from acdc.io.header import graph_from_options, header
from acdc.io.writing import write_atomically

NAME = LAST
SCORES = "scores.safetensors"
VERSION = (1, 0)


class ScoresFile(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Where the scores are, and how to tell that they are these."""

    file: Literal["scores.safetensors"] = "scores.safetensors"
    method: str
    provenance: Provenance
    sha256: str


class CircuitFile(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The schema of `circuit.json`.

    Attributes:
        graph: the options of `Graph`.
        nodes: the circuit's components with their score, null where unknown.
        edges: its edges by name with their score, null where unknown.
        scores: the scores of all edges, null if there are none.
    """

    format: Literal["acdc-circuit"] = "acdc-circuit"
    version: str = ".".join(map(str, VERSION))
    graph: dict[str, pydantic.JsonValue]
    provenance: Provenance
    nodes: dict[str, float | None]
    edges: dict[str, float | None]
    scores: ScoresFile | None


def save(circuit: Circuit, folder: str | Path, *, force: bool = False) -> Path:
    """Write a circuit into a folder; see `Circuit.save`."""
    folder = Path(folder)
    if placed(folder, NAME).exists() and not force:
        raise AcdcError(f"{str(folder)!r} already holds a circuit: choose another folder, or replace it with force")
    with whole_folder(folder, force=force) as place:
        write(circuit, place)
    return folder


def write(circuit: Circuit, folder: Path) -> None:
    """Write the files of a circuit into a folder that takes its place when all are written (`whole_folder`)."""
    scores, stored, content = circuit.scores, None, b""  # an empty file: there are no scores
    if scores is not None:
        tensors = {"values": scores.values} | ({} if scores.nodes is None else {"nodes": scores.nodes})
        content = safetensors.numpy.save(tensors)
        digest = hashlib.sha256(content).hexdigest()
        stored = ScoresFile(method=scores.method, provenance=scores.provenance, sha256=digest)
    write_atomically(folder / SCORES, content)
    record = CircuitFile(**header(circuit), nodes=_node_scores(circuit), edges=circuit.edge_scores(), scores=stored)
    write_atomically(folder / NAME, record.model_dump_json(indent=1) + "\n")


def load(folder: str | Path) -> Circuit:
    """Read a circuit from its folder (or the path of its `circuit.json`); see `Circuit.load`."""
    folder = Path(folder)
    folder = folder.parent if folder.name == NAME else folder
    path = placed(folder, NAME)
    if not path.exists():
        raise AcdcError(
            f"no circuit at {str(folder)!r}: expected a folder with a {NAME}, as Circuit.save writes it"
        )
    record = _validated(parse_json(read(path), repr(str(path))), repr(str(path)))
    what = repr(str(path))
    graph = graph_from_options(record.graph, what)
    try:
        circuit = Circuit.from_names(graph, list(record.edges), provenance=record.provenance)
        if record.scores is None:
            return circuit
        scores = _scores(record.scores, graph, placed(folder, SCORES))
        return Circuit(graph, circuit.edges, scores, record.provenance)
    except AcdcError as error:
        raise AcdcError(f"{what}: {error}") from None


def _validated(value: Any, what: str) -> CircuitFile:
    """The file's content in its schema, with the rule for newer versions."""
    if not isinstance(value, dict) or value.get("format") != "acdc-circuit":
        raise AcdcError(f'{what} is not a circuit: expected an object with "format": "acdc-circuit"')
    given = str(value.get("version"))
    major, _, minor = given.partition(".")
    if not (major.isdigit() and minor.isdigit()) or int(major) != VERSION[0]:
        raise AcdcError(
            f"{what} has format version {given!r}; this version of acdc reads {VERSION[0]}.x: try a newer acdc"
        )
    try:
        return CircuitFile.model_validate(value)
    except pydantic.ValidationError as error:
        extra = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
        if int(minor) > VERSION[1] and extra:
            for location in extra:
                _remove(value, location)
            return _validated(value, what)
        raise AcdcError(f"{what} is damaged: {complaints(error)}") from None


def _remove(value: Any, location: tuple[int | str, ...]) -> None:
    for key in location[:-1]:
        value = value[key]
    del value[location[-1]]


def _scores(stored: ScoresFile, graph: Graph, path: Path) -> Scores:
    content = read(path)
    if hashlib.sha256(content).hexdigest() != stored.sha256:
        raise AcdcError(f"{SCORES} is damaged, or belongs to another circuit (its digest differs)")
    try:
        tensors = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise AcdcError(f"{SCORES} cannot be read: {error}") from None
    if "values" not in tensors or any(not np.issubdtype(t.dtype, np.floating) for t in tensors.values()):
        raise AcdcError(f"{SCORES}: expected a floating-point tensor 'values', got {sorted(tensors)}")
    return Scores(graph, tensors["values"], stored.method, stored.provenance, tensors.get("nodes"))


def _node_scores(circuit: Circuit) -> dict[str, float | None]:
    """Score of each component of the circuit by name; None where the method gives none."""
    values = None if circuit.scores is None else circuit.scores.nodes
    index = circuit.graph.source_index
    return {
        name: float(values[index[name]]) if values is not None and name in index else None
        for name in circuit.nodes()
    }
