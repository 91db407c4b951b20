"""Random inputs for Tracr models, and pairs of them drawn from a named distribution.

A pair is a clean and a corrupted input. The distribution decides in what the two may differ, and with it which
edges a search can see at all:

- `fixed`: both have the greatest length; only the tokens differ;
- `mixed`: every length occurs, and clean and corrupted lengths differ; shorter inputs are filled with PAD;
- `permuted`: as `fixed`, and the corrupted positions are permuted (the BOS token stays first), so that what is
  known of positions differs too;
- `varied`: all three, tokens, lengths and positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from acdc.errors import unknown
from acdc.graph import IntArray
from acdc.model.programs.tracr import TracrModel, TracrProgram, Value
from acdc.tasks.repeats import reads_corrupted

DISTRIBUTIONS = ("fixed", "mixed", "permuted", "varied")


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Clean and corrupted inputs, all `[B, T]`: token ids, mask of tokens that are not PAD, position ids."""

    clean: Tensor
    clean_mask: Tensor
    clean_positions: Tensor
    corrupted: Tensor
    corrupted_mask: Tensor
    corrupted_positions: Tensor

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: Tensor | slice) -> Pairs:
        return Pairs(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))

    def __add__(self, other: Pairs) -> Pairs:
        return concatenate([self, other])


def concatenate(pairs: list[Pairs]) -> Pairs:
    return Pairs(*(torch.cat(tensors) for tensors in zip(*(vars(pair).values() for pair in pairs), strict=True)))


def lengths_of(program: TracrProgram) -> range:
    """Lengths an input can have."""
    longest = min(program.max_length, len(program.tokens)) if program.distinct else program.max_length
    return range(1, longest + 1)


def random_inputs(
    program: TracrProgram, n: int, *, rng: np.random.Generator, mixed: bool = True
) -> list[list[Value]]:
    """`n` inputs of tokens drawn uniformly, of lengths drawn uniformly (`mixed`) or of the greatest length."""
    lengths = lengths_of(program)
    inputs = []
    for _ in range(n):
        length = int(rng.choice(lengths)) if mixed else lengths[-1]
        index = rng.choice(len(program.tokens), size=length, replace=not program.distinct)
        inputs.append([program.tokens[i] for i in index])
    return inputs


def random_pairs(model: TracrModel, n: int, *, distribution: str, rng: np.random.Generator) -> Pairs:
    """`n` pairs of inputs drawn from the distribution."""
    if distribution not in DISTRIBUTIONS:
        raise unknown("distribution", distribution, DISTRIBUTIONS)
    mixed = distribution in ("mixed", "varied")
    clean, corrupted = (random_inputs(model.program, n, rng=rng, mixed=mixed) for _ in range(2))
    return pairs_of_inputs(model, list(zip(clean, corrupted, strict=True)), distribution=distribution, rng=rng)


def pairs_of_inputs(
    model: TracrModel,
    pairs: Sequence[tuple[Sequence[Value], Sequence[Value]]],
    *,
    distribution: str,
    rng: np.random.Generator,
) -> Pairs:
    """Clean and corrupted inputs as a pair each, with corrupted positions permuted if the distribution says so."""
    program = model.program
    T = lengths_of(program)[-1] + (program.bos is not None)
    pad = program.vocabulary.index(program.pad)
    sides: list[Tensor] = []
    for side, permuted in enumerate((False, distribution in ("permuted", "varied"))):
        tokens, mask = model.encode([pair[side] for pair in pairs])
        fill = T - tokens.shape[1]
        tokens = torch.nn.functional.pad(tokens, (0, fill), value=pad)
        mask = torch.nn.functional.pad(mask, (0, fill), value=False)
        positions = np.tile(np.arange(T), (len(pairs), 1))
        if permuted:
            first = int(program.bos is not None)
            positions[:, first:] = rng.permuted(positions[:, first:], axis=1)
        sides += [tokens, mask, torch.from_numpy(positions)]
    return Pairs(*sides)


def chosen_rows(
    clean: Sequence[Tensor], corrupted: Sequence[Tensor], size: int, *, ablation: str
) -> tuple[Tensor, int]:
    """Pairs for discovery and then those held out, `size` of each, no pair twice.

    Where nothing reads the corrupted inputs, no clean one is held out that is in discovery, or held out twice; then
    fewer may be held out, or none.

    Args:
        clean, corrupted: all that there is of them, `[pair, …]` each.

    Returns:
        The rows that were chosen, and how many different ones there are.
    """
    order = _firsts([*clean, *corrupted])
    others = np.arange(size, len(order))
    if not reads_corrupted(ablation):
        different = _firsts([x[torch.from_numpy(order)] for x in clean])
        others = different[different >= size]
    return torch.from_numpy(np.concatenate((order[:size], order[others[:size]]))), len(order)


def _firsts(columns: Sequence[Tensor]) -> IntArray:
    """Where each row of some tensors, taken together, is for the first time, in order."""
    rows = torch.cat(list(columns), dim=-1).numpy()
    return np.sort(np.unique(rows, axis=0, return_index=True)[1])
