"""The patched forward, again, by hooks on the plain `transformers` module: slow, and obviously right.

Nothing of the engine is used but the graph's names. Every destination's input is a Python sum over sources, each
taken from this run or from the references. Hooks then make the plain module read it:

- a forward hook on the q/k/v projection returns each head's own projection of its own normalised input (for grouped
  keys and values, one copy for every query head, and the module is told that its groups have one head);
- a pre-hook on the output projection reads z, and head h writes `z_h @ W_O[:, h]`;
- pre-hooks on the MLP and the final norm replace what they read.

The residual stream that the module itself adds up is never read.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acdc.graph import Graph

Outputs = dict[str, Tensor]  # source name -> [B, T, D]


@dataclasses.dataclass
class _Layer:
    """Where one block of the plain module keeps its parts."""

    norm: torch.nn.Module | None
    projections: dict[str, torch.nn.Module]  # the module whose output a hook replaces -> for which of "qkv"
    weights: Callable[[str, int], tuple[Tensor, Tensor | None]]  # (port, head) -> [d_head, D], [d_head]
    attention: torch.nn.Module
    o_proj: torch.nn.Module
    w_o: Tensor  # [D, H * d_head]
    post_norm: torch.nn.Module | None
    mlp_norm: torch.nn.Module | None
    mlp: torch.nn.Module
    mlp_output: torch.nn.Module  # the module whose output the MLP writes


@torch.no_grad()
def source_outputs(
    module: Any, graph: Graph, tokens: Tensor, mask: Tensor, position_ids: Tensor | None = None
) -> Outputs:
    """What every source writes in the plain run."""
    return _run(module, graph, graph.valid, tokens, mask, position_ids, {})[1]


def patched_logits(
    module: Any,
    graph: Graph,
    edges: np.ndarray,
    tokens: Tensor,
    mask: Tensor,
    position_ids: Tensor | None,
    reference_outputs: Outputs,
) -> Tensor:
    """Logits `[B, T, V]` of a circuit `edges` `[n_destinations, n_sources]`, bool or share of the current run."""
    with torch.no_grad():
        return _run(module, graph, edges, tokens, mask, position_ids, reference_outputs)[0]


def _run(
    module: Any, graph: Graph, edges: np.ndarray, tokens: Tensor, mask: Tensor, position_ids: Tensor | None,
    references: Outputs,
) -> tuple[Tensor, Outputs]:  # fmt: skip
    if position_ids is None:
        position_ids = (mask.long().cumsum(-1) - 1).clamp(min=0)
    kind, config = module.config.model_type, module.config
    H = config.num_attention_heads
    n_kv = getattr(config, "num_key_value_heads", H)
    layers = [_layer(kind, block, H, n_kv) for block in _blocks(kind, module)]
    outputs = _input_outputs(kind, module, graph, tokens, position_ids)
    constants: dict[str, Tensor] = {}  # what belongs to no source, by the component it is written with
    if graph.inputs == "token" and kind == "gpt2":
        constants["position"] = module.transformer.wpe(position_ids)

    def destination(layer: int, port: str, head: int) -> str:
        if graph.qkv == "merged":
            return f"a{layer}.h{head}"
        if graph.group_kv and port != "q":
            return f"a{layer}.g{head // (H // n_kv)}<{port}>"
        return f"a{layer}.h{head}<{port}>"

    def read(name: str, layer: int, *, after_heads: bool) -> Tensor:
        """The residual input of a destination in `layer`, which runs after the heads of that layer or before."""

        def earlier(writer: str) -> bool:
            if writer.startswith(("input", "position")):
                return True
            at = int(writer[1:].split(".")[0])
            return at < layer or (at == layer and after_heads and writer[0] in "ab")

        total = sum(value for writer, value in constants.items() if earlier(writer))
        before = {source: value for source, value in outputs.items() if earlier(source)}
        return total + _mix(graph, edges, name, before, references)

    with contextlib.ExitStack() as stack:
        for index, layer in enumerate(layers):
            _hook_layer(stack, config, index, layer, n_kv, outputs, constants, destination, read)
        final_norm = _final_norm(kind, module)
        _pre_hook(stack, final_norm, lambda _: read("logits", len(layers), after_heads=False))
        logits = module(
            input_ids=tokens, attention_mask=mask.long(), position_ids=position_ids, use_cache=False
        ).logits
    assert set(outputs) == set(graph.sources)
    return logits, outputs


def _mix(graph: Graph, edges: np.ndarray, destination: str, current: Outputs, references: Outputs) -> Any:
    """The sum of the sources in `current`, each from this run where its edge is kept, else from the references."""
    total: Any = 0
    for source, value in current.items():
        share = float(edges[graph.destination_index[destination], graph.source_index[source]])
        if share == 1:
            total = total + value
        elif share == 0:
            total = total + references[source]
        else:
            total = total + share * value + (1 - share) * references[source]
    return total


@torch.no_grad()
def tracr_run(
    module: Any, graph: Graph, edges: np.ndarray, tokens: Tensor, mask: Tensor, references: Outputs
) -> tuple[Tensor, Outputs]:
    """Logits `[B, T, O]` of a circuit of a Tracr model, and what every source wrote; there is nothing to hook."""
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    token, position = module.token_embedding(tokens), module.position_embedding(positions)
    split = {"input.token": token, "input.position": position}
    outputs = split if graph.inputs == "split" else {"input": token + position}
    T = tokens.shape[1]
    visible = mask[:, None, :] | torch.eye(T, dtype=torch.bool)
    if module.causal:
        visible = visible & torch.ones(T, T, dtype=torch.bool).tril()
    for index, layer in enumerate(module.layers):
        written: Outputs = {}
        for head in range(layer.w_q.shape[0]):
            q, k, v = (
                _mix(graph, edges, f"a{index}.h{head}<{port}>", outputs, references) @ weight[head].T
                for port, weight in zip("qkv", (layer.w_q, layer.w_k, layer.w_v), strict=True)
            )
            scores = q @ k.transpose(-1, -2) * module.scale
            z = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v
            written[f"a{index}.h{head}"] = z @ layer.w_o[head]
        outputs.update(written)
        outputs[f"m{index}"] = layer.mlp(_mix(graph, edges, f"m{index}", outputs, references))
    return module.unembedding(_mix(graph, edges, "logits", outputs, references)), outputs


def _hook_layer(
    stack: contextlib.ExitStack, config: Any, index: int, layer: _Layer, n_kv: int, outputs: Outputs,
    constants: dict[str, Tensor], destination: Callable[[int, str, int], str], read: Callable[..., Tensor],
) -> None:  # fmt: skip
    H = config.num_attention_heads

    def project(port: str, head: int) -> Tensor:
        x = read(destination(index, port, head), index, after_heads=False)
        if layer.norm is not None:
            x = layer.norm(x)
        weight, bias = layer.weights(port, head)
        out = x @ weight.T
        return out if bias is None else out + bias

    def projected(ports: str) -> Tensor:
        """All heads' projections in the layout of the module's output."""
        if config.model_type == "gpt_neox":  # [head, 3, d_head]
            return torch.cat([project(port, head) for head in range(H) for port in ports], dim=-1)
        return torch.cat([project(port, head) for port in ports for head in range(H)], dim=-1)

    for ports, projection in layer.projections.items():
        _hook(stack, projection, lambda _, ports=ports: projected(ports))
    for name, value in (("num_key_value_groups", 1), ("num_key_value_heads", H)):
        if hasattr(layer.attention, name):
            stack.enter_context(_attribute(layer.attention, name, value))
    if config.model_type == "olmo2" and n_kv < H:
        stack.enter_context(_attribute(layer.attention.k_norm, "forward", _norm_by_sets(layer, H, n_kv)))

    def heads_written(z: Tensor) -> Tensor:
        """z `[B, T, H * d_head]`: note what each head writes."""
        d_head = z.shape[-1] // H
        parts = [slice(h * d_head, (h + 1) * d_head) for h in range(H)]
        written = [z[..., part] @ layer.w_o[:, part].T for part in parts]
        if layer.post_norm is None:
            if layer.o_proj.bias is not None:
                constants[f"b{index}"] = layer.o_proj.bias
        else:
            scale, gain = _scale_and_gain(layer.post_norm, sum(written), config.model_type)
            written = [gain * part * scale for part in written]
        for head, value in enumerate(written):
            outputs[f"a{index}.h{head}"] = value
        return z

    parallel = getattr(config, "use_parallel_residual", False)

    def mlp_input(_: Tensor) -> Tensor:
        x = read(f"m{index}", index, after_heads=not parallel)
        return x if layer.mlp_norm is None else layer.mlp_norm(x)

    def mlp_written(value: Tensor) -> Tensor:
        outputs[f"m{index}"] = value
        return value

    _pre_hook(stack, layer.o_proj, heads_written)
    _pre_hook(stack, layer.mlp, mlp_input)
    _hook(stack, layer.mlp_output, mlp_written)


def _scale_and_gain(norm: Any, total: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """1/σ of an RMSNorm's input `[B, T, 1]`, and its gain."""
    eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    gain = 1 + norm.weight if kind.startswith("gemma") else norm.weight
    return torch.rsqrt(total.square().mean(-1, keepdim=True) + eps), gain


def _norm_by_sets(layer: _Layer, H: int, n_kv: int) -> Callable[[Tensor], Tensor]:
    """OLMo-2 normalises its keys over all key heads at once.

    With a copy for every query head, the i-th copies of all groups are one set of key heads, normalised as the model
    does it.
    """
    norm, group = layer.attention.k_norm.forward, H // n_kv

    def forward(keys: Tensor) -> Tensor:
        heads = list(keys.chunk(H, dim=-1))
        for i in range(group):
            members = [g * group + i for g in range(n_kv)]
            normed = norm(torch.cat([heads[h] for h in members], dim=-1)).chunk(n_kv, dim=-1)
            for h, value in zip(members, normed, strict=True):
                heads[h] = value
        return torch.cat(heads, dim=-1)

    return forward


# ---- where the families keep things -----------------------------------------------------------------------------


def _blocks(kind: str, module: Any) -> Any:
    return {"gpt2": lambda: module.transformer.h, "gpt_neox": lambda: module.gpt_neox.layers}.get(
        kind, lambda: module.model.layers
    )()


def _final_norm(kind: str, module: Any) -> torch.nn.Module:
    return {"gpt2": lambda: module.transformer.ln_f, "gpt_neox": lambda: module.gpt_neox.final_layer_norm}.get(
        kind, lambda: module.model.norm
    )()


def _input_outputs(kind: str, module: Any, graph: Graph, tokens: Tensor, position_ids: Tensor) -> Outputs:
    if kind != "gpt2":
        return {"input": module.get_input_embeddings()(tokens)}
    token, position = module.transformer.wte(tokens), module.transformer.wpe(position_ids)
    if graph.inputs == "split":
        return {"input.token": token, "input.position": position}
    return {"input": token if graph.inputs == "token" else token + position}


def _layer(kind: str, block: Any, H: int, n_kv: int) -> _Layer:
    if kind == "gpt2":
        fused, D = block.attn.c_attn, block.attn.embed_dim
        d = D // H

        def gpt2_weights(port: str, head: int) -> tuple[Tensor, Tensor]:
            start = "qkv".index(port) * D + head * d
            return fused.weight[:, start : start + d].T, fused.bias[start : start + d]

        return _Layer(
            block.ln_1, {"qkv": fused}, gpt2_weights, block.attn, block.attn.c_proj, block.attn.c_proj.weight.T,
            None, block.ln_2, block.mlp, block.mlp,
        )  # fmt: skip
    if kind == "gpt_neox":
        attention, fused, d = block.attention, block.attention.query_key_value, block.attention.head_size

        def neox_weights(port: str, head: int) -> tuple[Tensor, Tensor]:
            start = (3 * head + "qkv".index(port)) * d
            return fused.weight[start : start + d], fused.bias[start : start + d]

        return _Layer(
            block.input_layernorm, {"qkv": fused}, neox_weights, attention, attention.dense, attention.dense.weight,
            None, block.post_attention_layernorm, block.mlp, block.mlp,
        )  # fmt: skip
    attention = block.self_attn
    d, group = attention.head_dim, H // n_kv

    def weights(port: str, head: int) -> tuple[Tensor, Tensor | None]:
        row = (head if port == "q" else head // group) * d
        if kind == "phi3":
            row += {"q": 0, "k": H * d, "v": (H + n_kv) * d}[port]
            projection = attention.qkv_proj
        else:
            projection = getattr(attention, f"{port}_proj")
        bias = projection.bias
        return projection.weight[row : row + d], None if bias is None else bias[row : row + d]

    if kind == "phi3":
        projections = {"qkv": attention.qkv_proj}
    else:
        projections = {port: getattr(attention, f"{port}_proj") for port in "qkv"}
    norm, post_norm = getattr(block, "input_layernorm", None), None
    mlp_norm, mlp_output = block.post_attention_layernorm, block.mlp
    if kind.startswith("gemma"):
        post_norm, mlp_norm = block.post_attention_layernorm, block.pre_feedforward_layernorm
        mlp_output = block.post_feedforward_layernorm
    if kind == "olmo2":
        post_norm, mlp_norm, mlp_output = block.post_attention_layernorm, None, block.post_feedforward_layernorm
    return _Layer(
        norm, projections, weights, attention, attention.o_proj, attention.o_proj.weight, post_norm, mlp_norm,
        block.mlp, mlp_output,
    )  # fmt: skip


# ---- hooks ------------------------------------------------------------------------------------------------------


def _hook(stack: contextlib.ExitStack, module: torch.nn.Module, replace: Callable[[Tensor], Tensor]) -> None:
    stack.enter_context(_removed(module.register_forward_hook(lambda _, args, output: replace(output))))


def _pre_hook(stack: contextlib.ExitStack, module: torch.nn.Module, replace: Callable[[Tensor], Tensor]) -> None:
    stack.enter_context(_removed(module.register_forward_pre_hook(lambda _, args: (replace(args[0]), *args[1:]))))


@contextlib.contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _attribute(owner: Any, name: str, value: object) -> Iterator[None]:
    """Set an attribute of an object for a while."""
    own = name in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
