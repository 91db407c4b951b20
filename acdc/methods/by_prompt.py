"""Scores of every edge on every prompt, kept: what a ranking would have been on other prompts then costs no run.

Attribution scores add over prompts, so a ranking on any sample of the prompts is a sum of stored rows. One pass gives
the rows; a thousand samples of them are one product of matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from acdc.circuit.selection import Aggregate
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.graph import BoolArray, FloatArray
from acdc.methods.attribution import attribute

LARGEST = 4e9
"""Bytes of the rows that are kept."""


def scores_by_prompt(problem: Problem, *, alphas: Sequence[float]) -> FloatArray:
    """`[prompt, edge]` float32 scores as `attribution` has them, of the graph's edges in array order.

    Args:
        alphas: where gradients are taken, as for `attribute`.

    Raises:
        AcdcError: there are too many edges and prompts to keep all scores.
    """
    graph = problem.graph
    if 4.0 * len(problem.prompts) * graph.n_edges > LARGEST:
        raise AcdcError(
            f"{len(problem.prompts)} prompts × {graph.n_edges:,} edges are too many scores to keep: take fewer prompts"
        )
    found: list[FloatArray] = []
    batches = problem.batches("gradients")
    valid = torch.as_tensor(graph.valid)
    for first, patching in batches.after(0):
        problem.progress(len(found), len(batches), "scores of single prompts")
        scores = attribute(patching, problem.outcome, alphas=alphas, first=first)
        merged = scores.new_zeros(len(scores), *graph.valid.shape)
        merged.index_add_(1, torch.as_tensor(graph.port_destination, device=scores.device), scores)
        found.append(merged.cpu().float()[:, valid].numpy())
    every: FloatArray = batches.ranks.gathered(torch.from_numpy(np.concatenate(found)).T).T.numpy()
    return every


def resampled_sizes(
    scores: FloatArray, n: int, *, seed: int = 0, share: float | None = None, aggregate: Aggregate = "mean-absolute"
) -> FloatArray:
    """`[n, edge]` sizes of the scores on `n` samples of the prompts.

    Args:
        scores: `[prompt, edge]`.
        aggregate: what the size is, as of `Scores.sizes`.
        share: of the prompts that a sample keeps, each with this probability; None: as many prompts as there are,
            drawn with replacement (bootstrap).
    """
    rng = np.random.default_rng(seed)
    prompts = len(scores)
    if share is None:
        weights = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=n).astype(np.float32)
    else:
        weights = (rng.random((n, prompts)) < share).astype(np.float32)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1)
    return _sizes(weights, scores, aggregate)


def sizes_of_halves(
    scores: FloatArray, n: int, *, seed: int = 0, aggregate: Aggregate = "mean-absolute"
) -> tuple[FloatArray, FloatArray]:
    """`[n, edge]` sizes of the scores on each of two halves of the prompts `[prompt, edge]` with none in common."""
    rng = np.random.default_rng(seed)
    half = len(scores) // 2
    order = np.stack([rng.permutation(len(scores)) for _ in range(n)])
    found: list[FloatArray] = []
    for chosen in (order[:, :half], order[:, half : 2 * half]):
        weights = np.zeros((n, len(scores)), dtype=np.float32)
        np.put_along_axis(weights, chosen, 1 / half, axis=1)
        found.append(_sizes(weights, scores, aggregate))
    return found[0], found[1]


def sizes_of_all(scores: FloatArray, *, aggregate: Aggregate = "mean-absolute") -> FloatArray:
    """`[edge]` sizes of the scores `[prompt, edge]` on all prompts."""
    return _sizes(np.full((1, len(scores)), 1 / len(scores), dtype=np.float32), scores, aggregate)[0]


def _sizes(weights: npt.NDArray[np.float32], scores: FloatArray, aggregate: Aggregate) -> FloatArray:
    """`[sample, edge]`: sizes on samples that take so much of each prompt, `[sample, prompt]`."""
    if aggregate == "signed":
        return np.asarray(np.abs(weights @ scores))
    if aggregate == "rms":
        return np.asarray(np.sqrt(weights @ np.square(scores)))
    return np.asarray(weights @ np.abs(scores))


def best(sizes: FloatArray, n: int) -> BoolArray:
    """`[…, edge]` bool: the `n` largest of each row that are not 0, ties in array order."""
    order = np.argsort(-sizes, axis=-1, kind="stable")[..., :n]
    chosen = np.zeros(sizes.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=-1)
    return np.asarray(chosen & (sizes > 0))
