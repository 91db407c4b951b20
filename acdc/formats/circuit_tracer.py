"""The attribution-graph JSON of circuit-tracer and Neuronpedia: components at positions as nodes, scores as weights.

A circuit without positions stands at position 0 of a prompt of one token, its task. One with positions has the prompt's
own tokens (or its spans), and every component where it is read: what a head reads as key or value leads to the head
where it attends from. The schema (draft-07, in Neuronpedia's repository under apps/webapp/app/api/graph) knows no q, k
and v, so that edges between two components become one link with the sum of their scores, 1 an edge without scores;
which of them enter queries and keys stands beside, in the head's `qk_tracing_results`, and values in a field of ours.

Such a graph is read back as a circuit, by the ids of its nodes: what was deleted in a page is gone. A graph of features
is none of heads and MLPs, and is refused.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.formats.edges import circuit_from_edges, number
from acdc.formats.header import from_header, header
from acdc.graph import LOGITS, BoolArray, FloatArray, Graph
from acdc.store.reading import parse_json

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
        version=made.versions.get("acdc-circuits", ""), roles=roles, head=header(circuit),
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
    head: Mapping[str, Any] | None = None,
) -> str:
    """Edges at places as attribution-graph JSON.

    Args:
        kept: `[place, n_destinations, n_sources]`.
        tokens: of the places.
        values: `[n_destinations, n_sources]` scores; None: 1 an edge.
        ordered: whether a later place cannot be read at an earlier one, as with single positions.
        roles: whose components are supernodes, place by place; of heads without one, those of a layer are.
        head: what else there is to say of a circuit (`acdc.formats.header`).
    """
    links, beside = _links(graph, kept, np.ones(graph.valid.shape) if values is None else values, ordered)
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
        }
        | ({} if head is None else {HEADER: head}),
        "qParams": {
            "pinnedIds": [*ids.values()],  # supernodes are shown of nodes that are pinned
            "supernodes": _supernodes(graph, ids, tokens, roles or {}),
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [
            _node(graph, at, len(tokens)) | _traced({port: read.get(at, {}) for port, read in beside.items()}, ids)
            for at in rows
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


def _links(graph: Graph, kept: BoolArray, values: FloatArray, ordered: bool) -> tuple[Weights, dict[str, Read]]:
    """The weight of each link, and of it what enters queries, keys and values."""
    links, beside = Weights(), {"q": Read(), "k": Read(), "v": Read()}
    for source, reader, d, s in read_at(graph, kept, ordered):
        value = float(values[d, s])
        links[source, reader] = links.get((source, reader), 0.0) + value
        if (port := graph.destination_ports[d]) in beside:
            found = beside[port].setdefault(reader, {})
            found[source] = found.get(source, 0.0) + value
    return links, beside


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


def _traced(read: Mapping[str, Mapping[At, float]], ids: Mapping[At, str]) -> dict[str, Any]:
    """What a head's queries, keys and values read, by port, the most first; nothing is known of pairs."""
    if not any(read.values()):
        return {}
    q, k, v = (
        [[ids[source], weight] for source, weight in sorted(read[port].items(), key=lambda item: -abs(item[1]))]
        for port in "qkv"
    )
    traced = {"pair_wise_contributors": [], "top_q_marginal_contributors": q, "top_k_marginal_contributors": k}
    return ({"qk_tracing_results": traced} if q or k else {}) | {VALUES: v}


# ---- reading ----------------------------------------------------------------------------------------------------

HEADER = "acdc"
"""Field of the metadata, which other programs ignore, for what a graph does not say of a circuit."""
VALUES = "top_v_marginal_contributors"
"""Field of a head's node, which other programs ignore: what its values read."""
_OURS = {*_TYPES.values(), "mlp"}
_WHAT = "attribution graph"


def read(content: bytes, graph: Graph | None = None) -> Circuit:
    """A circuit from an attribution graph whose nodes are heads and MLPs; positions are put together, with a warning.

    Raises:
        AcdcError: it is no such graph, or one of features.
    """
    value = parse_json(content, f"the {_WHAT}")
    if not isinstance(value, dict) or not all(_objects(value.get(part)) for part in ("nodes", "links")):
        raise AcdcError(f"the {_WHAT} needs the lists of objects 'nodes' and 'links'")
    nodes = {str(node.get("node_id")): node for node in value["nodes"]}
    for node in nodes.values():
        if str(kind := node.get("feature_type")) not in _OURS:
            raise AcdcError(
                f"the {_WHAT} is of features ({kind!r:.60}), not of heads and MLPs, which acdc's circuits are of: "
                "export one from acdc, or name components in another format (csv)"
            )
    metadata = value.get("metadata")
    said = from_header(metadata.get(HEADER) if isinstance(metadata, dict) else None, graph, f"the {_WHAT}")
    graph = said.graph
    names = {_id(graph, (row.name, 0)).rpartition("_")[0]: row.name for row in graph.components}
    component = {node: names.get(node.rpartition("_")[0], "") for node in nodes}
    if unknown := [node for node, name in component.items() if not name]:
        raise AcdcError(f"the {_WHAT}: node {unknown[0]!r:.60} is no component of the model")
    if len({node.rpartition("_")[2] for node in nodes}) > 1:
        warnings.warn(
            f"the {_WHAT} has several positions: its edges are kept at all of them, each with its largest weight",
            stacklevel=3,
        )
    ports: dict[str, dict[str, int]] = {}
    for d, port in enumerate(graph.destination_ports):
        for name in _components(graph, d):
            ports.setdefault(name, {})[port] = d
    weights: dict[str, list[float]] = {}
    seen = set[tuple[str, str]]()
    for link in value["links"]:
        source, target = (str(link.get(end)) for end in ("source", "target"))
        if source not in nodes or target not in nodes:
            raise AcdcError(
                f"the {_WHAT}: a link leads from {source!r:.60} to {target!r:.60}, which are not both nodes"
            )
        own = ports.get(component[target], {})
        weight = number(link.get("weight"), f"{source}->{target}")
        if (source, target) in seen:
            raise AcdcError(f"the {_WHAT}: the link from {source!r:.60} to {target!r:.60} is listed twice")
        seen.add((source, target))
        if not own:
            raise AcdcError(
                f"the {_WHAT}: a link leads to {target!r:.60}, the {component[target]}, which reads nothing"
            )
        for port, score in _by_port(nodes[target], source, weight, list(own)).items():
            weights.setdefault(f"{component[source]}->{graph.destinations[own[port]]}", []).append(score)
    found = {edge: some[np.argmax(np.abs(some))] for edge, some in weights.items()}  # NaN, if there is any: refused
    bare = not said.scored and all(score == 1 for score in found.values())
    scores = {} if bare else found
    return circuit_from_edges(said, dict.fromkeys(found, True), scores, _WHAT)


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _by_port(node: Mapping[str, Any], source: str, weight: float, ports: Sequence[str]) -> dict[str, float]:
    """The score of each edge that a link to a node stands for; a graph without our field has its rest in the values."""
    if "v" not in ports:
        return dict.fromkeys(ports, weight) if len(ports) == 1 else {}
    traced = node.get("qk_tracing_results")
    lists = {"q": "top_q_marginal_contributors", "k": "top_k_marginal_contributors"}
    read = {port: _contributors(traced, name).get(source) for port, name in lists.items()}
    read["v"] = _contributors(node, VALUES).get(source)
    known = {port: score for port, score in read.items() if score is not None}
    rest = weight - sum(known.values())
    if known and abs(rest) <= 1e-6 * max(abs(weight), *map(abs, known.values())):
        return known
    if VALUES in node:
        raise AcdcError(
            f"the {_WHAT}: the link from {source!r:.60} to {node.get('node_id')!r:.60} has weight {weight:g}, and the "
            f"lists of what queries, keys and values read have {sum(known.values()):g} of it"
        )
    return known | {"v": rest}


def _contributors(value: Any, name: str) -> dict[str, float]:
    """What is read, by the node it is read from."""
    rows = value.get(name, []) if isinstance(value, Mapping) else []
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 2 for row in rows):
        raise AcdcError(f"the {_WHAT}: expected {name!r} as a list of nodes and weights, got {rows!r:.60}")
    return {str(source): number(weight, f"{source}") for source, weight in rows}
