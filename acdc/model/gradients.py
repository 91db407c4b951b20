"""Operations that compute what they always do, and pass gradients back otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from acdc.model.architecture import Norm, PatternRule


def scaled(x: Tensor, share: float) -> Tensor:
    """x, with a share of its gradient."""
    found: Tensor = x if share == 1.0 else Scaled.apply(x, share)
    return found


def softmax(scores: Tensor, rule: PatternRule | None) -> Tensor:
    """Over the last axis, with the rule's gradient."""
    if rule is None:
        return scores.softmax(-1)
    if rule.frozen:
        return scores.detach().softmax(-1)
    if rule.temperature == 1.0:
        return scores.softmax(-1)
    found: Tensor = TemperedSoftmax.apply(scores, rule.temperature)
    return found


class Scaled(torch.autograd.Function):
    """x, with a multiple of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.share, None


class FrozenScale(torch.autograd.Function):
    """What a norm gave, with the gradient of a norm whose scale is a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, given: Tensor, norm: Norm) -> Tensor:
        ctx.norm = norm
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        centre = x - x.mean(-1, keepdim=True) if norm.centred else x
        variance = centre.square().mean(-1, keepdim=True)  # `var` takes some six times as long
        ctx.save_for_backward(torch.rsqrt(variance + norm.eps))
        return given.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        back = gradient * inverse * ctx.norm.gain
        if ctx.norm.centred:
            back = back - back.mean(-1, keepdim=True)
        return back.to(gradient.dtype), None, None


class Line(torch.autograd.Function):
    """What an activation gave, with the gradient of the line from 0 through it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, given: Tensor) -> Tensor:
        ctx.save_for_backward(torch.where(x == 0, torch.zeros_like(given), given / x))
        return given.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None


class TemperedSoftmax(torch.autograd.Function):
    """Softmax over the last axis, with the Jacobian diag(p) − p pᵀ at p = softmax(scores / temperature)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, temperature: float) -> Tensor:
        ctx.temperature = temperature
        ctx.save_for_backward(scores)
        return scores.softmax(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (scores,) = ctx.saved_tensors
        p = (scores / ctx.temperature).softmax(-1)
        weighted = p * gradient
        return weighted - p * weighted.sum(-1, keepdim=True), None
