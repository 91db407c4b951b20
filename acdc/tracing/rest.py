"""The rest of a run after a replacement: only the layers behind it, only from its position on, many at once.

Replacements whose first position is the same share a window. They are run in the order of their layers as one batch
that grows: at each layer those of that layer join, and the layer is run once for all that are there. So a replacement
costs what lies downstream of it and no more, in batches that are as large as they can be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from acdc.engine.patching import Patching
from acdc.engine.plain_run import full_context
from acdc.model import forward, passes
from acdc.model.forward import Context
from acdc.model.trace import mixed_again
from acdc.tracing import sites
from acdc.tracing.sites import SITES, Site

Values = Callable[[int, Site], tuple[Tensor, Tensor]]
"""The values of a layer's site in the run at hand and in the one they are replaced from, `[component, 1, B, T, X]`."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One replacement.

    Attributes:
        layer, site, component: what is replaced.
        mask: `[B, T]` where.
        start: the first position of any prompt.
    """

    layer: int
    site: Site
    component: int
    mask: Tensor
    start: int


def logits_of(
    patching: Patching, values: Values, cells: Sequence[Cell], *, rows: Tensor | None, at_once: int
) -> Iterable[tuple[list[int], Tensor]]:
    """Run the rest of the model after each replacement.

    Args:
        patching: whose clean run is the one in which values are replaced.
        rows: vocabulary rows; None: all.
        at_once: positions of all prompts and replacements that may be run together; one replacement at least.

    Yields:
        Indices of cells, and their logits at the read positions, `[cell, B, P, R]`; cells in which nothing changes
        (by their mask, or because both runs have the same values there) are left out.
    """
    causal = all(attention.causal for attention in patching.model.decomposition.attentions)
    read = patching.prompts.positions
    earliest = int(read[read >= 0].min())  # a window holds all positions that are read

    def start(i: int) -> int:
        return min(cells[i].start, earliest) if causal else 0

    chosen = sorted((i for i, cell in enumerate(cells) if _changes(cell, values)), key=lambda i: cells[i].layer)
    for first, together in groupby(sorted(chosen, key=start), key=start):
        context = full_context(patching.model, patching.prompts, start=first)
        every = list(together)
        size = max(1, at_once // context.token_ids[:, first:].numel())
        for i in range(0, len(every), size):
            order, x = _run(patching, context, values, [(i, cells[i]) for i in every[i : i + size]])
            yield order, forward.readout(patching.model.decomposition, x, rows)


def _changes(cell: Cell, values: Values) -> bool:
    base, reference = (x[cell.component, 0] for x in values(cell.layer, cell.site))
    return bool(((base != reference).any(-1) & cell.mask).any())


def _run(
    patching: Patching, context: Context, values: Values, cells: Sequence[tuple[int, Cell]]
) -> tuple[list[int], Tensor]:
    """Whose rows there are, and the final residual stream at the read positions, `[cell, B, P, D]`.

    Args:
        cells: with their indices, in the order of their layers.
    """
    model, trace = patching.model.decomposition, patching.clean
    by_layer = {layer: list(own) for layer, own in groupby(cells, key=lambda cell: cell[1].layer)}
    order: list[int] = []
    x: Tensor | None = None
    for index in range(cells[0][1].layer, len(model.layers)):
        block, read = model.layers[index], index == len(model.layers) - 1  # the last layer matters only where read
        after = trace.final_input if read else trace.attention_input[index + 1]
        assert after is not None
        joining = {
            name: ([i for i, _ in own], _change(patching, context, values, index, [cell for _, cell in own]))
            for name, own in _by_site(by_layer.get(index, []))
        }
        inside = [name for name in joining if name not in ("residual", "mlp")]

        def at(stream: Tensor, *, read: bool = read) -> Tensor:
            return context.at_read(stream) if read else stream

        before = _joined(
            None if x is None else x, trace.attention_input[index], ["residual"], joining, context, order
        )
        x = None if before is None else at(before) + mixed_again(block, context, trace, before, index, read=read)
        before = None if before is None else at(before)
        if not model.parallel:
            x = before = _joined(x, trace.mlp_input[index], inside, joining, context, order, at)
        if before is not None:
            assert x is not None
            x = x + forward.mlp(block, before)
        behind = [*inside, "mlp"] if model.parallel else ["mlp"]
        x = _joined(x, after, behind, joining, context, order, at)
    assert x is not None
    passes.count(forward=x.shape[0] * x.shape[1])
    return order, x


def _by_site(cells: Sequence[tuple[int, Cell]]) -> Iterable[tuple[str, list[tuple[int, Cell]]]]:
    for name in SITES:
        own = [cell for cell in cells if cell[1].site.name == name]
        if own:
            yield name, own


def _joined(
    x: Tensor | None,
    base: Tensor,
    names: Sequence[str],
    joining: Mapping[str, tuple[list[int], Tensor]],
    context: Context,
    order: list[int],
    at: Callable[[Tensor], Tensor] = lambda stream: stream,
) -> Tensor | None:
    """The rows so far `[C, B, P, D]`, and behind them those of some sites; `order` gets their indices.

    Args:
        base: the stream of the run at hand, `[1, B, T, D]`, to which a replacement adds its change.
    """
    rows = [] if x is None else [x]
    for name in names:
        if name in joining:
            ids, change = joining[name]
            order += ids
            rows.append(at(base[..., context.start :, :] + change))
    return torch.cat(rows) if rows else None


def _change(patching: Patching, context: Context, values: Values, index: int, cells: Sequence[Cell]) -> Tensor:
    """What replacing values of one site adds to the residual stream where the site writes, `[cell, B, W, D]`."""
    site, start, model = cells[0].site, context.start, patching.model.decomposition
    base, reference = (x[..., start:, :] for x in values(index, site))
    masks = torch.stack([cell.mask[:, start:] for cell in cells])
    if not site.axis:
        return torch.where(masks[..., None], (reference - base)[0], 0.0)
    attention, trace = model.layers[index].attention, patching.clean
    which = torch.tensor([cell.component for cell in cells], device=base.device)
    new = sites.written(attention, context, trace, index, site, sites.replaced(base, reference, which, masks))
    return new - forward.attention_output(attention, trace.z[index][..., start:, :])
