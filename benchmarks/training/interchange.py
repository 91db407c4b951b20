"""Interchange interventions: a run of a decoder in which some edges carry what they carry in another run.

An intervention is a set of edges, one set for each prompt of a batch: `swapped[b, d, s]` says that destination d
reads, in prompt b, the output that source s has in the *other* run. Swapping every edge out of a node swaps the
node. The same function runs compiled programs and trained networks, and gradients reach the weights of both runs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from acdc.model import forward
from acdc.model.architecture import Decomposition
from acdc.model.forward import Context
from acdc.model.reading import decoder
from acdc.tasks.programs.inputs import Pairs


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run leaves behind.

    Attributes:
        sources: `[S, B, T, D]`, what every source writes, in the order of the graph with split inputs.
        logits: `[B, T, vocabulary]`.
    """

    sources: Tensor
    logits: Tensor


def contexts(model: Decomposition, pairs: Pairs) -> tuple[Context, Context]:
    """Contexts of the clean inputs and of the corrupted ones, which are the donors."""
    everywhere = torch.arange(pairs.clean.shape[1]).expand_as(pairs.clean)
    sides = (
        (pairs.clean, pairs.clean_mask, pairs.clean_positions),
        (pairs.corrupted, pairs.corrupted_mask, pairs.corrupted_positions),
    )
    clean, donor = (
        forward.make_context(model, tokens, mask, positions, read=everywhere) for tokens, mask, positions in sides
    )
    return clean, donor


def run(model: Decomposition, context: Context, *, swapped: Tensor | None = None, donor: Run | None = None) -> Run:
    """Run the model, every destination reading the swapped edges from the donor run.

    Args:
        swapped: `[B, n_ports, S]`, true (or 1) where an edge is swapped; None: nowhere.
        donor: the other run; needed with `swapped`.
    """
    n_heads = model.layers[0].attention.w_o.shape[0]
    sources = torch.cat(forward.embed(model, context))  # [S so far, B, T, D], token and position first
    total = sources.sum(0)  # [B, T, D], the residual stream
    port = 0

    def read(n: int) -> Tensor:
        """What the next `n` ports read, `[n or 1, 1, B, T, D]`."""
        nonlocal port
        port += n
        if swapped is None or donor is None:
            return total[None, None]
        change = donor.sources[: len(sources)] - sources
        weights = swapped[:, port - n : port, : len(sources)].to(change.dtype)
        return (total + torch.einsum("bns,sbtd->nbtd", weights, change))[:, None]

    for layer in model.layers:
        attention = layer.attention
        q, k, v = (forward.project(attention, name, read(n_heads), context) for name in "qkv")
        heads = forward.write(attention, forward.attend(attention, q, k, v, context))[:, 0]
        sources = torch.cat((sources, heads))
        total = total + heads.sum(0) + (0 if attention.b_o is None else attention.b_o)
        written = forward.mlp(layer, read(1)[0])
        sources = torch.cat((sources, written))
        total = total + written[0]
    return Run(sources, forward.readout(model, read(1)[0, 0]))


def trainable(model: GPT2LMHeadModel) -> Decomposition:
    """A GPT-2 in place, as `acdc.model.reading.decoder.decompose` has it, but with weights that gradients reach."""
    plain = decoder.decompose(model)
    layers = []
    blocks: list[Any] = list(model.transformer.h)
    for layer, block in zip(plain.layers, blocks, strict=True):
        attention, own = layer.attention, block.attn
        weight = own.c_attn.weight.t().view(3, *attention.q.weight.shape)
        bias = own.c_attn.bias.view(3, *attention.q.weight.shape[:2])
        q, k, v = (
            dataclasses.replace(projection, weight=weight[i], bias=bias[i])
            for i, projection in enumerate((attention.q, attention.k, attention.v))
        )
        live = dataclasses.replace(
            attention, q=q, k=k, v=v, w_o=own.c_proj.weight.view(attention.w_o.shape), b_o=own.c_proj.bias
        )
        layers.append(dataclasses.replace(layer, mixes=live))
    return dataclasses.replace(plain, layers=tuple(layers), unembedding=model.lm_head.weight)
