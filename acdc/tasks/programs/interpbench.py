"""The task of an InterpBench model in a local folder: what it does on random inputs, judged by its own outputs.

The folder of a case says what the true edges are, but not what the token ids stand for, nor which answers are right.
So the prompts are random ids and the metric compares with the full model. A file `inputs.json` beside the weights
says what inputs look like; without one, every id is as likely as any other, which few models were trained on.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pydantic
import torch

from acdc.errors import AcdcError, TaskError
from acdc.metrics import Outcome
from acdc.model.programs.hooked import HookedConfig
from acdc.model.programs.interpbench import read_config, read_edges
from acdc.store.reading import read_record
from acdc.tasks.programs.inputs import chosen_rows
from acdc.tasks.programs.truth import TrueCircuit
from acdc.tasks.prompts import Prompts
from acdc.tasks.task import Ablation, Dataset, ShownTask, check_ablation, check_metric, resolve_metric
from acdc.tasks.tokenise import ModelLike

INPUTS = "inputs.json"
DEFAULT_SIZE = 32


class Inputs(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What inputs look like; read from `inputs.json`.

    Attributes:
        tokens: ids that inputs are made of.
        first: id that every input starts with, if there is one (BOS).
        pad: id that shorter inputs are filled up with; the model sees it like any other.
        min_length, max_length: number of tokens, `first` and `pad` not counted.
    """

    tokens: tuple[pydantic.NonNegativeInt, ...] = pydantic.Field(min_length=2)
    first: pydantic.NonNegativeInt | None = None
    pad: pydantic.NonNegativeInt | None = None
    min_length: pydantic.PositiveInt
    max_length: pydantic.PositiveInt

    @classmethod
    def of(cls, folder: str) -> tuple[Inputs, bool]:
        """The inputs of the model in a folder, and whether the folder says so."""
        path, config = Path(folder) / INPUTS, read_config(folder)
        if not path.is_file():
            ids = tuple(range(config.d_vocab))
            return cls(tokens=ids, min_length=config.n_ctx, max_length=config.n_ctx), False
        inputs = read_record(path, cls)
        inputs.check(config, path)
        return inputs, True

    def check(self, config: HookedConfig, path: Path) -> None:
        """Raise an `AcdcError` for inputs that the model cannot take."""
        ids = [*self.tokens, *(i for i in (self.first, self.pad) if i is not None)]
        if max(ids) >= config.d_vocab:
            raise AcdcError(
                f"{path}: expected ids below the model's vocabulary of {config.d_vocab}, got {max(ids)}"
            )
        if self.min_length > self.max_length:
            raise AcdcError(f"{path}: min_length {self.min_length} is more than max_length {self.max_length}")
        if self.min_length < self.max_length and self.pad is None:
            raise AcdcError(f"{path}: inputs of different lengths need a pad")
        if self.n_positions > config.n_ctx:
            raise AcdcError(f"{path}: inputs of {self.n_positions} ids, the model's context is {config.n_ctx}")

    @property
    def n_positions(self) -> int:
        return self.max_length + (self.first is not None)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids `[n, T]`, and the length of each input `[n]`."""
        length = rng.integers(self.min_length, self.max_length + 1, size=n)
        ids = rng.choice(np.array(self.tokens), size=(n, self.max_length))
        if self.pad is not None:
            ids[np.arange(self.max_length) >= length[:, None]] = self.pad
        if self.first is not None:
            ids = np.concatenate([np.full((n, 1), self.first), ids], axis=1)
        return torch.from_numpy(ids), torch.from_numpy(length)


@dataclasses.dataclass(frozen=True, repr=False)
class InterpBenchTask(ShownTask):
    """Do what an InterpBench model does.

    Attributes:
        name: the folder of the model.
        outcome: the outcome metric; None: l2 for a model whose output is a number, else kl.
        ablation: what a removed edge carries.
        size: discovery prompts, and as many held out.
        seed: the prompts are drawn with.
    """

    name: str
    outcome: Outcome | None = None
    ablation: Ablation = "resample"
    size: int = DEFAULT_SIZE
    seed: int = 0

    @property
    def description(self) -> str:
        return f"what the InterpBench model in {self.name} does on random inputs"

    @property
    def metric(self) -> str:
        return self._outcome().name

    def _outcome(self) -> Outcome:
        return self.outcome or resolve_metric("l2" if read_config(self.name).n_outputs == 1 else "kl")

    def prepare(self, model: ModelLike) -> Dataset:
        config = read_config(self.name)
        if Path(self.name).resolve() != Path(model.name).resolve():
            raise TaskError(f"task {self.name!r} is what the model {self.name!r} does, got model {model.name!r}")
        inputs, known = Inputs.of(self.name)
        prompts = self._prompts(inputs)
        outcome = self._outcome()
        check_metric(outcome, prompts, self.name)
        truth = TrueCircuit(kind="structural", edges=read_edges(self.name)) if self.ablation == "resample" else None
        warnings = []
        if not known:
            warnings.append(
                f"{self.name}: nothing says which of the {config.d_vocab} token ids inputs are made of, so all are "
                f"drawn alike, {config.n_ctx} at a time; say so in {INPUTS}"
            )
        if truth is None:
            warnings.append(f"{self.name}: the true circuit is that of resample ablation, not of {self.ablation}")
        return Dataset(
            name=self.name,
            discovery=prompts[: self.size].to(model.device),
            held_out=prompts[self.size :].to(model.device) if len(prompts) > self.size else None,
            metric=outcome,
            ablation=self.ablation,
            seed=self.seed,
            warnings=tuple(warnings),
            truth=truth,
        )

    def _prompts(self, inputs: Inputs) -> Prompts:
        """Discovery and held-out prompts (`chosen_rows`), read at every token but the first and the padding."""
        rng = np.random.default_rng((self.seed, 2))
        n = 20 * self.size
        (clean, length), (corrupted, _) = inputs.draw(n, rng), inputs.draw(n, rng)
        chosen, different = chosen_rows([clean], [corrupted], self.size, ablation=self.ablation)
        if different < 2 * self.size:
            raise TaskError(f"{self.name}: only {different} different pairs of inputs: ask for {different // 2}")
        start = int(inputs.first is not None)
        positions = torch.arange(start, inputs.n_positions).expand(len(chosen), -1)
        return Prompts(
            clean=clean[chosen],
            corrupted=corrupted[chosen],
            mask=torch.ones_like(clean[chosen], dtype=torch.bool),
            positions=torch.where(positions < start + length[chosen, None], positions, -1),
        )


def make(
    name: str,
    *,
    metric: Outcome | str | None = None,
    size: int | None = None,
    seed: int = 0,
    ablation: str | None = None,
) -> InterpBenchTask:
    """The task of the InterpBench model in a folder; see `InterpBenchTask`."""
    return InterpBenchTask(
        name=name,
        outcome=None if metric is None else resolve_metric(metric),
        ablation=check_ablation(ablation or "resample"),
        size=DEFAULT_SIZE if size is None else size,
        seed=seed,
    )
