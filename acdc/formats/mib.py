"""The graph files of the EAP and MIB code bases: JSON with every node and edge by name, and tensors in a `.pt`.

Their `input` is the token embedding alone, so that is the graph their files are read as, unless the caller or a
header of ours says otherwise. Their code ignores the header, which is the top-level field `acdc`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import warnings
from typing import Any

import numpy as np

from acdc.circuit import Circuit, Provenance, Scores
from acdc.circuit.folder import graph_from_options
from acdc.errors import AcdcError
from acdc.formats.edges import circuit_from_edges, number
from acdc.formats.header import Header, from_header, header
from acdc.graph import FloatArray, Graph, names_an_mlp
from acdc.store.reading import parse_json

_WHAT = "EAP/MIB graph JSON"
_NEURONS = "single neurons that the file leaves out are not held: their nodes are whole"
_NODES_ALONE = (
    "the file has scores of nodes and none of edges: they are not read, so edges cannot be chosen by them"
)


def write(circuit: Circuit) -> str:
    """The circuit as EAP/MIB graph JSON."""
    graph, scores = circuit.graph, circuit.scores
    if graph.qkv != "split" or graph.group_kv or graph.inputs == "split":
        raise AcdcError(
            "EAP and MIB know one graph only: q, k and v of every query head, one input; this circuit's graph has "
            f"qkv={graph.qkv!r}, group_kv={graph.group_kv}, inputs={graph.inputs!r}"
        )
    inside = set(circuit.nodes()) | {"logits"}
    nodes: dict[str, Any] = {name: {"in_graph": name in inside} for name in [*graph.sources, "logits"]}
    if scores is not None and scores.nodes is not None:
        for name, score in zip(graph.sources, scores.nodes.tolist(), strict=True):
            nodes[name]["score"] = score
    values = np.zeros(graph.valid.shape) if scores is None else scores.values
    edges = {
        graph.edge_name(d, s): {"score": float(values[d, s]), "in_graph": bool(circuit.edges[d, s])}
        for d, s in np.argwhere(graph.valid)
    }
    config = {
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "parallel_attn_mlp": graph.parallel,
        "d_model": circuit.provenance.d_model or 0,
    }
    return json.dumps({"cfg": config, "nodes": nodes, "edges": edges, "acdc": header(circuit)}) + "\n"


def read(content: bytes, graph: Graph | None = None) -> Circuit:
    """A circuit from EAP/MIB graph JSON; a file whose scores are all 0 has no scores."""
    value = parse_json(content, f"the {_WHAT}", constants=True)
    if not isinstance(value, dict) or not all(
        isinstance(value.get(key), dict) for key in ("cfg", "nodes", "edges")
    ):
        raise AcdcError(f"the {_WHAT} needs the objects 'cfg', 'nodes' and 'edges'")
    names = [*value["nodes"], *value["edges"]]
    if "acdc" in value:
        said = from_header(value["acdc"], None, f"the {_WHAT}")
    else:
        said = Header(_graph(value["cfg"], mlp=names_an_mlp(names)))
    said = said._replace(graph=_agreed(said.graph, graph))
    kept, scores = {}, {}
    for name, edge in value["edges"].items():
        if not isinstance(edge, dict) or not isinstance(edge.get("in_graph"), bool):
            raise AcdcError(f"the {_WHAT}: {name!r} needs 'in_graph': true or false, got {edge!r:.60}")
        kept[name] = edge["in_graph"]
        scores[name] = number(edge.get("score", 0.0), name)
    circuit = circuit_from_edges(said, kept, scores if said.scored or any(scores.values()) else {}, _WHAT)
    parts = [node.get("neurons") for node in value["nodes"].values() if isinstance(node, dict)]
    if any(isinstance(part, list) and not all(part) for part in parts):
        warnings.warn(_NEURONS, stacklevel=3)
    return _with_node_scores(circuit, _node_scores(circuit.graph, value["nodes"]))


def read_pt(content: bytes, graph: Graph | None = None) -> Circuit:
    """A circuit from the EAP code base's `.pt` file, arrays `(sources, destinations)`; runs no code from it.

    A file whose scores are all 0 has no scores: of nodes or neurons they are not read, with a warning.
    """
    import torch

    what = "the EAP .pt file"
    try:
        value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # whatever the unpickler makes of the bytes; its advice is to run code from the file
        raise AcdcError(f"{what} is damaged, or holds more than tensors and plain values") from None
    keys = ("cfg", "edges_scores", "edges_in_graph")
    if not isinstance(value, dict) or not all(key in value for key in keys) or not isinstance(value["cfg"], dict):
        raise AcdcError(f"{what} needs the entries {', '.join(keys)}")
    found = _agreed(_graph(value["cfg"], mlp=True), graph)
    for key, names in (("src_nodes", found.sources), ("dst_nodes", found.destinations)):
        if key in value and (not isinstance(value[key], list | tuple) or list(value[key]) != list(names)):
            raise AcdcError(f"{what}: {key} are not those of {found.n_layers} layers with {found.n_heads} heads")
    shape = (found.n_sources, found.n_destinations)
    values, kept = (_array(value, key, shape, what).T for key in ("edges_scores", "edges_in_graph"))
    provenance = Provenance(versions={})
    scores = Scores(found, values, "", provenance) if values.any() else None
    circuit = Circuit(found, (kept != 0) & found.valid, scores, provenance)
    if value.get("neurons_in_graph") is not None:
        neurons = _array(value, "neurons_in_graph", (found.n_sources, -1), what)
        if not neurons[circuit.edges.any(axis=0)].all():
            warnings.warn(_NEURONS, stacklevel=3)
    nodes = None if value.get("nodes_scores") is None else _array(value, "nodes_scores", shape[:1], what)
    return _with_node_scores(circuit, nodes)


def _array(value: dict[str, Any], key: str, shape: tuple[int, ...], what: str) -> FloatArray:
    """One array of a `.pt` file; a size of -1 may be any."""
    import torch

    tensor = value[key]
    if not isinstance(tensor, torch.Tensor):
        given = type(tensor).__name__
    elif tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
        given = (
            f"a tensor of {str(tensor.layout).removeprefix('torch.')} {str(tensor.dtype).removeprefix('torch.')}"
        )
    elif tensor.dim() == len(shape) and all(n in (m, -1) for m, n in zip(tensor.shape, shape, strict=True)):
        array: FloatArray = tensor.detach().double().numpy()
        return array
    else:
        given = str(list(tensor.shape))
    sizes = ", ".join("any" if n == -1 else str(n) for n in shape)
    axes = " (sources, destinations)" if key.startswith("edges") else ""
    raise AcdcError(f"{what}: expected real numbers as {key} of shape [{sizes}]{axes}, got {given}")


def _graph(config: dict[str, Any], *, mlp: bool) -> Graph:
    options = {"n_layers": config.get("n_layers"), "n_heads": config.get("n_heads"), "mlp": mlp, "inputs": "token"}
    return graph_from_options(options | {"parallel": config.get("parallel_attn_mlp", False)}, "the EAP cfg")


def _agreed(found: Graph, graph: Graph | None) -> Graph:
    """The caller's graph if its names and edges are the file's; `input` may mean either embedding."""
    if graph is None:
        return found
    if dataclasses.replace(graph, inputs=found.inputs if graph.inputs != "split" else "split") != found:
        raise AcdcError(f"the file is of {found}, not of the {graph} that was asked for")
    return graph


def _node_scores(graph: Graph, nodes: dict[str, Any]) -> FloatArray | None:
    """Scores of the sources in a JSON file, if every source has one."""
    given = [nodes.get(name) for name in graph.sources]
    values = [node.get("score") if isinstance(node, dict) else None for node in given]
    if not all(isinstance(v, int | float) for v in values):
        return None
    return np.array([number(v, name) for v, name in zip(values, graph.sources, strict=True)])


def _with_node_scores(circuit: Circuit, nodes: FloatArray | None) -> Circuit:
    """The circuit with scores of all sources, `[n_sources]`; unscored ones are NaN there, and then none are taken."""
    if nodes is None:
        return circuit
    if circuit.scores is None:
        if np.nan_to_num(nodes).any():
            warnings.warn(_NODES_ALONE, stacklevel=4)
        return circuit
    if not np.isfinite(nodes).all():
        return circuit
    return dataclasses.replace(circuit, scores=dataclasses.replace(circuit.scores, nodes=nodes))
