"""The tasks `tracr-*`: do what a compiled program says, judged at every position."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from acdc.errors import AcdcError, TaskError, unknown
from acdc.model.programs.tracr import BUILTIN, TracrModel, TracrProgram, builtin_names, read_program
from acdc.tasks.programs.derive import read_positions
from acdc.tasks.programs.inputs import Pairs, chosen_rows, concatenate, random_pairs
from acdc.tasks.programs.program_task import Drawn, ProgramTask
from acdc.tasks.programs.truth import TrueCircuit, TrueCircuits, witness_pairs
from acdc.tasks.prompts import Prompts
from acdc.tasks.tokenise import ModelLike

FAITHFULNESS = 0.999
"""What a circuit of a program should reach: a program is exact, so nothing of it is noise."""


class TracrTask(ProgramTask):
    """Do what a compiled program does; the usual metric, l2, is zero exactly where the output is the program's."""

    usual_metric = "l2"
    known_under = ("resample", "zero")
    faithfulness = FAITHFULNESS
    exact = True

    @property
    def description(self) -> str:
        right = "a circuit is right if it reproduces all outputs and no edge can go, under"
        right = "the true circuit is that of" if self.ablation == "resample" else right
        return f"{describe(self.name)}; {right} {self.ablation} ablation with {self.distribution} inputs"

    def truths(self) -> TrueCircuits:
        return truth_of(self.name)

    def without_truth(self) -> str:
        case = f"under {self.ablation} ablation with {self.distribution!r} inputs"
        return f"no one circuit is the true one {case}; see whether it reproduces all outputs"

    def draw(self, model: ModelLike, witnessed: TrueCircuit | None) -> Drawn:
        program = getattr(model, "program", None)
        if program is None or Path(self.name).name not in (program.program.name, Path(model.name).name):
            raise self.refuse(model)
        prompts = draw_prompts(
            program, witnessed, distribution=self.distribution, size=self.size, seed=self.seed,
            answered=self.outcome.needs_answers, ablation=self.ablation,
        )  # fmt: skip
        return Drawn(*prompts, program.program.vocabulary)


def task_names() -> list[str]:
    """Names of the tasks: those of the models."""
    return [*builtin_names(), *sorted(_COMPILED)]


def describe(name: str) -> str:
    """What the program of that name computes, in one line."""
    if name in _COMPILED:
        return _COMPILED[name][0].description or "a compiled RASP program"
    return read_program(BUILTIN / name if (BUILTIN / name).is_dir() else name).description


# ---- truths -----------------------------------------------------------------------------------------------------


def truth_of(model_name: str) -> TrueCircuits:
    """All true circuits of a Tracr model, by its name or folder."""
    if model_name in _COMPILED:
        return _COMPILED[model_name][1]
    if (BUILTIN / model_name / "truth.json").is_file():
        return TrueCircuits.load(BUILTIN / model_name)
    if Path(model_name).is_dir():
        return TrueCircuits.load(model_name)
    raise unknown("Tracr model", model_name, task_names())


_COMPILED: dict[str, tuple[TracrProgram, TrueCircuits]] = {}
"""Programs compiled in this process, and their true circuits."""


def register(model: TracrModel, truth: TrueCircuits) -> None:
    """Make the task of a compiled program known by the program's name, in this process.

    Raises:
        AcdcError: the name is a built-in model's.
    """
    if model.program.name in builtin_names():
        raise AcdcError(f"{model.program.name!r} is the name of a built-in model: choose another")
    _COMPILED[model.program.name] = model.program, truth


# ---- prompts ----------------------------------------------------------------------------------------------------


def draw_prompts(
    model: TracrModel,
    circuit: TrueCircuit | None,
    *,
    distribution: str,
    size: int,
    seed: int,
    answered: bool = False,
    ablation: str = "resample",
) -> tuple[Prompts, Prompts | None]:
    """Discovery and held-out prompts, `size` each, no pair in both; the witnesses of `circuit` lead discovery.

    Where nothing reads the corrupted inputs, no clean one is held out that is in discovery, or held out twice; then
    there may be fewer than `size`, or None.

    Args:
        answered: only prompts with an answer somewhere, and only the positions that have one.

    Raises:
        TaskError: the program has too few different pairs of inputs.
    """
    rng = np.random.default_rng((seed, 1))
    batches = [random_pairs(model, 2 * size, distribution=distribution, rng=rng) for _ in range(10)]
    witnesses = None if circuit is None else witness_pairs(model, circuit)
    if witnesses is not None:
        batches.insert(0, witnesses[:size])
    pairs = concatenate(batches)
    if answered:
        pairs = pairs[_read(model, pairs, answered=True)[0].any(-1)]
    columns = list(vars(pairs).values())
    chosen, different = chosen_rows(columns[:3], columns[3:], size, ablation=ablation)
    if different < 2 * size:
        raise TaskError(
            f"{model.program.name}: expected {size} prompts and {size} held out, but there are only {different} "
            f"different pairs of {distribution!r} inputs: ask for {different // 2} at most"
        )
    prompts = to_prompts(model, pairs[chosen], answered=answered)
    return prompts[:size], prompts[size:] if len(prompts) > size else None


def to_prompts(model: TracrModel, pairs: Pairs, *, answered: bool = False) -> Prompts:
    """Pairs as prompts that read every position with an output, and what a categorical output is there.

    Answers and wrong answers are rows of the output vocabulary: the program's value, and all others. Where the
    program gives None there is no answer.
    """
    read, value = _read(model, pairs, answered=answered)
    answers = wrong = None
    if value is not None:
        answers = _at(read, value)[..., None]  # [B, read, 1]
        others = torch.arange(model.unembedding.weight.shape[0] - 1).expand(*answers.shape[:2], -1)
        wrong = torch.where(answers >= 0, others + (others >= answers), -1)
    permuted = not torch.equal(pairs.corrupted_positions, pairs.clean_positions)
    return Prompts(
        clean=pairs.clean,
        corrupted=pairs.corrupted,
        mask=pairs.clean_mask,
        positions=_at(read, torch.arange(read.shape[1]).expand(read.shape)),
        answers=answers,
        wrong=wrong if wrong is not None and wrong.shape[-1] else None,
        position_ids=pairs.clean_positions,
        corrupted_mask=pairs.corrupted_mask,
        corrupted_position_ids=pairs.corrupted_positions if permuted else None,
    )


@torch.no_grad()
def _read(model: TracrModel, pairs: Pairs, *, answered: bool) -> tuple[Tensor, Tensor | None]:
    """Which positions are read, and the program's value at every position (-1 where it gives None): `[B, T]` both.

    There are no values for numerical programs. With `answered`, only positions that have one are read.
    """
    read = read_positions(model, pairs.clean_mask)
    if model.program.numerical:
        return read, None
    device = model.unembedding.weight.device
    inputs = (pairs.clean, pairs.clean_positions, pairs.clean_mask)
    best, value = model(*(tensor.to(device) for tensor in inputs)).cpu().max(-1)
    value = torch.where(best > 0.5, value, -1)
    return (read & (value >= 0) if answered else read), value


def _at(read: Tensor, values: Tensor) -> Tensor:
    """`[B, read]`: the values `[B, T]` at the read positions, in order; -1 fills up."""
    width = int(read.sum(-1).max())
    order = read.int().argsort(dim=-1, descending=True, stable=True)[:, :width]
    return torch.where(read.gather(-1, order), values.gather(-1, order), -1)
