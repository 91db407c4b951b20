"""How faithful the best circuits of a ranking are, size by size."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from acdc.circuit import Scores, selection
from acdc.engine import memory, ranks
from acdc.engine.circuits import measure_prompts
from acdc.engine.problem import Progress, no_progress
from acdc.errors import AcdcError, check_number, check_type
from acdc.graph import units_of
from acdc.metrics import (
    CONFIDENCE,
    MIB_SHARES,
    NO_INTERVAL,
    area,
    cmd,
    cpr,
    faithfulness,
    faithfulness_interval,
    kl_area,
    log_cmd,
    log_cpr,
    log_kl_area,
    magnitude_interval,
    mean_interval,
    ratio_interval,
)
from acdc.model.model import Model
from acdc.shown import Shown, counted, in_brackets, rounded
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task
from acdc.evaluation.judging import NAN, intervals, judging_problem, over_the_vocabulary


@dataclasses.dataclass(frozen=True, repr=False)
class Curve(Shown):
    """Faithfulness over circuit sizes (MIB's grid by default).

    Attributes:
        shares: asked-for share of all edges; n_edges: edges left after pruning; faithfulness: at each.
        cpr, cmd: integrals over the shares (see `acdc.metrics`); log_cpr, log_cmd: over orders of magnitude.
        kl, kl_area, log_kl_area: KL divergence from the full model at each size, and its integrals; None for
            numerical outputs.
        aggregate: of the scores, by which the edges were ranked.
        *_interval, *intervals: (low, high) over the prompts as in `Evaluation`; none if none was asked for. That of
            CMD takes each size to stay on its side of the full model.
    """

    shares: tuple[float, ...]
    n_edges: tuple[int, ...]
    faithfulness: tuple[float, ...]
    cpr: float
    cmd: float
    log_cpr: float = NAN
    log_cmd: float = NAN
    kl: tuple[float, ...] | None = None
    kl_area: float | None = None
    log_kl_area: float | None = None
    faithfulness_intervals: tuple[tuple[float, float], ...] = ()
    cpr_interval: tuple[float, float] = NO_INTERVAL
    cmd_interval: tuple[float, float] = NO_INTERVAL
    kl_intervals: tuple[tuple[float, float], ...] | None = None
    kl_area_interval: tuple[float, float] | None = None
    aggregate: selection.Aggregate = "signed"
    by: selection.By = "absolute"

    def _summary(self) -> str:
        return f"{counted(len(self.shares), 'size')}, CPR {rounded(self.cpr)}, CMD {rounded(self.cmd)}"

    def facts(self) -> dict[str, str]:
        return {
            "CPR": rounded(self.cpr) + in_brackets(self.cpr_interval),
            "CMD": rounded(self.cmd) + in_brackets(self.cmd_interval),
            "ranking": _SIGNED if self.by == "signed" else _RANKINGS[self.aggregate],
        }

    def rows(self) -> list[tuple[float, int, float, float | None]]:
        """Share, edges, faithfulness and KL in nats of every size that differs; shares of a small graph may come to
        the same circuit.
        """
        kl = self.kl or (None,) * len(self.shares)
        rows = zip(self.shares, self.n_edges, self.faithfulness, kl, strict=True)
        first = {row[1]: row for row in reversed(list(rows))}
        return list(reversed(first.values()))

    def table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """`rows` as they are shown."""
        return ("share of edges", "edges", "faithfulness", "KL, nats"), [
            (f"{share:.1%}", str(n), rounded(value), "–" if nats is None else f"{max(nats, 0.0):.3g}")
            for share, n, value, nats in self.rows()
        ]


_SIGNED = "by the mean score itself, as MIB ranks for CPR"
_RANKINGS: dict[selection.Aggregate, str] = {
    "signed": "by the size of the mean score, as MIB ranks for CMD",
    "mean-absolute": "by the mean of the absolute score",
    "rms": "by the root mean square of the score",
    "order": "in the order in which the search let edges go",
}


def _check_shares(shares: object) -> None:
    if isinstance(shares, str) or not isinstance(shares, Collection) or len(shares) < 2:
        raise AcdcError(f"expected two shares of the edges or more, like [0.01, 0.1], got {shares!r:.60}")
    for share in shares:
        check_number("a share", share)
    rising = list(shares)
    if rising[0] <= 0 or rising[-1] > 1 or any(b <= a for a, b in itertools.pairwise(rising)):
        raise AcdcError(f"expected rising shares above 0 and up to 1, got {rising!r:.60}")


@ranks.shared
@memory.explained
@torch.inference_mode(False)
def curve(
    model: Model,
    task: Task | Dataset | Prompts,
    scores: Scores,
    *,
    metric: Metric | None = None,
    ablation: str | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    shares: Sequence[float] = MIB_SHARES,
    by: selection.By = "absolute",
    aggregate: selection.Aggregate | None = "signed",
    seed: int = 0,
    confidence: float | None = CONFIDENCE,
    progress: Progress = no_progress,
) -> Curve:
    """Faithfulness of the top-n circuits of a ranking, on held-out prompts if there are any.

    Args:
        shares: of all edges, rising: n = int(share · edges) of the best edges, less those that dangle (MIB's rule,
            `acdc.circuit.selection.top_pruned`), which are fewer than `Scores.top(n)` keeps. Of nodes, as many of
            the best as have no more edges between them.
        by: "absolute" as MIB ranks for CMD, "signed" as it ranks for CPR.
        aggregate: what "absolute" is (`Scores.sizes`): "signed" as MIB ranks; None: the scores' own.
        confidence: of the intervals; None: no intervals.
    """
    check_type("Scores (acdc.score)", scores, Scores)
    _check_shares(shares)
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    graph = scores.graph
    problem = judging_problem(
        model, dataset, graph, found=scores, batch_size=batch_size, memory=memory, seed=seed, progress=progress
    )
    ranked, how = scores.ranked(by, aggregate)
    units, counts = units_of(graph, scores.unit), [int(share * graph.n_edges) for share in shares]
    if scores.unit == "edge":
        circuits = [selection.top_pruned(graph, ranked, n, by="signed") for n in counts]
    else:
        circuits = [selection.top_pruned_units(units, units.values_of(ranked), n) for n in counts]
    outcomes = [dataset.metric, *over_the_vocabulary(model)[:1]]
    measured, *divergence = measure_prompts(problem, [np.zeros_like(graph.valid), *circuits], outcomes)
    full, empty, values = measured.full, measured.circuits[0], measured.circuits[1:]  # values [size, prompt]
    means = float(full.mean()), float(empty.mean()), values.mean(axis=1).tolist()
    found = tuple(faithfulness(value, full=means[0], empty=means[1]) for value in means[2])
    kl = divergence[0].circuits[1:] if divergence else None  # [size, prompt]
    kl_means = None if kl is None else tuple(kl.mean(axis=1).tolist())

    interval = intervals(confidence)
    shown = confidence is not None
    side = np.sign(1 - np.array(found))[:, None]  # [size, 1]
    performance, distance = (
        area(shares, sizes.T) for sizes in (values - empty, side * (full - values))
    )  # [prompt]
    return Curve(
        shares=tuple(shares),
        aggregate=how["aggregate"],  # type: ignore[arg-type]
        by=by,
        n_edges=tuple(int(c.sum()) for c in circuits),
        faithfulness=found,
        cpr=cpr(shares, found),
        cmd=cmd(shares, found),
        log_cpr=log_cpr(shares, found),
        log_cmd=log_cmd(shares, found),
        kl=kl_means,
        kl_area=None if kl_means is None else kl_area(shares, kl_means),
        log_kl_area=None if kl_means is None else log_kl_area(shares, kl_means),
        faithfulness_intervals=tuple(
            interval(faithfulness_interval, value, full, empty) for value in values if shown
        ),
        cpr_interval=interval(ratio_interval, performance, full - empty),
        cmd_interval=magnitude_interval(interval(ratio_interval, distance, full - empty)),
        kl_intervals=None
        if kl is None
        else tuple(interval(mean_interval, nats, within=(0, np.inf)) for nats in kl if shown),
        kl_area_interval=None if kl is None else interval(mean_interval, area(shares, kl.T), within=(0, np.inf)),
    )
