"""Methods on real language models, cell by cell: `python -m acdc.benchmarks.measuring.real` writes docs/real.

A cell is one method on one task of one model: its ranking is cut at fixed shares of all edges, and each circuit is
measured on held-out prompts. Where the method scores single prompts it is cut twice: by the mean of the scores'
absolute values, as is the default, and by the absolute value of their mean, as the papers rank. A search goes down to
the smallest share, by KL, and the circuits on its way are measured: one front for all shares and both measures. Every
cell has a file of its own, written when it is done, so that the command goes on from where it was stopped, also within
a search, and several processes may share the work. Which cells are missing stands in the report.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import acdc
from acdc.benchmarks.cost import Cost, measure, measure_once
from acdc.benchmarks.measuring.speed.report import machine
from acdc.circuit import selection
from acdc.engine.circuits import measure_prompts
from acdc.errors import AcdcError
from acdc.evaluation.judging import judging_problem
from acdc.graph import FloatArray
from acdc.methods import get_method
from acdc.metrics import (
    OUTCOMES,
    faithfulness,
    faithfulness_interval,
    magnitude_interval,
    mean_interval,
    share_interval,
)
from acdc.model.model import Model
from acdc.model.pretrained import PRETRAINED
from acdc.store.rows import Rows
from acdc.store.writing import write_atomically
from acdc.tasks.task import Dataset

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Of all edges."""
METHODS = ("guided", "eap", "eap-ig", "clean-corrupted", "random")
TASKS = {
    "smollm2-135m-q4": ("ioi", "gendered-pronoun", "fact-recall", "sva"),
    "gemma-3-270m-q4": ("ioi", "greater-than", "induction", "gendered-pronoun", "fact-recall", "docstring"),
}
"""The tasks that each model does on most held-out prompts, by `acdc tasks check`."""
RULES = {"mean-absolute": "mean \\|·\\|", "signed": "\\|mean\\|"}
RULES |= {f"{name}, kl": f"{shown}, by KL" for name, shown in RULES.items()}
"""How tables name what ranks the edges."""
FRONT = "front"
"""What circuits on the way of a search are chosen by, in place of an aggregate."""


@dataclasses.dataclass(frozen=True)
class Size:
    """The circuit of one share of the edges, on held-out prompts; an interval is (low, high), NaN if there is none.

    Attributes:
        aggregate: how the prompts' scores were put together, with ", kl" where they are of KL; "front" of a search.
        n_edges: left after pruning.
        kl: nats from the full model; unfaithfulness: |1 − faithfulness|; same_answer: share of read positions.
    """

    aggregate: str
    share: float
    n_edges: int
    kl: float
    kl_interval: tuple[float, float]
    unfaithfulness: float
    unfaithfulness_interval: tuple[float, float]
    same_answer: float
    same_answer_interval: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one task of one model.

    Attributes:
        seconds: of the ranking or search by the wall clock; processor_seconds: of all threads; peak_bytes: of tensors,
            0 of a search.
        forward, backward: passes of the model on one prompt. Of a search that was stopped and went on all are unknown,
            NaN and 0.
    """

    model: str
    task: str
    method: str
    metric: str
    n_prompts: int
    n_held_out: int
    n_edges_total: int
    seconds: float
    processor_seconds: float
    peak_bytes: int
    forward: int
    backward: int
    sizes: tuple[Size, ...]
    machine: str

    @property
    def aggregates(self) -> tuple[str, ...]:
        """In the order in which they are shown."""
        return tuple(dict.fromkeys(size.aggregate for size in self.sizes))


def compute(model: Model, task: str, method: str, *, size: int, resume: Path) -> Cell:
    """Rank or search by the method on `size` prompts, and measure its circuits on as many others.

    Args:
        resume: file in which a search notes how far it is.
    """
    data = acdc.tasks.load(task, size=size).prepare(model)
    assert data.held_out is not None
    graph = model.graph()
    cuts, cost = _cuts(model, data, method, int(SHARES[0] * graph.n_edges), resume)
    circuits = [
        selection.top_pruned(graph, sizes, int(share * graph.n_edges))
        for sizes in cuts.values()
        for share in SHARES
    ]
    outcomes = [data.metric, OUTCOMES["kl"], OUTCOMES["exact-match"]]
    problem = judging_problem(model, data, graph)
    own, kl, same = measure_prompts(problem, [np.zeros_like(graph.valid), *circuits], outcomes)
    full, empty = own.full, own.circuits[0]
    sizes = tuple(
        Size(
            aggregate=aggregate,
            share=share,
            n_edges=int(edges.sum()),
            kl=float(nats.mean()),
            kl_interval=mean_interval(nats, within=(0, np.inf)),
            unfaithfulness=abs(
                1 - faithfulness(float(value.mean()), full=float(full.mean()), empty=float(empty.mean()))
            ),
            unfaithfulness_interval=_from_one(faithfulness_interval(value, full, empty)),
            same_answer=float(match.mean()),
            same_answer_interval=share_interval(match),
        )
        for (aggregate, share), edges, value, nats, match in zip(
            itertools.product(cuts, SHARES),
            circuits,
            own.circuits[1:],
            kl.circuits[1:],
            same.circuits[1:],
            strict=True,
        )
    )
    return Cell(
        model=model.name, task=task, method=method, metric=data.metric.name, n_prompts=len(data.discovery),
        n_held_out=len(data.held_out), n_edges_total=graph.n_edges, seconds=cost.seconds,
        processor_seconds=cost.processor_seconds, peak_bytes=cost.peak_bytes, forward=cost.forward,
        backward=cost.backward, sizes=sizes, machine=machine(),
    )  # fmt: skip


def _cuts(
    model: Model, data: Dataset, method: str, fewest: int, resume: Path
) -> tuple[dict[str, FloatArray], Cost]:
    """What edges are ranked by, `[n_destinations, n_sources]`, by aggregate; and what it took.

    Args:
        fewest: edges that a search goes down to.
    """
    if get_method(method).score is None:
        goes_on = resume.exists()
        found, cost = measure_once(
            lambda: acdc.discover(model, data, method, metric="kl", edges=fewest, resume=resume), model.device
        )
        if goes_on:
            cost = dataclasses.replace(cost, seconds=np.nan, processor_seconds=np.nan, forward=0, backward=0)
        assert found.scores is not None
        order = found.scores.order
        return {FRONT: found.scores.sizes() if order is None else order}, cost
    scores, cost = measure(lambda: acdc.score(model, data, method), model.device)
    rankings = {"": scores}
    if get_method(method).gradient == "path":  # at the clean prompt alone that of KL is zero
        rankings[", kl"] = acdc.score(model, data, method, metric="kl")
    return {
        f"{aggregate}{by}": ranked.sizes(aggregate)
        for by, ranked in rankings.items()
        for aggregate in dict.fromkeys((ranked.aggregate, "signed"))
    }, cost


def _from_one(interval: tuple[float, float]) -> tuple[float, float]:
    low, high = interval
    return magnitude_interval((1 - high, 1 - low))


# ---- files ------------------------------------------------------------------------------------------------------


def cells_of(folder: Path) -> Rows:
    """The cells in a folder, a file each."""
    return Rows(folder / "cells", "acdc (cells of format 1)", ("model", "task", "method"))


def read(values: dict[str, Any]) -> Cell:
    """A cell as it was before it went through its file."""
    sizes = []
    for size in values["sizes"]:
        bounds = {f"{name}_interval" for name in ("kl", "unfaithfulness", "same_answer")}
        sizes.append(Size(**size | {name: tuple(_number(bound) for bound in size[name]) for name in bounds}))
    unknown = {name: _number(values[name]) for name in ("seconds", "processor_seconds")}
    return Cell(**values | unknown | {"sizes": tuple(sizes)})


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


# ---- report -----------------------------------------------------------------------------------------------------


def markdown(cells: Sequence[Cell], missing: Sequence[tuple[str, str, str]], command: str) -> str:
    parts = [
        f"""# Real language models

How faithful are circuits of each size, on models that people trained? Each method ranks all edges on one set of
prompts, by the task's own metric and, where it has a gradient there, by KL; the best share of the edges, those on no
path left out, is a circuit, measured on as many other prompts. Of a search these are the circuits on its way, of one
search by KL. KL is in nats from the full model; |1 − f| is the distance of the faithfulness from 1 by the task's own
metric; in brackets are 95% intervals over the prompts, where there is one (docs/intervals.md). The models had 4-bit
weights, dequantised: their numbers are not those of the full models.

Made by `{command}`, which goes on where it was stopped. Cells that were not run:
{_listed(missing)}."""
    ]
    for model, task in dict.fromkeys((cell.model, cell.task) for cell in cells):
        these = [cell for cell in cells if (cell.model, cell.task) == (model, task)]
        first = these[0]
        parts.append(
            f"## {task} on {model}\n\n{first.n_prompts} prompts, {first.n_held_out} held out, "
            f"{first.n_edges_total:,} edges; metric {first.metric}."
        )
        for title, name in (("KL", "kl"), ("\\|1 − f\\|", "unfaithfulness"), ("same answer", "same_answer")):
            head = [title, *(f"{share:.1%}" for share in SHARES)]
            body = [
                [f"{cell.method}, {RULES[aggregate]}" if len(cell.aggregates) > 1 else cell.method]
                + [_shown(size, name) for size in cell.sizes if size.aggregate == aggregate]
                for cell in these
                for aggregate in cell.aggregates
            ]
            parts.append(_table(head, body))
    head = ["model", "task", "method", "s", "processor s", "forward", "backward", "peak memory"]
    body = [
        [cell.model, cell.task, cell.method, _known(cell.seconds, ".4g"), _known(cell.processor_seconds, ".4g"),
         _known(cell.forward, ",d"), _known(cell.backward, ",d"), _known(cell.peak_bytes / 1e9, ".2f", " GB")]
        for cell in cells
    ]  # fmt: skip
    machines = ", ".join(dict.fromkeys(cell.machine for cell in cells))
    parts.append(f"## What the rankings cost\n\nPasses are of one prompt; measured on {machines}.")
    parts.append(_table(head, body))
    return "\n\n".join(parts) + "\n"


def _listed(cells: Sequence[tuple[str, str, str]]) -> str:
    """Which methods of which task and model, in words."""
    tasks = dict.fromkeys((model, task) for model, task, _ in cells)
    parts = [
        f"{task} on {model} ({', '.join(method for *which, method in cells if which == [model, task])})"
        for model, task in tasks
    ]
    return "; ".join(parts) or "none"


def _shown(size: Size, name: str) -> str:
    low, high = getattr(size, f"{name}_interval")
    value = f"{getattr(size, name):.2f}"
    return value if np.isnan(low) else f"{value} [{low:.2f}, {high:.2f}]"


def _known(number: float, form: str, unit: str = "") -> str:
    return f"{number:{form}}{unit}" if number and np.isfinite(number) else "–"


def _table(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- command ----------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m acdc.benchmarks.measuring.real", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(PRETRAINED), default=list(TASKS), help="default: all")
    parser.add_argument("--tasks", nargs="+", help="of those each model does; default: all")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="default: all rankings")
    parser.add_argument("--size", type=int, default=64, help="prompts, and as many held out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/real"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    wanted = [
        (model, task, method)
        for model in options.models
        for task in TASKS[model]
        if options.tasks is None or task in options.tasks
        for method in options.methods
    ]
    loaded: dict[str, Model] = {}
    cells = cells_of(options.output)
    cells.open()
    for name, task, method in wanted:
        with cells.claimed((name, task, method)) as mine:
            if not mine or cells.get((name, task, method)) is not None:
                continue
            loaded = {name: loaded[name] if name in loaded else acdc.load(name)}  # one at a time
            resume = options.output / f"{name}-{task}-{method}.resume"
            cell = compute(loaded[name], task, method, size=options.size, resume=resume)
            cells.put(dataclasses.asdict(cell))
        report(options.output)
        print(f"{name}, {task}, {method}: {cell.seconds:.3g} s", flush=True)
    report(options.output)


def report(folder: Path) -> None:
    """Write the README of all cells that are there."""
    every: list[tuple[Any, ...]] = [(m, t, method) for m in TASKS for t in TASKS[m] for method in METHODS]
    found = {cell: values for cell in every if (values := cells_of(folder).get(cell)) is not None}
    cells = [read(values) for values in found.values()]
    missing = [cell for cell in every if cell not in found]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "README.md", markdown(cells, missing, "python -m acdc.benchmarks.measuring.real"))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AcdcError as error:
        sys.exit(f"error: {error}")
