"""Lists of a circuit's parts that other tools take: heads to prune, modules to adapt or to keep in high precision."""

from __future__ import annotations

from typing import Any

import torch

from acdc.circuit import Circuit
from acdc.model.model import Model


def lists(model: Model, circuit: Circuit) -> dict[str, Any]:
    """Lists of what is in the circuit and what is not, by the model's own names.

    Returns:
        `heads_to_prune`: heads of each layer outside the circuit, as `prune_heads` of transformers 4 takes them;
        `heads`, `mlps`: those inside, by layer; `layers`: layers with some part inside; `target_modules`: paths of the
        linear modules of attentions and MLPs with a part inside, as `target_modules` of PEFT's LoRA takes them;
        `keep_in_high_precision`: the same modules' attentions and MLPs as a whole, for quantisers' lists of exceptions.
    """
    inside, graph = set(circuit.nodes()), circuit.graph
    paths = {module: path for path, module in model.module.named_modules()}
    found: dict[str, Any] = {
        "heads_to_prune": {}, "heads": {}, "mlps": [], "layers": [], "target_modules": [], "keep_in_high_precision": [],
    }  # fmt: skip
    for number, layer in enumerate(model.decomposition.layers):
        rows = graph.components_of(number)
        heads = [row for row in rows if row.kind == "head"]
        kept = [row.number for row in heads if row.name in inside]
        gone = [row.number for row in heads if row.name not in inside]
        mlp = any(row.name in inside for row in rows if row.kind == "mlp")
        if gone:
            found["heads_to_prune"][number] = gone
        if kept:
            found["heads"][number] = kept
        if mlp:
            found["mlps"].append(number)
        if kept or mlp:
            found["layers"].append(number)
        for part in [layer.parts.attention] * bool(kept) + [layer.parts.mlp] * mlp:
            if part is None or part not in paths:
                continue
            found["keep_in_high_precision"].append(paths[part])
            inner = [path for path, module in part.named_modules() if _is_linear(module)]
            found["target_modules"] += [f"{paths[part]}.{path}" for path in inner if path]
    return found


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
