"""Small problems for the tests of methods: random prompts with answers, and loops that are obviously right."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import families
from acdc.engine.measure import Measure, bind
from acdc.engine.patching import Patching
from acdc.graph import BoolArray, FloatArray, Graph
from acdc.metrics import OUTCOMES
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts


@functools.cache
def tiny(family: str) -> Model:
    """A random model in float64, made once."""
    return families.tiny(family, torch.float64)


def make_prompts(
    *, padding: str = "none", shared: int = 1, reads: int = 1, size: int = 3, seed: int = 0
) -> Prompts:
    """Pairs of 6 positions with two answers and two wrong answers at every read position.

    Args:
        padding: "left", "right" (one prompt is shorter there), "both", or "none".
        shared: the pairs are alike up to this position.
        reads: the last real positions are read, as many as this; one prompt has one fewer.
    """
    generator = torch.Generator().manual_seed(seed)
    T = 6

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randint(families.VOCABULARY, shape, generator=generator)

    clean, corrupted = tokens(size, T), tokens(size, T)
    corrupted[:, :shared] = clean[:, :shared]
    mask = torch.ones(size, T, dtype=torch.bool)
    if padding in ("right", "both"):
        mask[0, 5:] = False
    if padding in ("left", "both"):
        mask[-1, :2] = False
    last = mask.long().cumsum(-1).argmax(-1, keepdim=True)
    positions = last - torch.arange(reads)
    if reads > 1:
        positions[0, -1] = -1
    answers = tokens(size, reads, 4)
    return Prompts(clean, corrupted, mask, positions, answers=answers[..., :2], wrong=answers[..., 2:])


def make(
    family: str,
    *,
    metric: str = "logit-difference",
    ablation: Any = "resample",
    graph: Graph | None = None,
    **prompts: Any,
) -> tuple[Patching, Measure]:
    """A patching of a tiny random model, and a metric bound to it."""
    model = tiny(family)
    patching = Patching(model, graph or model.graph(), make_prompts(**prompts), ablation=ablation)
    return patching, bind(OUTCOMES[metric], patching)


@torch.no_grad()
def distance(patching: Patching, measure: Measure, edges: BoolArray) -> float:
    """Distance of a circuit from the full model, by a full patched forward."""
    return float(measure.distance(patching.logits(edges, rows=measure.rows)).mean())


@torch.no_grad()
def per_prompt(patching: Patching, measure: Measure, circuits: BoolArray) -> FloatArray:
    """Metric of each circuit `[C, ...]` on each prompt, `[C, prompt]`."""
    found: FloatArray = measure.value(patching.logits(circuits, rows=measure.rows)).double().numpy()
    return found


def values(patching: Patching, measure: Measure, circuits: BoolArray) -> FloatArray:
    """Metric of each circuit `[C, ...]`, summed over the prompts."""
    return per_prompt(patching, measure, circuits).sum(-1)


def all_but_one(graph: Graph, edges: BoolArray | None = None) -> BoolArray:
    """`[n_edges, n_destinations, n_sources]`: the edges (default: all) without each one in turn."""
    edges = graph.valid if edges is None else edges
    circuits = np.repeat(edges[None], int(edges.sum()), axis=0)
    for i, (destination, source) in enumerate(np.argwhere(edges)):
        circuits[i, destination, source] = False
    return circuits


def naive_search(
    graph: Graph,
    distance_of: Callable[[BoolArray], float],
    accept: Callable[[float, float], bool],
    *,
    kept: BoolArray | None = None,
) -> tuple[BoolArray, float]:
    """One sweep, one edge at a time, every test a full run: the kept edges and their distance."""
    kept = graph.valid.copy() if kept is None else kept.copy()
    current = distance_of(kept)
    for destination in reversed(range(graph.n_destinations)):
        for source in np.flatnonzero(kept[destination])[::-1]:
            kept[destination, source] = False
            without = distance_of(kept)
            if accept(without, current):
                current = without
            else:
                kept[destination, source] = True
    return kept, current
