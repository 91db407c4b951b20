"""How often does a search find the truth of a compiled program? By ablation, distribution, prompts and witnesses.

    python -m acdc.benchmarks.measuring.recovery -o docs/truths

adds the rows that `results.csv` lacks, most telling first, and writes the tables of README.md from all it has. It can
be stopped at any time. Two things are counted: whether a circuit is exactly the known one, and whether it is right,
which is to say that it reproduces all outputs and that no edge of it can go. Both are asked on prompts of their own,
led by the pairs that show every known edge.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import acdc
from acdc.engine.problem import Problem
from acdc.evaluation.reproduction import reproduction
from acdc.metrics import proportion_interval
from acdc.model.model import Model
from acdc.model.programs.tracr import builtin_names
from acdc.store.writing import write_atomically
from acdc.tasks.programs.truth import CASES

METHODS = ("guided", "acdc")
SIZES = (16, 32, 64, 128, 256)
SEEDS = (0, 1, 2, 3, 4)
DEFAULT = ("resample", "varied")
JUDGED_ON = 64
"""Prompts of each of the two sets that a circuit is judged on."""
JUDGING_SEED = 1000


@dataclasses.dataclass(frozen=True)
class Row:
    """One search.

    Attributes:
        true, kept, false, missed: numbers of edges.
        reproduces, minimal: whether all outputs are the full model's, and whether no edge can go.
        seconds: of processor time.
        error: why there is no circuit.
    """

    program: str
    ablation: str
    distribution: str
    prompts: int
    witnesses: bool
    seed: int
    method: str
    true: int = 0
    kept: int = 0
    false: int = 0
    missed: int = 0
    reproduces: bool = False
    minimal: bool = False
    seconds: float = 0.0
    error: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(str(getattr(self, name)) for name in KEY)

    @property
    def exact(self) -> bool:
        return not self.error and not self.false and not self.missed

    @property
    def right(self) -> bool:
        return not self.error and self.reproduces and self.minimal


FIELDS = tuple(field.name for field in dataclasses.fields(Row))
KEY = FIELDS[:7]


def plan() -> Iterator[tuple[str, str, int, int]]:
    """(Ablation, distribution, prompts, seed) in the order in which they are run: what is claimed first."""
    every = list(itertools.product([*CASES], SIZES, SEEDS))
    first = [(case, 32, 0) for case in (DEFAULT, ("zero", "mixed"), *CASES)]
    then = [(DEFAULT, n, seed) for seed in SEEDS for n in SIZES] + [(case, n, 0) for n in SIZES for case in CASES]
    for (ablation, distribution), n, seed in dict.fromkeys([*first, *then, *every]):
        yield ablation, distribution, n, seed


def search(model: Model, ablation: str, distribution: str, n: int, seed: int) -> Iterator[Row]:
    """The rows of one program for one kind of prompts."""
    name = model.name
    options: dict[str, Any] = {"ablation": ablation, "distribution": distribution}
    judged = acdc.tasks.load(name, size=JUDGED_ON, seed=JUDGING_SEED, **options).prepare(model)
    assert judged.truth is not None
    assert judged.held_out is not None
    graph = model.graph(inputs="split")
    truth = judged.truth.mask(graph)
    problems = [
        Problem(model, graph, prompts, judged.metric, judged.ablation)
        for prompts in (judged.discovery, judged.held_out)
    ]
    for witnesses, method in itertools.product((True, False), METHODS):
        row = Row(name, ablation, distribution, n, witnesses, seed, method, true=int(truth.sum()))
        start = time.process_time()
        try:
            task = acdc.tasks.load(name, size=n, seed=seed, witnesses=witnesses, **options)
            edges = acdc.discover(model, task, method, graph=graph, seed=seed).edges
        except acdc.AcdcError as error:  # as for too few different inputs
            yield dataclasses.replace(row, error=" ".join(str(error).split()))
            continue
        seconds = time.process_time() - start
        found = reproduction(problems, edges)
        yield dataclasses.replace(
            row,
            kept=int(edges.sum()),
            false=int((edges & ~truth).sum()),
            missed=int((~edges & truth).sum()),
            reproduces=found.reproduced == found.n_prompts,
            minimal=found.removable is None,
            seconds=round(seconds, 3),
        )


def read(path: Path) -> list[Row]:
    """The rows of a table; none if there is no table."""
    if not path.exists():
        return []
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for record in csv.DictReader(file):
            if None in record.values():
                continue  # the last line of a run that was killed
            values: dict[str, Any] = {
                field.name: record[field.name] == "True"
                if field.type == "bool"
                else {"int": int, "float": float, "str": str}[str(field.type)](record[field.name])
                for field in dataclasses.fields(Row)
            }
            rows.append(Row(**values))
    return rows


# ---- tables -----------------------------------------------------------------------------------------------------

DOCUMENT = """# Truths found

How often `guided` and `acdc`, told nothing but the task, give the circuit of a compiled program; made by
`python -m acdc.benchmarks.measuring.recovery -o docs/truths` from [results.csv](results.csv), a row a search.
Each cell is *exact* / *right* of *searches* (programs × seeds):

- *exact*: exactly the known edges. With resampling these are the true circuit. With zeros they are the edges that are
  necessary singly, which need not be one circuit: once some are gone, others may do nothing.
- *right*: it reproduces every output on {judged} other prompts, led by those that show the known edges, and no edge
  of it can go.

With *witnesses*, the prompts are led by pairs that were chosen with the truth to show each of its edges. Without, they
are random, as a user's would be, and what no prompt shows cannot be found.

{tables}

{thinned}

Searches without witnesses that are not right, at the default (resample ablation, inputs that differ in tokens, lengths
and positions) and 32 prompts: {missed}.

{cost}
"""


def document(rows: Sequence[Row]) -> str:
    """README.md of the table."""
    tables = ""
    for witnesses in (True, False):
        tables += f"## {'With' if witnesses else 'Without'} witnesses\n\n"
        tables += "| ablation | distribution | method | " + " | ".join(f"{n} prompts" for n in SIZES) + " |\n"
        tables += "|---" * (3 + len(SIZES)) + "|\n"
        for (ablation, distribution), method in itertools.product(CASES, METHODS):
            cells = [
                _cell(
                    [
                        row
                        for row in rows
                        if (row.ablation, row.distribution, row.method, row.prompts, row.witnesses)
                        == (ablation, distribution, method, n, witnesses)
                    ]
                )
                for n in SIZES
            ]
            tables += f"| {ablation} | {distribution} | {method} | " + " | ".join(cells) + " |\n"
        tables += "\n"
    default = [row for row in rows if (row.ablation, row.distribution) == DEFAULT]
    blind = [row for row in default if not row.witnesses and row.prompts == 32 and not row.right and not row.error]
    missed = ", ".join(
        f"{program.removeprefix('tracr-')} ({method}, seeds {', '.join(str(r.seed) for r in group)})"
        for (program, method), group in _grouped(blind)
    )
    total = len(CASES) * len(SIZES) * len(SEEDS) * 2 * len(METHODS) * len(builtin_names())
    seconds = statistics.fmean(row.seconds for row in rows) if rows else 0.0
    return DOCUMENT.format(
        judged=2 * JUDGED_ON,
        tables=tables.rstrip(),
        thinned=_thinned(rows, total).strip(),
        missed=missed or "none",
        cost=f"{seconds:.2f} seconds of processor time a search, on average.",
    )


def _grouped(rows: Sequence[Row]) -> list[tuple[tuple[str, str], list[Row]]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.program, row.method), []).append(row)
    return sorted(groups.items())


def _cell(rows: Sequence[Row]) -> str:
    done = [row for row in rows if not row.error]
    if not done:
        return "–"
    exact, right = sum(row.exact for row in done), sum(row.right for row in done)
    low, high = proportion_interval(right, len(done))
    return f"{exact} / {right} of {len(done)} [{low:.2f}, {high:.2f}]"


def _thinned(rows: Sequence[Row], total: int) -> str:
    """Which part of the plan has been run."""
    errors = sum(bool(row.error) for row in rows)
    text = "Brackets are 95% confidence intervals of *right*. "
    if len(rows) < total:
        text += (
            f"The plan is {total:,} searches (six cases, five sizes, five seeds, {len(builtin_names())} programs, two "
            f"methods, with and without witnesses). {len(rows):,} of them have been run, the default case first; where "
            "a cell has fewer than five a program, or is empty, the rest has not. The same command goes on with them."
        )
    if errors:
        text += f" {errors:,} found no prompts: there are too few different inputs of that kind for so many. "
    return text


# ---- command ----------------------------------------------------------------------------------------------------


def main(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of results.csv and README.md.")] = Path(
        "docs/truths"
    ),
    minutes: Annotated[float, typer.Option(help="Stop after so much processor time; 0: only the tables.")] = np.inf,
) -> None:
    """Run the searches that are missing, and write the tables."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.csv"
    rows = read(path)
    done = {row.key for row in rows}
    models: dict[str, Model] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for (ablation, distribution, n, seed), name in itertools.product(plan(), builtin_names()):
            if time.process_time() > 60 * minutes:
                break
            wanted = (
                Row(name, ablation, distribution, n, w, seed, m).key
                for w, m in itertools.product((True, False), METHODS)
            )
            if done.issuperset(wanted):
                continue
            if name not in models:
                models[name] = acdc.load(name)
            for row in search(models[name], ablation, distribution, n, seed):
                if row.key not in done:
                    rows.append(row)
                    done.add(row.key)
            _write(path, rows)
    _write(path, rows)
    write_atomically(out / "README.md", document(rows))


def _write(path: Path, rows: Sequence[Row]) -> None:
    lines = [",".join(FIELDS)] + [
        ",".join(str(getattr(row, name)).replace(",", ";") for name in FIELDS) for row in rows
    ]
    write_atomically(path, "\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
