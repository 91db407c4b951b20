"""Built-in tasks: a generator draws pairs without end, and the pairs that this tokenizer can express are kept.

A generator knows words and templates; whether a pair fits a tokenizer (equal lengths, single-token answers, nothing
unknown) is checked here as for a user's own prompts, and a pair that does not is passed over. No clean prompt
occurs twice, so discovery and held-out prompts are disjoint.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from acdc.errors import TaskError, unknown
from acdc.metrics import Outcome
from acdc.signatures import Option, options_of
from acdc.tasks.prompts import Padding
from acdc.tasks.task import Ablation, Dataset, ShownTask, resolve_metric, to_prompts, token_texts
from acdc.tasks.tokenise import UNKNOWN, Checked, Encoder, ModelLike, TextPair, TokenPair, check, tokenise

DEFAULT_SIZE = 64
_PATIENCE = 1500  # pairs drawn in a row, none of them new and fitting, before giving up
_FEWEST = 8


@dataclasses.dataclass(frozen=True)
class Generator:
    """A built-in task.

    Attributes:
        name, description: as `acdc tasks` shows them.
        metric: the outcome metric it was published with.
        pairs: `(model, rng, **options)` to an endless stream of pairs; its keyword-only arguments are the options.
    """

    name: str
    description: str
    metric: str
    pairs: Callable[..., Iterator[TextPair] | Iterator[TokenPair]]

    @property
    def options(self) -> dict[str, Option]:
        """Its options by name."""
        return options_of(self.pairs)

    @property
    def defaults(self) -> dict[str, Any]:
        """Its options, and their defaults."""
        return {name: option.default for name, option in self.options.items()}

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise an `AcdcError` for an option the task does not have, or a value unlike its default."""
        defaults = self.defaults
        for name, value in options.items():
            if name not in defaults:
                raise unknown(f"option of task {self.name!r}", name, defaults)
            if not isinstance(value, type(defaults[name])):
                raise TaskError(f"task {self.name!r}: expected {name} like {defaults[name]!r}, got {value!r}")


@dataclasses.dataclass(frozen=True, repr=False)
class GeneratedTask(ShownTask):
    """A built-in task with its settings; make one with `acdc.tasks.load`."""

    generator: Generator
    outcome: Outcome
    size: int = DEFAULT_SIZE
    seed: int = 0
    ablation: Ablation = "resample"
    padding: Padding = "right"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.generator.name

    @property
    def description(self) -> str:
        return self.generator.description

    @property
    def metric(self) -> str:
        return self.outcome.name

    def prepare(self, model: ModelLike) -> Dataset:
        pairs = self._draw(model)
        half = len(pairs) // 2
        few = f"{self.name}: only {len(pairs)} different prompts fit: {half} for discovery, {half} held out"
        discovery = to_prompts(pairs[:half], model, padding=self.padding)
        return Dataset(
            name=self.name,
            discovery=discovery,
            held_out=to_prompts(pairs[half : 2 * half], model, padding=self.padding),
            metric=self.outcome,
            ablation=self.ablation,
            seed=self.seed,
            warnings=() if half == self.size else (few,),
            tokens=token_texts(discovery, model),
        )

    def _draw(self, model: ModelLike) -> list[TokenPair]:
        """Up to twice `size` pairs, no two with the same clean prompt."""
        wanted = 2 * self.size
        chunk_size = min(max(wanted, 32), 256)
        stream = self.generator.pairs(model, random.Random(f"{self.name}/{self.seed}"), **self.options)
        found: dict[tuple[int, ...], TokenPair] = {}
        refused: collections.Counter[str] = collections.Counter()
        seen: set[Any] = set()
        fruitless = 0
        while len(found) < wanted and fruitless < _PATIENCE:
            chunk: list[Any] = list(itertools.islice(stream, chunk_size))
            if not chunk:  # another package's stream may end
                break
            before = len(found)
            new = {pair.clean: pair for pair in reversed(chunk) if pair.clean not in seen}
            seen.update(new)
            for row in _check(list(new.values()), model):
                if row.problems or UNKNOWN in row.remarks:
                    refused[row.problems[0] if row.problems else UNKNOWN] += 1
                else:
                    found.setdefault(row.pair.clean, row.pair)
            fruitless = 0 if len(found) > before else fruitless + len(chunk)
        if len(found) < min(wanted, _FEWEST):
            why = f"; most often: {refused.most_common(1)[0][0]}" if refused else ""
            raise TaskError(
                f"task {self.name!r}: only {len(found)} of {len(seen)} prompts tried fit {model.name}{why}"
            )
        return list(found.values())[:wanted]


def _check(pairs: list[Any], model: ModelLike) -> list[Checked]:
    texts = [pair for pair in pairs if isinstance(pair, TextPair)]
    if texts:
        return [check(row, model) for row in tokenise(texts, Encoder(model), move_space=True)]
    return [check(Checked(pair), model) for pair in pairs]


def make(
    generator: Generator,
    *,
    outcome: Outcome | None = None,
    size: int | None = None,
    seed: int = 0,
    ablation: Ablation = "resample",
    padding: Padding = "right",
    options: Mapping[str, Any] | None = None,
) -> GeneratedTask:
    """The task of a generator; see `acdc.tasks.load`."""
    if size is not None and size < 1:
        raise TaskError(f"expected a size of at least 1 prompt, got {size}")
    generator.check_options(options or {})
    return GeneratedTask(
        generator=generator,
        outcome=outcome or resolve_metric(generator.metric),
        size=size or DEFAULT_SIZE,
        seed=seed,
        ablation=ablation,
        padding=padding,
        options=dict(options or {}),
    )
