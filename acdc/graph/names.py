"""What names say of a graph that is not there yet: the one place that takes names of nodes apart."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

_LARGEST = 10**4
"""More layers or heads than this are no graph's."""


def graph_options(edges: Iterable[str]) -> dict[str, Any] | None:
    """Options of the graph that has exactly these edges, as far as their names tell; None if they tell too little."""
    names = set(edges)
    text = "\n".join(names)
    layers = [int(x) for x in re.findall(r"\b[amx](\d+)", text)]
    heads = [int(x) for x in re.findall(r"\ba\d+\.h(\d+)", text)]
    groups = [int(x) for x in re.findall(r"\ba\d+\.g(\d+)", text)]
    if not layers or not heads or max(layers) >= _LARGEST or max(heads) >= _LARGEST:
        return None
    mlp = re.search(r"\bm\d", text) is not None
    return {
        "n_layers": max(layers) + 1,
        "n_heads": max(heads) + 1,
        "n_kv_heads": max(groups) + 1 if groups else None,
        "group_kv": bool(groups),
        "mlp": mlp,
        "parallel": mlp and not {"a0.h0->m0", "x0->m0"} & names,
        "qkv": "split" if "<" in text else "merged",
        "mixers": tuple(sorted({int(x) for x in re.findall(r"\bx(\d+)\b", text)})),
        "inputs": "split" if "input.token" in text else "single",
    }


def names_an_mlp(names: Iterable[str]) -> bool:
    """Whether any of these nodes, or sources of these edges, is an MLP."""
    return any(name.startswith("m") for name in names)


def names_digest(names: Iterable[str]) -> str:
    """SHA-256 of names of edges, in their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def split_edge(edge: str) -> tuple[str, str]:
    """Source and destination of an edge's name."""
    source, _, destination = edge.partition("->")
    return source, destination


def split_destination(destination: str) -> tuple[str, str]:
    """Node and port of a destination's name: `a0.h1<q>` is `a0.h1` and "<q>", `m0` itself and ""."""
    node, bracket, port = destination.partition("<")
    return node, bracket + port
