"""How one attention module computes, read from plain runs.

The queries, keys and values that it attended with are there to see. In a run of single tokens there is nothing to
rotate, so each of their channels is a row of some matrix, perhaps normalised: rows are found by their values, whatever
the matrices are called and however they are fused. In a run of several tokens, what the same rows give is compared
with what was attended with, and the difference must be one of the rotary embeddings there are.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acdc.model import forward
from acdc.model.architecture import EPSILONS, Attention, Gate, Latent, Norm, Projection, RotaryUse
from acdc.model.reading.watch import Attended, Run

Table = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""`(x, position_ids) -> (cos, sin)`."""


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


# ---- matrices ---------------------------------------------------------------------------------------------------


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

    def __init__(self, matrices: Sequence[Matrix], run: Run) -> None:
        self.matrices = list(matrices)
        self.index = [(m, row) for m in range(len(matrices)) for row in range(matrices[m].weight.shape[0])]
        parts = [run.written[matrix.module].flatten(0, -2).float() for matrix in matrices]
        self.values = torch.cat(parts, dim=1) if parts else torch.empty(0, 0)  # [N, column]
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


# ---- norms ------------------------------------------------------------------------------------------------------


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


# ---- rotary tables ----------------------------------------------------------------------------------------------


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


# ---- projections ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Port:
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


def _port(
    x: Tensor, attention: nn.Module, columns: Columns, several: Run, single: Run, clip: float | None
) -> _Port | str:
    """Where `x` `[N, H, d]` of the run of single tokens comes from; in words what is in the way if it is not found."""
    H, d = x.shape[1:]
    for norm_module, values, factor in _before_norm(x, attention, single):
        places = columns.find(values)
        if places is None and clip is not None:
            clipped = Columns(columns.matrices, single)
            clipped.values = columns.values.clamp(-clip, clip)
            clipped = _recount(clipped)
            places = clipped.find(values)
        if places is None:
            places, found = _find_scaled(values, columns)
            factor = factor * found
        if places is not None:
            return _assembled(places, columns, several, single, norm_module, factor, H, d, clip)
    return "no matrix gives them, nor a norm of what one gives"


def _recount(columns: Columns) -> Columns:
    columns._known = {}
    for i, column in enumerate(_bytes(columns.values.t())):
        columns._known.setdefault(column, []).append(i)
    return columns


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
) -> _Port | str:  # fmt: skip
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
        return _Port(Projection(weight, bias, clip=clip), norm_module, order, matrix.module, factor, raw)
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
) -> _Port | str:  # fmt: skip
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
    return _Port(projection, norm_module, order, first.module, factor, raw)


# ---- the whole ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reading:
    """One attention module as it was read.

    Attributes:
        attention: its record; norm and post-norm are for the block to say.
        reads: what its projections were given in the run of several tokens, `[B, T, D]`.
        output: the matrix that writes; written: what it wrote, `[B, T, D]`.
        table: the rotary table it uses, by name.
    """

    attention: Attention
    reads: Tensor
    output: Matrix
    written: Tensor


def read_attention(
    part: nn.Module, block: nn.Module, single: Run, several: Run, rotary: dict[str, tuple[Table, Any]],
    sees: tuple[bool, int | None, int | None], clip: float | None,
) -> Reading:  # fmt: skip
    """Read one attention module.

    Args:
        single: run of many prompts of one token; several: of few prompts of several tokens.
        rotary: tables by name, each with (cos, sin) `[B, T, rotary]` of the run of several tokens.

    Raises:
        Unread: what is in the way.
    """
    one, seen = single.attended[part], several.attended.get(part)
    if seen is None:
        raise Unread("it attended in one run and not in the other")
    columns = Columns([m for m in (matrix_of(x, single) for x in part.modules()) if m is not None], single)
    ports: dict[str, _Port] = {}
    for name, x in zip("qkv", (one.q, one.k, one.v), strict=True):
        if x.shape[2] != 1:
            raise Unread("it attends to more than the tokens of the prompt")
        found = _port(x[:, :, 0], part, columns, several, single, clip)
        if isinstance(found, str):
            raise Unread(f"where its {_WORDS[name]} come from was not found: {found}")
        ports[name] = found
    reads = several.read[ports["q"].source]
    if not all(torch.equal(reads, several.read[port.source]) for port in ports.values()):
        raise Unread("its queries, keys and values are not projections of the same input")
    n_heads = seen.q.shape[1]
    factors = {name: 1.0 for name in "qkv"}
    use: RotaryUse | None = None
    norms: dict[str, dict[str, Any]] = {"q": {}, "k": {}, "v": {}}
    use, norms, factors = _finished(ports, seen, several, rotary)
    projections = {name: dataclasses.replace(ports[name].projection, **norms[name]) for name in "qkv"}
    for name, projection in projections.items():
        if n_heads % projection.n_heads:
            raise Unread(f"it has {n_heads} heads and {projection.n_heads} of {_WORDS[name]}")
    scale, slopes = _scale(seen)
    end = _end(part, block, columns, single)
    output = end.matrix
    if end.columns is not None:
        gate_matrix = columns.matrices[columns.index[int(end.columns[0, 0])][0]]
        if not torch.equal(several.read[gate_matrix.module], reads):
            raise Unread("its gate does not read what its queries read")
        projections["q"] = _with_gate(projections["q"], columns, end.columns, end.gate_bias)
    d_model, width = output.weight.shape
    multiplier = factors["v"]
    return Reading(
        Attention(
            norm=None,
            q=projections["q"],
            k=projections["k"],
            v=projections["v"],
            w_o=output.weight.view(d_model, n_heads, width // n_heads).permute(1, 2, 0),
            b_o=output.bias,
            scale=scale * factors["q"] * factors["k"],
            softcap=seen.softcap,
            causal=sees[0],
            window=sees[1],
            chunk=sees[2],
            rotary=use,
            slopes=slopes,
            sinks=None if seen.sinks is None else seen.sinks.detach().flatten(),
            gate=end.gate,
            z_norm=end.z_norm,
            multiplier=multiplier,
        ),
        reads,
        output,
        several.written[output.module],
    )


_WORDS = {"q": "queries", "k": "keys", "v": "values"}


def _finished(
    ports: dict[str, _Port], seen: Attended, several: Run, rotary: dict[str, tuple[Table, Any]]
) -> tuple[RotaryUse | None, dict[str, dict[str, Any]], dict[str, float]]:
    """What is done between the projections and the attention: (rotation, norms by port, factors by port).

    Raises:
        Unread: nothing that was tried gives what was attended with.
    """
    attended = {"q": seen.q, "k": seen.k, "v": seen.v}
    norms = {name: _norm_fields(port, several) for name, port in ports.items()}
    done: dict[str, Tensor] = {}
    target: dict[str, Tensor] = {}
    for name, port in ports.items():
        x = attended[name].permute(1, 0, 2, 3)[:, None][..., torch.as_tensor(port.order)]  # [H or kv, 1, B, T, d]
        step = x.shape[0] // port.raw.shape[2]
        target[name] = x[::step] if step > 1 else x
        done[name] = port.raw.permute(2, 0, 1, 3)[:, None]
    tried = 0
    factors: dict[str, float] = {}
    v = ratio(_through_norm(ports["v"], norms["v"], done["v"]), target["v"])
    if v is None:
        raise Unread("its values are neither a projection nor a norm of one")
    factors["v"] = 1 / v
    d = min(target["q"].shape[-1], target["k"].shape[-1])
    uses: list[RotaryUse | None] = [None]
    for key, (_, (cos, _)) in rotary.items():
        r = cos.shape[-1]
        firsts = dict.fromkeys((0, d - r)) if r <= d else {}
        uses += [RotaryUse(key, first, interleaved) for first in firsts for interleaved in (False, True)]
    for use in uses:
        for after in (False, True):
            if after and (use is None or not (norms["q"] or norms["k"])):
                continue
            tried += 1
            for name in "qk":
                x = done[name] if after else _through_norm(ports[name], norms[name], done[name])
                if use is not None:
                    cos, sin = rotary[use.table][1]
                    x = forward._rotate(use, x, cos, sin)
                x = _through_norm(ports[name], norms[name], x) if after else x
                c = ratio(x, target[name])
                if c is None:
                    break
                factors[name] = 1 / c
            else:
                if after:
                    norms = {
                        n: {**norms[n], "norm_after_rotary": True} if norms[n] and n != "v" else norms[n]
                        for n in norms
                    }
                return use, norms, factors
    raise Unread(
        f"its queries and keys are not what {len(rotary)} rotary tables make of their projections ({tried} ways tried)"
    )


def _norm_fields(port: _Port, run: Run) -> dict[str, Any]:
    """Fields of a projection that say how it is normalised."""
    module = port.norm_module
    if module is None:
        return {}
    d, heads = port.raw.shape[-1], port.raw.shape[2]
    if not (port.order == np.arange(d)).all():
        raise Unread("it normalises channels in another order than that of its matrix")
    width = run.read[module].shape[-1]
    weight = getattr(module, "weight", None)
    if width == d and isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape == (heads, d):
        return {"norm": _closed(module, d, run.read[module]), "norm_gain": weight.detach()}
    if width == d:
        return {"norm": module}
    if width == heads * d:
        return {"norm": module, "norm_across_heads": True}
    raise Unread(f"its {type(module).__name__} normalises neither a head nor all of them")


def _closed(module: Any, d: int, like: Tensor) -> Callable[[Tensor], Tensor]:
    """A norm whose gain differs by head, without it."""
    if getattr(module, "bias", None) is not None:
        raise Unread(f"its {type(module).__name__} has a bias for each head")
    centred = "rms" not in type(module).__name__.lower()
    norm = Norm(module, centred=centred)

    def normalise(x: Tensor) -> Tensor:
        inverse = norm.inverse_scale(x)
        wide = x.to(inverse.dtype)
        return ((wide - wide.mean(-1, keepdim=True) if centred else wide) * inverse).to(x.dtype)

    return normalise


def _through_norm(port: _Port, fields: dict[str, Any], x: Tensor) -> Tensor:
    """`[head, 1, B, T, d]` normalised."""
    if not fields:
        return x
    with torch.no_grad():
        return forward._normalised(dataclasses.replace(port.projection, **fields), x)


def _scale(seen: Attended) -> tuple[float, Tensor | None]:
    """(scale of the scores, ALiBi's slopes) of attention that was written out, by least squares."""
    if seen.scale is not None or seen.scores is None:
        return 1.0 if seen.scale is None else seen.scale, None
    q, k, scores = seen.q.double(), seen.k.double(), seen.scores.double()
    B, H, T, _ = q.shape
    product = q @ k.expand(B, H, *k.shape[2:]).transpose(-1, -2)
    far = (torch.arange(T)[:, None] - torch.arange(T)[None, :]).double().to(q.device)
    scores = scores.expand(B, H, T, T)
    fits = []
    for h in range(H):
        seen_pairs = scores[:, h] > -1e4
        features = torch.stack([
            product[:, h], far.expand(B, T, T), torch.arange(T, device=q.device)[:, None].expand(B, T, T).double(),
            torch.ones_like(product[:, h]),
        ], dim=-1)[seen_pairs]  # fmt: skip
        values = scores[:, h][seen_pairs]
        fit = torch.linalg.lstsq(features, values[:, None]).solution[:, 0]
        if not close((features @ fit).to(seen.q.dtype), values.to(seen.q.dtype)):
            raise Unread("its scores are not a multiple of q · k with a slope")
        fits.append(fit)
    found = torch.stack(fits)
    scale = float(found[:, 0].mean())
    slopes = -found[:, 1]
    return scale, None if float(slopes.abs().max()) < 1e-6 else slopes.to(seen.q.dtype)


@dataclasses.dataclass(frozen=True)
class _End:
    """What is between z and the stream: the output matrix, a norm of z, or a gate and its columns `[H, width]`."""

    matrix: Matrix
    z_norm: Norm | None = None
    gate: Gate | None = None
    columns: np.ndarray[Any, Any] | None = None
    gate_bias: Tensor | None = None


def _end(part: nn.Module, block: nn.Module, columns: Columns, single: Run) -> _End:
    """How z is written.

    Raises:
        Unread: the output matrix was not found, or what it reads is not known.
    """
    z = single.attended[part].z[:, 0]  # [N, H, d_v]
    N, H, d = z.shape
    matrices = [m for m in (matrix_of(x, single) for x in (*part.modules(), *block.modules())) if m is not None]
    reading = [m for m in matrices if m.weight.shape[1] == H * d]
    for matrix in reading:
        if torch.equal(single.read[matrix.module].reshape(N, H, d), z):
            return _End(matrix)
    inside = {m.module for m in columns.matrices}
    for matrix in reversed([m for m in reading if m.module in inside]):
        reads = single.read[matrix.module].reshape(N, H * d)
        for norm in part.modules():
            for given, gave in single.pairs(norm):
                if torch.equal(given.flatten(), z.flatten()) and torch.equal(gave.flatten(), reads.flatten()):
                    return _End(matrix, z_norm=_rms(read_norm(norm, H * d, z)))
        gated = _gated(reads.reshape(N, H, d).double() / z.double(), columns, matrix, part)
        if gated is not None:
            return gated
    raise Unread(
        "what its output matrix reads is neither what the heads attended to, nor a norm or gate's share of it"
    )


def _rms(norm: Norm) -> Norm:
    if norm.centred or bool(norm.closed_form(torch.zeros_like(norm.gain.expand(1, norm.gain.shape[-1]))).any()):
        raise Unread("the norm of what its heads attended to has a mean or a bias, which is no share of any head")
    return norm


def _gated(share: Tensor, columns: Columns, matrix: Matrix, part: nn.Module) -> _End | None:
    """A gate of which `share` `[N, H, d_v]` is what it lets through."""
    H, d = share.shape[1:]
    biases = [p.detach() for p in part.parameters(recurse=False) if p.shape == (H,)]
    for activation in (torch.sigmoid, F.silu, torch.tanh, F.softplus):
        for width in (d, 1):
            if width == 1 and not close(share[..., :1].expand_as(share), share):
                continue
            rows = _gate_rows(share[..., :width], activation(columns.values.double()))
            if rows is not None:
                return _End(matrix, None, Gate(activation, width), rows)
        for bias in biases:  # added to the gate of each head
            found = []
            for h in range(H):
                values = activation(columns.values.double() + bias[h].double())
                found.append(_gate_rows(share[:, h : h + 1], values))
            if all(rows is not None for rows in found):
                rows = np.concatenate([rows for rows in found if rows is not None])
                return _End(matrix, None, Gate(activation, d), rows, bias)
    return None


def _gate_rows(share: Tensor, values: Tensor) -> np.ndarray[Any, Any] | None:
    """Columns `[H, width]` of `values` that are `share` `[N, H, width]`."""
    flat = share.flatten(1)  # [N, H * width]
    off = (flat[:, :, None] - values[:, None, :]).abs().amax(0) / values.abs().amax(0)
    best = off.min(dim=1)
    if float(best.values.max()) > 1e-3:
        return None
    return best.indices.reshape(share.shape[1:]).cpu().numpy()


def _with_gate(
    q: Projection, columns: Columns, places: np.ndarray[Any, Any], head_bias: Tensor | None
) -> Projection:
    """The q projection with a gate's rows behind its own; `head_bias` `[H]` is added to all of a head's."""
    matrix_id = {columns.index[i][0] for i in places.flatten().tolist()}
    if len(matrix_id) > 1 or q.latent is not None:
        raise Unread("its gate comes from several matrices, or beside a latent")
    rows = np.array([[columns.index[i][1] for i in row] for row in places])
    weight, bias = rows_of(columns.matrices[matrix_id.pop()], rows)
    if head_bias is not None:
        bias = head_bias[:, None].expand(rows.shape) + (0.0 if bias is None else bias)
    both = bias
    if (bias is None) != (q.bias is None):
        both = bias if bias is not None else weight.new_zeros(rows.shape)
        q = dataclasses.replace(q, bias=q.bias if q.bias is not None else q.weight.new_zeros(q.weight.shape[:2]))
    joined = None if both is None or q.bias is None else torch.cat((q.bias, both), dim=1)
    return dataclasses.replace(q, weight=torch.cat((q.weight, weight), dim=1), bias=joined)
