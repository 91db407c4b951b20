"""A circuit on disk: `circuit.json`, readable by eye and by any program, and `scores.safetensors` beside it.

What is written and read here are names, numbers and arrays (`Saved`); `Circuit.save` and `Circuit.load` make them of a
circuit, and a circuit of them.

Both come into place together (`folders`). The JSON holds the digest of the scores: a folder has a circuit if and only
if it has a whole `circuit.json`, and scores that belong to another circuit are noticed.

What a file says twice has to agree, whoever wrote it: the digest it has of itself (from version 1.1), the scores in the
JSON with those beside it, nodes and edges with the graph.

The version is `major.minor`. A file with a newer minor version may have fields that this version doesn't know; they
are ignored. In files of this version or older an unknown field is an error, and so is any other major version.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import safetensors
import safetensors.numpy

from acdc.circuit.constants import taken_out
from acdc.circuit.provenance import Provenance
from acdc.errors import AcdcError, check_path, unknown
from acdc.graph import FloatArray, Graph, Unit
from acdc.store.folders import LAST, placed, settle, whole_folder
from acdc.store.reading import complaints, parse_json, read
from acdc.store.writing import fields_digest, write_atomically

NAME = LAST
SCORES = "scores.safetensors"
VERSION = (1, 3)
_DIGESTED_SINCE = 1
"""Minor version from which a file has a digest of itself."""
ARRAYS = ("values", "nodes", "removal", "absolute", "rms", "order", "front")
"""Arrays of `Scores` in scores.safetensors, of which only the first must be there; the last two since version 1.3, as
the constants of optimal ablation beside them (`constants`)."""
SignsAre = Literal["measured", "estimated", "none"]
"""What the signs of scores are: measured by removing each edge from the full model, a first-order estimate of that, or
nothing that says whether an edge helps."""
_GRAPH = pydantic.TypeAdapter(Graph)
_LARGEST = 2**30
"""Bytes of the mask of edges of the largest graph that is read; one of 126 layers with 128 heads takes 0.8e9."""
_WIDEST = 2**20
"""Largest d_model that is believed."""
_LARGEST_HEADER = 100_000
"""Bytes of scores.safetensors beside its numbers."""


class ScoresFile(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Where the scores are, how to tell that they are these, and what their signs are (null in older files)."""

    file: Literal["scores.safetensors"] = "scores.safetensors"
    method: str
    provenance: Provenance
    signs: SignsAre | None = None
    sha256: str


class CircuitFile(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The schema of `circuit.json`.

    Attributes:
        graph: the options of `Graph`.
        nodes: the circuit's components with their score, null where unknown.
        units: what one switch of it is, "edge" or "node"; since version 1.3, edges in older files.
        edges: its edges by name with their score, null where unknown.
        scores: the scores of all edges, null if there are none.
        sha256: of all other fields, as JSON of ASCII with sorted keys and without spaces.
    """

    format: Literal["acdc-circuit"] = "acdc-circuit"
    version: str = ".".join(map(str, VERSION))
    graph: dict[str, pydantic.JsonValue]
    provenance: Provenance
    units: Unit = "edge"
    nodes: dict[str, float | None]
    edges: dict[str, float | None]
    scores: ScoresFile | None
    sha256: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Saved:
    """What the files of a circuit hold.

    Attributes:
        nodes, edges: score of each that is in the circuit by name, None where unknown.
        arrays: those of `Scores` by name (`ARRAYS`); empty: there are no scores.
        method, scores_provenance: of the scores.
        what: the file it was read from, for messages.
        unit: what one switch of it is.
        signs: of the scores.
    """

    graph: Graph
    provenance: Provenance
    nodes: Mapping[str, float | None]
    edges: Mapping[str, float | None]
    arrays: Mapping[str, FloatArray] = dataclasses.field(default_factory=dict)
    method: str = ""
    scores_provenance: Provenance = dataclasses.field(default_factory=Provenance)
    what: str = ""
    unit: Unit = "edge"
    signs: SignsAre | None = None

    def check(self, nodes: Mapping[str, float | None], edges: Mapping[str, float | None]) -> None:
        """Refuse a file that says otherwise than the circuit that was made of it, which has these nodes and edges.

        Raises:
            AcdcError: its nodes are not those of its edges, or its scores not those beside it.
        """
        self._check_scores(self.edges, edges)
        for name in self.nodes:
            if name not in nodes:
                raise unknown("node of the circuit", name, nodes)
        for name in nodes:
            if name not in self.nodes:
                raise AcdcError(f"node {name!r} is in the circuit by its edges, but not among the nodes")
        self._check_scores(self.nodes, nodes)

    def _check_scores(self, given: Mapping[str, float | None], found: Mapping[str, float | None]) -> None:
        for name, score in given.items():
            if score != found[name]:
                beside = f"and {SCORES} says {found[name]}" if self.arrays else "but there are no scores"
                raise AcdcError(f"the score of {name!r} is {score}, {beside}")


def header(graph: Graph, provenance: Provenance, unit: Unit) -> dict[str, Any]:
    """Graph options, provenance and unit as plain JSON values."""
    options = dataclasses.asdict(graph) | {"mixers": list(graph.mixers)}
    if not graph.mixers:
        del options["mixers"]  # as in files of models that have none
    return {"graph": options, "provenance": provenance.model_dump(mode="json"), "units": unit}


def graph_from_options(options: Any, what: str) -> Graph:
    """The graph that a file describes."""
    known = {field.name for field in dataclasses.fields(Graph)}
    if not isinstance(options, dict) or options.keys() - known:
        odd = sorted(options.keys() - known) if isinstance(options, dict) else options
        raise AcdcError(f"{what}: expected graph options out of {', '.join(sorted(known))}, got {odd!r:.80}")
    layers: Any = options.get("n_layers")
    heads: Any = options.get("n_heads")
    if isinstance(layers, int) and isinstance(heads, int):
        layers, heads = min(layers, 10**9), min(heads, 10**9)  # longer numbers have no short form
        n_bytes = 3 * (layers * (heads + 1)) ** 2
        if min(layers, heads) > 0 and n_bytes > _LARGEST:
            raise AcdcError(
                f"{what}: a graph of {layers:.2g} layers with {heads:.2g} heads is too large to be true: the mask "
                f"of its edges alone would have {n_bytes:.2g} bytes, and at most {_LARGEST:,} are read"
            )
    try:
        return _GRAPH.validate_json(json.dumps(options), strict=True)
    except AcdcError as error:
        raise AcdcError(f"{what}: {error}") from None
    except pydantic.ValidationError as error:
        raise AcdcError(f"{what}: the graph options are wrong: {complaints(error)}") from None


def save(saved: Saved, folder: str | Path, *, force: bool = False) -> Path:
    """Write a circuit into a folder; see `Circuit.save`."""
    check_path(folder)
    folder = Path(folder)
    settle(folder)
    if placed(folder, NAME).exists() and not force:
        raise AcdcError(
            f"{str(folder)!r} already holds a circuit: choose another folder, or replace it with force (--force)"
        )
    with whole_folder(folder, force=force) as place:
        write(saved, place)
    return folder


def write(saved: Saved, folder: Path) -> None:
    """Write the files of a circuit into a folder that takes its place when all are written (`whole_folder`)."""
    stored, content = None, b""  # an empty file: there are no scores
    if saved.arrays:
        content = safetensors.numpy.save(dict(saved.arrays))
        digest = hashlib.sha256(content).hexdigest()
        stored = ScoresFile(
            method=saved.method, provenance=saved.scores_provenance, signs=saved.signs, sha256=digest
        )
    write_atomically(folder / SCORES, content)
    fields = header(saved.graph, saved.provenance, saved.unit)
    record = CircuitFile(**fields, nodes=dict(saved.nodes), edges=dict(saved.edges), scores=stored)
    value = json.loads(record.model_dump_json())
    value["sha256"] = fields_digest(value)
    write_atomically(folder / NAME, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def load(folder: str | Path) -> Saved:
    """Read a circuit from its folder (or the path of its `circuit.json`); see `Circuit.load`."""
    check_path(folder)
    folder = Path(folder)
    folder = folder.parent if folder.name == NAME else folder
    path = placed(folder, NAME)
    if not path.exists():
        raise AcdcError(
            f"no circuit at {str(folder)!r}: expected a folder with a {NAME}, as Circuit.save writes it"
            + _inside(folder)
        )
    what = repr(str(path))
    record = _validated(parse_json(read(path), what), what)
    graph = graph_from_options(record.graph, what)
    known = record.provenance, record.nodes, record.edges
    if record.scores is None:
        return Saved(graph, *known, what=what, unit=record.units)
    try:
        width = record.provenance.d_model or 0
        arrays = _arrays(record.scores, graph, placed(folder, SCORES), width=width)
    except AcdcError as error:
        raise AcdcError(f"{what}: {error}") from None
    made = record.scores
    return Saved(graph, *known, arrays, made.method, made.provenance, what, record.units, made.signs)


def _inside(folder: Path) -> str:
    """The runs in a folder that is none itself, for whoever meant one of them."""
    try:
        runs = sorted(path.parent.name for path in folder.glob(f"*/{NAME}"))
    except OSError:
        return ""
    more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
    return f"; there are some in it: {', '.join(runs[:3])}{more}" if runs else ""


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
    if minor >= _DIGESTED_SINCE and record.sha256 != fields_digest(value):
        raise AcdcError(f"{what} was changed after it was written (its digest differs): make the circuit again")
    return record


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


def _arrays(stored: ScoresFile, graph: Graph, path: Path, *, width: int) -> dict[str, FloatArray]:
    constants = graph.n_sources * min(max(0, width), _WIDEST)
    n_bytes = 8 * (7 * graph.valid.size + graph.n_sources + constants)
    content = read(path, largest=n_bytes + _LARGEST_HEADER)
    if hashlib.sha256(content).hexdigest() != stored.sha256:
        raise AcdcError(f"{SCORES} is damaged, or belongs to another circuit (its digest differs)")
    try:
        tensors = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise AcdcError(f"{SCORES} cannot be read: {error}") from None
    known = "values" in tensors and taken_out(tensors)[0].keys() <= set(ARRAYS)
    if not known or any(not np.issubdtype(t.dtype, np.floating) for t in tensors.values()):
        raise AcdcError(f"{SCORES}: expected a floating-point tensor 'values', got {sorted(tensors)}")
    return tensors
