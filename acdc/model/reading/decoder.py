"""Any `transformers` decoder as a `Decomposition`, read by watching plain runs of it.

Names only say where the list of blocks is. What feeds what (pre-norm or post-norm, sequential or parallel, residual and
logit multipliers, how tokens and positions are embedded) is told by comparing the tensors of a run: a norm reads the
stream if what it was given is the stream. What cannot be told is refused, with the first layer, the module and the
reason; and what was told is then judged by the comparison of `acdc.model.check`, as for any other model.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import NewGELUActivation

from acdc.errors import UnsupportedModelError
from acdc.model.architecture import Attention, Decomposition, Layer, Mixer, Norm, Parts
from acdc.model.observe import masks, special_tokens
from acdc.model.reading.attention import (
    TOLERANCE,
    Matrix,
    Reading,
    Table,
    Unread,
    close,
    matrix_of,
    ratio,
    read_attention,
    read_norm,
    tables,
)
from acdc.model.reading.watch import Attended, Run, first_tensor, logits_untold, watch

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


# ---- the whole ---------------------------------------------------------------------------------------------------


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
    token_embedding, position_embedding = _embedding(model, several, streams[0], token_ids, position_ids, path)
    rotary = {
        name: (table, made)
        for name, table in tables(model, config, several, position_ids).items()
        if (made := _try_table(table, streams[0], position_ids)) is not None
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
                layer, beside = _mixer_layer(block, several, streams[index], after)
            else:
                reading = read_attention(part, block, single, several, rotary, sees[part], clip)
                layer, beside = _layer(block, part, reading, several, streams[index], after)
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
    head, final_norm, scale, softcap = _readout(model, config, several, last)
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


def _try_table(table: Table, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor] | None:
    try:
        with torch.no_grad():
            cos, sin = table(x, position_ids)
    except Exception:  # not a rotary embedding after all
        return None
    fits = (
        cos.shape == sin.shape and cos.dim() == 3 and cos.shape[:2] == position_ids.shape and cos.shape[-1] % 2 == 0
    )
    return (cos, sin) if fits else None


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


# ---- the embedding ------------------------------------------------------------------------------------------------


def _embedding(
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


# ---- a block ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Something beside attention that writes to the stream.

    Attributes:
        module: whose output it is; run: what it computes, `[b, T, D] -> [b, T, D]`.
        reads, written: in the run of several tokens.
    """

    module: nn.Module
    run: Callable[[Tensor], Tensor]
    reads: Tensor
    written: Tensor


def _layer(
    block: nn.Module, part: nn.Module, reading: Reading, run: Run, x: Tensor, after: Tensor
) -> tuple[Layer, bool]:
    """A block from what its parts read and wrote, and whether its MLP is beside attention."""
    norms = {p: None for p in block.modules() if _is_norm(p, run) and p not in set(part.modules())}
    norm = _norm_between(x, reading.reads, norms, run)
    if isinstance(norm, str):
        raise Unread(f"what it reads {norm}")
    attention_last, attention_writes = _post_norm(reading.written, norms, run)
    rest = _rest(block, part, reading.output.module, reading.written.shape, norms, run, x, after, attention_writes)
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


def _rest(
    block: nn.Module, part: nn.Module, output: nn.Module, shape: torch.Size, norms: dict[nn.Module, None], run: Run,
    x: Tensor, after: Tensor, mixed: Tensor,
) -> _Rest:  # fmt: skip
    """What a block does beside `part`, which mixes positions, and whose `output` gives `mixed` to the stream `x`."""
    writers = _writers(block, part, output, shape, run)
    ends = [_post_norm(writer.written, norms, run) for writer in writers]
    names = [type(writer.module).__name__ for writer in writers]
    multiplier, multipliers, constant = _coefficients(x, after, [mixed, *(end for _, end in ends)], names)
    middle = x + multiplier * mixed + (0.0 if constant is None else constant)
    beside: set[bool] = set()
    before: list[Norm | None] = []
    for writer in writers:
        for stream, parallel in ((middle, False), (x, True)):
            found = _norm_between(stream, writer.reads, norms, run)
            if not isinstance(found, str):
                before.append(found)
                beside.add(parallel)
                break
        else:
            raise Unread(f"what {type(writer.module).__name__} reads is neither the stream nor a norm of it")
    if len(beside) > 1:
        raise Unread("some of what it writes reads the stream before attention, some after it")
    mlp, norm = _mlp(writers, before, [last for last, _ in ends], multipliers)
    last = writers[-1].module
    return _Rest(multiplier, constant, mlp, norm, last, ends[-1][0] or last, beside == {True})


def _mixer_layer(block: nn.Module, run: Run, x: Tensor, after: Tensor) -> tuple[Layer, bool]:
    """A block without heads: the part of it that mixes positions, as one node, and its MLP."""
    norms = {p: None for p in block.modules() if _is_norm(p, run)}
    mixing = next((p for p in block.children() if p in run.read and _mixes(p, run)), None)
    if mixing is None:
        inside = ", ".join(dict.fromkeys(type(child).__name__ for child in block.children()))
        raise Unread(f"it has neither attention of heads nor one part that mixes positions; it holds {inside}")
    if not _hides_padding(mixing, run):
        raise Unread(f"{type(mixing).__name__} lets padding through to the tokens after it")
    reads, written = run.read[mixing], run.written[mixing]
    norm = _norm_between(x, reads, norms, run)
    if isinstance(norm, str):
        raise Unread(f"what {type(mixing).__name__} reads {norm}")
    post, end = _post_norm(written, norms, run)
    arguments = run.arguments[mixing]
    rest = _rest(block, mixing, mixing, written.shape, norms, run, x, after, end)
    if rest.constant is not None:
        raise Unread("the block adds a bias of its own")

    def mix(stream: Tensor, mask: Tensor, position_ids: Tensor) -> Tensor:
        given = stream if norm is None else norm.module(stream)
        out = _first(_call(mixing, given, mask, position_ids, arguments, reads.shape))
        out = out if post is None else post(out)
        return out if rest.multiplier == 1.0 else out * rest.multiplier

    parts = Parts(block, None, None, rest.last, rest.writes)
    return Layer(Mixer(mix, norm), rest.norm, rest.mlp, parts), rest.beside


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
            _first(_call(part, z, mask, position_ids, run.arguments[part], x.shape)) for z in (x, changed)
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
        _first(_call(part, x[:, first:], mask[:, first:], position_ids[:, first:], run.arguments[part], x.shape))
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


@dataclasses.dataclass(frozen=True)
class _Rest:
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


def _is_norm(part: nn.Module, run: Run) -> bool:
    """Whether a module may be a norm: it has no parts, keeps the shape, and is no matrix."""
    x, y = run.read.get(part), run.written.get(part)
    if x is None or y is None or x.shape != y.shape or list(part.children()) or isinstance(part, nn.Linear):
        return False
    weight = getattr(part, "weight", None)
    return "norm" in type(part).__name__.lower() and (weight is None or weight.dim() == 1)


def _norm_between(x: Tensor, reads: Tensor, norms: dict[nn.Module, None], run: Run) -> Norm | str | None:
    """The norm that makes `reads` of the stream `x`; None if they are the same; in words if there is none."""
    if close(reads, x):
        return None
    for part in norms:
        for given, gave in run.pairs(part):
            if torch.equal(gave, reads):
                if close(given, x):
                    return read_norm(part, x.shape[-1], x)
                return (
                    f"is the output of {type(part).__name__}, which does not read the stream (a post-norm block?)"
                )
    return "is neither the stream nor a norm of it"


def _post_norm(written: Tensor, norms: dict[nn.Module, None], run: Run) -> tuple[nn.Module | None, Tensor]:
    """The norm that reads what was written and its output; else what was written."""
    for part in norms:
        for given, gave in run.pairs(part):
            if torch.equal(given, written):
                return part, gave
    return None, written


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


def _writers(block: nn.Module, part: nn.Module, output: nn.Module, shape: torch.Size, run: Run) -> list[_Writer]:
    """What beside attention gives something of the stream's shape: the outermost modules that do."""
    within = {*part.modules(), output}
    found: list[_Writer] = []

    def look(parent: nn.Module) -> None:
        for child in parent.children():
            if child in within or not list(child.parameters()) or _is_norm(child, run):
                continue
            if any(x in within for x in child.modules()) or isinstance(child, nn.ModuleList):
                look(child)
                continue
            y = run.written.get(child)
            if y is None or y.shape != shape or _first_of_two(block, child, run):
                continue
            found.append(_writer(block, child, run))

    look(block)
    if not found:
        raise Unread(f"nothing beside attention writes to the stream in {type(block).__name__}")
    return found


def _writer(block: nn.Module, child: nn.Module, run: Run) -> _Writer:
    reads, written = run.read[child], run.written[child]
    if matrix_of(child, run) is not None:
        return _matrix_pair(block, child, run)
    args, kwargs = run.arguments[child]
    streams = [
        x
        for x in (*args, *kwargs.values())
        if isinstance(x, Tensor) and x.shape == reads.shape and x.is_floating_point()
    ]
    if len(streams) == 2 and len(args) == 2:  # the residual stream is added inside

        def added(x: Tensor) -> Tensor:
            return _first(child(x, torch.zeros_like(x)))

        return _judged(child, added, reads, written - args[1])
    return _judged(child, lambda x: _first(child(x)), reads, written)


def _first(out: Any) -> Tensor:
    found = first_tensor(out)
    assert found is not None
    return found


@torch.no_grad()
def _judged(module: nn.Module, run: Callable[[Tensor], Tensor], reads: Tensor, written: Tensor) -> _Writer:
    """A writer, if each position of it depends on that position alone."""
    name = type(module).__name__
    try:
        again, alone = run(reads), run(reads[1:, 2:3])
    except Exception as error:
        raise Unread(f"{name} does not run on its input alone: {type(error).__name__}: {error}") from error
    if not close(again.reshape(written.shape), written):
        raise Unread(f"{name} gives something else when it is run on its input alone")
    if not close(alone.reshape(1, 1, -1), written[1:, 2:3]):
        raise Unread(f"{name} mixes positions")
    return _Writer(module, run, reads, written)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A matrix, an activation, and a matrix."""

    first: nn.Module
    activation: Callable[[Tensor], Tensor]
    second: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.activation(self.first(x)))
        return out


def _activation(block: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The activation of an MLP that is written out in the block."""
    found = (getattr(block, name, None) for name in ("activation_fn", "act", "activation"))
    return next((activation for activation in found if callable(activation)), None)


@torch.no_grad()
def _first_of_two(block: nn.Module, child: nn.Module, run: Run) -> bool:
    """Whether a matrix is the first of an MLP that is written out in the block."""
    activation = _activation(block)
    if activation is None or matrix_of(child, run) is None:
        return False
    inner = activation(run.written[child])
    return any(other is not child and close(run.read.get(other), inner) for other in block.children())


@torch.no_grad()
def _matrix_pair(block: nn.Module, child: nn.Module, run: Run) -> _Writer:
    """An MLP written out in the block: a matrix, an activation, and a matrix."""
    activation = _activation(block)
    others = [] if activation is None else [x for x in block.children() if x is not child and matrix_of(x, run)]
    for first in others:
        assert activation is not None
        if close(activation(run.written[first]), run.read[child]):
            pair = _Pair(first, activation, child)
            return _judged(child, pair, run.read[first], run.written[child])
    raise Unread(f"what {type(child).__name__} of {type(block).__name__} reads was not found")


def _mlp(
    writers: Sequence[_Writer], before: Sequence[Norm | None], after: Sequence[nn.Module | None],
    multipliers: Sequence[float],
) -> tuple[Callable[[Tensor], Tensor], Norm | None]:  # fmt: skip
    """What the MLP computes, and the norm before it."""
    shared = all(
        (a is None and b is None) or (a is not None and b is not None and a.module is b.module)
        for a, b in itertools.pairwise(before)
    )
    simple = len(writers) == 1 and multipliers[0] == 1.0 and _takes_circuits(writers[0])
    if simple:
        inner = _in_one_kernel(writers[0].module)
        return (inner if after[0] is None else nn.Sequential(inner, after[0])), before[0]

    def mlp(x: Tensor) -> Tensor:
        flat = x.reshape(-1, *x.shape[-2:])
        total = torch.zeros_like(flat)
        for writer, norm, post, c in zip(writers, before, after, multipliers, strict=True):
            y = writer.run(flat if shared or norm is None else norm.module(flat)).reshape(flat.shape)
            y = y if post is None else post(y)
            total = total + (y if c == 1.0 else y * c)
        return total.reshape(x.shape)

    return mlp, before[0] if shared else None


def _in_one_kernel(module: Any) -> Any:
    """A GPT-2 MLP with its activation in one kernel, where transformers writes out eight operations; others as is."""
    if not isinstance(getattr(module, "act", None), NewGELUActivation) or not hasattr(module, "c_fc"):
        return module

    def mlp(x: Tensor) -> Tensor:
        out: Tensor = module.c_proj(F.gelu(module.c_fc(x), approximate="tanh"))
        return out

    return mlp


@torch.no_grad()
def _takes_circuits(writer: _Writer) -> bool:
    """Whether the module itself takes one more axis, and gives a tensor."""
    try:
        out = writer.module(writer.reads[None])
    except Exception:
        return False
    return isinstance(out, Tensor) and torch.equal(out, writer.written[None])


# ---- logits -------------------------------------------------------------------------------------------------------


def _readout(model: Any, config: Any, run: Run, x: Tensor) -> tuple[Matrix, Norm | None, float, float | None]:
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
        norms = {p: None for p in model.modules() if _is_norm(p, run)}
        norm = _norm_between(x, reads, norms, run)
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
