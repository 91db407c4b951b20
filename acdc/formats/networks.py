"""Node-link JSON and GraphML: the circuit as a network with attributes, for other programs to open.

Both hold the networkx view of a circuit (`Circuit.to_networkx`): kept edges with their scores, and for q, k and v
the `internal` edges from a head's destinations to the head. The graph attribute `acdc` holds the header.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from typing import Any
from xml.etree.ElementTree import ParseError
from xml.parsers import expat

import networkx as nx

from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.formats.edges import circuit_from_edges, number
from acdc.formats.header import from_header, header, header_text
from acdc.graph import Graph
from acdc.store.reading import DEEPEST, decode, parse_json


def write_json(circuit: Circuit) -> str:
    """Node-link JSON."""
    network = circuit.to_networkx()
    value = {
        "directed": True,
        "multigraph": False,
        "graph": {"acdc": header(circuit)},
        "nodes": [{"id": name, **attributes} for name, attributes in network.nodes(data=True)],
        "links": [{"source": u, "target": v, **attributes} for u, v, attributes in network.edges(data=True)],
    }
    return json.dumps(value, indent=1) + "\n"


def read_json(content: bytes, graph: Graph | None = None) -> Circuit:
    """A circuit from node-link JSON; the edges' key may be `links` or `edges`."""
    what = "node-link JSON"
    value = parse_json(content, f"the {what}")
    links = value.get("links", value.get("edges")) if isinstance(value, dict) else None
    if not isinstance(links, list) or not all(isinstance(link, dict) for link in links):
        raise AcdcError(f"the {what} needs a list of objects 'links' (or 'edges')")
    attributes = value.get("graph")
    head = attributes.get("acdc") if isinstance(attributes, dict) else None
    edges = ((str(link.get("source")), str(link.get("target")), link) for link in links)
    return circuit_from_network(edges, head, graph, what)


def write_graphml(circuit: Circuit) -> str:
    """GraphML."""
    network = circuit.to_networkx()
    network.graph["acdc"] = header_text(circuit)
    return "\n".join(nx.generate_graphml(network)) + "\n"


def read_graphml(content: bytes, graph: Graph | None = None) -> Circuit:
    """A circuit from GraphML."""
    what = "GraphML"
    text = decode(content, f"the {what}")
    try:
        _check_xml(text, what)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # networkx warns of undeclared keys, and guesses
            network = nx.parse_graphml(text)
    except (
        ParseError,
        expat.ExpatError,
        nx.NetworkXException,
        UserWarning,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        raise AcdcError(f"the {what} cannot be read: {error}") from None
    head = network.graph.get("acdc")
    head = parse_json(head, f"the header of the {what}") if isinstance(head, str) else None
    return circuit_from_network(network.edges(data=True), head, graph, what)


def _check_xml(text: str, what: str) -> None:
    """Refuse XML that costs more than its size, before any of it is kept."""
    depth = 0

    def opened(*_: object) -> None:
        nonlocal depth
        depth += 1
        if depth > DEEPEST:
            raise AcdcError(f"the {what} has more than {DEEPEST} elements inside one another")

    def closed(*_: object) -> None:
        nonlocal depth
        depth -= 1

    def refuse(*_: object) -> None:
        raise AcdcError(f"the {what} has a document type or entities, which are not read")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler, parser.StartDoctypeDeclHandler = opened, closed, refuse
    parser.Parse(text, True)


def circuit_from_network(
    edges: Iterable[tuple[str, str, dict[str, Any]]], head: Any, graph: Graph | None, what: str
) -> Circuit:
    """A circuit from (source, destination, attributes) of its edges; scores of other edges are 0."""
    said = from_header(head, graph, f"the {what}")
    kept, scores = {}, {}
    for source, destination, attributes in edges:
        name = f"{source}->{destination}"
        if attributes.get("internal") in (True, "true", "True"):
            continue
        if name in kept:
            raise AcdcError(f"the {what}: {name!r:.60} is listed twice")
        kept[name] = True
        if attributes.get("score") is not None:
            scores[name] = number(attributes["score"], name)
    return circuit_from_edges(said, kept, scores, what)
