"""What every format says about a circuit besides its edges: the options of its graph, and its provenance.

Formats of our own hold it as the object `{"graph": …, "provenance": …}`; in peers' formats it travels in a field
that they ignore, so that a circuit that comes back is complete.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pydantic

from acdc.circuit import Circuit, Provenance, folder
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.store.reading import complaints


def header(circuit: Circuit) -> dict[str, Any]:
    """Graph options and provenance as plain JSON values."""
    return folder.header(circuit.graph, circuit.provenance)


def from_header(value: Any, graph: Graph | None, what: str) -> tuple[Graph, Provenance]:
    """Graph and provenance of a file's header.

    Args:
        value: the header, or None if the file has none.
        graph: what the caller says the graph is; it must then agree with the file.
    """
    if value is None:
        if graph is None:
            raise AcdcError(
                f"{what} does not say which graph its edges belong to: give `graph`, like model.graph()"
            )
        return graph, Provenance(versions={})
    if not isinstance(value, dict) or "graph" not in value:
        raise AcdcError(f"{what}: expected a header with 'graph' and 'provenance', got {value!r:.80}")
    found = folder.graph_from_options(value["graph"], what)
    if graph is not None and graph != found:
        raise AcdcError(f"{what} is of {found}, not of the {graph} that was asked for")
    try:
        return found, Provenance.model_validate(value.get("provenance", {"versions": {}}))
    except pydantic.ValidationError as error:
        raise AcdcError(f"{what}: the provenance is wrong: {complaints(error)}") from None


def header_text(circuit: Circuit) -> str:
    """The header as one line of ASCII without backslash-quote and comment ends, safe inside XML and DOT."""
    text = json.dumps(header(circuit), separators=(",", ":"))
    text = re.sub(r'\\(["\\])', lambda match: f"\\u{ord(match[1]):04x}", text)
    return re.sub(r"[<>&\x7f]", lambda match: f"\\u{ord(match[0]):04x}", text)
