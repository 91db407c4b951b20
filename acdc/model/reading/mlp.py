"""What a block writes beside what mixes positions: an MLP, experts, several such parts, as one function."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import NewGELUActivation

from acdc.model.architecture import Norm
from acdc.model.reading.matching import Unread, close, is_norm, matrix_of
from acdc.model.reading.watch import Run, first_tensor


@dataclasses.dataclass(frozen=True)
class Writer:
    """Something beside attention that writes to the stream.

    Attributes:
        module: whose output it is; run: what it computes, `[b, T, D] -> [b, T, D]`.
        reads, written: in the run of several tokens.
    """

    module: nn.Module
    run: Callable[[Tensor], Tensor]
    reads: Tensor
    written: Tensor


def writers_of(block: nn.Module, part: nn.Module, output: nn.Module, shape: torch.Size, run: Run) -> list[Writer]:
    """What beside attention gives something of the stream's shape: the outermost modules that do."""
    within = {*part.modules(), output}
    found: list[Writer] = []

    def look(parent: nn.Module) -> None:
        for child in parent.children():
            if child in within or not list(child.parameters()) or is_norm(child, run):
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


def _writer(block: nn.Module, child: nn.Module, run: Run) -> Writer:
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
            return first_of(child(x, torch.zeros_like(x)))

        return _judged(child, added, reads, written - args[1])
    return _judged(child, lambda x: first_of(child(x)), reads, written)


def first_of(out: Any) -> Tensor:
    found = first_tensor(out)
    assert found is not None
    return found


@torch.no_grad()
def _judged(module: nn.Module, run: Callable[[Tensor], Tensor], reads: Tensor, written: Tensor) -> Writer:
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
    return Writer(module, run, reads, written)


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
def _matrix_pair(block: nn.Module, child: nn.Module, run: Run) -> Writer:
    """An MLP written out in the block: a matrix, an activation, and a matrix."""
    activation = _activation(block)
    others = [] if activation is None else [x for x in block.children() if x is not child and matrix_of(x, run)]
    for first in others:
        assert activation is not None
        if close(activation(run.written[first]), run.read[child]):
            pair = _Pair(first, activation, child)
            return _judged(child, pair, run.read[first], run.written[child])
    raise Unread(f"what {type(child).__name__} of {type(block).__name__} reads was not found")


def mlp_of(
    writers: Sequence[Writer], before: Sequence[Norm | None], after: Sequence[nn.Module | None],
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
    return nn.Sequential(module.c_fc, nn.GELU(approximate="tanh"), module.c_proj)


@torch.no_grad()
def _takes_circuits(writer: Writer) -> bool:
    """Whether the module itself takes one more axis, and gives a tensor."""
    try:
        out = writer.module(writer.reads[None])
    except Exception:
        return False
    return isinstance(out, Tensor) and torch.equal(out, writer.written[None])
