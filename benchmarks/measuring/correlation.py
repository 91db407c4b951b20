"""How well attribution says what exact patching measures: correlations by class of edge, and of nodes.

    python -m acdc.benchmarks.measuring.correlation -o docs/methods

On single prompts, each edge's effect when it alone is removed is compared with what each method estimates of it:
Pearson's correlation (is it the number?) and Spearman's (is it the order?), within each class of destination, as a mean
over prompts. Every row is a file, so that an interrupted run goes on where it was. Of a large model, a fixed sample of
edges drawn at random from each class stands for all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch

import acdc
from acdc.engine.measure import Measures
from acdc.engine.problem import Problem
from acdc.graph import BoolArray, FloatArray, Graph
from acdc.methods import METHODS
from acdc.methods.groups import Groups
from acdc.methods.method import helpfulness
from acdc.store.writing import write_atomically

WAYS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "eap": ("eap", {}),
    "eap-ig": ("eap-ig", {}),
    "eap-ig-activations": ("eap-ig-activations", {}),
    "clean-corrupted": ("clean-corrupted", {}),
    "eap-gp": ("eap-gp", {}),
    "conductance": ("conductance", {}),
    "relp": ("relp", {}),
    "relp, frozen attention": ("relp", {"frozen_attention": True}),
    "gim": ("gim", {}),
    "gim without gates": ("gim", {"gates": False}),
    "eap-ig, relp": ("eap-ig", {"backward": "relp"}),
    "eap-ig, gim": ("eap-ig", {"backward": "gim"}),
    "eap-ig-activations, relp": ("eap-ig-activations", {"backward": "relp"}),
    "atp-star": ("atp-star", {}),
}
"""What is compared, by label: a method and its options."""
CASES = [
    *[
        (model, task)
        for model in ("tiny-tasks", "tiny-tasks-gqa")
        for task in ("ioi", "greater-than", "sva", "induction")
    ],
    ("smollm2-135m-q4", "ioi"),
]  # fmt: skip
PROMPTS = 6
FEW = 3
"""Prompts of a large model."""
LARGE = 20_000
"""Edges from which on a sample is taken."""
EACH = 100
"""Edges of each class in a sample."""
CLASSES = {"queries": "<q>", "keys": "<k>", "values": "<v>", "MLPs": "m", "logits": "logits"}


@dataclasses.dataclass(frozen=True)
class Exact:
    """What exact patching measures on each prompt.

    Attributes:
        edges: `[prompt, n_destinations, n_sources]`, NaN where it was not measured; nodes: `[prompt, n_sources]`.
    """

    edges: FloatArray
    nodes: FloatArray


def classes(graph: Graph) -> dict[str, BoolArray]:
    """`[n_destinations]` each: destinations by class."""
    found = {}
    for name, mark in CLASSES.items():
        of = [d.startswith(mark) if len(mark) == 1 else mark in d for d in graph.destinations]
        found[name] = np.array(of)
    return found


def sample(graph: Graph) -> BoolArray:
    """`[n_destinations, n_sources]`: the edges that are measured."""
    if graph.n_edges < LARGE:
        return graph.valid
    rng, found = np.random.default_rng(0), np.zeros_like(graph.valid)
    for chosen in classes(graph).values():
        of_class = np.flatnonzero(graph.valid & chosen[:, None])
        found.flat[rng.permutation(of_class)[:EACH]] = True
    return found


def exact(problems: list[Problem], file: Path) -> Exact:
    """Measured, or read if it was."""
    if file.exists():
        with np.load(file) as held:
            return Exact(held["edges"], held["nodes"])
    edges, nodes = [], []
    for i, problem in enumerate(problems):
        score, chosen = METHODS["exact"].score, sample(problem.graph)
        assert score is not None
        if (chosen == problem.graph.valid).all():
            edges.append(np.where(chosen, score(problem).values, np.nan))
        else:
            edges.append(effects(problem, chosen))
        nodes.append(score(dataclasses.replace(problem, unit="node")).values)
        print(f"exact, prompt {i + 1} of {len(problems)}", file=sys.stderr)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, edges=np.stack(edges), nodes=np.stack(nodes))
    return Exact(np.stack(edges), np.stack(nodes))


def effects(problem: Problem, chosen: BoolArray) -> FloatArray:
    """What each of some edges does when it alone is removed, `[n_destinations, n_sources]`, NaN at the others."""
    whole = Groups(Measures(problem.outcome, problem.searched()))
    found = np.full(chosen.shape, np.nan)
    _, without = whole.measure_without([np.array([edge]) for edge in np.flatnonzero(chosen)])
    found[chosen] = helpfulness(problem, without - whole.value)
    return found


def correlations(found: list[tuple[FloatArray, FloatArray]]) -> dict[str, float]:
    """Means over prompts of the correlations of (estimate, exact), where both vary."""
    pearson, spearman = [], []
    for ours, theirs in found:
        if len(ours) > 2 and np.ptp(ours) > 0 and np.ptp(theirs) > 0:
            pearson.append(float(np.corrcoef(ours, theirs)[0, 1]))
            spearman.append(float(scipy.stats.spearmanr(ours, theirs).statistic))
    if not pearson:
        return {}
    return {"pearson": float(np.mean(pearson)), "spearman": float(np.mean(spearman)), "edges": len(found[0][0])}


def row(problems: list[Problem], truth: Exact, way: str) -> dict[str, Any]:
    """Correlations of one way with exact patching, by class."""
    method, options = WAYS[way]
    score = METHODS[method].score
    assert score is not None
    graph = problems[0].graph
    by_class: dict[str, list[tuple[FloatArray, FloatArray]]] = {}
    for i, problem in enumerate(problems):
        edges = score(problem, **options).values
        nodes = score(dataclasses.replace(problem, unit="node"), **options).values
        known = ~np.isnan(truth.edges[i])
        for name, chosen in {"all edges": np.ones(graph.n_destinations, dtype=bool), **classes(graph)}.items():
            where = known & chosen[:, None]
            by_class.setdefault(name, []).append((edges[where], truth.edges[i][where]))
        for name, mark in (("nodes: heads", "a"), ("nodes: MLPs", "m")):
            where = np.array([s.startswith(mark) for s in graph.sources]) & ~np.isnan(truth.nodes[i])
            by_class.setdefault(name, []).append((nodes[where], truth.nodes[i][where]))
    return {name: correlations(found) for name, found in by_class.items()}


def measure(model_name: str, task: str, out: Path, ways: list[str]) -> None:
    """All ways on one case; those that its file has already are not measured again."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"correlation, {model_name}, {task}.json"
    rows: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    missing = [way for way in ways if way not in rows]
    if not missing:
        return
    model = acdc.load(model_name)
    data = acdc.tasks.load(task).prepare(model)
    graph = model.graph()
    problems = [
        Problem(model, graph, data.discovery[i : i + 1], data.metric, data.ablation)
        for i in range(min(PROMPTS if graph.n_edges < LARGE else FEW, len(data.discovery)))
    ]
    truth = exact(problems, out / "exact" / f"{model_name}, {task}.npz")
    for way in missing:
        try:
            rows[way] = row(problems, truth, way)
        except acdc.AcdcError as error:
            rows[way] = {"refused": str(error)}
        write_atomically(file, json.dumps(rows, indent=1) + "\n")
        print(f"{model_name}, {task}, {way}", file=sys.stderr)


def table(out: Path) -> str:
    """All rows as Markdown: for each model, medians over its tasks."""
    held: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(out.glob("correlation, *.json")):
        held.setdefault(file.stem.split(", ")[1], []).append(json.loads(file.read_text()))
    columns = ["all edges", *CLASSES, "nodes: heads", "nodes: MLPs"]
    lines = []
    for model, tasks in held.items():
        n = len(tasks)
        lines += [f"**{model}** ({n} task{'s' * (n > 1)})", "", "| way | " + " | ".join(columns) + " |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        for way in WAYS:
            cells = []
            for column in columns:
                found = [r[way][column] for r in tasks if r.get(way, {}).get(column)]
                pair = (
                    [float(np.median([x[kind] for x in found])) for kind in ("pearson", "spearman")]
                    if found
                    else []
                )
                cells.append(" / ".join(f"{x:.2f}".replace("0.", ".", 1) for x in pair) or "–")
            if set(cells) != {"–"}:
                lines.append(f"| {way} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


START, END = "<!-- correlations -->", "<!-- end of correlations -->"


def write_between(page: Path, start: str, end: str, text: str) -> None:
    """Put a text into a page, between its two marks."""
    old = page.read_text()
    before, after = old.split(start)[0], old.split(end)[1]
    write_atomically(page, f"{before}{start}\n\n{text}\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/methods"))
    parser.add_argument("--page", type=Path, default=Path("docs/methods.md"))
    parser.add_argument("--models", nargs="*", help="only these")
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    for model, task in CASES:
        if given.models is None or model in given.models:
            measure(model, task, given.out, given.ways)
    if given.page.exists():
        write_between(given.page, START, END, table(given.out))
    print(table(given.out))


if __name__ == "__main__":
    main()
