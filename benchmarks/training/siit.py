"""Strict interchange intervention training (SIIT): a network learns to run a program, part for part.

Every head and MLP that the program uses is aligned with one of the network, and an intervention is done to both: the
same edges carry what they carry on another input. Whatever is swapped, the network has to answer as the program then
does. That is asked for whole nodes, as in Gupta et al. 2024 (InterpBench, arXiv 2407.14494): aligned ones change the
answer as the program says (interchange), all others leave it alone (strict). And it is asked for single edges too,
so that the true edges, and not only the true nodes, are what the network was trained to have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from acdc.benchmarks.training.interchange import Run, contexts, run, trainable
from acdc.benchmarks.training.siit_alignment import Alignment, Swap
from acdc.model.programs import tracr
from acdc.model.programs.tracr import TracrModel
from acdc.tasks.programs.inputs import Pairs
from acdc.tasks.programs.interp import InterpRecord
from acdc.tasks.programs.rare_inputs import all_inputs

MOST_INPUTS = 4000
HELD_OUT = 0.2
PERMUTED = 0.7
"""Share of donor inputs whose positions are permuted, so that what is known of positions differs too."""


class Inputs:
    """The inputs of a program: those to train on, and those held out.

    Attributes:
        tokens, mask: `[N, T]`.
        train, held_out: indices.
    """

    def __init__(self, program: TracrModel, *, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        every = list(all_inputs(program.program))
        order = torch.randperm(len(every), generator=generator)[:MOST_INPUTS]
        self.tokens, self.mask = program.encode([every[i] for i in order])
        n = round(HELD_OUT * len(order))
        self.held_out, self.train = torch.arange(n), torch.arange(n, len(order))
        self.first = int(program.program.bos is not None)

    def draw(self, which: Tensor, n: int, generator: torch.Generator) -> Pairs:
        """Pairs of inputs, longer ones more often since there are more of them, but not by as much."""
        T, length = self.tokens.shape[1], self.mask[which].sum(1)
        weight = length.bincount(minlength=T + 1)[length].float().rsqrt()
        clean, donor = (which[weight.multinomial(n, replacement=True, generator=generator)] for _ in range(2))
        straight = torch.arange(T).expand(n, T)
        order = torch.rand(n, T, generator=generator)
        order[:, : self.first] = -1
        permuted = torch.rand(n, 1, generator=generator) < PERMUTED
        positions = torch.where(permuted, order.argsort(1), straight)
        return Pairs(
            self.tokens[clean], self.mask[clean], straight, self.tokens[donor], self.mask[donor], positions
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What the program answers, and what the network says: token ids `[B, T]` (-1 where there is no answer), logits."""

    expected: Tensor
    logits: Tensor

    def loss(self) -> Tensor:
        return F.cross_entropy(self.logits.flatten(0, 1), self.expected.flatten(), ignore_index=-1)

    def right(self) -> Tensor:
        """`[n]` bool, of the positions that have an answer."""
        return (self.logits.argmax(-1) == self.expected)[self.expected >= 0]


class Trial:
    """Program and network on the same pairs of inputs, without and with interventions."""

    def __init__(self, alignment: Alignment, record: InterpRecord, model: GPT2LMHeadModel, pairs: Pairs) -> None:
        self.alignment, self.record, self.pairs = alignment, record, pairs
        self.program, self.network = tracr.decompose(alignment.program), trainable(model)
        self.contexts = contexts(self.program, pairs)
        with torch.no_grad():
            self.high_donor = run(self.program, self.contexts[1])
            self.high = run(self.program, self.contexts[0])
        self.donor = run(self.network, self.contexts[1])
        self.low = run(self.network, self.contexts[0])

    def behaviour(self) -> Answers:
        """Without an intervention."""
        return Answers(self.expected(self.high), self.low.logits)

    def intervention(self, swap: Swap) -> Answers:
        with torch.no_grad():
            high = run(self.program, self.contexts[0], swapped=swap.high, donor=self.high_donor)
        low = run(self.network, self.contexts[0], swapped=swap.low, donor=self.donor)
        return Answers(self.expected(high), low.logits)

    def expected(self, high: Run) -> Tensor:
        return self.record.tokens(high.logits, self.pairs.clean_mask)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained; its layers are those of the program.

    Attributes:
        edge_share: share of the interventions that are of edges; 0 for those of nodes alone, as in InterpBench.
    """

    d_model: int = 32
    n_heads: int = 4
    d_mlp: int = 64
    steps: int = 1500
    batch_size: int = 192
    learning_rate: float = 3e-3
    edge_share: float = 0.5
    seed: int = 0


def network(recipe: Recipe, record: InterpRecord, program: TracrModel, **settings: Any) -> GPT2LMHeadModel:
    """An untrained GPT-2 with the program's vocabulary; every position sees every other if the program's do."""
    settings |= {
        "vocab_size": len(record.vocabulary), "n_positions": program.program.context_length,
        "n_embd": recipe.d_model, "n_layer": program.program.n_layers, "n_head": recipe.n_heads,
        "n_inner": recipe.d_mlp, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "tie_word_embeddings": False, "bos_token_id": program.program.bos_token_id, "eos_token_id": None,
        "is_causal": program.program.causal,
    }  # fmt: skip
    torch.manual_seed(recipe.seed)
    return GPT2LMHeadModel(GPT2Config(**settings))


def train(
    alignment: Alignment,
    record: InterpRecord,
    recipe: Recipe,
    *,
    resume: Path | None = None,
    report: Callable[[dict[str, float]], None] = lambda line: None,
    every: int = 100,
    **settings: Any,
) -> tuple[GPT2LMHeadModel, list[dict[str, float]]]:
    """Train a network; the same recipe gives the same network on the same machine.

    Args:
        resume: file to write now and then, and to go on from if it is there.
        report: called with each line of the curve, every so many steps.
        settings: kept in the network's configuration.
    """
    model = network(recipe, record, alignment.program, **settings)
    inputs = Inputs(alignment.program, seed=recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    curve: list[dict[str, float]] = []
    first = 1
    if resume is not None and resume.is_file():
        state = torch.load(resume, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        curve, first = state["curve"], state["step"] + 1
    for step in range(first, recipe.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe.steps)
        trial = Trial(alignment, record, model, inputs.draw(inputs.train, recipe.batch_size, generator))
        swap = Swap.random(alignment, recipe.batch_size, generator, edge_share=recipe.edge_share)
        behaviour, intervention = trial.behaviour().loss(), trial.intervention(swap).loss()
        optimizer.zero_grad()
        (behaviour + intervention).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % every == 0 or step == recipe.steps:
            losses = {"step": step, "behaviour": behaviour.item(), "intervention": intervention.item()}
            curve.append({name: round(value, 6) for name, value in losses.items()})
            report(curve[-1])
            if resume is not None:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "curve": curve}
                temporary = resume.with_suffix(".tmp")
                torch.save(state | {"generator": generator.get_state(), "step": step}, temporary)
                temporary.replace(resume)
    return model.eval(), curve


def _schedule(step: int, steps: int) -> float:
    """Warm up over 100 steps, then down a cosine."""
    return min(1.0, step / 100) * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
