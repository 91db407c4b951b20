"""From rows to what a report says: a line a method with confidence intervals, and mean curves.

Cases are the population: with several seeds a case's figure is the mean over them, and intervals are over cases. A
figure that is undefined on a case (None) is left out there; a row with an error is no figure, but counts as a case
on which the truth was not found.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from acdc.benchmarks.table import Row, unpacked
from acdc.graph import BoolArray
from acdc.metrics import jaccard, mean_interval, proportion_interval

FloatArray = npt.NDArray[np.float64]
Value = Callable[[Row], float | None]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over `n` cases, its 95% confidence interval (NaN where none can be trusted), and the range over cases."""

    mean: float
    low: float
    high: float
    n: int
    least: float
    greatest: float


@dataclasses.dataclass(frozen=True)
class Line:
    """One method on all cases.

    Attributes:
        method: its name; cases: how many it was run on; errors: rows without figures.
        figures: means by the name of the row's field; a field that is undefined on every case is not there. Beside
            them "share_kept", of all edges, without which a circuit of nearly all of them looks good.
        stability: mean Jaccard index of a case's circuits of different seeds, over the cases that have several.
        found, found_at_some_threshold: share of the cases on which its circuit, or its ranking cut at the best
            threshold, is exactly the true circuit; None if no truth is known.
        found_blind: the same share without the prompts that were chosen with the truth; None if there are none.
        right: share on which its circuit reproduces all outputs and needs every edge; None where outputs are noisy.
        costs: medians by the name of the row's field.
        least: on how many cases no method has less, by the name of the row's field.
    """

    method: str
    cases: int
    errors: int
    figures: Mapping[str, Estimate]
    stability: Estimate | None
    found: Estimate | None
    found_at_some_threshold: Estimate | None
    found_blind: Estimate | None
    right: Estimate | None
    costs: Mapping[str, float]
    least: Mapping[str, int]


FIGURES = (
    "edge_auc", "node_auc", "average_precision", "best_f1", "precision", "recall", "f1", "hamming", "faithfulness",
    "random_faithfulness", "kl", "exact_match", "cpr", "cmd", "log_cmd", "log_kl", "kl_at_half", "kl_at_2",
    "kl_at_10", "n_edges",
)  # fmt: skip
DISTANCES = ("cmd", "log_cmd", "log_kl", "kl_at_half", "kl_at_2", "kl_at_10")
"""Figures of which less is better."""
COSTS = tuple(
    prefix + name
    for prefix in ("", "ranking_")
    for name in ("seconds", "processor_seconds", "forward", "backward", "work", "peak_bytes")
)


def leaderboard(rows: Sequence[Row]) -> list[Line]:
    """A line a method, the one that finds most true circuits first (without a truth: the smallest circuits)."""
    methods = dict.fromkeys(row.method for row in rows)
    best = {name: _least(rows, name) for name in DISTANCES}
    lines = [_line(name, [row for row in rows if row.method == name], best) for name in methods]

    def goodness(line: Line) -> tuple[float, ...]:
        means = {name: figure.mean for name, figure in line.figures.items()}
        if line.found is None:
            return (-means.get("n_edges", np.inf),)
        return line.found.mean, means.get("f1", -np.inf), means.get("average_precision", -np.inf)

    return sorted(lines, key=goodness, reverse=True)


def by_case(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each case."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row.case, []).append(row)
    return cases


def mean_roc(rows: Sequence[Row]) -> tuple[FloatArray, FloatArray] | None:
    """The mean over cases of the true positive rate at each false positive rate; None if there is no ROC curve."""
    grid = np.concatenate(([0.0, 1e-6], np.linspace(0.005, 1, 200)))
    curves = []
    for row in rows:
        if row.roc is not None and row.edge_auc is not None:
            x, y = np.array(json.loads(row.roc))
            curves.append(np.interp(grid, x + 1e-9 * np.arange(len(x)), y))  # vertical steps become steep ones
    return (grid, np.mean(curves, axis=0)) if curves else None


def mean_curve(rows: Sequence[Row]) -> tuple[FloatArray, FloatArray] | None:
    """Faithfulness at each circuit size, mean over the cases, negative values as 0; None if there is no curve.

    The rows' sizes are all in true circuits, or all in shares of the edges.
    """
    curves = [np.array(json.loads(row.curve), dtype=np.float64) for row in rows if row.curve is not None]
    if not curves:
        return None
    return curves[0][0], np.nanmean([np.maximum(curve[1], 0) for curve in curves], axis=0)


def _least(rows: Sequence[Row], name: str) -> dict[str, set[str]]:
    """The methods whose figure, mean over seeds, is the least on a case, by case."""
    found: dict[str, set[str]] = {}
    for case, group in by_case(rows).items():
        values: dict[str, list[float]] = {}
        for row in group:
            if (value := getattr(row, name)) is not None:
                values.setdefault(row.method, []).append(value)
        means = {method: statistics.fmean(some) for method, some in values.items()}
        found[case] = {method for method, mean in means.items() if mean <= min(means.values())}
    return found


def _line(method: str, rows: list[Row], best: Mapping[str, Mapping[str, set[str]]]) -> Line:
    good = [row for row in rows if row.error is None]
    known = any(row.truth is not None for row in good)
    blind = any(row.found_without_witnesses is not None for row in good)
    exact = any(row.reproduces is not None for row in good)
    figures = {}
    for name in FIGURES:
        values = per_case(good, lambda row, name=name: getattr(row, name))  # type: ignore[misc]
        if values:
            figures[name] = _mean(values)
    if shares := per_case(good, _share_kept):
        figures["share_kept"] = _mean(shares)
    costs = {}
    for name in COSTS:
        found = [getattr(row, name) for row in good if getattr(row, name) is not None]
        if found:
            costs[name] = statistics.median(found)
    return Line(
        method, len(by_case(rows)), len(rows) - len(good), figures,
        _mean(overlaps) if (overlaps := _overlaps(good)) else None,
        _share(rows, lambda row: row.hamming == 0) if known else None,
        _share(rows, lambda row: bool(row.recovered_at_some_threshold)) if known else None,
        _share(rows, lambda row: bool(row.found_without_witnesses)) if blind else None,
        _share(rows, lambda row: bool(row.reproduces and row.minimal)) if exact else None,
        costs,
        {name: sum(method in methods for methods in cases.values()) for name, cases in best.items()},
    )  # fmt: skip


def per_case(rows: Iterable[Row], value: Value) -> list[float]:
    """A figure of each case, mean over seeds, where it is defined."""
    means = []
    for group in by_case(rows).values():
        defined = [float(x) for x in map(value, group) if x is not None]
        if defined:
            means.append(statistics.fmean(defined))
    return means


def _overlaps(rows: list[Row]) -> list[float]:
    """For each case with circuits of several seeds, the mean over pairs of their Jaccard indices."""
    found = []
    for group in by_case(rows).values():
        circuits: dict[tuple[object, ...], list[BoolArray]] = {}
        for row in group:
            if row.kept is not None and row.n_edges_total is not None:
                of = (row.model, row.task, row.ablation, row.truth, row.method_metric, row.n_edges_total)
                circuits.setdefault(of, []).append(unpacked(row.kept, row.n_edges_total))
        pairs = [pair for some in circuits.values() for pair in itertools.combinations(some, 2)]
        if pairs:
            found.append(statistics.fmean(jaccard(*pair) for pair in pairs))
    return found


def _share_kept(row: Row) -> float | None:
    return row.n_edges / row.n_edges_total if row.n_edges is not None and row.n_edges_total else None


def _mean(values: list[float]) -> Estimate:
    return Estimate(statistics.fmean(values), *mean_interval(values), len(values), min(values), max(values))


def _share(rows: list[Row], holds: Callable[[Row], bool]) -> Estimate:
    """Share of cases for which it holds with every seed, with the binomial interval."""
    found = [all(map(holds, group)) for group in by_case(rows).values()]
    interval = proportion_interval(sum(found), len(found))
    return Estimate(sum(found) / len(found), *interval, len(found), float(min(found)), float(max(found)))
