"""A block: which norms stand where, what is added to the stream with which multipliers, and in which order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from acdc.model.architecture import Layer, Mixer, Norm, Parts
from acdc.model.reading.attention import Reading
from acdc.model.reading.matching import TOLERANCE, Unread, close, is_norm, norm_between, post_norm_of, read_norm
from acdc.model.reading.mlp import first_of, mlp_of, writers_of
from acdc.model.reading.watch import Run


@dataclasses.dataclass(frozen=True)
class Rest:
    """What a block does beside mixing positions.

    Attributes:
        multiplier: of what the mixing part writes; constant: what the block adds to it.
        mlp, norm: the MLP, and the norm before it; last, writes: its module, and that whose output is added.
        beside: whether it reads the stream before the mixing part.
    """

    multiplier: float
    constant: Tensor | None
    mlp: Callable[[Tensor], Tensor]
    norm: Norm | None
    last: nn.Module
    writes: nn.Module
    beside: bool


def layer_with_heads(
    block: nn.Module, part: nn.Module, reading: Reading, run: Run, x: Tensor, after: Tensor
) -> tuple[Layer, bool]:
    """A block from what its parts read and wrote, and whether its MLP is beside attention."""
    norms = {p: None for p in block.modules() if is_norm(p, run) and p not in set(part.modules())}
    norm = norm_between(x, reading.reads, norms, run)
    if isinstance(norm, str):
        raise Unread(f"what it reads {norm}")
    attention_last, attention_writes = post_norm_of(reading.written, norms, run)
    rest = rest_of_block(
        block, part, reading.output.module, reading.written.shape, norms, run, x, after, attention_writes
    )
    post_norm = None if attention_last is None else read_norm(attention_last, x.shape[-1], x)
    if post_norm is not None and post_norm.centred:
        raise Unread("its post-norm takes a mean off, which is no share of any head")
    own = reading.attention
    if post_norm is not None and own.b_o is not None and bool(own.b_o.any()):
        raise Unread("it has an output bias before a post-norm, which belongs to no head and is not constant")
    b_o = own.b_o if own.b_o is None or rest.multiplier == 1.0 else own.b_o * rest.multiplier
    if rest.constant is not None:  # GPT-NeoX Japanese adds the output bias in the block
        if post_norm is not None:
            raise Unread("the block adds a bias after a post-norm")
        b_o = rest.constant if b_o is None else b_o + rest.constant
    attention = dataclasses.replace(
        own, norm=norm, b_o=b_o, multiplier=own.multiplier * rest.multiplier, post_norm=post_norm
    )
    parts = Parts(
        block,
        attention=part if close(run.read.get(part), reading.reads) else None,
        attention_writes=attention_last or reading.output.module,
        mlp=rest.last,
        mlp_writes=rest.writes,
    )
    return Layer(attention, rest.norm, rest.mlp, parts), rest.beside


def layer_with_mixer(block: nn.Module, run: Run, x: Tensor, after: Tensor) -> tuple[Layer, bool]:
    """A block without heads: the part of it that mixes positions, as one node, and its MLP."""
    norms = {p: None for p in block.modules() if is_norm(p, run)}
    mixing = next((p for p in block.children() if p in run.read and _mixes(p, run)), None)
    if mixing is None:
        inside = ", ".join(dict.fromkeys(type(child).__name__ for child in block.children()))
        raise Unread(f"it has neither attention of heads nor one part that mixes positions; it holds {inside}")
    if not _hides_padding(mixing, run):
        raise Unread(f"{type(mixing).__name__} lets padding through to the tokens after it")
    reads, written = run.read[mixing], run.written[mixing]
    norm = norm_between(x, reads, norms, run)
    if isinstance(norm, str):
        raise Unread(f"what {type(mixing).__name__} reads {norm}")
    post, end = post_norm_of(written, norms, run)
    arguments = run.arguments[mixing]
    rest = rest_of_block(block, mixing, mixing, written.shape, norms, run, x, after, end)
    if rest.constant is not None:
        raise Unread("the block adds a bias of its own")

    def mix(stream: Tensor, mask: Tensor, position_ids: Tensor) -> Tensor:
        given = stream if norm is None else norm.module(stream)
        out = first_of(_call(mixing, given, mask, position_ids, arguments, reads.shape))
        out = out if post is None else post(out)
        return out if rest.multiplier == 1.0 else out * rest.multiplier

    parts = Parts(block, None, None, rest.last, rest.writes)
    return Layer(Mixer(mix, norm), rest.norm, rest.mlp, parts), rest.beside


def rest_of_block(
    block: nn.Module, part: nn.Module, output: nn.Module, shape: torch.Size, norms: dict[nn.Module, None], run: Run,
    x: Tensor, after: Tensor, mixed: Tensor,
) -> Rest:  # fmt: skip
    """What a block does beside `part`, which mixes positions, and whose `output` gives `mixed` to the stream `x`."""
    writers = writers_of(block, part, output, shape, run)
    ends = [post_norm_of(writer.written, norms, run) for writer in writers]
    names = [type(writer.module).__name__ for writer in writers]
    multiplier, multipliers, constant = _coefficients(x, after, [mixed, *(end for _, end in ends)], names)
    middle = x + multiplier * mixed + (0.0 if constant is None else constant)
    beside: set[bool] = set()
    before: list[Norm | None] = []
    for writer in writers:
        for stream, parallel in ((middle, False), (x, True)):
            found = norm_between(stream, writer.reads, norms, run)
            if not isinstance(found, str):
                before.append(found)
                beside.add(parallel)
                break
        else:
            raise Unread(f"what {type(writer.module).__name__} reads is neither the stream nor a norm of it")
    if len(beside) > 1:
        raise Unread("some of what it writes reads the stream before attention, some after it")
    mlp, norm = mlp_of(writers, before, [last for last, _ in ends], multipliers)
    last = writers[-1].module
    return Rest(multiplier, constant, mlp, norm, last, ends[-1][0] or last, beside == {True})


def _coefficients(
    x: Tensor, after: Tensor, written: Sequence[Tensor], names: Sequence[str]
) -> tuple[float, list[float], Tensor | None]:
    """Multipliers with which attention and the others, `written`, add up to the block's change of the stream.

    And what is left: the same for every token (a bias that is added by the block), or None.
    """
    change = (after - x).double()
    parts = [y.double() for y in written]
    rounding = 4 * torch.finfo(x.dtype).eps * max(float(x.abs().max()), float(after.abs().max()))
    allowed = TOLERANCE[x.dtype] * float(change.abs().max()) + rounding

    def centred(y: Tensor) -> Tensor:
        return (y - y.mean(dim=(0, 1))).flatten()

    columns = torch.stack([centred(y) for y in parts], dim=1)
    fit = torch.linalg.lstsq(columns, centred(change)[:, None]).solution[:, 0].tolist()
    for values in ([1.0] * len(parts), fit):
        rest = change - sum(c * y for c, y in zip(values, parts, strict=True))
        constant = rest.mean(dim=(0, 1))
        if float((rest - constant).abs().max()) <= allowed:
            none = float(rest.abs().max()) <= allowed
            return values[0], values[1:], None if none else constant.to(x.dtype)
    what = " and ".join(["attention", *names])
    raise Unread(f"the block does not add multiples of what its {what} give to the stream (a post-norm block?)")


@torch.no_grad()
def _mixes(part: nn.Module, run: Run) -> bool:
    """Whether an output of a part depends on earlier positions, and on no later ones; it keeps the shape."""
    x, y = run.read[part], run.written.get(part)
    if y is None or y.shape != x.shape or x.dim() != 3 or not list(part.parameters()):
        return False
    mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    middle = x.shape[1] // 2
    changed = x.clone()
    changed[:, middle] = changed[:, middle].roll(1, -1)
    position_ids = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    try:
        again, other = (
            first_of(_call(part, z, mask, position_ids, run.arguments[part], x.shape)) for z in (x, changed)
        )
    except Exception:  # it needs more than the stream and a mask
        return False
    if not close(again, y) or not close(other[:, :middle], y[:, :middle]):
        return False
    return not close(other[:, middle + 1 :], y[:, middle + 1 :])


@torch.no_grad()
def _hides_padding(part: nn.Module, run: Run) -> bool:
    """Whether a part that mixes positions gives tokens after padding what it gives them alone."""
    x, pads = run.read[part], 3
    mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    mask[:, :pads] = False
    position_ids = (mask.long().cumsum(-1) - 1).clamp(min=0)
    padded, alone = (
        first_of(_call(part, x[:, first:], mask[:, first:], position_ids[:, first:], run.arguments[part], x.shape))
        for first in (0, pads)
    )
    return close(padded[:, pads:], alone)


_MASKS = ("attention_mask", "mask", "padding_mask")


def _call(
    part: nn.Module, x: Tensor, mask: Tensor, position_ids: Tensor, arguments: tuple[Any, Any], shape: torch.Size
) -> Any:
    """Call a part as it was called with a stream of some shape, on another stream, mask and position ids."""
    args, kwargs = arguments

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point():
            return x if value.shape == shape else value
        if value.dim() == 2 and value.shape[1] == shape[1]:
            return position_ids
        return position_ids[0] if value.shape == shape[1:2] else value

    named = {key: own(value) for key, value in kwargs.items()}
    padded = None if bool(mask.all()) else mask.long()
    named |= {key: padded for key in _MASKS if key in kwargs}
    return part(*(own(value) for value in args), **named)
