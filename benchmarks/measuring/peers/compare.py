"""Our own results on a job, and how two results agree, edge by edge."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import acdc
from acdc.benchmarks.measuring.peers.exchange import Clock, Job, Result
from acdc.benchmarks.measuring.speed.cases import Case, Shape, make_module
from acdc.benchmarks.measuring.speed.works import run_acdc, threshold_for
from acdc.graph import FloatArray, Graph
from acdc.tasks.prompts import Prompts

OTHER_NAMES = {"acdc in our order": "acdc"}
"""Works of a tool under the name of the one of ours they are compared with."""


def make_case(shape: Shape, *, pairs: int, tokens: int, gain: float = 5.0) -> Case:
    """A model whose weight matrices are `gain` times those it is initialised with.

    At the initial size a model is so nearly linear that wrong norms and softmaxes would go unnoticed, and its KL
    divergences are so small that rounding decides ACDC's close calls.
    """
    module = make_module(shape, n_positions=max(64, tokens))
    for parameter in module.parameters():
        if parameter.dim() == 2:
            parameter.data *= gain
    return Case(shape, pairs, tokens, metric="kl", given=module)


def make_job(
    case: Case, folder: Path, works: tuple[str, ...], *, repeats: int, threads: int, tau: float | None = None
) -> Job:
    """Write a job folder; ACDC's τ keeps about half of a small graph."""
    folder.mkdir(parents=True, exist_ok=True)
    case.module.save_pretrained(folder / "model")
    prompts, graph = case.prompts, case.problem.graph
    assert prompts.answers is not None
    assert prompts.wrong is not None
    if tau is None:
        tau = threshold_for(case, 0.5) if "acdc" in works else 0.0
    job = Job(
        folder, works, tau, 5, repeats, threads, search_order(graph), prompts.clean, prompts.corrupted,
        prompts.answers[:, 0, 0].contiguous(), prompts.wrong[:, 0, 0].contiguous(),
    )  # fmt: skip
    job.write()
    return job


def search_order(graph: Graph) -> tuple[str, ...]:
    """Names of all edges as our ACDC tests them: destinations from the logits, sources from the latest."""
    return tuple(
        graph.edge_name(d, s)
        for d in reversed(range(graph.n_destinations))
        for s in np.flatnonzero(graph.valid[d])[::-1]
    )


def ours(case: Case, job: Job) -> dict[str, Result]:
    """Our results on the job's works; "eap, denoising" is EAP with clean and corrupted exchanged."""
    clock, graph = Clock(job, case.module), case.problem.graph

    def named(values: FloatArray) -> dict[str, float]:
        return dict(zip(graph.edge_names(graph.valid), values[graph.valid].tolist(), strict=True))

    def score(prompts: Prompts, method: str, sign: float = 1.0, **options: Any) -> Result:
        def run() -> FloatArray:
            return sign * acdc.score(case.model, prompts, method, metric="logit-difference", **options).values

        values, seconds, forward = clock.time(run)
        return Result(named(values), seconds, forward)

    results = {}
    if "eap" in job.works:
        results["eap"] = score(case.prompts, "eap")
        # Scores say that removing an edge costs that much; here "removing" is restoring, so what it gains is minus it.
        results["eap, denoising"] = score(case.prompts.swapped(), "eap", sign=-1.0)
    if "eap-ig" in job.works:
        results["eap-ig"] = score(case.prompts, "eap-ig", steps=job.steps)
    if "exact" in job.works:
        results["exact"] = score(case.prompts, "exact")
    if "acdc" in job.works:
        search, seconds, forward = clock.time(lambda: run_acdc(case, job.tau))
        results["acdc"] = Result(named(search.kept.astype(np.float64)), seconds, forward)
    return results


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Two results on the same edges.

    Attributes:
        largest_difference: over all edges, relative to the largest absolute score.
        rank_correlation: Spearman's, of the scores; None for kept edges.
        kept: kept by both, by us only, by them only; None for scores.
        seconds, their_seconds: medians; times_faster: their ratio, ours measured before and after theirs.
        forwards, their_forwards: the same in forward passes of the bare model in our process.
    """

    work: str
    tool: str
    n_edges: int
    largest_difference: float
    rank_correlation: float | None
    kept: tuple[int, int, int] | None
    seconds: float
    their_seconds: float
    forwards: float
    their_forwards: float

    @property
    def times_faster(self) -> float:
        return self.their_seconds / self.seconds


def compare(work: str, tool: str, mine: Result, theirs: Result) -> Agreement:
    """Compare edge by edge.

    Raises:
        ValueError: the two have not the same edges.
    """
    if mine.edges.keys() != theirs.edges.keys():
        only = sorted(mine.edges.keys() ^ theirs.edges.keys())
        raise ValueError(f"{tool}, {work}: {len(only)} edges are in one result only, the first {only[0]!r}")
    a = np.array(list(mine.edges.values()))
    b = np.array([theirs.edges[name] for name in mine.edges])
    is_circuit = OTHER_NAMES.get(work, work) == "acdc"
    kept = (int(((a > 0) & (b > 0)).sum()), int((a > b).sum()), int((b > a).sum())) if is_circuit else None
    second, their_second = statistics.median(mine.seconds), statistics.median(theirs.seconds)
    forward = statistics.median(mine.forward_seconds)
    return Agreement(
        work=work,
        tool=tool,
        n_edges=len(a),
        largest_difference=float(np.abs(a - b).max() / max(np.abs(a).max(), np.finfo(float).tiny)),
        rank_correlation=None if is_circuit else float(stats.spearmanr(a, b).statistic),
        kept=kept,
        seconds=second,
        their_seconds=their_second,
        forwards=second / forward,
        their_forwards=their_second / forward,
    )


def joined(before: dict[str, Result], after: dict[str, Result]) -> dict[str, Result]:
    """Two rounds of the same works as one."""
    return {
        name: Result(
            one.edges, one.seconds + after[name].seconds, one.forward_seconds + after[name].forward_seconds
        )
        for name, one in before.items()
    }
