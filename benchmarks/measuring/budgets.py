"""Guided pruning beside ACDC at the same budget: a table and a figure.

    python -m acdc.benchmarks.measuring.budgets

ACDC is told a threshold and not how far from the full model its circuit may be. So it is run at several thresholds,
found by bisection, and the smallest of its circuits within the budget counts. Both are given the same prompts; the
distance is also measured on held-out ones. Guided pruning searches once, for the smallest budget; the circuits of the
others are cut from that (`acdc.cut`).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import acdc
from acdc.benchmarks.cost import device_name
from acdc.benchmarks.figures import to_svg
from acdc.benchmarks.suites import Case, get_suite
from acdc.circuit import Circuit
from acdc.engine.measure import Measure, Measures, bind
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.graph import BoolArray
from acdc.methods.search import Search
from acdc.store.writing import write_atomically
from acdc.viz.plots import COLORS

TRIES = 6
"""Thresholds that ACDC is run at."""
LOWEST = 1e-3
"""The lowest of them that is looked at, as a share of the budget; the highest is the budget."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Both methods on one task at one budget.

    Attributes:
        budget: largest distance from the full model, as a share of what separates it from the empty circuit.
        acdc_edges: of the smallest circuit within the budget; guided_edges: of the certified one.
        acdc_held_out, guided_held_out: distance on held-out prompts, as a share of the same separation there.
        threshold: ACDC's, as a share of the budget.
        acdc_seconds: processor time of that one search; tries_seconds: of all of them; guided_seconds: of the search
            for the smallest budget, and of a cut for any other.
    """

    model: str
    task: str
    metric: str
    budget: float
    acdc_edges: int
    guided_edges: int
    acdc_held_out: float
    guided_held_out: float
    threshold: float
    acdc_seconds: float
    tries_seconds: float
    guided_seconds: float


def best_within(patching: Patching, measure: Measure, budget: float) -> tuple[BoolArray, float, float, float]:
    """ACDC's smallest circuit within a budget: kept edges, its τ, its seconds, and those of all searches."""
    if budget <= 0:
        raise AcdcError(f"expected a budget above 0, got {budget:g}")
    low, high = np.log(LOWEST * budget), np.log(budget)
    best: tuple[int, BoolArray, float, float] | None = None
    spent: list[float] = []
    while best is None or len(spent) < TRIES:
        tau = float(np.exp((low + high) / 2))
        start = time.process_time()
        search = Search(patching, measure)
        search.sweep(lambda new, old, tau=tau: new - old < tau)  # type: ignore[misc]
        spent.append(time.process_time() - start)
        if search.distance > budget:
            high = np.log(tau)
            low = min(low, high - np.log(4))  # lower than planned, if nothing is low enough
            continue
        low = np.log(tau)
        edges = int(search.kept.sum())
        if best is None or edges < best[0]:
            best = (edges, search.kept, tau, spent[-1])
    return best[1], best[2], best[3], sum(spent)


def compare(case: Case, metric: str | None, budgets: Sequence[float]) -> Iterator[Row]:
    """Both methods on a case at several budgets, given as shares."""
    model = acdc.load(case.model)
    data = acdc.tasks.load(case.task, metric=metric, ablation=case.ablation, **case.task_options).prepare(model)
    assert data.held_out is not None
    graph = model.graph(qkv=case.qkv, inputs=case.inputs)
    problem = Problem(model, graph, data.discovery, data.metric, data.ablation)
    other = dataclasses.replace(problem, prompts=data.held_out)
    patching, judge = problem.patching(), other.patching()
    measure, judged = bind(data.metric, patching), bind(data.metric, judge)
    apart, apart_held_out = Measures.of(patching, measure).separation(), Measures.of(judge, judged).separation()

    @torch.no_grad()
    def held_out(kept: BoolArray) -> float:
        return float(judged.distance(judge.logits(kept, rows=judged.rows)).mean()) / apart_held_out

    circuit: Circuit | None = None
    for share in sorted(budgets):
        theirs, tau, seconds, all_seconds = best_within(patching, measure, share * apart)
        start = time.process_time()
        if circuit is None:
            circuit = acdc.discover(model, data, graph=graph, threshold=share * apart)
        else:
            circuit = acdc.cut(model, data, circuit, threshold=share * apart)
        guided_seconds, ours = time.process_time() - start, circuit.edges
        yield Row(
            case.model, case.task, data.metric.name, share, int(theirs.sum()), int(ours.sum()), held_out(theirs),
            held_out(ours), tau / (share * apart), seconds, all_seconds, guided_seconds,
        )  # fmt: skip


def ratio(rows: Sequence[Row]) -> float:
    """Geometric mean of guided pruning's number of edges over ACDC's."""
    return float(np.exp(np.mean([np.log(row.guided_edges / row.acdc_edges) for row in rows])))


def figure(rows: Sequence[Row]) -> str:
    """Edges against edges, a point for each task and budget, as SVG."""
    picture = Figure(figsize=(3.4, 3.2), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots()
    for i, budget in enumerate(sorted({row.budget for row in rows})):
        these = [row for row in rows if row.budget == budget]
        x, y = [row.acdc_edges for row in these], [row.guided_edges for row in these]
        axes.scatter(x, y, s=14, color=COLORS[i], label=f"budget {budget:.0%}")
    ends = [min(row.guided_edges for row in rows) * 0.8, max(row.acdc_edges for row in rows) * 1.25]
    axes.plot(ends, ends, color="0.7", linewidth=0.8, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="edges, ACDC at its best threshold", ylabel="edges, guided pruning")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)
    return to_svg(axes)


def markdown(rows: Sequence[Row], command: str) -> str:
    fewer, more = (sum(sign * (row.acdc_edges - row.guided_edges) > 0 for row in rows) for sign in (1, -1))
    acdc_one, acdc_all, ours = (
        sum(getattr(row, name) for row in rows) for name in ("acdc_seconds", "tries_seconds", "guided_seconds")
    )
    acdc_out, ours_out = (
        (float(np.mean(shares)), int((shares <= 1).sum()))
        for shares in (
            np.array([getattr(row, name) / row.budget for row in rows])
            for name in ("acdc_held_out", "guided_held_out")
        )
    )
    columns = (
        "model", "task", "metric", "budget", "ACDC: edges", "guided: edges", "ACDC: held out", "guided: held out",
        "ACDC's τ / budget", "ACDC: s", f"all {TRIES}: s", "guided: s",
    )  # fmt: skip
    table = "\n".join(
        [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        + [
            f"| {row.model} | {row.task} | {row.metric} | {row.budget:.0%} | {row.acdc_edges} | {row.guided_edges} "
            f"| {row.acdc_held_out:.1%} | {row.guided_held_out:.1%} | {row.threshold:.2g} | {row.acdc_seconds:.2f} "
            f"| {row.tries_seconds:.2f} | {row.guided_seconds:.2f} |"
            for row in rows
        ]
    )
    return f"""# The same budget

How many edges does a circuit need that stays within a distance from the full model? Guided pruning is given that
distance as its budget. ACDC is given a threshold: it is run at {TRIES} of them, found by bisection, and its smallest
circuit within the budget counts. Guided pruning searches once, for the smallest budget, and its circuit is cut for the
others (`acdc.cut`). Both see the same prompts. A budget is a share of what separates the full model from
the empty circuit, and so is the distance on held-out prompts. Seconds are processor time, on {device_name()}.

Made by `{command}`.

- Edges: guided pruning keeps {ratio(rows):.2f} times as many as ACDC (geometric mean of {len(rows)}): fewer in {fewer}
  cases, more in {more}, {max(row.guided_edges / row.acdc_edges for row in rows):.2f} times as many at worst.
- Held-out prompts: the circuit's distance is {ours_out[0]:.2f} of the budget on average with guided pruning, and within
  it in {ours_out[1]} cases; {acdc_out[0]:.2f} and {acdc_out[1]} with ACDC.
- Seconds in all: guided pruning {ours:.3g}, ACDC {acdc_one:.3g} for the search that counts and {acdc_all:.3g} for
  the {TRIES} that it takes to find it.

![Each task and budget: edges kept by ACDC and by guided pruning](edges.svg)

{table}
"""


def write(folder: Path, rows: Sequence[Row], command: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    write_atomically(folder / "results.csv", text.getvalue())
    write_atomically(folder / "edges.svg", figure(rows))
    write_atomically(folder / "README.md", markdown(rows, command))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m acdc.benchmarks.measuring.budgets", description=__doc__)
    parser.add_argument("--cases", nargs="+", help="of suite trained, or patterns; default: all")
    parser.add_argument("--metrics", nargs="+", default=["task", "kl"], help="metrics; task: the task's own")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.05, 0.1, 0.2], help="shares")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/budgets"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    for case in get_suite("trained", cases=options.cases).cases:
        for metric in options.metrics:
            for row in compare(case, None if metric == "task" else metric, options.budgets):
                print(
                    f"{case.name}, {row.metric}, {row.budget:.0%}: ACDC {row.acdc_edges} edges, "
                    f"guided {row.guided_edges}; {row.acdc_seconds:.2f} s, {row.guided_seconds:.2f} s",
                    flush=True,
                )
                rows.append(row)
    write(options.output, rows, " ".join(["python -m acdc.benchmarks.measuring.budgets", *arguments]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AcdcError as error:
        sys.exit(f"error: {error}")
