"""Is the model that is measured the model that was checked? The decomposed forward against the module's own.

When a model is loaded, the two are compared on random tokens, and before anything is measured on prompts, on up to
four of these, padded and masked as they will be. What differs is refused, with the first part of the model that does:
a weight that was replaced, a hook, dropout. A model that is as it was when the same prompts were compared is not
compared again; what "as it was" means is in `_state`. The seconds that this takes can be told from the rest
(`count_seconds`).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import hashlib
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from acdc.errors import AcdcError, UnsupportedModelError
from acdc.model import forward, passes
from acdc.model.architecture import Attention
from acdc.model.elsewhere import numbers
from acdc.model.observe import special_tokens
from acdc.model.supported import refuse_dropout
from acdc.model.trace import Trace, whole_run

if TYPE_CHECKING:
    from acdc.model.model import Model
    from acdc.tasks.prompts import Prompts

# Several families' RMSNorm computes in float32 whatever the model's dtype, so float64 is only as good as that.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_ROUNDING = 8
"""Roundings of the largest logit that are allowed, where all logits share an offset."""

UNKNOWN = "this checkpoint has a part that its family's adapter does not know, or non-finite weights"
CHANGED = (
    "the module was changed after it was loaded (weights replaced, a module exchanged, a hook): load it again with "
    "acdc.load"
)

_HALF = (torch.bfloat16, torch.float16)
_HUGE = torch.finfo(torch.float32).max
_MOST_PROMPTS = 4
_VOCABULARY_SLICE = 2**14
_LOGITS_AT_ONCE = 2**26
_LONG = 512
"""A prompt longer than the attention windows is run when the model is loaded if it has at most so many tokens."""


@dataclasses.dataclass
class Seconds:
    """What the comparisons inside a `count_seconds` took."""

    total: float = 0.0


_counting: contextvars.ContextVar[Seconds | None] = contextvars.ContextVar("seconds", default=None)


@contextlib.contextmanager
def count_seconds() -> Iterator[Seconds]:
    """Count the seconds that comparisons with the plain model take inside the block."""
    seconds = Seconds()
    token = _counting.set(seconds)
    try:
        yield seconds
    finally:
        _counting.reset(token)
        outer = _counting.get()
        if outer is not None:
            outer.total += seconds.total


@contextlib.contextmanager
def _counted() -> Iterator[None]:
    started = time.perf_counter()
    try:
        with passes.count_passes(), torch.no_grad():  # these passes are nobody's
            yield
    finally:
        seconds = _counting.get()
        if seconds is not None:
            seconds.total += time.perf_counter() - started


# ---- what is compared -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Prompts as they are run: `[B, T]` token ids, mask and position ids, and the read positions `[B, P]`, -1 pads."""

    token_ids: Tensor
    mask: Tensor
    position_ids: Tensor
    read: Tensor

    def one(self, row: int) -> tuple[_Batch, int]:
        """One prompt alone, without its padding, and the position at which it starts."""
        real = self.mask[row].nonzero().flatten()
        first, last = int(real[0]), int(real[-1]) + 1
        read = self.read[row, self.read[row] >= 0] - first
        token_ids, mask, position_ids = (x[row : row + 1, first:last] for x in self._tensors())
        return _Batch(token_ids, mask, position_ids, read[(read >= 0) & (read < last - first)][None]), first

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.token_ids, self.mask, self.position_ids

    def digest(self) -> bytes:
        """Of all that is in it."""
        found = hashlib.sha256()
        for tensor in (*self._tensors(), self.read):
            found.update(repr(tuple(tensor.shape)).encode())
            found.update(tensor.long().cpu().numpy().tobytes())
        return found.digest()


def check_loaded(model: Model) -> None:
    """Refuse a model whose decomposed forward is not the plain forward on random tokens.

    They come without padding, padded on either side, and longer than the attention windows if those are short.

    Raises:
        UnsupportedModelError: naming the first part that differs, and by how much.
    """
    with _counted():
        limit = model.context_length or _LONG
        length = min(12, limit)
        generator = torch.Generator().manual_seed(0)
        whole = torch.ones(2, length, dtype=torch.bool)
        padded = whole.clone()
        padded[0, : length // 3], padded[1, length - length // 3 :] = False, False
        masks = [whole, padded]
        windows = [attention.window or 0 for attention in model.decomposition.attentions]
        beyond = min(max(windows, default=0) + 3, limit)
        if length < beyond <= _LONG:
            masks.append(torch.ones(1, beyond, dtype=torch.bool))
        for mask in masks:
            token_ids = torch.randint(model.input_vocabulary_size, mask.shape, generator=generator)
            token_ids = _text(model, token_ids)
            read = torch.arange(mask.shape[1]).expand(mask.shape).masked_fill(~mask, -1)
            batch = _Batch(*(x.to(model.device) for x in (token_ids, mask, _counted_positions(mask), read)))
            _compare(model, batch, UNKNOWN, finite=True)
        state = _state(model)
        _checked[model] = _Checked(state, state)


def _text(model: Model, token_ids: Tensor) -> Tensor:
    """The token ids, and the first that mean nothing special in place of those that stand for an image or a sound."""
    if not hasattr(getattr(model.module, "config", None), "text_config"):
        return token_ids
    special = special_tokens(model.module.config)
    usual = next(i for i in range(model.input_vocabulary_size) if i not in special)
    for token in special:
        token_ids = token_ids.masked_fill(token_ids == token, usual)
    return token_ids


def check_prompts(model: Model, prompts: Prompts) -> None:
    """Refuse a model whose decomposed forward is not the plain forward on these prompts.

    Compared are at most four (the shortest, the longest, the one with most padding on its left, and one more), at the
    positions that are read, unless the same were compared before and the model is as it was then. The corrupted
    prompts are run too where they are masked or placed otherwise than the clean ones.

    Raises:
        UnsupportedModelError: naming the first part that differs, and by how much.
    """
    with _counted():
        batches = _batches(prompts, model.device)
        digests = {batch.digest() for batch in batches}
        state = _state(model)
        known = _checked.get(model) or _Checked(state, state)
        compared = known.digests if state.same_as(known.state) else frozenset()
        if digests <= compared:
            return
        if model.dtype in _HALF and state.structure != known.loaded.structure:
            raise UnsupportedModelError(
                f"{model.name}: {CHANGED}; in {model.dtype} rounding would hide the difference"
            )
        try:
            for batch in batches:
                _compare(model, batch, CHANGED)
        except (RuntimeError, IndexError, TypeError, AttributeError) as error:
            if state.structure == known.loaded.structure or isinstance(error, torch.OutOfMemoryError):
                raise
            raise UnsupportedModelError(f"{model.name}: {CHANGED} ({error})") from error  # shapes no longer fit
        _checked[model] = _Checked(known.loaded, _state(model), compared | digests)


def _batches(prompts: Prompts, device: torch.device) -> list[_Batch]:
    """What of the prompts is compared: once, or twice if the corrupted ones are masked or placed otherwise."""
    length = prompts.mask.sum(1)
    pads = prompts.mask.int().argmax(1)  # on the left
    order = [int(length.argmin()), int(length.argmax()), int(pads.argmax()), *range(_MOST_PROMPTS)]
    rows = torch.tensor(list(dict.fromkeys(row for row in order if row < len(prompts)))[:_MOST_PROMPTS])
    some = prompts[rows.to(prompts.clean.device)].to(device)
    if some.branched:  # the module knows no branches
        some = some.one_branch(1)
    runs = [(some.clean, some.mask, some.position_ids)]
    if some.corrupted_mask is not None or some.corrupted_position_ids is not None:
        mask = some.mask if some.corrupted_mask is None else some.corrupted_mask
        ids = some.position_ids if some.corrupted_position_ids is None else some.corrupted_position_ids
        runs.append((some.corrupted, mask, ids))
    found = []
    for tokens, mask, ids in runs:
        # A corrupted prompt may be shorter than its clean one: at padding there is nothing to compare.
        real = mask.gather(1, some.positions.clamp(min=0))
        read = some.positions.where(real, -1)
        here = (read >= 0).any(1)
        if bool(here.any()):
            ids = _counted_positions(mask) if ids is None else ids
            found.append(_Batch(tokens[here], mask[here], ids[here], read[here]))
    return found


def _counted_positions(mask: Tensor) -> Tensor:
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


# ---- comparing --------------------------------------------------------------------------------------------------


def _compare(model: Model, batch: _Batch, reason: str, *, finite: bool = False) -> None:
    """Refuse what differs.

    A prompt's logits are those it has alone: where the module's own depend on padding or company (its attention
    overflows on masks in float64), ours are compared with the plain logits of each prompt alone.

    Args:
        finite: refuse logits that are not, too; otherwise they are left to who reads them.
    """
    trace = _trace(model, batch)
    _check_norms(model, trace, reason)
    assert trace.final_input is not None
    final = trace.final_input[0]
    pieces = _pieces(batch, model.vocabulary_size)
    if max(_difference(model, batch, final, rows, columns) for rows, columns in pieces) <= 1:
        return
    for row in range(len(batch.token_ids)):
        alone, first = batch.one(row)
        here = slice(row, row + 1)
        pieces = _pieces(alone, model.vocabulary_size)
        error = max(_difference(model, alone, final[here, first:], rows, columns) for rows, columns in pieces)
        if error <= 1 or (error == torch.inf and not finite):
            continue
        scale = error * _TOLERANCE[model.dtype]
        by = f"by {scale:.1e} of the logits' scale" if error < torch.inf else "in logits that are not finite"
        raise UnsupportedModelError(
            f"{model.name}: the decomposed forward differs from the plain one {by}, first in "
            f"{_first_difference(model, alone)}; {reason}"
        )


def _check_norms(model: Model, trace: Trace, reason: str) -> None:
    """Refuse a norm whose module does something else than its closed form, on which gradients and shares rely."""
    assert trace.final_input is not None
    norms = [(f"layer {i} (norm before the attention)", layer.mixes.norm) for i, layer in enumerate(
        model.decomposition.layers
    )]  # fmt: skip
    norms.append(("the final norm", model.decomposition.final_norm))
    for (what, norm), x in zip(norms, [*trace.attention_input, trace.final_input], strict=True):
        if norm is None:
            continue
        theirs, ours = norm.module(x), norm.closed_form(x)
        error = (theirs - ours).abs().max() / theirs.abs().max().clamp(min=1e-12)
        if bool(torch.isfinite(theirs).all()) and not error <= _TOLERANCE[model.dtype]:
            raise UnsupportedModelError(
                f"{model.name}: {what} differs from the closed form of its family by {float(error):.1e} of its scale, "
                f"so that gradients would be wrong; {reason}"
            )


def _difference(model: Model, batch: _Batch, final: Tensor, rows: slice, columns: Tensor) -> float:
    """Largest difference of the logits at some read positions, as a multiple of what is allowed.

    Infinite if the plain logits are not finite.

    Args:
        final: our final residual stream, `[B, T or more, D]`.
    """
    plain = model.plain_logits(batch.token_ids[rows], batch.mask[rows], batch.position_ids[rows], positions=columns)
    real = (batch.read[rows][:, :, None] == columns).any(1)  # [B, column]
    if plain.shape[-1] != model.vocabulary_size:
        raise UnsupportedModelError(
            f"{model.name}: the plain forward gives {plain.shape[-1]} logits, and the decomposed one "
            f"{model.vocabulary_size}; {CHANGED}"
        )
    plain, x = plain[real], final[rows][:, columns][real]  # [N, vocabulary], [N, D]
    if not bool(torch.isfinite(plain).all()):
        return torch.inf
    low, high = plain.min(-1).values, plain.max(-1).values
    largest = max(-float(low.min()), float(high.max()), 1e-6)
    spread = largest if plain.shape[1] == 1 else max(float((high - low).max()) / 2, 1e-6)
    resolution = torch.finfo(torch.float32 if model.dtype == torch.float64 else model.dtype).eps
    allowed = max(_TOLERANCE[model.dtype] * spread, _ROUNDING * resolution * largest)
    worst = 0.0
    for some in torch.arange(plain.shape[1], device=x.device).split(_VOCABULARY_SLICE):
        ours = forward.readout(model.decomposition, x, some)
        difference = (plain[:, some] - ours).abs()
        worst = max(worst, float(difference.nan_to_num(nan=_HUGE, posinf=_HUGE).max()))
    return min(worst / allowed, _HUGE)


def _pieces(batch: _Batch, vocabulary: int) -> list[tuple[slice, Tensor]]:
    """Prompts and read positions of which the logits are held at once."""
    columns, rows = batch.read[batch.read >= 0].unique(), len(batch.token_ids)
    if rows * len(columns) * vocabulary <= _LOGITS_AT_ONCE:
        return [(slice(0, rows), columns)]
    pieces = []
    for row in range(rows):
        own = batch.read[row][batch.read[row] >= 0].unique()
        pieces += [(slice(row, row + 1), some) for some in own.split(max(1, _LOGITS_AT_ONCE // vocabulary))]
    return pieces


def _trace(model: Model, batch: _Batch) -> Trace:
    everywhere = torch.arange(batch.token_ids.shape[1], device=batch.token_ids.device).expand_as(batch.token_ids)
    context = forward.make_context(
        model.decomposition, batch.token_ids, batch.mask, batch.position_ids, read=everywhere
    )
    return whole_run(model.decomposition, context)


# ---- where it differs -------------------------------------------------------------------------------------------


def _first_difference(model: Model, alone: _Batch) -> str:
    """The first part of the model whose values differ between the two runs, in words."""
    trace = _trace(model, alone)
    with _watched(model) as (read, written):
        model.plain_logits(*alone._tensors(), positions=alone.read[0])
    # What, ours, and theirs: None where the part that we know was never run.
    sites: list[tuple[str, Tensor, Tensor | None]] = []
    for index, layer in enumerate(model.decomposition.layers):
        parts, attention = layer.parts, layer.mixes
        stream = trace.attention_input[index]
        before = "the embedding" if index == 0 else f"layer {index - 1} (what it hands on)"
        sites.append((before, stream, read.get(parts.block, stream[0])))
        heads = isinstance(attention, Attention)
        if isinstance(attention, Attention) and parts.attention is not None and parts.attention_writes is not None:
            normed = stream if attention.norm is None else attention.norm.module(stream)
            sites.append(
                (f"layer {index} (norm before the attention)", normed, read.get(parts.attention, normed[0]))
            )
            written_here = forward.attention_output(attention, trace.z[index])
            sites.append((f"layer {index} (attention)", written_here, written.get(parts.attention_writes)))
        stream = trace.mlp_input[index]
        normed = stream if layer.mlp_norm is None else layer.mlp_norm.module(stream)
        what = "norm before the MLP" if parts.attention is not None else "attention" if heads else "mixer"
        sites.append((f"layer {index} ({what})", normed, read.get(parts.mlp, normed[0])))
        sites.append((f"layer {index} (MLP)", trace.mlp_output[index], written.get(parts.mlp_writes)))
    final, norm = trace.final_input, model.decomposition.final_norm
    assert final is not None
    if norm is not None and isinstance(norm.module, nn.Module):
        sites.append((f"layer {model.n_layers - 1} (what it hands on)", final, read.get(norm.module, final[0])))
        sites.append(("the final norm", norm.module(final), written.get(norm.module)))
    for tolerance in (1.0, 0.1, 0.01):  # small differences may add up
        for what, ours, theirs in sites:
            if theirs is None:
                return f"{what}, which is another module than when the model was loaded"
            difference = (ours[0] - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)
            if not difference <= tolerance * _TOLERANCE[model.dtype]:
                return what
    return "the final norm or the unembedding" if norm is None else "the unembedding"


@contextlib.contextmanager
def _watched(model: Model) -> Iterator[tuple[dict[nn.Module, Tensor], dict[nn.Module, Tensor]]]:
    """What the parts of the module read and write in a plain run inside the block."""
    read: dict[nn.Module, Tensor] = {}
    written: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        read[module] = args[0] if args else kwargs["hidden_states"]
        written[module] = out[0] if isinstance(out, tuple) else out

    norm = model.decomposition.final_norm
    watched: list[Any] = [] if norm is None else [norm.module]
    for layer in model.decomposition.layers:
        watched += vars(layer.parts).values()
    modules = dict.fromkeys(part for part in watched if isinstance(part, nn.Module))
    handles = [part.register_forward_hook(keep, with_kwargs=True) for part in modules]
    try:
        yield read, written
    finally:
        for handle in handles:
            handle.remove()


# ---- what has not changed ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _State:
    """A module at one time.

    Attributes:
        structure: equal if there are the same parts, with the same hooks and the same places of their tensors.
        content: equal if nothing has changed in these.
        kept: the objects whose identities are in these, so that no other can come by them.
        hooked: whether there are hooks, which may do another thing each time.
    """

    structure: tuple[object, ...]
    content: tuple[object, ...]
    kept: tuple[object, ...]
    hooked: bool

    def same_as(self, other: _State) -> bool:
        return not self.hooked and (self.structure, self.content) == (other.structure, other.content)


@dataclasses.dataclass(frozen=True)
class _Checked:
    """The structure that was loaded, and the state in which prompts were compared, and which."""

    loaded: _State
    state: _State
    digests: frozenset[bytes] = frozenset()


_checked: weakref.WeakKeyDictionary[Model, _Checked] = weakref.WeakKeyDictionary()

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_SAMPLE = 1024


def _state(model: Model) -> _State:
    """What decides whether a module computes what it did.

    Each submodule with its class, hooks and attributes, each tensor's identity, place, version, dtype and some of its
    values (what is done to `.data` makes no new version), and the config.
    """
    config = getattr(model.module, "config", None)
    structure: list[object] = []
    content: list[object] = [model.config_hash(), getattr(config, "_attn_implementation", None)]
    kept: list[object] = []
    hooked = bool(_global_forward_hooks or _global_forward_pre_hooks)
    for module in model.module.modules():
        kept.append(module)
        structure += [id(module), type(module), type(module).forward, module.__dict__.get("forward")]
        hooked = hooked or any(vars(module).get(name) for name in _HOOKS)
        for name, value in vars(module).items():
            if isinstance(value, dict):
                kept += value.values()
                structure += [name, *map(id, value.values())]
                tensors = [x for x in value.values() if isinstance(x, Tensor)]
            elif isinstance(value, Tensor):
                kept.append(value)
                tensors = [value]
            elif isinstance(value, bool | int | float | str | type(None)):
                content += [name, value]
                continue
            else:
                kept.append(value)
                content += [name, id(value)]
                continue
            for tensor in map(numbers, tensors):
                structure += [
                    id(tensor),
                    tensor.data_ptr(),
                    tensor.dtype,
                    tensor.device,
                    tensor.shape,
                    tensor.stride(),
                ]
                content += [None if tensor.is_inference() else tensor._version, _some_values(tensor)]
    return _State(tuple(structure), tuple(content), tuple(kept), hooked)


def _some_values(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    some = flat[:: max(1, len(flat) // _SAMPLE)].cpu().contiguous()
    return some.view(torch.uint8).numpy().tobytes() if len(some) else b""


def refuse_unfit(model: Model) -> None:
    """Refuse what shows without a run.

    Raises:
        UnsupportedModelError: the module drops out at random, or its weights are in another dtype or on another device
            than when the model was loaded.
    """
    if torch.is_autocast_enabled(model.device.type):
        raise AcdcError("torch.autocast changes the precision of single operations: call acdc outside of it")
    refuse_dropout(model.module, model.name)
    for name, parameter in model.module.named_parameters():
        if (parameter.dtype, parameter.device) != (model.dtype, model.device):
            raise UnsupportedModelError(
                f"{model.name}: {name} is in {parameter.dtype} on {parameter.device}, and the model was loaded in "
                f"{model.dtype} on {model.device}; load it again with acdc.load"
            )
