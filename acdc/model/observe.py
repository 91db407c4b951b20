"""What a `transformers` module's attention layers do, seen in a plain run instead of read from the config.

A config may carry keys that its class ignores (`sliding_window` in a Llama). What counts is what each attention module
hands to its attention function: here, whom the mask lets a query see. Both functions can be exchanged in
`transformers`; ours note the mask, and nothing is attended to.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
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


_calls: contextvars.ContextVar[dict[nn.Module, Any]] = contextvars.ContextVar("calls")


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *unused: object,
    **also_unused: object,
) -> tuple[Tensor, None]:  # fmt: skip
    _calls.get()[module] = attention_mask
    B, H, T, _ = query.shape
    return value.new_zeros(B, T, H, value.shape[-1]), None


def _mask(*unused: object, mask_function: Visible, **also_unused: object) -> Visible:
    """In place of a mask, the function that says what is in it; modules pass it on without looking."""
    return mask_function


transformers.AttentionInterface.register(_NAME, _attention)
transformers.AttentionMaskInterface.register(_NAME, _mask)


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


def special_tokens(config: Any) -> set[int]:
    """Token ids that the config gives a meaning to: of images, for instance."""
    named = {key: value for key, value in vars(config).items() if key.endswith(("token_id", "token_index"))}
    return {
        i for value in named.values() for i in (value if isinstance(value, list) else [value]) if type(i) is int
    }


def masks(
    module: Any, attentions: Sequence[nn.Module], attended: Callable[[], Mapping[nn.Module, Any]]
) -> list[tuple[bool, int | None, int | None]]:
    """Whom each attention module lets a query see: (causal, window, chunk).

    Args:
        attended: gives a plain run's attention (`acdc.model.reading.watch.Attended`), for modules that make their
            masks themselves: of these it tells windows shorter than its prompts.

    Raises:
        UnsupportedModelError: a mask is of another kind.
    """
    calls = _observed_calls(module)
    seen: Mapping[nn.Module, Any] | None = None
    far = min(max(getattr(module.config.get_text_config(), "max_position_embeddings", None) or _FAR, _NEAR), _FAR)
    patterns: dict[int, tuple[bool, int | None, int | None] | None] = {}
    found = []
    for layer, attention in enumerate(attentions):
        given = calls.get(attention)
        visible: Visible | None = given if callable(given) else None
        key = layer if visible is None else id(visible)
        if key not in patterns:
            if visible is not None:
                try:
                    patterns[key] = _kind(visible, far)
                except (IndexError, RuntimeError, TypeError):  # it looks prompts up that are not there
                    visible = None
            if visible is None:
                seen = attended() if seen is None else seen
                patterns[key] = _pattern_of(seen[attention].visible)
        pattern = patterns[key]
        if pattern is None:
            raise UnsupportedModelError(
                f"{module.config.model_type}: in layer {layer} a position sees others in a way that is not supported; "
                "expected all positions, all earlier ones, or a window or chunk of them"
            )
        found.append(pattern)
    return found


def _observed_calls(module: Any) -> dict[nn.Module, Any]:
    """The masks that attention modules hand over in a run of two tokens; nothing if the class cannot be run so."""
    token = _calls.set({})
    try:
        with torch.no_grad(), exchanged(module, _NAME):
            ids = torch.zeros(1, 2, dtype=torch.long, device=next(module.parameters()).device)
            module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        return _calls.get()
    except Exception:  # a class that computes with its mask
        return {}
    finally:
        _calls.reset(token)


def _kind(visible: Visible, far: int) -> tuple[bool, int | None, int | None] | None:
    """(causal, window, chunk) of a mask function; None if it is of no such kind."""
    pattern = _pattern(visible, far)
    if pattern is not None:
        return (*pattern, None)
    first = _seen(visible, torch.arange(far + 1), torch.tensor(0))
    chunk = int((~first).int().argmax())  # the first query that does not see the first position
    if chunk == 0:
        return None
    near = torch.arange(_NEAR)
    places = [(torch.tensor(query), torch.arange(far + 2)) for query in (far, far - 1, far // 2)]
    for queries, keys in (*places, (near[:, None], near[None, :])):
        if not torch.equal(_seen(visible, queries, keys), (queries >= keys) & (queries // chunk == keys // chunk)):
            return None
    return True, None, chunk


def _pattern_of(visible: Tensor) -> tuple[bool, int | None, int | None] | None:
    """(causal, window, chunk) of who sees whom, `[..., T, T]` bool."""
    every = visible.reshape(-1, *visible.shape[-2:])
    T = every.shape[-1]
    distance = torch.arange(T)[:, None] - torch.arange(T)[None, :]
    distance = distance.to(every.device)
    if bool(every.all()):
        return False, None, None
    if bool((every == (distance >= 0)).all()):
        return True, None, None
    window = int(every[0, -1].sum())
    if bool((every == ((distance >= 0) & (distance < window))).all()):
        return True, window, None
    return None


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
