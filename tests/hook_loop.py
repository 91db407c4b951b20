"""Activation patching again, by hooks on the plain `transformers` module: one replacement a run."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

import oracle
from acdc.tasks.prompts import Prompts


class Point(NamedTuple):
    """Where a value is in the plain module: part of the last axis of what a module reads or gives."""

    module: torch.nn.Module
    reads: bool
    part: slice


def point(module: Any, site: str, layer: int, component: int) -> Point:
    """The value of a component of a site."""
    kind, config = module.config.model_type, module.config
    H = config.num_attention_heads
    block = oracle._blocks(kind, module)[layer]
    if site == "residual":
        return Point(block, True, slice(None))
    own = oracle._layer(kind, block, H, getattr(config, "num_key_value_heads", H))
    if site == "attention":
        return Point(own.post_norm or own.o_proj, False, slice(None))
    if site == "mlp":
        return Point(own.mlp_output, False, slice(None))
    d = own.w_o.shape[1] // H
    if site == "head":
        return Point(own.o_proj, True, slice(component * d, (component + 1) * d))
    number = "qkv".index(site)
    if len(own.projections) > 1:
        return Point(own.projections[site], False, slice(component * d, (component + 1) * d))
    first = {"gpt2": number * H + component, "gpt_neox": 3 * component + number}[kind] * d
    return Point(own.projections["qkv"], False, slice(first, first + d))


def run(module: Any, prompts: Prompts, at: Point | None = None, new: Tensor | None = None, mask: Any = None) -> Any:
    """Logits where they are read `[B, P, V]`, and the value at a point `[B, T, X]`; `new` stands for it at `mask`."""
    seen: dict[str, Tensor] = {}

    def change(x: Any) -> Any:
        value = x[0] if isinstance(x, tuple) else x
        seen["value"] = value[..., at.part].clone()
        if new is not None:
            value = value.clone()
            value[..., at.part] = torch.where(mask[..., None], new, value[..., at.part])
        return (value, *x[1:]) if isinstance(x, tuple) else value

    with contextlib.ExitStack() as stack, torch.no_grad():
        if at is not None:
            (oracle._pre_hook if at.reads else oracle._hook)(stack, at.module, change)
        position_ids = (prompts.mask.long().cumsum(-1) - 1).clamp(min=0)
        logits = module(
            input_ids=prompts.clean, attention_mask=prompts.mask.long(), position_ids=position_ids, use_cache=False
        ).logits
    read = prompts.positions.clamp(min=0)
    return logits.gather(1, read[..., None].expand(-1, -1, logits.shape[-1])), seen.get("value")


def logit_difference(logits: Tensor, prompts: Prompts) -> Tensor:
    """Mean answer less mean wrong answer, over the read positions of each prompt: `[B]`."""
    found = []
    for b, positions in enumerate(prompts.positions.tolist()):
        each = [
            logits[b, i, prompts.answers[b, i]].mean() - logits[b, i, prompts.wrong[b, i]].mean()
            for i, t in enumerate(positions)
            if t >= 0
        ]
        found.append(torch.stack(each).mean())
    return torch.stack(found)
