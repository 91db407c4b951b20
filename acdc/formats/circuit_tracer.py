"""The attribution-graph JSON of circuit-tracer and Neuronpedia: components at positions as nodes, scores as weights.

A circuit without positions stands at position 0 of a prompt of one token, its task. One with positions has the prompt's
own tokens (or its spans), and every component where it is read: what a head reads as key or value leads to the head
where it attends from. The schema (draft-07, in Neuronpedia's repository under apps/webapp/app/api/graph) knows no q, k
and v, so that edges between two components become one link with the sum of their scores, 1 an edge without scores;
which of them enter queries and keys stands beside, in the head's `qk_tracing_results`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from acdc.circuit import Circuit
from acdc.graph import LOGITS, BoolArray, FloatArray, Graph

At = tuple[str, int]
"""A component, and the number of its position."""


Roles = Mapping[str, Collection[str]]
"""Components by what they do."""


def write(circuit: Circuit, roles: Roles | None = None) -> str:
    """The circuit as attribution-graph JSON; components of a role are a supernode."""
    made = circuit.provenance
    values = np.ones(circuit.graph.valid.shape) if circuit.scores is None else circuit.scores.values
    return write_places(
        circuit.graph, circuit.edges[None], [made.task or "prompt"], values, model=made.model, task=made.task,
        version=made.versions.get("acdc-circuits", ""), roles=roles,
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
    roles: Roles | None = None,
) -> str:
    """Edges at places as attribution-graph JSON.

    Args:
        kept: `[place, n_destinations, n_sources]`.
        tokens: of the places.
        values: `[n_destinations, n_sources]` scores; None: 1 an edge.
        ordered: whether a later place cannot be read at an earlier one, as with single positions.
        roles: whose components are supernodes, place by place; of heads without one, those of a layer are.
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
        "qParams": {
            "pinnedIds": [*ids.values()],  # supernodes are shown of nodes that are pinned
            "supernodes": _supernodes(graph, ids, tokens, roles or {}),
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [
            _node(graph, at, len(tokens)) | _traced(queries.get(at, {}), keys.get(at, {}), ids) for at in rows
        ],
        "links": [{"source": ids[s], "target": ids[d], "weight": w} for (s, d), w in links.items()],
    }
    return json.dumps(value, indent=1) + "\n"


def _supernodes(graph: Graph, ids: Mapping[At, str], tokens: Sequence[str], roles: Roles) -> list[list[str]]:
    """Groups of nodes at a place, each its name and the nodes' ids: by role, and of the other heads by layer."""
    role_of = {name: role for role, names in roles.items() for name in names}
    groups: dict[tuple[str, int], list[str]] = {}
    for (name, place), node in ids.items():
        row = graph.component(name)
        group = role_of.get(name, f"heads of layer {row.layer}" if row.kind == "head" else "")
        if group:
            groups.setdefault((group, place), []).append(node)
    return [
        [group if len(tokens) == 1 else f"{group} at {tokens[place].strip()}", *nodes]
        for (group, place), nodes in groups.items()
        if len(nodes) > 1 or group in roles
    ]


Weights = dict[tuple[At, At], float]
Read = dict[At, dict[At, float]]
"""What is read, by who reads it."""


def _links(graph: Graph, kept: BoolArray, values: FloatArray, ordered: bool) -> tuple[Weights, Read, Read]:
    """The weight of each link, and of it what enters queries and keys."""
    links, beside = Weights(), {"q": Read(), "k": Read()}
    for source, reader, d, s in read_at(graph, kept, ordered):
        value = float(values[d, s])
        links[source, reader] = links.get((source, reader), 0.0) + value
        if (port := graph.destination_ports[d]) in beside:
            found = beside[port].setdefault(reader, {})
            found[source] = found.get(source, 0.0) + value
    return links, beside["q"], beside["k"]


def read_at(graph: Graph, kept: BoolArray, ordered: bool) -> Iterator[tuple[At, At, int, int]]:
    """What writes where, what reads it where, and the edge's destination and source, for every edge that is kept.

    What a head reads as key or value is read where it is written, and used where the head attends from.

    Args:
        kept, ordered: as for `write_places`.
    """
    at_work = _where_heads_work(graph, kept)
    for p, d, s in np.argwhere(kept).tolist():
        for name in _components(graph, d):
            places = [p]
            if graph.component(name).kind not in ("mlp", LOGITS) and graph.destination_ports[d] != "q":
                places = [q for q in at_work.get(name, ()) if q >= p or not ordered] or [p]
            for place in places:
                yield (graph.sources[s], p), (name, place), d, s


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
