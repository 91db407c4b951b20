"""The changes of sources in one propagation, and their weighted sums: one buffer, whose memory grows with the sources.

Every stage adds what its components wrote, and every later stage sums what it reads out of all that is there. With
gradients, a sum that kept its terms would keep all earlier changes once a stage: memory with the square of the depth.
So a sum keeps nothing but its weights, and the gradients of the terms are collected in a second buffer of the same
size, from which each change takes its own when all later sums have been there. That they have is what a token sees to:
every addition and every sum takes it, so that the backward pass visits them in the reverse order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from acdc.engine.edge_gradients import EdgeGradients, Place
from acdc.graph import BoolArray, IntArray

SPARSE = 0.3
"""Share of the columns below which it is cheaper to gather those that are read."""


@dataclasses.dataclass
class _Store:
    """Changes and, in a backward pass, their gradients so far: `[capacity, C, B, P, D]`."""

    buffer: Tensor
    _collected: Tensor | None = None

    @property
    def collected(self) -> Tensor:
        if self._collected is None:
            self._collected = torch.zeros_like(self.buffer)
        return self._collected


class Changes:
    """Differences A[s] − state[s] of the sources that changed, in execution order.

    Args:
        capacity: most sources that will be added.
        differentiable: whether gradients are wanted.
        gradients: where those of the weights are collected, of each prompt.

    Attributes:
        ids: the sources.
    """

    def __init__(self, capacity: int, *, differentiable: bool, gradients: EdgeGradients | None = None) -> None:
        self.ids: list[int] = []
        self._capacity, self._differentiable, self._gradients = capacity, differentiable, gradients
        self._store: _Store | None = None
        self._token: Tensor | None = None

    def append(self, ids: Sequence[int], difference: Tensor) -> None:
        """`difference` `[len(ids), C, B, P, D]`."""
        first = len(self.ids)
        self.ids += ids
        if self._store is None:
            self._store = _Store(difference.new_empty(self._capacity, *difference.shape[1:]))
            self._token = difference.new_zeros(()) if self._gradients is None else self._gradients.root
        if self._differentiable:
            self._token = _Append.apply(difference, self._token, self._store, first)
        else:
            self._store.buffer[first : first + len(ids)] = difference

    @property
    def stack(self) -> Tensor:
        """`[len(ids), C, B, P, D]`, without gradients."""
        assert self._store is not None
        return self._store.buffer[: len(self.ids)]

    def total(self) -> Tensor:
        """Sum over sources, `[C, B, P, D]`."""
        return self.stack.sum(0)

    def mix(self, weights: Tensor, kept: BoolArray, ports: IntArray) -> Tensor:
        """Weighted sums.

        Args:
            weights: `[C or 1, port, len(ids)]`; or `[B, port, len(ids)]` for a single circuit.
            kept: `[port, len(ids)]`, where some weight is not 0.
            ports: `[port]`, which these are.

        Returns:
            `[port, C, B, P, D]`.
        """
        if not self._differentiable:
            return _mix(weights, self.stack)
        columns, some, ids = np.asarray(kept.any(axis=0)), None, np.array(self.ids)
        if columns.mean() < SPARSE:
            some = torch.as_tensor(np.flatnonzero(columns), device=weights.device)
            weights, kept, ids = weights[..., some], kept[:, columns], ids[columns]
        place = None if self._gradients is None else self._gradients.place(ports, ids, kept)
        mixed: Tensor = _Mix.apply(weights, self._token, self._store, len(self.ids), some, place)
        return mixed

    def mix_by_place(self, weights: Tensor, places: Tensor) -> Tensor:
        """Weighted sums whose weights depend on the position, without gradients.

        Args:
            weights: `[place, C or 1, port, len(ids)]`.
            places: `[B, P]`, the place of each position.

        Returns:
            `[port, C, B, P, D]`.
        """
        stack = self.stack
        flat, of = stack.flatten(2, 3), places.flatten()
        mixed = flat.new_zeros(weights.shape[2], *flat.shape[1:])
        for place in range(len(weights)):
            here = (of == place).nonzero().flatten()
            if len(here):
                mixed[:, :, here] = _mix(weights[place], flat[:, :, here])
        return mixed.unflatten(2, stack.shape[2:4])


def _mix(weights: Tensor, stack: Tensor) -> Tensor:
    n = len(stack)
    if weights.shape[0] == 1:
        mixed = weights[0] @ stack.reshape(n, -1)
    else:
        mixed = torch.bmm(weights, _rows(stack, len(weights)).transpose(0, 1)).transpose(0, 1)
    return mixed.reshape(-1, *stack.shape[1:])


def _rows(stack: Tensor, rows: int) -> Tensor:
    """`[n, C, B, P, D]` as `[n, rows, …]`, a row for each circuit, or for each prompt of a single one."""
    return stack.reshape(len(stack), rows, -1)


class _Append(torch.autograd.Function):
    """Write a change into the buffer; its gradient is what the later sums have collected for it."""

    @staticmethod
    def forward(ctx: Any, difference: Tensor, token: Tensor, store: _Store, first: int) -> Tensor:
        ctx.store, ctx.place = store, slice(first, first + len(difference))
        store.buffer[ctx.place] = difference
        return token.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, token: Tensor) -> tuple[Tensor | None, ...]:
        collected = ctx.store.collected[ctx.place]
        own = collected.clone() if ctx.needs_input_grad[0] else None
        collected.zero_()  # for another backward pass
        return own, token, None, None


class _Mix(torch.autograd.Function):
    """Weighted sums of the first changes in the buffer."""

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, token: Tensor, store: _Store, n: int, some: Tensor | None, place: Place | None
    ) -> Tensor:
        ctx.store, ctx.n, ctx.some, ctx.place = store, n, some, place
        ctx.save_for_backward(weights)
        stack = store.buffer[:n]
        return _mix(weights, stack if some is None else stack[some])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weights,), store = ctx.saved_tensors, ctx.store
        ports = len(gradient)
        stack = store.buffer[: ctx.n]
        stack = stack if ctx.some is None else stack[ctx.some]
        shared, given = weights.shape[0] == 1, _rows(gradient, len(weights))
        for_weights = None
        if ctx.place is not None:
            prompts = gradient.shape[2]
            each = _rows(gradient, prompts).transpose(0, 1), _rows(stack, prompts).permute(1, 2, 0)
            ctx.place.add(torch.bmm(*each))
        if ctx.needs_input_grad[0]:
            if shared:
                for_weights = (given.reshape(ports, -1) @ stack.reshape(len(stack), -1).T)[None]
            else:
                for_weights = torch.bmm(given.transpose(0, 1), _rows(stack, len(weights)).permute(1, 2, 0))
        if ctx.needs_input_grad[1]:
            collected = _rows(store.collected[: ctx.n], len(weights))  # a view
            if ctx.some is None and shared:
                collected.flatten(1).addmm_(weights[0].T, given.flatten(1))
            elif ctx.some is None:
                collected.transpose(0, 1).baddbmm_(weights.transpose(1, 2), given.transpose(0, 1))
            elif shared:
                collected.flatten(1).index_add_(0, ctx.some, weights[0].T @ given.flatten(1))
            else:
                back = torch.bmm(weights.transpose(1, 2), given.transpose(0, 1))
                collected.index_add_(0, ctx.some, back.transpose(0, 1))
        return for_weights, torch.zeros_like(gradient[(0,) * gradient.dim()]), None, None, None, None
