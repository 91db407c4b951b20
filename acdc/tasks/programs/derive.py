"""True circuits of a Tracr model, derived from its weights and from single replacements, with code of its own.

Three kinds, each a set of edges of the finest graph (q, k and v apart, token and position inputs apart):

- *structural*: the source writes a direction of the residual stream that the destination reads;
- *semantic*: more of those directions than the constant `one` and the special tokens are shared;
- *causal*, for an ablation and a distribution of inputs: replacing the source, for that destination alone, changes
  the output on some input.

Nothing here uses the engine: what it finds is what the engine is judged by.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from acdc.graph import BoolArray, Component, Graph
from acdc.model.programs.tracr import BOS, PAD, TracrModel
from acdc.tasks.programs.inputs import Pairs

TOLERANCE = 1e-2
"""An output that moves by less than this has not changed: attention that ought to be exactly zero is not quite."""


def finest_graph(model: TracrModel) -> Graph:
    """The graph true circuits are stored on."""
    return Graph(model.program.n_layers, model.program.n_heads, inputs="split")


# ---- from the weights -------------------------------------------------------------------------------------------


def written_and_read(model: TracrModel) -> tuple[BoolArray, BoolArray]:
    """Residual directions each source writes `[n_sources, D]` and each destination reads `[n_destinations, D]`."""

    def used(matrix: Tensor) -> npt.NDArray[np.bool_]:
        return np.asarray((matrix != 0).any(0))

    weights = model.state_dict()
    written = [used(weights["token_embedding.weight"]), used(weights["position_embedding.weight"])]
    read = []
    for layer in range(model.program.n_layers):
        w_q, w_k, w_v, w_o = (weights[f"layers.{layer}.{name}"] for name in ("w_q", "w_k", "w_v", "w_o"))
        qk = torch.einsum("hkd,hke->hde", w_q, w_k)  # [H, D read by q, D read by k]
        ov = torch.einsum("hkd,hke->hde", w_v, w_o)  # [H, D read by v, D written]
        read += [used(matrix.T) for matrix in qk] + [used(matrix) for matrix in qk]
        read += [used(matrix.T) for matrix in ov]
        written += [used(matrix) for matrix in ov]
        read.append(used(weights[f"layers.{layer}.mlp.0.weight"]))
        written.append(used(weights[f"layers.{layer}.mlp.2.weight"].T))
    read.append(used(weights["unembedding.weight"]))
    return np.stack(written), np.stack(read)


def structural_edges(model: TracrModel, *, semantic: bool = False) -> BoolArray:
    """`[n_destinations, n_sources]`: edges along which the weights can carry anything (`semantic`: that varies)."""
    written, read = written_and_read(model)
    if semantic:
        constant = {"one", f"tokens:{BOS}", f"tokens:{PAD}"}
        read = read & np.array([label not in constant for label in model.program.residual_labels])
    return finest_graph(model).valid & (read.astype(int) @ written.T.astype(int) > 0)


# ---- from single replacements -----------------------------------------------------------------------------------


class Runner:
    """The model in float64, one component at a time."""

    def __init__(self, model: TracrModel) -> None:
        self.model = model
        self.graph = finest_graph(model)
        self.weights = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}

    def inputs(self, tokens: Tensor, positions: Tensor) -> list[Tensor]:
        """Token and position sources, each `[B, T, D]`."""
        return [
            self.weights["token_embedding.weight"][tokens],
            self.weights["position_embedding.weight"][positions],
        ]

    def head(self, layer: int, head: int, q_in: Tensor, k_in: Tensor, v_in: Tensor, mask: Tensor) -> Tensor:
        """A head's output `[B, T, D]` from what its q, k and v read."""
        w_q, w_k, w_v, w_o = (self.weights[f"layers.{layer}.{name}"][head] for name in ("w_q", "w_k", "w_v", "w_o"))
        scores = (q_in @ w_q.T) @ (k_in @ w_k.T).transpose(1, 2) * self.model.scale  # [B, query, key]
        allowed = mask[:, None, :].expand_as(scores)
        if self.model.causal:
            allowed = allowed & torch.ones_like(allowed[0]).tril()
        allowed = allowed | torch.eye(allowed.shape[-1], dtype=torch.bool)  # padding sees itself
        return scores.masked_fill(~allowed, -1e30).softmax(-1) @ (v_in @ w_v.T) @ w_o

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        return self.mlp_output(layer, self.hidden(layer, x))

    def hidden(self, layer: int, x: Tensor) -> Tensor:
        """Hidden units of an MLP `[B, T, H]`."""
        w = self.weights
        return (x @ w[f"layers.{layer}.mlp.0.weight"].T + w[f"layers.{layer}.mlp.0.bias"]).relu()

    def mlp_output(self, layer: int, hidden: Tensor) -> Tensor:
        """What an MLP with these hidden units writes, `[B, T, D]`."""
        w = self.weights
        return hidden @ w[f"layers.{layer}.mlp.2.weight"].T + w[f"layers.{layer}.mlp.2.bias"]

    def logits(self, x: Tensor) -> Tensor:
        return x @ self.weights["unembedding.weight"].T

    def rest(self, x: Tensor, mask: Tensor, layer: int, *, from_mlp: bool = False) -> Tensor:
        """Outputs `[B, T, O]` of the plain model from the residual stream at a layer (or at its MLP)."""
        for index in range(layer, len(self.model.layers)):
            if index > layer or not from_mlp:
                heads = [row.number for row in self.graph.layer_heads(index).components if self.alive(row)]
                x = torch.stack([x, *(self.head(index, h, x, x, x, mask) for h in heads)]).sum(0)
            x = x + self.mlp(index, x)
        return self.logits(x)

    def alive(self, component: Component) -> bool:
        return component.name not in self.model.program.padding

    def sources(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> list[Tensor]:
        """Every source of a plain run, each `[B, T, D]`."""
        outputs = self.inputs(tokens, positions)
        for layer in range(self.graph.n_layers):
            x = torch.stack(outputs).sum(0)
            rows = self.graph.layer_heads(layer).components
            heads = [self.head(layer, row.number, x, x, x, mask) for row in rows]
            outputs += heads
            outputs.append(self.mlp(layer, x + torch.stack(heads).sum(0)))
        return outputs

    def reference(self, pairs: Pairs, ablation: str) -> list[Tensor]:
        """What replaces each source: its output on the corrupted input, or zero."""
        corrupted = self.sources(pairs.corrupted, pairs.corrupted_positions, pairs.corrupted_mask)
        return [torch.zeros_like(output) for output in corrupted] if ablation == "zero" else corrupted


def read_positions(model: TracrModel, mask: Tensor) -> Tensor:
    """`[B, T]` bool: positions whose output means something: real tokens but for BOS."""
    read = mask.clone()
    if model.program.bos is not None:
        read[:, 0] = False
    return read


@torch.no_grad()
def written_values(model: TracrModel, tokens: Tensor, mask: Tensor) -> Tensor:
    """`[n_sources, B, T, D]`: what each source writes on inputs as `TracrModel.encode` gives them."""
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    return torch.stack(Runner(model).sources(tokens, positions, mask))


@torch.no_grad()
def edge_effects(
    model: TracrModel,
    pairs: Pairs,
    *,
    ablation: str,
    only: BoolArray | None = None,
    position: int | None = None,
) -> Tensor:
    """`[n_destinations, n_sources, B]`: how far replacing each edge alone moves the output, at most.

    Args:
        only: `[n_destinations, n_sources]` the edges to replace; the others are 0. None: all.
        position: the one at which destinations read the replacement; None: every one.
    """
    runner = Runner(model)
    graph = runner.graph
    mask = pairs.clean_mask
    clean = runner.sources(pairs.clean, pairs.clean_positions, mask)
    reference = runner.reference(pairs, ablation)
    if position is not None:
        here = torch.arange(mask.shape[1])[:, None] == position
        reference = [torch.where(here, there, own) for there, own in zip(reference, clean, strict=True)]
    total = torch.stack(clean).cumsum(0)  # [n_sources, B, T, D]: the residual stream after each source
    outputs = runner.logits(total[-1])
    ignored = ~read_positions(model, mask)
    effects = torch.zeros(graph.n_destinations, graph.n_sources, len(pairs), dtype=torch.float64)
    tried = graph.valid if only is None else graph.valid & only
    for sublayer in graph.sublayers:
        if sublayer.kind not in ("head", "mlp"):
            continue
        layer, own, is_mlp = sublayer.layer, sublayer.sources, sublayer.kind == "mlp"
        x, after = total[own.start - 1], total[own.stop - 1]
        for port, ports in sublayer.ports.items():
            for component, source, d in zip(sublayer.components, own, ports, strict=True):
                if not is_mlp and not runner.alive(component):
                    continue
                for s in map(int, np.flatnonzero(tried[d])):
                    change = reference[s] - clean[s]
                    if not change.any():
                        continue
                    if is_mlp:
                        written = runner.mlp(layer, x + change)
                    else:
                        q_in, k_in, v_in = (x + change if name == port else x for name in "qkv")
                        written = runner.head(layer, component.number, q_in, k_in, v_in, mask)
                    difference = written - clean[source]
                    if not difference.any():
                        continue
                    rest = layer + 1 if is_mlp else layer
                    patched = runner.rest(after + difference, mask, rest, from_mlp=not is_mlp)
                    effects[d, s] = (patched - outputs).abs().amax(-1).masked_fill(ignored, 0).amax(-1)
    for s in map(int, np.flatnonzero(tried[-1])):
        moved = runner.logits(reference[s] - clean[s])
        effects[-1, s] = moved.abs().amax(-1).masked_fill(ignored, 0).amax(-1)
    return effects


@torch.no_grad()
def circuit_outputs(model: TracrModel, pairs: Pairs, edges: BoolArray, *, ablation: str) -> tuple[Tensor, Tensor]:
    """Outputs `[B, T, O]` of the full model and of the circuit that keeps only these edges of the finest graph.

    Args:
        edges: `[n_destinations, n_sources]`, or `[position, n_destinations, n_sources]` where they are read.
    """
    runner = Runner(model)
    graph = runner.graph
    mask = pairs.clean_mask
    clean = runner.sources(pairs.clean, pairs.clean_positions, mask)
    reference = runner.reference(pairs, ablation)
    current = runner.inputs(pairs.clean, pairs.clean_positions)

    kept = torch.as_tensor(edges if edges.ndim == 3 else edges[None])  # [position or 1, D, S]

    def read(d: int) -> Tensor:
        sources = map(int, np.flatnonzero(graph.valid[d]))
        return torch.stack([torch.where(kept[:, d, s, None], current[s], reference[s]) for s in sources]).sum(0)

    for layer in range(graph.n_layers):
        heads, (mlp_port,) = graph.layer_heads(layer), graph.layer_mlp(layer).every_port
        current += [
            runner.head(layer, row.number, read(q), read(k), read(v), mask)
            for row, q, k, v in zip(heads.components, *(heads.ports[port] for port in "qkv"), strict=True)
        ]
        current.append(runner.mlp(layer, read(mlp_port)))
    return runner.logits(torch.stack(clean).sum(0)), runner.logits(read(graph.n_destinations - 1))


@dataclasses.dataclass(frozen=True)
class Causes:
    """Which edges matter, and inputs that show it.

    Attributes:
        edges: `[n_destinations, n_sources]`, edges whose replacement alone changes the output on some pair.
        witnesses: few pairs that together show every one of those edges.
        effects: `[n_destinations, n_sources]`, the greatest change seen.
    """

    edges: BoolArray
    witnesses: Pairs
    effects: npt.NDArray[np.float64]


def causal_edges(model: TracrModel, pairs: Pairs, *, ablation: str, tolerance: float = TOLERANCE) -> Causes:
    """The causal circuit on these pairs; witnesses are chosen greedily, next the one that shows most new edges."""
    effects = edge_effects(model, pairs, ablation=ablation).numpy()
    edges = effects.max(-1) > tolerance
    chosen = covering(effects[edges])
    return Causes(edges, pairs[torch.tensor(chosen, dtype=torch.long)], effects.max(-1))


def covering(effects: npt.NDArray[np.float64]) -> list[int]:
    """Few pairs that together show all effects `[unit, pair]` clearly, by number; next the one that shows most new."""
    shown = effects > effects.max(-1, keepdims=True) / 2
    chosen: list[int] = []
    missing = np.ones(len(shown), dtype=bool)
    while missing.any():
        best = int(shown[missing].sum(0).argmax())
        chosen.append(best)
        missing &= ~shown[:, best]
    return chosen
