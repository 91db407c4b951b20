"""DOT: the circuit's nodes and edges with their scores, for Graphviz and programs that read it.

This is data with a plain look; `acdc.viz.draw` makes pictures. A first line that starts with `// acdc` holds the
header; without it the file can still be read if the caller says which graph it is of.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.formats.header import header_text
from acdc.formats.networks import circuit_from_network
from acdc.graph import Graph
from acdc.store.reading import decode, parse_json

_WHAT = "DOT"
_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|^\#[^\n]*|/\*.*?\*/)
      | "(?P<quoted>(?:[^"\\]|\\.)*)"
      | (?P<arrow>->)
      | (?P<sign>[\[\]{}=;,:])
      | (?P<word>[\w.+-]+?(?=->|[^\w.+-]|$))""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


def write(circuit: Circuit) -> str:
    """The circuit as DOT, inputs at the bottom."""
    network = circuit.to_networkx()
    lines = [f"// acdc {header_text(circuit)}", "digraph circuit {", "  rankdir=BT;", "  node [shape=box];"]
    lines += [f'  "{name}" {_attributes(values)};' for name, values in network.nodes(data=True)]
    lines += [f'  "{u}" -> "{v}" {_attributes(values)};' for u, v, values in network.edges(data=True)]
    return "\n".join([*lines, "}", ""])


def _attributes(values: dict[str, Any]) -> str:
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}
    return "[" + ", ".join(f'{name}="{text}"' for name, text in texts.items()) + "]"


def read(content: bytes, graph: Graph | None = None) -> Circuit:
    """A circuit from a DOT digraph: node names are ours, the edge attribute `score` is optional."""
    text = decode(content, f"the {_WHAT}")
    first = re.match(r"// acdc (\{.*\})\s*$", text, re.MULTILINE)
    head = parse_json(first[1], f"the header of the {_WHAT}") if first else None
    return circuit_from_network(list(_edges(list(_tokens(text)))), head, graph, _WHAT)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of each token: "name" for identifiers quoted or not, "->", or one of the signs."""
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            line = text.count("\n", 0, position) + 1
            raise AcdcError(f"the {_WHAT} cannot be read at line {line}: {text[position : position + 30]!r}")
        position = match.end()
        if match["quoted"] is not None:
            yield "name", match["quoted"].replace('\\"', '"')
        elif match["word"] is not None:
            yield "name", match["word"]
        elif match["space"] is None:
            yield match[0], match[0]


def _edges(tokens: list[tuple[str, str]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The edges of a digraph, statement by statement; braces of subgraphs are looked through."""
    words = [text.lower() for kind, text in tokens[:3] if kind == "name"]
    if "digraph" not in words:
        raise AcdcError(f"the {_WHAT} is not a digraph: expected 'digraph {{ … }}'")
    i, depth = [kind for kind, _ in tokens].index("{") if ("{", "{") in tokens else len(tokens), 0
    if i == len(tokens):
        raise AcdcError(f"the {_WHAT} has no body: expected 'digraph {{ … }}'")
    while i < len(tokens):
        chain: list[str] = []
        while i < len(tokens) and tokens[i][0] == "name":
            chain.append(tokens[i][1])
            if i + 1 < len(tokens) and tokens[i + 1][0] == "->":
                i += 2
                continue
            i += 1
            break
        attributes: dict[str, Any] = {}
        if chain and i < len(tokens) and tokens[i][0] == "[":
            i, attributes = _attribute_list(tokens, i + 1)
        for source, destination in itertools.pairwise(chain):
            yield source, destination, attributes
        if not chain:
            depth += {"{": 1, "}": -1}.get(tokens[i][0], 0)
            i += 1
    if depth:
        raise AcdcError(f"the {_WHAT} ends before its last brace")


def _attribute_list(tokens: list[tuple[str, str]], i: int) -> tuple[int, dict[str, Any]]:
    """What `[name=value, …]` says, from the token after the bracket; returns the index after its end too."""
    attributes: dict[str, Any] = {}
    while i < len(tokens) and tokens[i][0] != "]":
        if [kind for kind, _ in tokens[i : i + 3]] == ["name", "=", "name"]:
            attributes[tokens[i][1]] = tokens[i + 2][1]
            i += 3
        elif tokens[i][0] in (",", ";"):
            i += 1
        else:
            raise AcdcError(f"the {_WHAT}: expected name=value inside brackets, got {tokens[i][1]!r}")
    if i >= len(tokens):
        raise AcdcError(f"the {_WHAT} ends inside an attribute list")
    return i + 1, attributes
