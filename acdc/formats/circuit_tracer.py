"""The attribution-graph JSON of circuit-tracer and Neuronpedia: components as nodes, scores as link weights.

That schema knows no q, k and v, so that edges from one component to another become one link with the sum of their
scores (1 an edge without scores), and no components spread over positions, so that all stand at position 0.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from acdc.circuit import Circuit
from acdc.graph import Graph


def write(circuit: Circuit) -> str:
    """The circuit as attribution-graph JSON."""
    graph, provenance = circuit.graph, circuit.provenance
    weights: dict[tuple[str, str], float] = {}
    values = np.ones(graph.valid.shape) if circuit.scores is None else circuit.scores.values
    for d, s in np.argwhere(circuit.edges):
        for target in _components(graph, int(d)):
            pair = (graph.sources[s], target)
            weights[pair] = weights.get(pair, 0.0) + float(values[d, s])
    names = dict.fromkeys(["input", *circuit.nodes(), "logits"][graph.inputs == "split" :])
    ids = {name: _node(graph, name)["node_id"] for name in names}
    value = {
        "metadata": {
            "slug": "-".join(filter(None, [provenance.task, provenance.model])) or "circuit",
            "scan": provenance.model or "unknown",
            "transcoder_list": [],
            "prompt_tokens": [provenance.task or "prompt"],
            "prompt": provenance.task or "prompt",
            "schema_version": 1,
            "info": {"generator": {"name": "acdc", "version": provenance.versions.get("acdc-circuits", "")}},
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [_node(graph, name) for name in names],
        "links": [{"source": ids[s], "target": ids[d], "weight": w} for (s, d), w in weights.items() if d in ids],
    }
    return json.dumps(value, indent=1) + "\n"


def _components(graph: Graph, destination: int) -> list[str]:
    """Names of the components that read a destination."""
    owners = np.unique(graph.port_source[graph.port_destination == destination])
    return [[*graph.sources, "logits"][owner] for owner in owners]


def _node(graph: Graph, name: str) -> dict[str, Any]:
    row = graph.component(name)
    kind = row.kind
    if kind == "logits":
        layer, feature = str(graph.n_layers + 1), 0
    elif kind == "input":
        layer, feature = "E", row.number
    else:
        layer, feature = str(row.layer), graph.components_of(row.layer).index(row)
    types = {"input": "embedding", "logits": "logit", "head": "attention head", "mlp": "mlp"}
    return {
        "node_id": f"{layer}_{feature}_0",
        "jsNodeId": f"{layer}_{feature}-0",
        "feature": feature,
        "layer": layer,
        "ctx_idx": 0,
        "feature_type": types[kind],
        "token_prob": 0.0,
        "is_target_logit": kind == "logits",
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "clerp": name,
    }
