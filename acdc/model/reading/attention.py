"""How one attention module computes, read from plain runs.

The queries, keys and values that it attended with are there to see. Where they come from is told by a run of single
tokens (`projections`). In a run of several tokens, what the same rows give is compared with what was attended with, and
the difference must be one of the rotary embeddings there are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acdc.model import forward
from acdc.model.architecture import Attention, Gate, HeadNorm, Norm, Projection, RotaryUse
from acdc.model.reading.matching import Columns, Matrix, Unread, close, matrix_of, ratio, read_norm, rows_of
from acdc.model.reading.projections import Port, port_of
from acdc.model.reading.rotary_tables import Table
from acdc.model.reading.watch import Attended, Run


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
    ports: dict[str, Port] = {}
    for name, x in zip("qkv", (one.q, one.k, one.v), strict=True):
        if x.shape[2] != 1:
            raise Unread("it attends to more than the tokens of the prompt")
        found = port_of(x[:, :, 0], part, columns, several, single, clip)
        if isinstance(found, str):
            raise Unread(f"where its {_WORDS[name]} come from was not found: {found}")
        ports[name] = found
    reads = several.read[ports["q"].source]
    if not all(torch.equal(reads, several.read[port.source]) for port in ports.values()):
        raise Unread("its queries, keys and values are not projections of the same input")
    n_heads = seen.q.shape[1]
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
            multiplier=factors["v"],
        ),
        reads,
        output,
        several.written[output.module],
    )


_WORDS = {"q": "queries", "k": "keys", "v": "values"}


def _finished(
    ports: dict[str, Port], seen: Attended, several: Run, rotary: dict[str, tuple[Table, Any]]
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


def _norm_fields(port: Port, run: Run) -> dict[str, Any]:
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
        return {"norm": _of_heads(module), "norm_gain": weight.detach()}
    if width == d:
        return {"norm": module}
    if width == heads * d:
        return {"norm": module, "norm_across_heads": True}
    raise Unread(f"its {type(module).__name__} normalises neither a head nor all of them")


def _of_heads(module: Any) -> HeadNorm:
    """A norm whose gain differs by head, without it."""
    if getattr(module, "bias", None) is not None:
        raise Unread(f"its {type(module).__name__} has a bias for each head")
    return HeadNorm(Norm(module, centred="rms" not in type(module).__name__.lower()))


def _through_norm(port: Port, fields: dict[str, Any], x: Tensor) -> Tensor:
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
