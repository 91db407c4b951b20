"""Measuring what the page shows beside the circuits themselves, with the model and the task's prompts."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from acdc.circuit import Circuit
from acdc.engine.problem import Progress, no_progress
from acdc.errors import AcdcError
from acdc.evaluation.curve import Curve, curve
from acdc.evaluation.judging import is_numerical
from acdc.evaluation.published import published
from acdc.inspection import (
    RemovalEffects,
    attention_patterns,
    direct_effects,
    head_roles,
    logit_lens,
    removal_effects,
)
from acdc.model.passes import count_passes
from acdc.tasks import as_dataset
from acdc.viz.page.findings import PATTERN_BYTES, Findings, heads_first, is_ranking

if TYPE_CHECKING:
    from acdc.model.model import Model
    from acdc.tasks.prompts import Prompts
    from acdc.tasks.task import Dataset, Metric, Task

_MULTIPLICATIONS = 5e12
"""What removing edges may cost on a CPU unless told otherwise: some minutes."""


def page_sizes(n_edges: int) -> tuple[int, ...]:
    """Circuit sizes to measure: 1, 2, 5, 10, 20, … up to all edges."""
    steps = [m * 10**e for e in range(len(str(n_edges))) for m in (1, 2, 5)]
    return (*(size for size in steps if size < 0.9 * n_edges), n_edges)


def investigate(
    model: Model,
    task: Task | Dataset | Prompts,
    circuits: Mapping[str, Circuit],
    *,
    sizes: Sequence[int] | None = None,
    effects: int | None = None,
    examples: int = 4,
    metric: Metric | None = None,
    ablation: str | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    progress: Progress = no_progress,
) -> Findings:
    """Measure what a page shows, on the held-out prompts (on the discovery prompts if there are no others).

    Args:
        sizes: numbers of edges at which to measure each ranking; None: `page_sizes`; none: no curves. A run a size.
        effects: remove at most this many edges of each circuit one by one, those with the largest scores; a run each.
            None: 200, or fewer for a large model on a CPU.
        examples: prompts for which attention patterns and logit lens are shown.
    """
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    graphs = [circuit.graph for circuit in circuits.values()]
    if not graphs:
        raise AcdcError("expected at least one circuit to investigate, got none")
    n_edges = graphs[0].n_edges
    wanted = sorted(set(page_sizes(n_edges) if sizes is None else sizes))
    if any(size < 0 or size > n_edges for size in wanted):
        raise AcdcError(f"expected sizes between 0 and all {n_edges} edges, got {wanted}")
    if len(wanted) == 1:  # a curve has two ends
        wanted = sorted({*wanted, n_edges} if wanted != [n_edges] else {0, n_edges})
    effects = _affordable(model, dataset) if effects is None else effects
    shares = [min(1.0, (size + 0.5) / n_edges) for size in wanted]
    curves: dict[str, Curve] = {}
    removed: dict[str, RemovalEffects] = {}
    notes = []
    started = time.perf_counter()
    with count_passes() as passes, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # discovering and evaluating have said it
        for name, circuit in circuits.items():
            scores = circuit.scores
            if scores is not None and shares and is_ranking(scores):
                curves[name] = curve(
                    model, dataset, scores, shares=shares, aggregate=circuit.aggregate, batch_size=batch_size,
                    memory=memory, confidence=None, progress=progress,
                )  # fmt: skip
            if effects and circuit.n_edges:
                removed[name] = removal_effects(
                    model, dataset, circuit, most=effects, batch_size=batch_size, memory=memory, progress=progress
                )
                if circuit.n_edges > effects:
                    notes.append(
                        f"The effect of removal was measured for {effects:,} of the {circuit.n_edges:,} edges of "
                        f"{name}, those with the largest scores."
                    )
        direct = direct_effects(
            model, dataset, graph=graphs[0], batch_size=batch_size, memory=memory, progress=progress
        )
        room = int(PATTERN_BYTES // (dataset.discovery.clean.shape[1] ** 2 * (1 + examples)))
        patterns = attention_patterns(
            model, dataset, heads=heads_first(circuits)[:room], examples=examples, batch_size=batch_size, memory=memory,
            progress=progress,
        )  # fmt: skip
        lens = None
        if is_numerical(model):
            notes.append("There is no logit lens: the model's outputs are numbers and not tokens.")
        elif examples:
            lens = logit_lens(model, dataset, examples=examples, memory=memory, progress=progress)
        roles = _roles(
            model, dataset, circuits, notes, effects, batch_size=batch_size, memory=memory, progress=progress
        )
    seconds = time.perf_counter() - started
    notes.append(f"Measuring for this page took {passes.forward:,} forward passes and {seconds:,.1f} s.")
    return Findings(curves, removed, patterns, direct, lens, tuple(notes), roles)


def _roles(
    model: Model, dataset: Dataset, circuits: Mapping[str, Circuit], notes: list[str], most: int, **how: Any
) -> dict[str, tuple[str, ...]]:
    """What the circuits' heads do, where replacing each head of the model is no more work than the rest."""
    made = next(iter(circuits.values())).provenance
    heads = model.graph().names("head")
    if published(made.model, made.task) is not None or not heads or not most:
        return {}
    if len(heads) > 2 * most:
        notes.append(
            f"What the {len(heads):,} heads do was not measured, for a run each: acdc roles does, and --roles shows it."
        )
        return {}
    inside = {name for circuit in circuits.values() for name in circuit.nodes()}
    found = head_roles(model, dataset, **how).groups()
    kept = {role: tuple(name for name in names if name in inside) for role, names in found.items()}
    return {role: names for role, names in kept.items() if names}


def _affordable(model: Model, dataset: Dataset, most: int = 200) -> int:
    """How many edges to remove one by one."""
    if model.device.type != "cpu":
        return most
    prompts = dataset.held_out if dataset.held_out is not None else dataset.discovery
    run = 2 * sum(p.numel() for p in model.module.parameters()) * prompts.clean.numel()
    return min(most, max(10, int(_MULTIPLICATIONS / run)))
