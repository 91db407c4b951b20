"""What tells one tensor of a run from another: equal, a multiple, rows of a matrix, a norm of one.

Channels are found by their values, whatever the matrices are called and however they are fused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acdc.model.architecture import EPSILONS, Norm
from acdc.model.reading.watch import Run


class Unread(Exception):
    """What could not be read, in words."""


TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def close(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors of one run are the same up to rounding."""
    if a is None or b is None or a.shape != b.shape:
        return False
    scale = b.abs().max().clamp(min=1e-12)
    return bool((a - b).abs().max() <= TOLERANCE[b.dtype] * scale)


def ratio(a: Tensor, b: Tensor) -> float | None:
    """c where a = c · b; None if there is none. 1 is exact."""
    if a.shape != b.shape:
        return None
    if torch.equal(a, b):
        return 1.0
    wide_a, wide_b = a.double(), b.double()
    c = float((wide_a * wide_b).sum() / wide_b.square().sum().clamp(min=1e-300))
    if c == 0 or not close((c * wide_b).to(a.dtype), a):
        return None
    return 1.0 if abs(c - 1) < 0.1 * TOLERANCE[a.dtype] else c


@dataclasses.dataclass(frozen=True, eq=False)
class Matrix:
    """A linear module: its weight as `[out, in]`, a view, and its bias `[out]`."""

    module: Any
    weight: Tensor
    bias: Tensor | None


def matrix_of(module: nn.Module, run: Run) -> Matrix | None:
    """The module as a matrix, if it is one that was run: `nn.Linear`, or the same under another name."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    x, y = run.read.get(module), run.written.get(module)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or x is None or y is None:
        return None
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    ways = (weight,) if isinstance(module, nn.Linear) else (weight, weight.t())
    for way in ways:
        if way.shape == (y.shape[-1], x.shape[-1]):
            made = x @ way.t() if bias is None else x @ way.t() + bias
            if close(made, y):
                return Matrix(module, way, bias)
    return None


class Columns:
    """The outputs of some matrices in one run, channel by channel, to find channels in."""

    def __init__(self, matrices: Sequence[Matrix], run: Run, *, clip: float | None = None) -> None:
        self.matrices = list(matrices)
        self.index = [(m, row) for m in range(len(matrices)) for row in range(matrices[m].weight.shape[0])]
        parts = [run.written[matrix.module].flatten(0, -2).float() for matrix in matrices]
        self.values = torch.cat(parts, dim=1) if parts else torch.empty(0, 0)  # [N, column]
        if clip is not None:
            self.values = self.values.clamp(-clip, clip)
        self._known: dict[bytes, list[int]] = {}
        for i, column in enumerate(_bytes(self.values.t())):
            self._known.setdefault(column, []).append(i)

    def find(self, x: Tensor) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """Columns `[H, d]` of the channels `[N, H, d]`; None if one is not there.

        Of equal columns, those are taken that go on where the last channel was.
        """
        H, d = x.shape[1:]
        found = np.full((H, d), -1, dtype=np.int64)
        keys = _bytes(x.float().permute(1, 2, 0).reshape(H * d, -1))
        for i, key in enumerate(keys):
            known = self._known.get(key)
            if known is None:
                return None
            h, e = divmod(i, d)
            expected = found[h, e - 1] + 1 if e else (2 * found[h - 1, 0] - found[h - 2, 0] if h > 1 else -1)
            found[h, e] = expected if expected in known else known[0]
        return found


def _bytes(rows: Tensor) -> list[bytes]:
    return [row.tobytes() for row in np.ascontiguousarray(rows.cpu().numpy())]


def rows_of(matrix: Matrix, rows: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor | None]:
    """Rows `[H, d]` of a matrix as `[H, d, in]`, a view where they are evenly spaced, and of its bias."""
    weight, bias = matrix.weight, matrix.bias
    H, d = rows.shape
    starts = rows[:, 0]
    step = int(starts[1] - starts[0]) if H > 1 else d
    even = bool((rows == starts[0] + step * np.arange(H)[:, None] + np.arange(d)).all()) and step >= 0
    if not even:
        index = torch.as_tensor(rows, device=weight.device)
        return weight[index], None if bias is None else bias[index]
    first, (s0, s1) = int(starts[0]), weight.stride()
    view = weight.as_strided((H, d, weight.shape[1]), (step * s0, s0, s1), weight.storage_offset() + first * s0)
    if bias is None:
        return view, None
    (b0,) = bias.stride()
    return view, bias.as_strided((H, d), (step * b0, b0), bias.storage_offset() + first * b0)


def read_norm(module: nn.Module, width: int, like: Tensor) -> Norm:
    """A norm module as a record: which of the closed forms it is, tried on random numbers `[.., width]`.

    Raises:
        Unread: it is none of them.
    """
    generator = torch.Generator().manual_seed(1)
    x = (3 * torch.randn(16, width, generator=generator) + 1).to(like)
    named = any(isinstance(getattr(module, name, None), float) for name in EPSILONS)
    with torch.no_grad():
        theirs = module(x)
        for epsilon in (None,) if named else (1e-5, 1e-6, 1e-12, 1e-8, float(torch.finfo(like.dtype).eps)):
            for centred in (False, True):
                for plus_one in (False, True):
                    norm = Norm(module, centred=centred, plus_one=plus_one, epsilon=epsilon)
                    tight = 1e-5 if like.dtype.itemsize >= 4 else TOLERANCE[like.dtype]
                    ours = norm.closed_form(x)
                    if (ours - theirs).abs().max() <= tight * theirs.abs().max():
                        return norm
    raise Unread(f"its norm {type(module).__name__} is neither a LayerNorm nor an RMSNorm")


def is_norm(part: nn.Module, run: Run) -> bool:
    """Whether a module may be a norm: it has no parts, keeps the shape, and is no matrix."""
    x, y = run.read.get(part), run.written.get(part)
    if x is None or y is None or x.shape != y.shape or list(part.children()) or isinstance(part, nn.Linear):
        return False
    weight = getattr(part, "weight", None)
    return "norm" in type(part).__name__.lower() and (weight is None or weight.dim() == 1)


def norm_between(x: Tensor, reads: Tensor, norms: dict[nn.Module, None], run: Run) -> Norm | str | None:
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


def post_norm_of(written: Tensor, norms: dict[nn.Module, None], run: Run) -> tuple[nn.Module | None, Tensor]:
    """The norm that reads what was written and its output; else what was written."""
    for part in norms:
        for given, gave in run.pairs(part):
            if torch.equal(given, written):
                return part, gave
    return None, written
