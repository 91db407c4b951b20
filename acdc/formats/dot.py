"""DOT: the circuit's nodes and edges with their scores, for Graphviz and programs that read it.

This is data with a plain look; `acdc.viz.draw` makes pictures. The first line says in a comment which graph and run
it is of. Nobody but us writes circuits so, and so they are not read from it.
"""

from __future__ import annotations

from typing import Any

from acdc.circuit import Circuit
from acdc.formats.header import header_text


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
