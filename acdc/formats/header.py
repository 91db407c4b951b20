"""What every format says about a circuit besides its edges: the options of its graph, its provenance, and its unit.

Formats of our own hold it as `{"graph": …, "provenance": …, "units": …, "scored": …, "signs": …}`; the last two say
whether there were scores and what their signs are. In peers' formats it travels in a field that they ignore, so that a
circuit that comes back is complete.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, get_args

import pydantic

from acdc.circuit import Circuit, Provenance, folder
from acdc.circuit.folder import SignsAre
from acdc.errors import AcdcError, UnknownGraphError
from acdc.graph import Graph, Unit, units_of
from acdc.store.reading import complaints


class Header(NamedTuple):
    """What a file says; without a header only the graph is known."""

    graph: Graph
    provenance: Provenance = Provenance(versions={})
    unit: Unit = "edge"
    scored: bool | None = None
    """Whether the circuit had scores; None: the file does not say, and its numbers must."""
    signs: SignsAre | None = None


def header(circuit: Circuit) -> dict[str, Any]:
    """The header as plain JSON values."""
    made = folder.header(circuit.graph, circuit.provenance, circuit.unit)
    return made | {"scored": circuit.scores is not None, "signs": circuit.scores and circuit.scores.signs}


def from_header(value: Any, graph: Graph | None, what: str) -> Header:
    """What a file's header says; one without units, as older files have, is of edges.

    Args:
        value: the header, or None if the file has none.
        graph: what the caller says the graph is; it must then agree with the file.
    """
    if value is None:
        if graph is None:
            raise UnknownGraphError(
                f"{what} does not say which graph its edges belong to: give `graph`, like model.graph()"
            )
        return Header(graph)
    if not isinstance(value, dict) or "graph" not in value:
        raise AcdcError(f"{what}: expected a header with 'graph' and 'provenance', got {value!r:.80}")
    found = folder.graph_from_options(value["graph"], what)
    if graph is not None and graph != found:
        raise AcdcError(f"{what} is of {found}, not of the {graph} that was asked for")
    unit = value.get("units", "edge")
    try:
        units_of(found, unit)
    except AcdcError as error:
        raise AcdcError(f"{what}: {error}") from None
    scored, signs = value.get("scored"), value.get("signs")
    if scored not in (None, True, False) or signs not in (None, *get_args(SignsAre)):
        raise AcdcError(f"{what}: expected 'scored' as true or false and 'signs' as one of {get_args(SignsAre)}")
    try:
        made = Provenance.model_validate(value.get("provenance", {"versions": {}}))
        return Header(found, made, unit, scored, signs)
    except pydantic.ValidationError as error:
        raise AcdcError(f"{what}: the provenance is wrong: {complaints(error)}") from None


def header_text(circuit: Circuit) -> str:
    """The header as one line of ASCII without backslash-quote and comment ends, safe inside XML and DOT."""
    text = json.dumps(header(circuit), separators=(",", ":"))
    text = re.sub(r'\\(["\\])', lambda match: f"\\u{ord(match[1]):04x}", text)
    return re.sub(r"[<>&\x7f]", lambda match: f"\\u{ord(match[0]):04x}", text)
