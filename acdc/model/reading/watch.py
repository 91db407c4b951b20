"""One plain run of a `transformers` decoder with everything noted: what each module read and wrote, and what attended.

This is what the generic adapter reads a decoder from: parts are told by the tensors that pass between them, not by
their names. Most classes hand the real queries, keys and values to an attention function that can be exchanged; ours
notes them and has the class's own eager function compute. Of the others, the two matrix products around the softmax
are noted.
"""

from __future__ import annotations

import contextvars
import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.masking_utils import eager_mask
from transformers.utils.generic import ModelOutput

from acdc.model.observe import exchanged

_NAME = "acdc-watch"


@dataclasses.dataclass(frozen=True)
class Attended:
    """What one attention module did.

    Attributes:
        q: `[B, H, T, d]`; k: `[B, H or kv heads, T, d]`; v: `[B, H or kv heads, T, d_v]`: after all that is done to
            them.
        z: `[B, T, H, d_v]`; scores: what went into the softmax, `[B, H, T, T]`, if it could be seen.
        scale, softcap, sinks: as handed over; None if they were not.
        visible: `[..., T, T]`, which keys a query sees.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    z: Tensor
    visible: Tensor
    scores: Tensor | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


@dataclasses.dataclass
class Run:
    """What was noted of one run. Tensors are copies, as some blocks change theirs in place.

    Attributes:
        calls: what each module was given first and gave first (floating point, `[B, T, ...]`), call by call.
        read, written: of the first call; arguments, outputs: all of it.
        order: modules as they began.
        attended: by attention module.
    """

    calls: dict[nn.Module, list[tuple[Tensor | None, Tensor | None]]] = dataclasses.field(default_factory=dict)
    read: dict[nn.Module, Tensor] = dataclasses.field(default_factory=dict)
    arguments: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = dataclasses.field(default_factory=dict)
    written: dict[nn.Module, Tensor] = dataclasses.field(default_factory=dict)
    outputs: dict[nn.Module, Any] = dataclasses.field(default_factory=dict)
    order: list[nn.Module] = dataclasses.field(default_factory=list)
    attended: dict[nn.Module, Attended] = dataclasses.field(default_factory=dict)
    logits: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))

    def times(self, part: nn.Module) -> int:
        """How often a module ran."""
        return len(self.calls.get(part, []))

    def pairs(self, part: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """What a module was given and gave, of the calls in which both are tensors."""
        for given, gave in self.calls.get(part, []):
            if given is not None and gave is not None:
                yield given, gave


_run: contextvars.ContextVar[Run] = contextvars.ContextVar("run")


@torch.no_grad()
def logits_untold(module: Any, token_ids: Tensor) -> Tensor:
    """The module's logits as in `watch`, when it is not told position ids."""
    with exchanged(module, _NAME):
        out: Tensor = module(input_ids=token_ids, attention_mask=torch.ones_like(token_ids), use_cache=False).logits
    return out


@torch.no_grad()
def watch(module: Any, token_ids: Tensor, position_ids: Tensor) -> Run:
    """Run the module plainly on prompts `[B, T]` without padding, and note everything."""
    run = Run()
    stack: list[nn.Module] = []
    shape = tuple(token_ids.shape)

    def before(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stack.append(part)
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point()]
        x = _by_position(given[0], shape).clone() if given else None
        calls = run.calls.setdefault(part, [])
        calls.append((x, None))
        if len(calls) == 1:
            run.order.append(part)
            run.arguments[part] = (_copied(args), {key: _copied(value) for key, value in kwargs.items()})
            if x is not None:
                run.read[part] = x

    def after(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        stack.pop()
        first = first_tensor(out)
        y = None if first is None else _by_position(first, shape).clone()
        calls = run.calls[part]
        calls[-1] = (calls[-1][0], y)
        if len(calls) == 1:
            run.outputs[part] = _copied(out)
            if y is not None:
                run.written[part] = y

    handles = []
    for part in module.modules():
        handles.append(part.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(part.register_forward_hook(after, with_kwargs=True))
    token = _run.set(run)
    try:
        with exchanged(module, _NAME), _Products(run, stack):
            run.logits = module(
                input_ids=token_ids, attention_mask=torch.ones_like(token_ids), position_ids=position_ids,
                use_cache=False,
            ).logits  # fmt: skip
    finally:
        _run.reset(token)
        for handle in handles:
            handle.remove()
    return run


def first_tensor(out: Any) -> Tensor | None:
    """The first tensor of what a module gives."""
    while isinstance(out, tuple | list) and len(out):
        out = out[0]
    if isinstance(out, ModelOutput):
        return first_tensor(tuple(out.values()))
    return out if isinstance(out, Tensor) else None


def _copied(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.clone()
    return tuple(map(_copied, x)) if type(x) is tuple else x


def _by_position(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`[B, T, ...]` of what may be `[B · T, ...]` or `[B, 1, T, ...]`."""
    B, T = shape
    if x.dim() == 4 and x.shape[:3] == (B, 1, T):
        return x[:, 0]
    return x.reshape(B, T, *x.shape[1:]) if x.dim() == 2 and x.shape[0] == B * T else x


# ---- attention functions ----------------------------------------------------------------------------------------


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
) -> tuple[Tensor, Any]:
    """The class's own eager attention, noted."""
    own: Callable[..., Any] | None = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if own is None:
        own = _standard
    scale = kwargs.get("scaling")
    if scale is None:
        scale = query.shape[-1] ** -0.5
        kwargs["scaling"] = scale
    out, weights = own(module, query, key, value, attention_mask, *args, **kwargs)
    run = _run.get(None)
    if run is not None:
        run.attended[module] = Attended(
            query.clone(), key.clone(), value.clone(), out.clone(), _visible(attention_mask, query),
            scale=float(scale), softcap=kwargs.get("softcap"),
            sinks=kwargs.get("s_aux"),
        )  # fmt: skip
    return out, weights


def _visible(mask: Any, q: Tensor, *, causal: bool = False) -> Tensor:
    """Which keys a query sees, of a mask that is added or of one that says so."""
    T = q.shape[-2]
    every = torch.ones(T, T, dtype=torch.bool, device=q.device)
    if causal:
        return every.tril()
    if not isinstance(mask, Tensor):
        return every
    return mask if mask.dtype == torch.bool else mask > -1e4


def _standard(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *unused: Any,
    scaling: float, **also_unused: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


transformers.AttentionInterface.register(_NAME, _attention)
transformers.AttentionMaskInterface.register(_NAME, eager_mask)


_PRODUCTS = (torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__)
_SOFTMAX = (torch.softmax, F.softmax, Tensor.softmax)


class _Products(TorchFunctionMode):
    """Notes attention that is written out, or that calls torch's own function."""

    def __init__(self, run: Run, stack: list[nn.Module]) -> None:
        super().__init__()
        self.run, self.stack = run, stack
        self.before: tuple[Tensor, Tensor] | None = None  # the last product: queries and keys, if a softmax follows
        self.scores: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        owner = self.stack[-1] if self.stack else None
        if owner is None or owner in self.run.attended:
            return out
        if func is F.scaled_dot_product_attention:
            q, k, v = args[:3]
            scale = kwargs.get("scale") or q.shape[-1] ** -0.5
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            seen = _visible(mask, q, causal=bool(kwargs.get("is_causal")))
            self.run.attended[owner] = Attended(
                q.clone(), k.clone(), v.clone(), out.transpose(1, 2).clone(), seen, scale=scale
            )
        elif func in (torch.baddbmm, Tensor.baddbmm):
            first, second = kwargs.get("batch1"), kwargs.get("batch2")
            self.before, self.scores = (args[1:3] if first is None else (first, second)), None
        elif func in _PRODUCTS and len(args) == 2 and args[0].dim() >= 3:
            if self.scores is not None and self.before is not None:
                self._note(owner, args[1], out)
            self.before, self.scores = (args[0], args[1]), None
        elif func in _SOFTMAX and self.before is not None:
            self.scores = args[0].clone()
        return out

    def _note(self, owner: nn.Module, v: Tensor, z: Tensor) -> None:
        assert self.before is not None
        assert self.scores is not None
        q, k = self.before[0], self.before[1].transpose(-1, -2)
        B = self.run.read[owner].shape[0] if owner in self.run.read else 1
        q, k, v, z = (x.unflatten(0, (B, -1)) if x.dim() == 3 else x for x in (q, k, v, z))
        scores = self.scores.unflatten(0, (B, -1)) if self.scores.dim() == 3 else self.scores
        z = z.transpose(1, 2)
        self.run.attended[owner] = Attended(
            q.clone(), k.clone(), v.clone(), z.clone(), scores > -1e4, scores=scores
        )
        self.scores = None
