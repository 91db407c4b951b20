"""Hidden units of MLPs: what the last matrix of an MLP reads, one number a neuron.

No MLP need be known by its family: it is run once, and the matrix that was run last is the one. Whether what it reads
is the hidden layer is put to the test: with the hidden units of another input in their place, the MLP has to write
what it writes for that input. Experts do not, and neither do several parts that are added up.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from acdc.errors import UnsupportedModelError
from acdc.model.architecture import Layer
from acdc.model.model import Model


@dataclasses.dataclass(frozen=True)
class Hidden:
    """The hidden layer of one MLP.

    Attributes:
        layer: index of the layer; width: number of its hidden units H.
        matrix: the module that reads them, `[…, H] -> […, D]`.
    """

    layer: int
    width: int
    matrix: nn.Module

    @property
    def mlp(self) -> str:
        """The MLP as a node."""
        return f"m{self.layer}"


def hidden_layers(model: Model) -> tuple[Hidden, ...]:
    """The hidden layer of every MLP.

    Raises:
        UnsupportedModelError: that of some MLP cannot be found; says which, and why.
    """
    return tuple(hidden_layer(model, index) for index in range(model.n_layers))


@torch.no_grad()
def hidden_layer(model: Model, index: int) -> Hidden:
    """The hidden layer of one layer's MLP; raises as `hidden_layers`."""
    layer, weight = model.decomposition.layers[index], model.decomposition.unembedding

    def refused(reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"the hidden units of m{index} ({type(layer.parts.mlp).__name__}) were not found: {reason}; neurons need "
            "an MLP whose last matrix alone writes to the residual stream; edges and nodes do without"
        )

    generator = torch.Generator().manual_seed(index)
    noise = torch.randn(2, 1, 2, 3, weight.shape[1], generator=generator).to(weight)
    every = [*layer.parts.block.modules(), *(layer.mlp.modules() if isinstance(layer.mlp, nn.Module) else ())]
    matrices = [part for part in dict.fromkeys(every) if _is_matrix(part)]
    with read_by(matrices) as seen:
        written = layer.mlp(noise[0])
    if not seen:
        raise refused("it runs no matrix that is a module of its own, as experts do not")
    matrix, hidden = seen[-1]
    found = Hidden(index, hidden.shape[-1], matrix)
    tokens = noise[0].shape[:-1].numel()
    if sum(part is matrix for part, _ in seen) != 1 or hidden.numel() != tokens * found.width:
        raise refused(
            f"its last matrix ({type(matrix).__name__}) does not run once on all tokens, as experts do not"
        )
    hidden = hidden.reshape(*noise.shape[1:-1], found.width)
    with replaced(found, lambda x: hidden, noise[1].shape):
        again = layer.mlp(noise[1])
    if not torch.allclose(again, written, rtol=1e-3, atol=1e-3 * float(written.abs().max())):
        raise refused("what it writes depends on more than its last matrix reads, as that of experts does")
    return found


def _is_matrix(part: nn.Module) -> bool:
    weight = getattr(part, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2


@contextlib.contextmanager
def read_by(parts: Sequence[nn.Module]) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """A list that takes what each of these modules reads whenever it runs."""
    seen: list[tuple[nn.Module, Tensor]] = []

    def note(part: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append((part, args[0]))

    handles = [part.register_forward_pre_hook(note) for part in parts]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def replaced(hidden: Hidden, change: Callable[[Tensor], Tensor], shape: Sequence[int]) -> Iterator[None]:
    """Change the hidden units while the MLP runs on a stream of this shape `[…, D]`.

    Args:
        change: hidden units `[…, H]` to those that are read instead, of the same shape.
    """

    def instead(part: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        own: Tensor = args[0]
        return (change(own.reshape(*shape[:-1], hidden.width)).reshape(own.shape), *args[1:])

    handle = hidden.matrix.register_forward_pre_hook(instead)
    try:
        yield
    finally:
        handle.remove()


def mlp_with(layer: Layer, hidden: Hidden, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """What the MLP writes from its residual input `[…, D]` when its hidden units are changed on the way."""
    with replaced(hidden, change, x.shape):
        out: Tensor = layer.mlp(x if layer.mlp_norm is None else layer.mlp_norm.module(x))
    return out
