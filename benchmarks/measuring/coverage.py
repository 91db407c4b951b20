"""Do the intervals hold the true value as often as they say? Simulated on scores of trained models.

For each of a few tasks a circuit is measured on 2,000 prompts. These are the population: its mean metric, its KL
divergence, its faithfulness and its share of equal answers are known exactly, and samples of 8 to 128 prompts are drawn
from it, with replacement. `python -m acdc.benchmarks.measuring.coverage` writes docs/intervals.md.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import acdc
from acdc.engine.circuits import measure_prompts
from acdc.evaluation.judging import judging_problem
from acdc.graph import FloatArray
from acdc.metrics import (
    OUTCOMES,
    faithfulness,
    faithfulness_interval,
    mean_interval,
    proportion_interval,
)
from acdc.store.writing import write_atomically

SUBJECTS = (
    ("tiny-tasks-gqa", "ioi"),
    ("tiny-tasks-gqa", "greater-than"),
    ("induction-2l", "induction"),
    ("tiny-tasks-gqa", "sva"),
)
"""Model and task. The last has the heaviest tail: the circuit is wrong by the whole scale on one prompt in twenty."""
SIZES = (8, 16, 32, 64, 128)
POPULATION = 2000


@dataclasses.dataclass(frozen=True)
class Scores:
    """What was measured on every prompt of a population, `[prompt]` each."""

    full: FloatArray
    empty: FloatArray
    circuit: FloatArray
    kl: FloatArray
    same_answer: FloatArray


@dataclasses.dataclass(frozen=True)
class Cell:
    """Samples of one size: the share that gave an interval, and the share of these that held the true value."""

    given: float
    held: float


def collect(model_name: str, task_name: str, *, population: int = POPULATION) -> Scores:
    """A circuit of faithfulness 0.9, found on 32 prompts, and its scores on others."""
    model = acdc.load(model_name)
    found = acdc.discover(model, acdc.tasks.load(task_name, size=32), "eap-ig", faithfulness=0.9)
    data = acdc.tasks.load(task_name, size=population, seed=1).prepare(model)
    problem = judging_problem(model, data, found.graph)
    outcomes = [data.metric, OUTCOMES["kl"], OUTCOMES["exact-match"]]
    metric, kl, match = measure_prompts(problem, [np.zeros_like(found.edges), found.edges], outcomes)
    empty, circuit = metric.circuits
    return Scores(metric.full, empty, circuit, kl.circuits[1], match.circuits[1])


def coverage(scores: Scores, n: int, *, draws: int, seed: int = 0) -> dict[str, Cell]:
    """Coverage of each kind of interval on samples of `n` prompts."""
    full, empty, circuit = (float(x.mean()) for x in (scores.full, scores.empty, scores.circuit))
    truths = {
        "mean, metric": circuit,
        "mean, KL": float(scores.kl.mean()),
        "faithfulness": faithfulness(circuit, full=full, empty=empty),
        "proportion": float(scores.same_answer.mean()),
    }
    of_count = functools.cache(lambda count: proportion_interval(count, n))
    intervals: dict[str, Callable[[Scores], tuple[float, float]]] = {
        "mean, metric": lambda s: mean_interval(s.circuit),
        "mean, KL": lambda s: mean_interval(s.kl, within=(0, np.inf)),
        "faithfulness": lambda s: faithfulness_interval(s.circuit, s.full, s.empty),
        "proportion": lambda s: of_count(int(s.same_answer.sum())),
    }
    rng = np.random.default_rng((seed, n))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in intervals}
    for _ in range(draws):
        index = rng.integers(0, len(scores.full), n)
        sample = Scores(*(getattr(scores, field.name)[index] for field in dataclasses.fields(Scores)))
        for name, interval in intervals.items():
            found[name].append(interval(sample))
    cells = {}
    for name, truth in truths.items():
        ends = np.array(found[name])
        ends = ends[~np.isnan(ends[:, 0])]
        held = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
        cells[name] = Cell(len(ends) / draws, float(held.mean()) if len(held) else float("nan"))
    return cells


def table(cells: dict[tuple[str, int], dict[str, Cell]]) -> str:
    """Markdown: a row for each task and kind of figure, a column for each sample size."""
    lines = ["| scores | figure | " + " | ".join(f"{n} prompts" for n in SIZES) + " |", "|---" * 7 + "|"]
    for subject in dict.fromkeys(name for name, _ in cells):
        for kind in next(iter(cells.values())):
            row = [_written(cells[subject, n][kind]) for n in SIZES]
            lines.append(f"| {subject} | {kind} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _written(cell: Cell) -> str:
    if cell.given < 0.005:
        return "none"
    text = f"{cell.held:.1%}"
    return text if cell.given > 0.995 else f"{text} (of {cell.given:.0%})"


DOCUMENT = """# Intervals

Figures over prompts come with 95% confidence intervals. They are chosen by one question: how often do they hold the
true value? Below it is answered on scores of trained models, by `python -m acdc.benchmarks.measuring.coverage`. For
each task a circuit was measured on {population:,} prompts, which are the population, so that the true value is known;
{draws:,} samples of each size were drawn from it.

- A **mean** has Student's t interval. Values of one sign whose standard deviation is over a third of their mean, such
  as divergences, have their skewness removed by Hall's transformation (1992), and need 64 prompts.
- **Faithfulness**, a ratio of means over the same prompts, has Fieller's interval. The integrals over circuit sizes,
  incompleteness and the share of an edge are such ratios too.
- A **proportion** has the mid-P binomial interval, also where all or none of the prompts are right. It can be right by
  no more than the jumps of a binomial distribution allow, and is above 97% where no interval of that size is nearer.
- **None** is given below 8 prompts, and where the sample is skewed by more than √n / 3: a few prompts then make up
  the mean. The range over prompts is printed instead. If all prompts have one value, it is both ends.

Each cell: how many of the intervals hold the true value; in brackets, in how many samples there was one, if not in all.

{table}
A sample knows only what is in it. Where a circuit is wrong by the whole scale on one prompt in twenty (`sva`), samples
of 8 or 16 prompts often hold none of these and look the same as if there were none; in most others the skewness shows,
and no interval is given. What has not been drawn is in no interval: an event of which n prompts show none may still
occur on up to 3 / n of all.
"""


def main(
    out: Annotated[Path, typer.Option("-o", "--out", help="The document to write.")] = Path("docs/intervals.md"),
    draws: Annotated[int, typer.Option(help="Samples for each cell.")] = 4000,
) -> None:
    """Simulate the coverage of intervals and write the document with its table."""
    cells = {}
    for model, task in SUBJECTS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = collect(model, task)
        for n in SIZES:
            cells[f"{task}, {model}", n] = coverage(scores, n, draws=draws)
    write_atomically(out, DOCUMENT.format(population=POPULATION, draws=draws, table=table(cells)))


if __name__ == "__main__":
    typer.run(main)
