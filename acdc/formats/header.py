"""What every format says about a circuit besides its edges: the options of its graph, and its provenance.

Formats of our own hold it as the object `{"graph": …, "provenance": …}`; in peers' formats it travels in a field
that they ignore, so that a circuit that comes back is complete.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pydantic

from acdc.circuit import Circuit, Provenance
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.store.reading import complaints

_GRAPH = pydantic.TypeAdapter(Graph)
_LARGEST = 2**30
"""Bytes of the mask of edges of the largest graph that is read; one of 126 layers with 128 heads takes 0.8e9."""


def header(circuit: Circuit) -> dict[str, Any]:
    """Graph options and provenance as plain JSON values."""
    return {
        "graph": dataclasses.asdict(circuit.graph),
        "provenance": circuit.provenance.model_dump(mode="json"),
    }


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
    found = graph_from_options(value["graph"], what)
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
