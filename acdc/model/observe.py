"""What a `transformers` module's attention layers do, seen in a plain run instead of read from the config.

A config may carry keys that its class ignores (`sliding_window` in a Llama). What counts is what each attention module
hands to its attention function: how many heads, the scale, the soft cap, and whom the mask lets a query see. Both
functions can be exchanged in `transformers`; ours note what they are given, and nothing is attended to.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from acdc.errors import UnsupportedModelError

Visible = Callable[[int, int, Tensor, Tensor], Tensor]
"""`(prompt, head, query positions, key positions)`: whether the query may see the key."""

_NAME = "acdc-observe"
_NEAR = 64  # positions of which every pair is looked at
_FAR = 2**20  # position of a query whose whole past is looked at, at most: it costs memory


@dataclasses.dataclass(frozen=True)
class Observed:
    """What an attention module handed to its attention function.

    Attributes:
        n_heads, n_kv_heads: of queries, and of keys and values.
        scale, softcap, causal, window: as in `acdc.model.architecture.Attention`.
    """

    n_heads: int
    n_kv_heads: int
    scale: float
    softcap: float | None
    causal: bool
    window: int | None


@dataclasses.dataclass(frozen=True)
class _Call:
    n_heads: int
    n_kv_heads: int
    scale: float
    softcap: float | None
    visible: Visible


_calls: contextvars.ContextVar[dict[nn.Module, _Call]] = contextvars.ContextVar("calls")


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *unused: object,
    scaling: float | None = None, softcap: float | None = None, **also_unused: object,
) -> tuple[Tensor, None]:  # fmt: skip
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    _calls.get()[module] = _Call(query.shape[1], key.shape[1], scale, softcap, attention_mask)
    B, H, T, _ = query.shape
    return value.new_zeros(B, T, H, value.shape[-1]), None


def _mask(*unused: object, mask_function: Visible, **also_unused: object) -> Visible:
    """In place of a mask, the function that says what is in it; modules pass it on without looking."""
    return mask_function


transformers.AttentionInterface.register(_NAME, _attention)
transformers.AttentionMaskInterface.register(_NAME, _mask)


@torch.no_grad()
def observe(module: Any, attentions: Sequence[nn.Module]) -> list[Observed]:
    """What each attention module of a `transformers` causal language model does.

    Raises:
        UnsupportedModelError: one of them attends in a way of its own, or its mask is not all positions, all earlier
            ones, or a window of them.
    """
    token = _calls.set({})
    try:
        with exchanged(module, _NAME):
            ids = torch.zeros(1, 2, dtype=torch.long, device=module.get_output_embeddings().weight.device)
            module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        calls = _calls.get()
    finally:
        _calls.reset(token)
    far = min(max(getattr(module.config, "max_position_embeddings", None) or _FAR, _NEAR), _FAR)
    patterns: dict[int, tuple[bool, int | None] | None] = {}
    observed = []
    for layer, attention in enumerate(attentions):
        call = calls.get(attention)
        if call is None or not callable(call.visible):
            raise UnsupportedModelError(
                f"{module.config.model_type}: the attention of layer {layer} ({type(attention).__name__}) does not go "
                "through transformers' attention interface, so that what it does cannot be told"
            )
        if id(call.visible) not in patterns:
            patterns[id(call.visible)] = _pattern(call.visible, far)
        pattern = patterns[id(call.visible)]
        if pattern is None:
            raise UnsupportedModelError(
                f"{module.config.model_type}: in layer {layer} a position sees others in a way that is not supported; "
                "expected all positions, all earlier ones, or a window of earlier ones"
            )
        observed.append(
            Observed(call.n_heads, call.n_kv_heads, call.scale, call.softcap, causal=pattern[0], window=pattern[1])
        )
    return observed


@contextlib.contextmanager
def exchanged(module: nn.Module, name: str) -> Iterator[None]:
    """The attention and mask functions registered under a name in place of the module's own."""
    parts = (getattr(part, "config", None) for part in module.modules())
    configs: dict[int, Any] = {id(config): config for config in parts if hasattr(config, "_attn_implementation")}
    own = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = name
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = own[key]


def _pattern(visible: Visible, far: int) -> tuple[bool, int | None] | None:
    """(causal, window) of a mask, as seen from position `far` and checked elsewhere; None if it is of neither kind."""
    seen = _seen(visible, torch.tensor(far), torch.arange(far + 2))
    causal, number = not bool(seen[-1]), int(seen[:-1].sum())
    window = None if number == far + 1 else number
    near = torch.arange(_NEAR)
    places = [(torch.tensor(query), torch.arange(far + 2)) for query in (far, far - 1, far // 2)]
    for queries, keys in (*places, (near[:, None], near[None, :])):
        distance = queries - keys
        expected = (distance >= 0) if causal else torch.ones_like(distance, dtype=torch.bool)
        if window is not None:
            expected = expected & (distance < window)
        if not torch.equal(_seen(visible, queries, keys), expected):
            return None
    return causal, window


def _seen(visible: Visible, queries: Tensor, keys: Tensor) -> Tensor:
    return torch.as_tensor(visible(0, 0, queries, keys)).expand(torch.broadcast_shapes(queries.shape, keys.shape))
