"""Every rotary table there is in a model, as functions in one layout, that of halves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from acdc.model.reading.watch import Run

Table = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""`(x, position_ids) -> (cos, sin)`."""


def tables(model: nn.Module, config: Any, run: Run, position_ids: Tensor) -> dict[str, Table]:
    """Every rotary table there is in a model, in the layout of halves, by a name of its own."""
    found: dict[str, Table] = {}
    for path, part in model.named_modules():
        for name, call in _calls(part, config, run, position_ids):
            for layout in ("", " (half)", " (backwards)"):
                found[f"{path}{name}{layout}"] = _in_halves(call, layout)
        places = getattr(part, "embed_positions", None)
        if isinstance(places, Tensor) and places.dim() == 2:  # GPT-J: sines, then cosines, of every position
            found[f"{path}.embed_positions"] = _from_places(part)
    return found


def _calls(
    part: nn.Module, config: Any, run: Run, position_ids: Tensor
) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Ways to ask a module for what looks like a rotary table."""
    out = run.outputs.get(part)
    pair = isinstance(out, tuple) and len(out) == 2 and all(isinstance(x, Tensor) for x in out)
    if not (pair or (isinstance(out, Tensor) and out.is_complex())):
        return
    args, kwargs = run.arguments[part]

    def call(x: Tensor, ids: Tensor, **more: Any) -> Any:
        def own(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value.is_floating_point():
                return x
            return ids if value.dim() == 2 else ids.expand(value.shape[0], *ids.shape)

        return part(*(own(value) for value in args), **{**{k: own(value) for k, value in kwargs.items()}, **more})

    if "layer_type" not in inspect.signature(part.forward).parameters:
        yield "", call
        return
    args = args[:2]
    for kind in dict.fromkeys(getattr(config, "layer_types", None) or []):
        try:
            call(run.read[part], position_ids, layer_type=kind)
        except (KeyError, AttributeError, TypeError, ValueError):
            continue
        yield f":{kind}", lambda x, ids, kind=kind: call(x, ids, layer_type=kind)


def _in_halves(call: Callable[..., Any], layout: str) -> Table:
    def table(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        out = call(x, ids)
        cos, sin = (out.real, out.imag) if isinstance(out, Tensor) else out
        cos, sin = (
            t.expand(ids.shape[0], *t.shape[-2:]) if t.dim() == 3 else t.reshape(-1, *t.shape[-2:])
            for t in (cos, sin)
        )
        if layout == " (backwards)":
            sin = -sin
        if layout == " (half)" or isinstance(out, Tensor):
            return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
        if torch.equal(cos[..., ::2], cos[..., 1::2]) and torch.equal(sin[..., ::2], sin[..., 1::2]):
            cos, sin = cos[..., ::2], sin[..., ::2]
            return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
        return cos, sin

    return table


def _from_places(part: Any) -> Table:
    def table(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        sin, cos = part.embed_positions.to(x)[ids].chunk(2, dim=-1)
        return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)

    return table


def table_made(table: Table, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor] | None:
    try:
        with torch.no_grad():
            cos, sin = table(x, position_ids)
    except Exception:  # not a rotary embedding after all
        return None
    fits = (
        cos.shape == sin.shape and cos.dim() == 3 and cos.shape[:2] == position_ids.shape and cos.shape[-1] % 2 == 0
    )
    return (cos, sin) if fits else None
