"""The published schema of attribution graphs (draft-07, Neuronpedia's `graph-schema.json`), as types of fields."""

from __future__ import annotations

from typing import Any

NUMBER, TEXT, TEXTS = (int, float), str, list
REQUIRED: dict[str, dict[str, Any]] = {
    "metadata": {"slug": TEXT, "scan": TEXT, "prompt_tokens": TEXTS, "prompt": TEXT},
    "qParams": {},
    "nodes": {
        "node_id": TEXT, "feature": (int, type(None)), "layer": (str, int), "ctx_idx": int, "feature_type": TEXT,
        "jsNodeId": TEXT, "clerp": TEXT,
    },
    "links": {"source": TEXT, "target": TEXT, "weight": NUMBER},
}  # fmt: skip
OPTIONAL: dict[str, dict[str, Any]] = {
    "metadata": {
        "feature_details": dict, "node_threshold": NUMBER, "info": dict, "generation_settings": dict,
        "pruning_settings": dict,
    },
    "qParams": {
        "pinnedIds": TEXTS, "supernodes": (list,), "linkType": TEXT, "clickedId": TEXT, "sg_pos": TEXT,
    },
    "nodes": {"influence": (*NUMBER, type(None)), "activation": (*NUMBER, type(None))},
    "links": {},
}  # fmt: skip


def check(value: Any) -> None:
    """A graph has every field that the schema asks for, of its type, and names only nodes that are there."""
    for part, fields in REQUIRED.items():
        for item in [value[part]] if isinstance(value[part], dict) else value[part]:
            known = fields | {name: kind for name, kind in OPTIONAL[part].items() if name in item}
            for name, kind in known.items():
                assert isinstance(item[name], kind), (part, name, item)
                assert not isinstance(item[name], bool), (part, name, item)
                if kind is TEXTS:
                    assert all(isinstance(text, str) for text in item[name])
    nodes = value["nodes"]
    ids = {node["node_id"] for node in nodes}
    assert len(ids) == len(nodes)
    assert {link[end] for link in value["links"] for end in ("source", "target")} <= ids
    assert all(0 <= node["ctx_idx"] < len(value["metadata"]["prompt_tokens"]) for node in nodes)
    for name, *members in value["qParams"].get("supernodes", []):
        assert isinstance(name, str)
        assert set(members) <= set(value["qParams"]["pinnedIds"]) <= ids
    for node in nodes:
        for read in node.get("qk_tracing_results", {}).values():
            assert all(source in ids and isinstance(weight, float) for source, weight in read)
