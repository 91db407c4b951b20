"""The attribution-graph JSON of circuit-tracer and Neuronpedia: components at positions as nodes, scores as weights.

A circuit without positions stands at position 0 of a prompt of one token, its task. One with positions has the prompt's
own tokens (or its spans), and every component where it is read: what a head reads as key or value leads to the head
where it attends from. The schema (draft-07, in Neuronpedia's repository under apps/webapp/app/api/graph) knows no q, k
and v, so that edges between two components become one link with the sum of their scores, 1 an edge without scores;
which of them enter queries and keys stands beside, in the head's `qk_tracing_results`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from acdc.circuit import Circuit
from acdc.graph import LOGITS, BoolArray, FloatArray, Graph

At = tuple[str, int]
"""A component, and the number of its position."""


def write(circuit: Circuit) -> str:
    """The circuit as attribution-graph JSON."""
    made = circuit.provenance
    values = np.ones(circuit.graph.valid.shape) if circuit.scores is None else circuit.scores.values
    return write_places(
        circuit.graph, circuit.edges[None], [made.task or "prompt"], values, model=made.model, task=made.task,
        version=made.versions.get("acdc-circuits", ""),
    )  # fmt: skip


def write_places(
    graph: Graph,
    kept: BoolArray,
    tokens: Sequence[str],
    values: FloatArray | None = None,
    *,
    model: str = "",
    task: str = "",
    version: str = "",
    ordered: bool = False,
) -> str:
    """Edges at places as attribution-graph JSON.

    Args:
        kept: `[place, n_destinations, n_sources]`.
        tokens: of the places.
        values: `[n_destinations, n_sources]` scores; None: 1 an edge.
        ordered: whether a later place cannot be read at an earlier one, as with single positions.
    """
    links, queries, keys = _links(graph, kept, np.ones(graph.valid.shape) if values is None else values, ordered)
    ends = [row.name for row in graph.components if not row.ports or not row.writes]
    nodes = {at for pair in links for at in pair}
    nodes |= {(name, len(tokens) - 1) for name in ends if not any(name == at for at, _ in nodes)}
    order = {row.name: i for i, row in enumerate(graph.components)}
    rows = sorted(nodes, key=lambda at: (order[at[0]], at[1]))
    ids = {at: _id(graph, at) for at in rows}
    value = {
        "metadata": {
            "slug": "-".join(filter(None, [task, model])) or "circuit",
            "scan": model or "unknown",
            "transcoder_list": [],
            "prompt_tokens": list(tokens),
            "prompt": "".join(tokens) if ordered else task or "prompt",
            "schema_version": 1,
            "info": {"generator": {"name": "acdc", "version": version}},
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [
            _node(graph, at, len(tokens)) | _traced(queries.get(at, {}), keys.get(at, {}), ids) for at in rows
        ],
        "links": [{"source": ids[s], "target": ids[d], "weight": w} for (s, d), w in links.items()],
    }
    return json.dumps(value, indent=1) + "\n"


Weights = dict[tuple[At, At], float]
Read = dict[At, dict[At, float]]
"""What is read, by who reads it."""


def _links(graph: Graph, kept: BoolArray, values: FloatArray, ordered: bool) -> tuple[Weights, Read, Read]:
    """The weight of each link, and of it what enters queries and keys."""
    links, beside = Weights(), {"q": Read(), "k": Read()}
    at_work = _where_heads_work(graph, kept)
    for p, d, s in np.argwhere(kept).tolist():
        source, port = (graph.sources[s], p), graph.destination_ports[d]
        for name in _components(graph, d):
            row = graph.component(name)
            places = [p]
            if (
                row.kind not in ("mlp", LOGITS) and port != "q"
            ):  # what is read here is used where the head attends from
                places = [q for q in at_work.get(name, ()) if q >= p or not ordered] or [p]
            for place in places:
                pair, value = (source, (name, place)), float(values[d, s])
                links[pair] = links.get(pair, 0.0) + value
                if port in beside:
                    found = beside[port].setdefault(pair[1], {})
                    found[source] = found.get(source, 0.0) + value
    return links, beside["q"], beside["k"]


def _where_heads_work(graph: Graph, kept: BoolArray) -> Mapping[str, Sequence[int]]:
    """The places where each component is read, or reads a query."""
    found: dict[str, set[int]] = {}
    for p, d, s in np.argwhere(kept).tolist():
        found.setdefault(graph.sources[s], set()).add(p)
        if graph.destination_ports[d] == "q":
            for name in _components(graph, d):
                found.setdefault(name, set()).add(p)
    return {name: sorted(places) for name, places in found.items()}


def _components(graph: Graph, destination: int) -> list[str]:
    """Names of the components that read a destination."""
    owners = np.unique(graph.port_source[graph.port_destination == destination])
    return [[*graph.sources, LOGITS][owner] for owner in owners]


def _place(graph: Graph, name: str) -> tuple[str, int]:
    """Layer and number of a component, as the schema's names have them."""
    row = graph.component(name)
    if row.kind == LOGITS:
        return str(graph.n_layers + 1), 0
    if row.kind == "input":
        return "E", row.number
    return str(row.layer), graph.components_of(row.layer).index(row)


def _id(graph: Graph, at: At) -> str:
    layer, feature = _place(graph, at[0])
    return f"{layer}_{feature}_{at[1]}"


_TYPES = {"input": "embedding", LOGITS: "logit", "head": "attention head"}


def _node(graph: Graph, at: At, n_tokens: int) -> dict[str, Any]:
    name, place = at
    layer, feature = _place(graph, name)
    kind = graph.component(name).kind
    return {
        "node_id": _id(graph, at),
        "jsNodeId": f"{layer}_{feature}-{place}",
        "feature": feature,
        "layer": layer,
        "ctx_idx": place,
        "feature_type": _TYPES.get(kind, kind),
        "token_prob": 0.0,
        "is_target_logit": kind == LOGITS,
        "run_idx": 0,
        "reverse_ctx_idx": n_tokens - 1 - place,
        "clerp": name,
    }


def _traced(queries: Mapping[At, float], keys: Mapping[At, float], ids: Mapping[At, str]) -> dict[str, Any]:
    """What a head's queries and keys read, the most first; nothing is known of pairs."""
    if not queries and not keys:
        return {}
    q, k = (
        [[ids[source], weight] for source, weight in sorted(read.items(), key=lambda item: -abs(item[1]))]
        for read in (queries, keys)
    )
    return {
        "qk_tracing_results": {
            "pair_wise_contributors": [], "top_q_marginal_contributors": q, "top_k_marginal_contributors": k,
        }
    }  # fmt: skip
