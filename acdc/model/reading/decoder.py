"""Any `transformers` decoder as a `Decomposition`, read by watching plain runs of it.

Names only say where the list of blocks is. What feeds what (pre-norm or post-norm, sequential or parallel, residual and
logit multipliers, how tokens and positions are embedded) is told by comparing the tensors of a run: a norm reads the
stream if what it was given is the stream. What cannot be told is refused, with the first layer, the module and the
reason; and what was told is then judged by the comparison of `acdc.model.check`, as for any other model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from acdc.errors import UnsupportedModelError
from acdc.model.architecture import Attention, Decomposition
from acdc.model.observe import masks, special_tokens
from acdc.model.reading.attention import read_attention
from acdc.model.reading.block import layer_with_heads, layer_with_mixer
from acdc.model.reading.ends import read_embedding, read_readout
from acdc.model.reading.matching import Unread, close
from acdc.model.reading.rotary_tables import table_made, tables
from acdc.model.reading.watch import Attended, Run, logits_untold, watch

_SINGLE = 24  # prompts of one token: so many numbers tell channels apart


_LENGTH = 10


_LONGEST = 600


def decompose(model: Any) -> Decomposition:
    """Read a `transformers` causal language model in place.

    Raises:
        UnsupportedModelError: naming the first layer, the module and the reason.
    """
    config = model.config.get_text_config()
    try:
        single, several, token_ids, position_ids = _runs(model, config)
        return _decomposition(model, config, single, several, token_ids, position_ids)
    except Unread as reason:
        raise UnsupportedModelError(f"{model.config.model_type}: {reason}") from None
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{model.config.model_type}: a part of it is not what any decoder that was read has: "
            f"{type(error).__name__}: {error}"
        ) from error


def _runs(model: Any, config: Any) -> tuple[Run, Run, Tensor, Tensor]:
    """A run of many prompts of one token, and one of two prompts of several."""
    usual = _usual_tokens(model)
    generator = torch.Generator().manual_seed(3)
    length = min(_LENGTH, getattr(config, "max_position_embeddings", None) or _LENGTH)
    single = usual[torch.randperm(len(usual), generator=generator)[:_SINGLE]][:, None]
    token_ids = usual[torch.randint(len(usual), (2, length), generator=generator)]
    position_ids = torch.arange(length, device=usual.device).expand(2, length)
    runs = _watched(model, single, torch.zeros_like(single)), _watched(model, token_ids, position_ids)
    if not all(bool(torch.isfinite(run.logits).all()) for run in runs):
        raise Unread("its logits are not finite: it has non-finite weights")
    if not close(logits_untold(model, token_ids), runs[1].logits):
        raise Unread("left to itself it does not count positions from 0, so position ids would be misread")
    return *runs, token_ids, position_ids


def _usual_tokens(model: Any) -> Tensor:
    """Token ids to run, without those that stand for something else than text."""
    special = special_tokens(model.config)
    size = min(4096, model.get_input_embeddings().weight.shape[0])
    return torch.tensor([i for i in range(size) if i not in special], device=next(model.parameters()).device)


def _watched(model: Any, token_ids: Tensor, position_ids: Tensor) -> Run:
    try:
        return watch(model, token_ids, position_ids)
    except Exception as error:  # a class may stumble over whatever it likes
        raise Unread(f"a plain run on token ids failed: {type(error).__name__}: {error}") from error


def _long_run(model: Any, config: Any) -> Run:
    """A run longer than the windows that the config may speak of."""
    length = max([_LENGTH, *(n + 3 for n in _windows(config) if n + 3 <= _LONGEST)])
    length = min(length, getattr(config, "max_position_embeddings", None) or length)
    usual = _usual_tokens(model)
    token_ids = usual[torch.arange(length, device=usual.device) % len(usual)][None]
    return _watched(model, token_ids, torch.arange(length, device=usual.device)[None])


def _windows(config: Any) -> list[int]:
    """Numbers in the config that may be how far attention sees."""
    values = {
        key: value for key, value in vars(config).items() if "window" in key or "chunk" in key or "local" in key
    }
    return [value for value in values.values() if type(value) is int and value > 1]


def _decomposition(
    model: Any, config: Any, single: Run, several: Run, token_ids: Tensor, position_ids: Tensor
) -> Decomposition:
    path, blocks = _blocks(model, several)
    parts: list[nn.Module | None] = []
    for index, block in enumerate(blocks):
        where = f"layer {index} ({type(block).__name__})"
        if several.times(block) != 1:
            raise Unread(f"{where} runs {several.times(block)} times in one pass")
        for child in block.children():
            if several.times(child) == 0 and list(child.parameters()) and not isinstance(child, nn.ModuleList):
                raise Unread(f"{where} has a {type(child).__name__} that a run on token ids leaves out")
        found = [part for part in block.modules() if part in several.attended and _is_heads(several.attended[part])]
        if len(found) > 1 or (found and several.times(found[0]) != 1):
            inside = ", ".join(dict.fromkeys(type(child).__name__ for child in block.children()))
            raise Unread(f"{where} attends {len(found)} times; it holds {inside}")
        parts.append(found[0] if found else None)
    streams = [several.read[block] for block in blocks]
    last = several.written[blocks[-1]]
    token_embedding, position_embedding = read_embedding(model, several, streams[0], token_ids, position_ids, path)
    rotary = {
        name: (table, made)
        for name, table in tables(model, config, several, position_ids).items()
        if (made := table_made(table, streams[0], position_ids)) is not None
    }
    heads = [part for part in parts if part is not None]
    if not heads:
        raise Unread(
            "none of its layers has attention of heads; state-space models and recurrences are not supported"
        )
    sees = dict(zip(heads, masks(model, heads, lambda: _long_run(model, config).attended), strict=True))
    clip = getattr(config, "clip_qkv", None) or getattr(getattr(config, "attn_config", None), "clip_qkv", None)
    layers, parallel = [], set()
    for index, (block, part) in enumerate(zip(blocks, parts, strict=True)):
        after = streams[index + 1] if index + 1 < len(blocks) else last
        try:
            if part is None:
                layer, beside = layer_with_mixer(block, several, streams[index], after)
            else:
                reading = read_attention(part, block, single, several, rotary, sees[part], clip)
                layer, beside = layer_with_heads(block, part, reading, several, streams[index], after)
        except Unread as reason:
            raise Unread(f"layer {index}, {type(block if part is None else part).__name__}: {reason}") from None
        layers.append(layer)
        parallel.add(beside)
    attentions = [layer.mixes for layer in layers if isinstance(layer.mixes, Attention)]
    if len({attention.n_heads for attention in attentions}) > 1:
        raise Unread(f"its layers have different numbers of heads: {[x.n_heads for x in attentions]}")
    if len(parallel) > 1:
        raise Unread("some of its blocks are parallel and some sequential")
    used = {attention.rotary.table for attention in attentions if attention.rotary is not None}
    head, final_norm, scale, softcap = read_readout(model, config, several, last)
    return Decomposition(
        layers=tuple(layers),
        token_embedding=token_embedding,
        position_embedding=position_embedding,
        rotary=(lambda x, ids: {name: rotary[name][0](x, ids) for name in used}) if used else None,
        final_norm=final_norm,
        unembedding=head.weight,
        unembedding_bias=head.bias,
        logit_scale=scale,
        final_softcap=softcap,
        parallel=parallel == {True},
    )


def _is_heads(attended: Attended) -> bool:
    """Whether what looks like attention is: queries, keys and values of every token."""
    T = attended.visible.shape[-1]
    return attended.q.dim() == attended.k.dim() == 4 and attended.q.shape[2] == attended.k.shape[2] == T


def _blocks(model: nn.Module, run: Run) -> tuple[str, list[nn.Module]]:
    """The list of blocks, and where it is: of all lists, the outermost that most attention is spread over."""
    best: tuple[int, str, list[nn.Module]] | None = None
    for path, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and len(part):
            number = sum(any(x in run.attended for x in block.modules()) for block in part)
            if number and (best is None or number > best[0]):
                best = (number, path, list(part))
    if best is None:
        raise Unread(
            "no list of blocks that attend was found; state-space layers and recurrences are not supported"
        )
    return best[1], best[2]
