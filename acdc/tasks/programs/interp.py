"""The tasks `interp-*`: do what a program says, as a trained network whose true circuit is known by construction.

Each model is a GPT-2 that was trained to run the program of one of the Tracr models: its record (`interp.json`) names
that program, and says which part of the network stands for which part of the program, and which token for which
output. So inputs, answers and distributions are the program's own, and so is the true circuit, through the
alignment: edges that carry something in the program carry it in the network, and no others do.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import pydantic
import torch
from torch import Tensor

from acdc.errors import AcdcError
from acdc.model.programs.tracr import BUILTIN, TracrModel, Value
from acdc.store.reading import read_record
from acdc.store.writing import write_atomically
from acdc.tasks.programs.program_task import Drawn, ProgramTask
from acdc.tasks.programs.rare_inputs import all_inputs
from acdc.tasks.programs.tracr import describe, draw_prompts
from acdc.tasks.programs.truth import TrueCircuit, TrueCircuits
from acdc.tasks.prompts import Prompts
from acdc.tasks.tokenise import ModelLike

RECORD = "interp.json"
FAITHFULNESS = 0.99
"""What a circuit should reach: the networks were trained to do nothing but the program."""
APART = 0.02
"""Numbers closer than this are one output: 1/4 and 1/5 are two, 1/3 by two ways of adding is one."""


class InterpRecord(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What a network was trained to be; stored as `interp.json` beside its weights.

    Attributes:
        program: name of the Tracr model whose program it runs.
        vocabulary: text of each token: first the program's tokens, by the same ids, then outputs that are none.
        values: outputs of the program; numbers, if its output is one.
        outputs: the token that stands for each value.
        alignment: the program's heads and MLPs, and the network's that stand for them.
    """

    format: int = 1
    program: str
    vocabulary: tuple[str, ...]
    values: tuple[Value, ...]
    outputs: tuple[int, ...]
    alignment: dict[str, str]

    @classmethod
    def of(cls, model: TracrModel, alignment: dict[str, str]) -> InterpRecord:
        """The record of a network for this program."""
        program = model.program
        vocabulary = [str(token) for token in program.vocabulary]
        values = output_values(model)
        outputs = []
        for value in values:
            text = str(Fraction(value).limit_denominator(60)) if program.numerical else str(value)
            if text not in vocabulary:
                vocabulary.append(text)
            outputs.append(vocabulary.index(text))
        return cls(
            program=program.name,
            vocabulary=tuple(vocabulary),
            values=values,
            outputs=tuple(outputs),
            alignment=alignment,
        )

    def tokens(self, outputs: Tensor, mask: Tensor) -> Tensor:
        """Token `[B, T]` of the program's output at each position, -1 where it has none.

        Args:
            outputs: `[B, T, O]` of the program's Tracr model; mask: `[B, T]` real tokens of the inputs.
        """
        if all(isinstance(value, float) for value in self.values) and outputs.shape[-1] == 1:
            distance, best = (outputs - torch.tensor(self.values, dtype=outputs.dtype)).abs().min(-1)
            sure = distance < APART
        else:
            highest, best = outputs.max(-1)
            others = outputs.scatter(-1, best[..., None], 0).abs().amax(-1)
            sure = ((highest - 1).abs() < 0.2) & (others < 0.2)
        read = mask.clone()
        read[:, 0] &= "BOS" not in self.vocabulary
        return torch.where(sure & read, torch.tensor(self.outputs)[best], -1)

    def save(self, folder: str | Path) -> None:
        write_atomically(Path(folder) / RECORD, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, name: str) -> InterpRecord:
        """The record of a built-in model, or of the one in a folder."""
        path = folder_of(name) / RECORD
        try:
            return read_record(path, cls)
        except AcdcError as error:
            raise AcdcError(f"the record at {str(path)!r} cannot be read: {error}") from None


def output_values(model: TracrModel) -> tuple[Value, ...]:
    """The values a program gives on its inputs, in order."""
    program = model.program
    if program.output_vocabulary is not None:
        return program.output_vocabulary
    tokens, mask = model.encode(list(all_inputs(program)))
    with torch.no_grad():
        found = model(tokens, attention_mask=mask)[:, int(program.bos is not None) :, 0]
    values: list[Value] = []
    for value in found[mask[:, int(program.bos is not None) :]].unique().tolist():
        if not values or value - float(values[-1]) > APART:
            values.append(round(value, 4))
    return tuple(values)


# ---- models -----------------------------------------------------------------------------------------------------


def builtin_names() -> list[str]:
    """Names of the models that come with acdc, which are those of their tasks."""
    return sorted(path.parent.name for path in BUILTIN.glob(f"interp-*/{RECORD}"))


def folder_of(name: str) -> Path:
    """The folder of a built-in model, or the one of that path."""
    return BUILTIN / name if (BUILTIN / name / RECORD).is_file() else Path(name)


def is_interp(name: str) -> bool:
    """Whether it is a built-in model of this kind, or the folder of one."""
    return (folder_of(name) / RECORD).is_file()


def truth_of(name: str) -> TrueCircuits:
    """The true circuits of a model, one for each distribution of inputs."""
    return TrueCircuits.load(folder_of(name))


# ---- the task ---------------------------------------------------------------------------------------------------


class InterpTask(ProgramTask):
    """Do what a program does, as a network that was trained to; the true circuit is that of the ablation it learnt."""

    usual_metric = "kl"
    known_under = ("resample",)
    faithfulness = FAITHFULNESS

    @property
    def description(self) -> str:
        return f"{describe_task(self.name)}; the true circuit is that of {self.distribution} inputs"

    def truths(self) -> TrueCircuits:
        return truth_of(self.name)

    def without_truth(self) -> str:
        return f"the true circuit is known for resample ablation only, not for {self.ablation}"

    def draw(self, model: ModelLike, witnessed: TrueCircuit | None) -> Drawn:
        record = InterpRecord.load(self.name)
        if Path(self.name).name != Path(model.name).name or model.vocabulary_size != len(record.vocabulary):
            raise self.refuse(model)
        program = TracrModel.load(record.program)
        discovery, held_out = draw_prompts(
            program, witnessed, distribution=self.distribution, size=self.size, seed=self.seed,
            answered=not program.program.numerical, ablation=self.ablation,
        )  # fmt: skip
        return Drawn(
            with_answers(discovery, program, record),
            None if held_out is None else with_answers(held_out, program, record),
            record.vocabulary,
        )


def describe_task(name: str) -> str:
    """What the model of that name does, in one line."""
    return f"{describe(InterpRecord.load(name).program)}, by a trained network"


@torch.no_grad()
def with_answers(prompts: Prompts, program: TracrModel, record: InterpRecord) -> Prompts:
    """The prompts with the tokens of the program's outputs as answers, and all its other outputs as wrong ones."""
    outputs = program(prompts.clean, position_ids=prompts.position_ids, attention_mask=prompts.mask)
    token = record.tokens(outputs, prompts.mask).gather(1, prompts.positions.clamp(min=0))  # [B, read]
    answers = torch.where(prompts.positions >= 0, token, -1)[..., None]
    every = torch.tensor(sorted(set(record.outputs)))
    others = every.expand(*answers.shape[:2], -1)
    wrong = torch.where((others != answers) & (answers >= 0), others, -1)
    order = (wrong < 0).int().argsort(dim=-1, stable=True)
    return dataclasses.replace(prompts, answers=answers, wrong=wrong.gather(-1, order)[..., : len(every) - 1])
