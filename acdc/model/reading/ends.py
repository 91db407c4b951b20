"""The two ends of a decoder: what the first block reads, and what becomes of what the last one gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from acdc.model.architecture import Norm
from acdc.model.reading.matching import Matrix, Unread, close, is_norm, matrix_of, norm_between, ratio, read_norm
from acdc.model.reading.watch import Run


def read_embedding(
    model: Any, run: Run, x: Tensor, token_ids: Tensor, position_ids: Tensor, path: str
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor] | None]:
    """What gives the first block's input `x`: (of token ids, of position ids)."""
    embedding = model.get_input_embeddings()
    inside = {part for part in model.get_submodule(path).modules()}
    steps: list[Callable[[Tensor], Tensor]] = []
    with torch.no_grad():
        value = embedding(token_ids)
    for _ in range(8):
        c = ratio(x, value)
        if c is not None:
            return _composed(embedding, steps, c), None
        nearby = [
            p for p in run.order if p not in inside and p in run.read and p in run.written and p is not embedding
        ]
        for part in nearby:
            c = ratio(run.read[part], value)
            y = run.written[part]
            if c is None or y.shape != x.shape or list(part.children()) or torch.equal(y, value):
                continue
            if c != 1.0:
                steps.append(lambda t, c=c: t * c)  # type: ignore[misc]
            steps.append(part)
            value = y
            break
        else:
            break
    if value.shape == x.shape:
        found = _positions(model, x, value, position_ids)
        if found is not None:
            return _composed(embedding, steps, found[0]), found[1]
    raise Unread(
        "the first block does not read a multiple of the token embedding, its norm, or its sum with positions"
    )


def _composed(embedding: Any, steps: Sequence[Callable[[Tensor], Tensor]], c: float) -> Callable[[Tensor], Tensor]:
    if not steps and c == 1.0:
        module: Callable[[Tensor], Tensor] = embedding
        return module

    def embed(token_ids: Tensor) -> Tensor:
        value = embedding(token_ids)
        for step in steps:
            value = step(value)
        return value if c == 1.0 else value * c

    return embed


def _positions(
    model: nn.Module, x: Tensor, value: Tensor, position_ids: Tensor
) -> tuple[float, Callable[[Tensor], Tensor]] | None:
    """(c, positions) with x = c · value + positions: a row of some table for each position."""
    c = ratio(x[0] - x[1], value[0] - value[1])
    if c is None:
        return None
    rest = (x - c * value)[0]  # [T, D]
    T = len(rest)
    for name, table in [*model.named_parameters(), *model.named_buffers()]:
        if table.dim() != 2 or table.shape[1] != rest.shape[1] or len(table) < T:
            continue
        for offset in range(0, min(4, len(table) - T + 1)):
            if close(table[offset : offset + T].to(rest), rest):
                owner, _, attribute = name.rpartition(".")
                return c, _rows(model.get_submodule(owner), attribute, offset)
    return None


def _rows(owner: nn.Module, attribute: str, offset: int) -> Callable[[Tensor], Tensor]:
    def positions(position_ids: Tensor) -> Tensor:
        table: Tensor = getattr(owner, attribute)
        return table[position_ids + offset]

    return positions


def read_readout(model: Any, config: Any, run: Run, x: Tensor) -> tuple[Matrix, Norm | None, float, float | None]:
    """(unembedding, final norm, logit multiplier, soft cap)."""
    width = run.logits.shape[-1]
    heads = [m for m in (matrix_of(p, run) for p in run.order) if m is not None and m.weight.shape[0] >= width]
    for head in reversed(heads):
        given = run.written[head.module][..., :width]
        c = ratio(run.logits, given)
        softcap: float | None = None
        if c is None:
            for cap in _soft_caps(config):
                if close(torch.tanh(given / cap) * cap, run.logits):
                    c, softcap = 1.0, cap
            if c is None:
                continue
        reads = run.read[head.module]
        norms = {p: None for p in model.modules() if is_norm(p, run)}
        norm = norm_between(x, reads, norms, run)
        if isinstance(norm, str):
            norm, before = _multiple_of_norm(x, reads, norms, run)
            if norm is None or head.bias is not None:
                raise Unread("what the unembedding reads is neither the stream nor a norm of it")
            c *= before
        return (
            Matrix(head.module, head.weight[:width], None if head.bias is None else head.bias[:width]),
            norm,
            c,
            softcap,
        )
    raise Unread("the logits are not a matrix of the stream, multiplied or soft-capped")


def _soft_caps(config: Any) -> list[float]:
    named = {key: value for key, value in vars(config).items() if "softcap" in key or "soft_cap" in key}
    return [float(value) for value in named.values() if isinstance(value, int | float) and value]


def _multiple_of_norm(
    x: Tensor, reads: Tensor, norms: dict[nn.Module, None], run: Run
) -> tuple[Norm | None, float]:
    """The norm of the stream of which `reads` is a multiple, and that multiple."""
    for part in norms:
        for given, gave in run.pairs(part):
            c = ratio(reads, gave)
            if c is not None and close(given, x):
                return read_norm(part, x.shape[-1], x), c
    return None, 1.0
