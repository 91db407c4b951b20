"""Causal tracing: replace one value at one place, run what lies behind it, and see what becomes of the metric.

The value comes from the other prompt of the pair, is zero, or is a mean (activation patching, Vig et al. 2020; causal
tracing, Meng et al. 2022, arXiv 2202.05262). Exact, or to first order: effect ≈ (replacement − value) · ∂metric/∂value,
all places at once from one backward pass (attribution patching, Nanda 2023; Kramár et al. 2024, arXiv 2403.00745).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from acdc.engine import memory
from acdc.engine.measure import Measure, bind, refuse_non_finite
from acdc.engine.memory import Work, available, tokens_at_once
from acdc.engine.patching import Direction, Patching
from acdc.engine.plain_run import full_context
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import AcdcError, TaskError, unknown
from acdc.evaluation.judging import judging_problem
from acdc.graph import FloatArray
from acdc.inspection.runs import input_texts
from acdc.model.forward import Context
from acdc.model.model import Model
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts
from acdc.tracing import sites
from acdc.tracing.first_order import first_order_effects
from acdc.tracing.means import Means, means_of
from acdc.tracing.places import By, Place, places_of
from acdc.tracing.rest import Cell, Values, logits_of
from acdc.tracing.result import SiteMap, Tracing
from acdc.tracing.sites import DEFAULT_SITES, Site, site_of

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task

How = Literal["exact", "first-order"]


@dataclasses.dataclass(frozen=True)
class _Grid:
    """All cells of one site: `[layer, component]` times the places."""

    site: Site
    components: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.components), max(self.components)


@memory.explained
@torch.inference_mode(False)
def trace(
    model: Model,
    task: Task | Dataset | Prompts,
    *,
    sites: Collection[str] = DEFAULT_SITES,
    by: By = "position",
    spans: Collection[str] | None = None,
    direction: Direction = "noise",
    method: How = "exact",
    metric: Metric | None = None,
    ablation: str | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    progress: Progress = no_progress,
) -> Tracing:
    """Replace each value of some sites at each place, and measure.

    Args:
        task: its held-out prompts are traced (its discovery prompts if there are no others).
        sites: of "residual", "attention", "mlp" (`[layer, place]`), "head", "q", "k", "v" and "pattern" (`[layer, head,
            place]`; k and v by the group of heads that shares them).
        by: "position", "span" (those that the prompts name, and the rest), or "all" positions at once. Prompts of
            unequal length are aligned from the end.
        spans: only these, by span.
        direction: "noise" puts the other prompt's values into the clean run, "denoise" clean values into the corrupted.
        method: "exact" runs what lies behind each replacement; "first-order" estimates all from one backward pass.
        metric, ablation: instead of the task's own; "zero", "mean" and "mean-position" are for noise.

    Raises:
        AcdcError: unknown site, place, direction, method or ablation, or prompts that do not have what is asked for.
    """
    if direction not in get_args(Direction):
        raise unknown("direction", str(direction), get_args(Direction))
    if method not in get_args(How):
        raise unknown("method of tracing", str(method), get_args(How))
    chosen = [site_of(name) for name in dict.fromkeys([sites] if isinstance(sites, str) else sites)]
    if not chosen:
        raise AcdcError("expected at least one site to trace, got none")
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    if dataset.ablation == "optimal":
        raise AcdcError(
            "optimal ablation has constants for what nodes write, and none for values at sites: use ablation 'mean'"
        )
    if direction == "denoise" and dataset.ablation != "resample":
        raise AcdcError(
            f"denoising restores clean values in the corrupted run, and takes no {dataset.ablation} values"
        )
    if method == "first-order" and direction == "noise" and dataset.metric.is_distance:
        raise AcdcError(
            f"the gradient of {dataset.metric.name!r} is zero in the clean run, where first order takes it: use method "
            "'exact', direction 'denoise', or a performance metric such as logit-difference"
        )
    problem = judging_problem(
        model, dataset, model.graph(), batch_size=batch_size, memory=memory, progress=progress
    )
    if dataset.ablation == "resample" and torch.equal(problem.prompts.clean, problem.prompts.corrupted):
        raise TaskError(
            f"{dataset.name}: the corrupted prompts are the clean ones again: ask for zero or mean values"
        )
    places = places_of(problem.prompts, by, tokens=input_texts(problem.prompts, model), spans=spans)
    grids = [_grid(model, site) for site in chosen]
    means = means_of(problem, chosen, dataset.ablation, batch_size=_at_once(problem, grids, "circuits"))
    effects = [np.full((*grid.shape, len(places), len(problem.prompts)), np.nan) for grid in grids]
    ends: list[FloatArray] = []
    for first, patching, context, own in _batches(
        problem, grids, places, direction, gradients=method == "first-order"
    ):
        here = slice(first, first + len(patching.prompts))
        values = _values(patching, context, means)
        if method == "exact":
            measure = bind(problem.outcome, patching)
            _exact(problem, patching, measure, values, grids, own, effects, here)
        else:
            measure = first_order_effects(
                patching,
                problem.outcome,
                values,
                [grid.site for grid in grids],
                own,
                [x[..., here] for x in effects],
            )
        rows = measure.rows
        whole = measure.value(torch.stack([patching.clean_logits(rows), patching.corrupted_logits(rows)]))
        refuse_non_finite(whole, problem.outcome, "for the full model", first=first)
        ends.append(whole.detach().double().cpu().numpy())
    progress(len(problem.prompts), len(problem.prompts), "tracing")
    base, other = np.concatenate(ends, axis=1)
    return Tracing(
        model=model.name,
        task=dataset.name,
        metric=dataset.metric.name,
        ablation=dataset.ablation,
        direction=direction,
        method=method,
        by=by,
        maps=tuple(
            _map(
                grid,
                found,
                places,
                by,
                other - base if dataset.ablation == "resample" else None,
                dataset.metric.name,
            )
            for grid, found in zip(grids, effects, strict=True)
        ),
        clean=base if direction == "noise" else other,
        corrupted=other if direction == "noise" else base,
        seed=dataset.seed,
    )


def _grid(model: Model, site: Site) -> _Grid:
    numbers = tuple(sites.components(layer, site) for layer in model.decomposition.layers)
    if not any(numbers):
        raise AcdcError(f"{model.name} has no heads, so there is no {site.name} to trace")
    return _Grid(site, numbers)


def _batches(
    problem: Problem, grids: list[_Grid], places: list[Place], direction: Direction, *, gradients: bool
) -> Iterator[tuple[int, Patching, Context, list[Tensor]]]:
    """Batch by batch: how many prompts were before, the runs, their context, and the places' masks."""
    device = problem.model.device
    work: Work = "gradients" if gradients else "circuits"
    batches = dataclasses.replace(problem.batches(work), size=_at_once(problem, grids, work))
    for first, prompts in batches.slices():
        problem.progress(first, len(problem.prompts), "tracing")
        patching = Patching(problem.model, problem.graph, prompts, direction=direction)
        masks = [place.mask[first : first + len(prompts)].to(device) for place in places]
        yield first, patching, full_context(problem.model, patching.prompts), masks


def _at_once(problem: Problem, grids: list[_Grid], work: Work) -> int:
    """How many prompts a batch has: as many as were asked for, or as many as fit."""
    size = problem.batches(work).size
    return size if problem.batch_size is not None else min(size, _fitting(problem, grids))


def _fitting(problem: Problem, grids: list[_Grid]) -> int:
    """How many prompts a batch may have, so that the values of all layers take a quarter of the memory there is."""
    model, T = problem.model, problem.prompts.clean.shape[1]
    there = available(model.device) if problem.memory_limit is None else problem.memory_limit
    numbers = 0
    for grid in grids:
        for layer, n in zip(model.decomposition.layers, grid.components, strict=True):
            if not grid.site.axis:
                numbers += model.d_model
            elif n:
                widths = {"pattern": T, "head": layer.attention.w_o.shape[1]}
                numbers += n * (
                    widths.get(grid.site.name) or getattr(layer.attention, grid.site.name).weight.shape[1]
                )
    return max(1, int(there / 4 / (2 * model.dtype.itemsize * T * numbers)))


def _values(patching: Patching, context: Context, means: Means | None) -> Values:
    """The values of the run at hand and those they are replaced by, computed once a layer and site."""
    known: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
    other = full_context(patching.model, patching.prompts, corrupted=True)

    @torch.no_grad()
    def values(layer: int, site: Site) -> tuple[Tensor, Tensor]:
        key = (layer, site.name)
        if key not in known:
            model = patching.model
            own = sites.values(model, context, patching.clean, layer, site)
            if means is None:
                reference = sites.values(model, other, patching.corrupted, layer, site)
            else:
                reference = means(layer, site, patching.prompts).expand_as(own)
            known[key] = own, reference
        return known[key]

    return values


@torch.no_grad()
def _exact(
    problem: Problem,
    patching: Patching,
    measure: Measure,
    values: Values,
    grids: list[_Grid],
    masks: list[Tensor],
    effects: list[FloatArray],
    here: slice,
) -> None:
    """Fill in the effects on the prompts of one batch."""
    cells, where = [], []
    for number, grid in enumerate(grids):
        for layer, n in enumerate(grid.components):
            for component in range(n):
                for i, mask in enumerate(masks):
                    if bool(mask.any()):
                        first = int(mask.any(0).int().argmax())
                        cells.append(Cell(layer, grid.site, component, mask, first))
                        where.append((number, layer, component, i))
    there = torch.stack(masks).any(2).cpu().numpy()  # [place, B]
    for number, layer, component, i in where:
        effects[number][layer, component, i, here] = np.where(there[i], 0.0, np.nan)
    base = measure.value(patching.clean_logits(measure.rows))
    B = len(patching.prompts)
    at_once = min(tokens_at_once(problem.model.device), problem.circuits_at_once(B) * patching.prompts.mask.numel())
    for order, logits in logits_of(patching, values, cells, rows=measure.rows, at_once=at_once):
        change = measure.value(logits) - base
        refuse_non_finite(change, measure.outcome, "with a value replaced", first=here.start)
        for i, row in zip(order, change.double().cpu().numpy(), strict=True):
            number, layer, component, place = where[i]
            effects[number][layer, component, place, here] = np.where(there[place], row, np.nan)


def _map(
    grid: _Grid, effects: FloatArray, places: list[Place], by: str, separation: FloatArray | None, metric: str
) -> SiteMap:
    axes = ["layer"]
    labels = [tuple(map(str, range(len(grid.components))))]
    if grid.site.axis:
        axes.append(grid.site.axis)
        letter = grid.site.axis[0]
        labels.append(tuple(f"{letter}{i}" for i in range(max(grid.components))))
    else:
        effects = effects[:, 0]
    if by == "all":
        effects = effects[..., 0, :]
    else:
        axes.append(by)
        labels.append(tuple(place.label for place in places))
    return SiteMap(grid.site.name, tuple(axes), tuple(labels), effects, separation, metric)
