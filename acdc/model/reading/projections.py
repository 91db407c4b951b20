"""Where queries, keys and values come from: rows of a matrix, or of two with a latent between them.

In a run of single tokens there is nothing to rotate, so each channel that was attended with is a row of some matrix,
perhaps normalised.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acdc.model.architecture import Latent, Projection
from acdc.model.reading.matching import Columns, Matrix, Unread, matrix_of, ratio, rows_of
from acdc.model.reading.watch import Run


@dataclasses.dataclass(frozen=True)
class Port:
    """Where queries, keys or values come from.

    Attributes:
        projection: as far as it is known without the order of normalisation and rotation.
        norm_module: what normalises them, if anything.
        order: `[d]`, for each channel of the projection, which it is among those attended with.
        source: the module whose input the projection reads; factor: what it is multiplied by.
        raw: `[B, T, head, d]` of the run of several tokens, what the projection gives before norm and rotation.
    """

    projection: Projection
    norm_module: nn.Module | None
    order: np.ndarray[Any, np.dtype[np.int64]]
    source: nn.Module
    factor: float
    raw: Tensor


def port_of(
    x: Tensor, attention: nn.Module, columns: Columns, several: Run, single: Run, clip: float | None
) -> Port | str:
    """Where `x` `[N, H, d]` of the run of single tokens comes from; in words what is in the way if it is not found."""
    H, d = x.shape[1:]
    for norm_module, values, factor in _before_norm(x, attention, single):
        places = columns.find(values)
        if places is None and clip is not None:
            places = Columns(columns.matrices, single, clip=clip).find(values)
        if places is None:
            places, found = _find_scaled(values, columns)
            factor = factor * found
        if places is not None:
            return _assembled(places, columns, several, single, norm_module, factor, H, d, clip)
    return "no matrix gives them, nor a norm of what one gives"


def _before_norm(x: Tensor, attention: nn.Module, single: Run) -> Iterator[tuple[nn.Module | None, Tensor, float]]:
    """What may have become `x`: itself, and what a module of the attention that gave `x` was given."""
    yield None, x, 1.0
    for part in attention.modules():
        if part is attention or isinstance(part, nn.Linear):
            continue
        for given, y in single.pairs(part):
            if y.numel() == given.numel() == x.numel():
                c = ratio(x, y.reshape(x.shape))
                if c is not None and not torch.equal(y, given):
                    yield part, given.reshape(x.shape), c


def _find_scaled(x: Tensor, columns: Columns) -> tuple[np.ndarray[Any, np.dtype[np.int64]] | None, float]:
    """Columns of which `x` `[N, H, d]` is one multiple, and which."""
    H, d = x.shape[1:]
    ours, theirs = x.flatten(1).double(), columns.values.double()
    if theirs.numel() == 0:
        return None, 1.0
    alike = F.normalize(ours, dim=0).t() @ F.normalize(theirs, dim=0)
    best = alike.abs().argmax(dim=1)
    c = ratio(ours.to(x.dtype), theirs[:, best].to(x.dtype))
    return (None, 1.0) if c is None else (best.reshape(H, d).cpu().numpy(), c)


def _assembled(
    places: np.ndarray[Any, Any], columns: Columns, several: Run, single: Run, norm_module: nn.Module | None,
    factor: float, H: int, d: int, clip: float | None,
) -> Port | str:  # fmt: skip
    """A projection from the columns `[H, d]` of its channels."""
    matrix_id = np.array([[columns.index[i][0] for i in row] for row in places])
    row_id = np.array([[columns.index[i][1] for i in row] for row in places])
    used = list(dict.fromkeys(matrix_id.flatten().tolist()))
    deep = [m for m in used if _through(columns.matrices[m], columns, several) is not None]
    if len(used) == 1 and not deep:
        matrix = columns.matrices[used[0]]
        own, order = _own_heads(row_id)
        weight, bias = rows_of(matrix, own)
        raw = several.written[matrix.module][..., torch.as_tensor(own)]
        raw = raw if clip is None else raw.clamp(-clip, clip)
        return Port(Projection(weight, bias, clip=clip), norm_module, order, matrix.module, factor, raw)
    if len(deep) == 1 and len(used) <= 2:
        return _latent(columns, several, norm_module, factor, matrix_id, row_id, deep[0])
    return f"they come from {len(used)} matrices"


def _own_heads(rows: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.int64]]]:
    """The distinct heads of rows `[H, d]`, each in the matrix's order, and which channel each row then is."""
    orders = np.argsort(rows, axis=1, kind="stable")
    if not (orders == orders[0]).all():
        raise Unread("the channels of its heads are in different orders")
    heads: list[np.ndarray[Any, Any]] = []
    for row in np.sort(rows, axis=1):
        if not heads or not (row == heads[-1]).all():
            heads.append(row)
    return np.stack(heads), orders[0]


def _through(matrix: Matrix, columns: Columns, run: Run) -> tuple[Matrix, nn.Module | None, int] | None:
    """The matrix whose output (its first numbers, perhaps normalised) this one reads: (matrix, norm, first row)."""
    x = run.read[matrix.module]
    norm: nn.Module | None = None
    before = next(
        (
            part
            for part, y in run.written.items()
            if y.shape == x.shape
            and torch.equal(y, x)
            and part is not matrix.module
            and matrix_of(part, run) is None
            and part in run.read
            and not torch.equal(run.read[part], x)
        ),
        None,
    )
    source = x
    if before is not None:
        norm, source = before, run.read[before]
    for other in columns.matrices:
        y = run.written[other.module]
        if other is matrix or y.shape[-1] < source.shape[-1] or y.shape[:-1] != source.shape[:-1]:
            continue
        for first in range(0, y.shape[-1] - source.shape[-1] + 1):
            if torch.equal(y[..., first : first + source.shape[-1]], source):
                return other, norm, first
    return None


def _latent(
    columns: Columns, several: Run, norm_module: nn.Module | None, factor: float, matrix_id: np.ndarray[Any, Any],
    row_id: np.ndarray[Any, Any], deep: int,
) -> Port | str:  # fmt: skip
    """A projection through a latent: channels of a second matrix, and perhaps of the first as they are."""
    second = columns.matrices[deep]
    found = _through(second, columns, several)
    assert found is not None
    first, norm, start = found
    H = row_id.shape[0]
    is_up = matrix_id[0] == deep
    if not (matrix_id == matrix_id[0]).all():
        return "heads differ in which matrices they come from"
    up_rows = np.sort(row_id[:, is_up], axis=1)
    rest_rows = np.sort(row_id[:, ~is_up], axis=1)
    rank = second.weight.shape[1]
    if rest_rows.shape[1] and not (rest_rows == rest_rows[0]).all():
        return "heads differ in what goes round the latent"
    if rest_rows.shape[1] and columns.matrices[int(matrix_id[0][~is_up][0])] is not first:
        return "what goes round the latent comes from another matrix"
    rows = np.concatenate([np.arange(start, start + rank), rest_rows[0]])[None]
    weight, bias = rows_of(first, rows)
    up, up_bias = rows_of(second, up_rows)
    order = np.empty(row_id.shape[1], dtype=np.int64)  # projection's channel -> attended channel
    order[: up_rows.shape[1]] = np.flatnonzero(is_up)[np.argsort(row_id[0, is_up])]
    order[up_rows.shape[1] :] = np.flatnonzero(~is_up)[np.argsort(row_id[0, ~is_up])]
    raw = torch.cat((
        several.written[second.module][..., torch.as_tensor(up_rows)],
        several.written[first.module][..., torch.as_tensor(rest_rows[0])][:, :, None].expand(-1, -1, H, -1),
    ), dim=-1)  # fmt: skip
    projection = Projection(weight, bias, latent=Latent(norm, up, up_bias))
    return Port(projection, norm_module, order, first.module, factor, raw)
