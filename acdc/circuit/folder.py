"""A circuit on disk: `circuit.json`, readable by eye and by any program, and `scores.safetensors` beside it.

Both come into place together (`folders`). The JSON holds the digest of the scores: a folder has a circuit if and only
if it has a whole `circuit.json`, and scores that belong to another circuit are noticed.

What a file says twice has to agree, whoever wrote it: the digest it has of itself (from version 1.1), the scores in the
JSON with those beside it, nodes and edges with the graph.

The version is `major.minor`. A file with a newer minor version may have fields that this version doesn't know; they
are ignored. In files of this version or older an unknown field is an error, and so is any other major version.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import safetensors
import safetensors.numpy

from acdc.circuit import Circuit, Provenance, Scores
from acdc.errors import AcdcError, unknown
from acdc.formats.header import graph_from_options, header
from acdc.graph import Graph
from acdc.store.folders import LAST, placed, settle, whole_folder
from acdc.store.reading import complaints, parse_json, read
from acdc.store.writing import write_atomically

NAME = LAST
SCORES = "scores.safetensors"
VERSION = (1, 2)
_DIGESTED_SINCE = 1
"""Minor version from which a file has a digest of itself."""
ARRAYS = ("values", "nodes", "removal", "absolute", "rms")
"""Arrays of `Scores` in scores.safetensors, of which only the first must be there; the last two since version 1.2."""
_LARGEST_HEADER = 100_000
"""Bytes of scores.safetensors beside its numbers."""


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
        sha256: of all other fields, as JSON of ASCII with sorted keys and without spaces.
    """

    format: Literal["acdc-circuit"] = "acdc-circuit"
    version: str = ".".join(map(str, VERSION))
    graph: dict[str, pydantic.JsonValue]
    provenance: Provenance
    nodes: dict[str, float | None]
    edges: dict[str, float | None]
    scores: ScoresFile | None
    sha256: str = ""


def save(circuit: Circuit, folder: str | Path, *, force: bool = False) -> Path:
    """Write a circuit into a folder; see `Circuit.save`."""
    folder = Path(folder)
    settle(folder)
    if placed(folder, NAME).exists() and not force:
        raise AcdcError(f"{str(folder)!r} already holds a circuit: choose another folder, or replace it with force")
    with whole_folder(folder, force=force) as place:
        write(circuit, place)
    return folder


def write(circuit: Circuit, folder: Path) -> None:
    """Write the files of a circuit into a folder that takes its place when all are written (`whole_folder`)."""
    scores, stored, content = circuit.scores, None, b""  # an empty file: there are no scores
    if scores is not None:
        found = {name: getattr(scores, name) for name in ARRAYS}
        tensors = {name: array for name, array in found.items() if array is not None}
        content = safetensors.numpy.save(tensors)
        digest = hashlib.sha256(content).hexdigest()
        stored = ScoresFile(method=scores.method, provenance=scores.provenance, sha256=digest)
    write_atomically(folder / SCORES, content)
    record = CircuitFile(**header(circuit), nodes=_node_scores(circuit), edges=circuit.edge_scores(), scores=stored)
    value = json.loads(record.model_dump_json())
    value["sha256"] = _digest(value)
    write_atomically(folder / NAME, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


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
        if record.scores is not None:
            scores = _scores(record.scores, graph, placed(folder, SCORES))
            circuit = Circuit(graph, circuit.edges, scores, record.provenance)
        _check_agreement(record, circuit)
        return circuit
    except AcdcError as error:
        raise AcdcError(f"{what}: {error}") from None


def _validated(value: Any, what: str) -> CircuitFile:
    """The file's content in its schema, with the rule for newer versions."""
    if not isinstance(value, dict) or value.get("format") != "acdc-circuit":
        raise AcdcError(f'{what} is not a circuit: expected an object with "format": "acdc-circuit"')
    given = value.get("version")
    version = re.fullmatch(r"([0-9]{1,6})\.([0-9]{1,6})", given) if isinstance(given, str) else None
    if version is None or int(version[1]) != VERSION[0]:
        raise AcdcError(
            f"{what} has format version {given!r:.60}; this version of acdc reads {VERSION[0]}.x: try a newer acdc"
        )
    minor = int(version[2])
    if minor >= _DIGESTED_SINCE and "sha256" not in value:
        raise AcdcError(f"{what} is damaged: sha256: field required")
    record = _in_schema(value, minor, what)
    if minor >= _DIGESTED_SINCE and record.sha256 != _digest(value):
        raise AcdcError(f"{what} was changed after it was written (its digest differs): make the circuit again")
    return record


def _digest(value: dict[str, Any]) -> str:
    """SHA-256 of a file's fields but the digest itself, whatever their order and layout."""
    rest = {name: item for name, item in value.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _in_schema(value: dict[str, Any], minor: int, what: str) -> CircuitFile:
    try:
        return CircuitFile.model_validate_json(json.dumps(value), strict=True)
    except pydantic.ValidationError as error:
        extra = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
        if minor > VERSION[1] and extra:
            value = copy.deepcopy(value)
            for location in extra:
                _remove(value, location)
            return _in_schema(value, minor, what)
        raise AcdcError(f"{what} is damaged: {complaints(error)}") from None


def _remove(value: Any, location: tuple[int | str, ...]) -> None:
    for key in location[:-1]:
        value = value[key]
    del value[location[-1]]


def _scores(stored: ScoresFile, graph: Graph, path: Path) -> Scores:
    n_bytes = 8 * (4 * graph.valid.size + graph.n_sources)
    content = read(path, largest=n_bytes + _LARGEST_HEADER)
    if hashlib.sha256(content).hexdigest() != stored.sha256:
        raise AcdcError(f"{SCORES} is damaged, or belongs to another circuit (its digest differs)")
    try:
        tensors = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise AcdcError(f"{SCORES} cannot be read: {error}") from None
    known = "values" in tensors and tensors.keys() <= set(ARRAYS)
    if not known or any(not np.issubdtype(t.dtype, np.floating) for t in tensors.values()):
        raise AcdcError(f"{SCORES}: expected a floating-point tensor 'values', got {sorted(tensors)}")
    rest = {name: tensors.get(name) for name in ARRAYS[1:]}
    return Scores(graph, tensors["values"], stored.method, stored.provenance, **rest)


def _check_agreement(record: CircuitFile, circuit: Circuit) -> None:
    """Refuse a file whose nodes are not those of its edges, or whose scores are not those beside it."""
    _check_scores(record, record.edges, circuit.edge_scores())
    nodes = _node_scores(circuit)
    for name in record.nodes:
        if name not in nodes:
            raise unknown("node of the circuit", name, nodes)
    for name in nodes:
        if name not in record.nodes:
            raise AcdcError(f"node {name!r} is in the circuit by its edges, but not among the nodes")
    _check_scores(record, record.nodes, nodes)


def _check_scores(record: CircuitFile, given: dict[str, float | None], found: dict[str, float | None]) -> None:
    for name, score in given.items():
        if score != found[name]:
            beside = f"and {SCORES} says {found[name]}" if record.scores else "but there are no scores"
            raise AcdcError(f"the score of {name!r} is {score}, {beside}")


def _node_scores(circuit: Circuit) -> dict[str, float | None]:
    """Score of each component of the circuit by name; None where the method gives none."""
    values = None if circuit.scores is None else circuit.scores.nodes
    index = circuit.graph.source_index
    return {
        name: float(values[index[name]]) if values is not None and name in index else None
        for name in circuit.nodes()
    }
