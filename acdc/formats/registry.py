"""The registry of formats that circuits can be exported to and imported from: one record each."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal

from acdc.circuit import Circuit
from acdc.errors import AcdcError, unknown
from acdc.formats import circuit_tracer, dot, mib, mib_submission, networks, table
from acdc.graph import Graph, units_of
from acdc.store.reading import read


@dataclasses.dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        name: as given to `export` and on the command line.
        suffix: of its files.
        description: one line for the list of formats.
        write: `(circuit) -> text`, or `(circuit, roles)` if it has groups; None if circuits can't be written in it.
        read: `(content, graph or None) -> circuit`; None if circuits can't be read from it.
        holds: what it holds of a circuit beside the kept edges and their scores, by the names that `_parts` gives it.
        groups: whether it has groups of components.
    """

    name: str
    suffix: str
    description: str
    write: Callable[..., str] | None
    read: Callable[[bytes, Graph | None], Circuit] | None
    holds: Collection[str]
    groups: bool = False

    def lost(self, circuit: Circuit) -> list[str]:
        """What of a circuit does not come back, in words."""
        way_back = ["the way back: circuits cannot be read from it"] * (self.read is None)
        return way_back + [words for name, words in _parts(circuit).items() if name not in self.holds]


def _parts(circuit: Circuit) -> dict[str, str]:
    """What there is of a circuit beside the kept edges and their scores, in words, by name."""
    graph, scores = circuit.graph, circuit.scores
    found = {"provenance": "the provenance", "graph": "the options of the graph"}
    if circuit.unit != "edge":
        found["unit"] = f"that it is a circuit of {units_of(graph, circuit.unit).plural}"
    if graph.qkv == "split":
        found["ports"] = "which of q, k and v an edge enters (their scores are added up)"
    if scores is None:
        return found
    if circuit.n_edges < graph.n_edges:
        found["other edges"] = "scores of edges that are not kept"
    held = {name: words for name, words in _SCORES.items() if getattr(scores, name) is not None}
    if circuit.unit == "node":
        held.pop("nodes", None)  # they are those of their edges
    return found | held


_SCORES = {
    "nodes": "node scores",
    "absolute": "mean absolute scores",
    "rms": "root mean square scores",
    "removal": "what removing each edge does",
    "order": "the order in which edges went",
    "front": "the front",
    "constants": "what removed edges carry under optimal ablation",
}
"""Arrays of `Scores` beside the values, in words."""

_HEADER = frozenset(("provenance", "graph", "unit", "ports"))

FORMATS: dict[str, Format] = {
    record.name: record
    for record in (
        Format(
            "mib",
            ".json",
            "graph JSON of the EAP and MIB code bases: every edge",
            mib.write,
            mib.read,
            _HEADER | {"other edges", "nodes"},
        ),
        Format("eap-pt", ".pt", "tensor file of the EAP code base: every edge", None, mib.read_pt, ()),
        Format(
            "node-link",
            ".json",
            "node-link JSON (networkx, d3)",
            networks.write_json,
            networks.read_json,
            _HEADER,
        ),
        Format(
            "graphml",
            ".graphml",
            "GraphML (Gephi, yEd)",
            networks.write_graphml,
            networks.read_graphml,
            _HEADER,
        ),
        Format("dot", ".dot", "DOT (Graphviz)", dot.write, None, _HEADER),
        Format(
            "csv",
            ".csv",
            "table source,destination,score,kept: every edge",
            table.write,
            table.read,
            _HEADER | {"other edges"},
        ),
        Format(
            "circuit-tracer",
            ".json",
            "attribution graph JSON (circuit-tracer, Neuronpedia)",
            circuit_tracer.write,
            circuit_tracer.read,
            _HEADER,
            groups=True,
        ),
    )
}
"""All formats by name. Formats that do not hold every edge keep the scores of the kept edges only."""


FOLDERS: dict[str, Callable[[Circuit], dict[str, str]]] = {
    "mib-submission": mib_submission.write_importances,
    "mib-circuits": mib_submission.write_circuits,
}
"""Formats that are a folder of files: `(circuit) -> text by file`."""


def export_folder(circuit: Circuit, format: str) -> tuple[str, dict[str, str]]:
    """The name of a folder, and the texts of its files, in a format of `FOLDERS`.

    Raises:
        AcdcError: the format asks for something that the circuit does not have.
    """
    if format not in FOLDERS:
        raise unknown("format", format, FOLDERS)
    return mib_submission.folder_name(circuit), FOLDERS[format](circuit)


def export(circuit: Circuit, format: str, *, roles: Mapping[str, Collection[str]] | None = None) -> str:
    """The circuit as text in a format of `FORMATS`.

    Args:
        roles: components by what they do (`HeadRoles.groups`), for a format that has groups of them.

    Raises:
        AcdcError: there is no such format to write, or it has no groups.

    Warns:
        UserWarning: the format does not hold all of the circuit; says what is lost.
    """
    record = _format(format, "write")
    if record.write is None:
        raise AcdcError(
            f"circuits can be read from {format!r} but not written to it: {', '.join(_able('write'))} can be"
        )
    if roles is not None and not record.groups:
        able = [other.name for other in FORMATS.values() if other.groups]
        raise AcdcError(f"{format} has no groups of components; {', '.join(able)} has")
    text = record.write(circuit, roles) if record.groups else record.write(circuit)
    if lost := record.lost(circuit):
        warnings.warn(f"the format {format} does not hold {', '.join(lost)}", stacklevel=2)
    return text


def import_circuit(source: str | Path | bytes, format: str, graph: Graph | None = None) -> Circuit:
    """A circuit from a file, or from text, in a format of `FORMATS`.

    Args:
        source: a path, or the content itself (bytes, or a string that cannot be a path: one with a line break, `{`
            or `<`).
        graph: the graph its edges belong to, for files that do not say; otherwise it must agree with the file.

    Raises:
        AcdcError: the file is unreadable, damaged, or of another graph.
    """
    if format in FOLDERS:
        if not isinstance(source, (str, Path)) or not Path(source).is_dir():
            raise AcdcError(f"expected a folder in the format {format}, got {str(source)!r:.80}")
        return mib_submission.read_folder(Path(source), graph)
    record = _format(format, "read")
    if record.read is None:
        raise AcdcError(
            f"circuits can be written to {format!r} but not read from it: load the folder of its run "
            f"(acdc.Circuit.load), or export it to a format that can be read: {', '.join(_both())}"
        )
    if isinstance(source, str) and any(mark in source for mark in "\n{<"):
        return record.read(source.encode("utf-8", "surrogatepass"), graph)
    return record.read(source if isinstance(source, bytes) else read(source), graph)


def _format(name: str, verb: Literal["write", "read"]) -> Format:
    if name not in FORMATS:
        raise unknown("format", name, [*_able(verb), *FOLDERS])
    return FORMATS[name]


def _able(verb: Literal["write", "read"]) -> list[str]:
    """Names of the formats that can be written, or read."""
    return [name for name, record in FORMATS.items() if getattr(record, verb) is not None]


def _both() -> list[str]:
    return [name for name in _able("read") if name in _able("write")]
