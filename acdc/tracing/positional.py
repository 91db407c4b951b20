"""Edges at positions: what each edge is worth where, to first order, and how they are named.

An edge at a place is what its destination reads of its source at the positions of the place: for a key or a value that
is where the key stands, for a query where the query does. So "previous token → key of the induction head" is the edge
`a0.h1->a1.h1<k>` at the token that follows. A unit's name says all that: `a0.h1->a1.h1<k>@answer`.

Scores come from the backward pass that EAP makes anyway (position-aware edge attribution, Haklay et al. 2025, arXiv
2502.04577): only the sum over positions is taken place by place. Or each edge is replaced at each place alone, and the
metric is measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from acdc.engine import memory
from acdc.engine.measure import bind
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import AcdcError, TaskError, check_whole, unknown
from acdc.graph import BoolArray, FloatArray, Graph
from acdc.inspection.runs import input_texts
from acdc.methods import get_method
from acdc.methods.attribution import STEPS, Gradients, path, refuse_bad_gradient
from acdc.methods.exact import exact_scores
from acdc.methods.method import helpfulness, refuse_metric
from acdc.model.backward import Flow, Rule
from acdc.model.model import Model
from acdc.model.trace import Trace
from acdc.shown import Shown, counted
from acdc.store.amounts import bytes_of
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts
from acdc.tracing.places import By, places_of

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task

Method = Literal["eap", "eap-ig", "exact"]


@dataclasses.dataclass(frozen=True)
class Placing:
    """Which place each position belongs to: every position to one, or to none.

    Attributes:
        by: "position" or "span"; labels: of the places.
        numbers: `[prompt, position]`, number of the place; that of all places where it is none.
    """

    by: str
    labels: tuple[str, ...]
    numbers: Tensor


def placing(model: Model, prompts: Prompts, by: By, spans: Collection[str] | None = None) -> Placing:
    """The places of prompts; arguments and errors as for `places_of`.

    Raises:
        AcdcError: also where all positions would be one place, or answers have several tokens.
    """
    if by == "all":
        raise AcdcError("edges at all positions at once are edges: use acdc.score and acdc.discover")
    if prompts.branched:
        raise AcdcError("edges at places take answers of one token: some here have several")
    places = places_of(prompts, by, tokens=input_texts(prompts, model), spans=spans)
    numbers = torch.full(prompts.mask.shape, len(places), device=prompts.mask.device)
    for i, place in enumerate(places):
        numbers[place.mask] = i
    return Placing(by, tuple(place.label for place in places), numbers)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PositionalScores(Shown):
    """A score for every edge at every place.

    Attributes:
        places: labels; by: "position" or "span".
        values: `[place, n_destinations, n_sources]`, mean over the prompts, positive where the edge helps there; 0
            where there is no edge.
        absolute: the same of absolute scores, by which units are ranked.
    """

    graph: Graph
    by: str
    places: tuple[str, ...]
    values: Float64[FloatArray, "place destination source"]
    absolute: Float64[FloatArray, "place destination source"]
    method: str
    task: str
    model: str

    @property
    def n_units(self) -> int:
        """Edges times places."""
        return self.graph.n_edges * len(self.places)

    def top(self, n: int) -> BoolArray:
        """`[place, n_destinations, n_sources]`: the `n` units with the largest scores; those of score 0 never."""
        check_whole("a number of units", n, least=1)
        kept = np.zeros(self.values.shape, dtype=bool)
        order = np.argsort(-self.absolute, axis=None, kind="stable")[:n]
        kept.flat[order] = self.absolute.flat[order] > 0
        return kept

    def names(self, kept: BoolArray | None = None) -> list[str]:
        """Names of units, the largest score first; None: of all that have one."""
        return unit_names(self.graph, self.places, self.absolute > 0 if kept is None else kept, self.absolute)

    def rows(self) -> list[dict[str, str | float]]:
        """A record for each unit that has a score, the largest first."""
        found: list[dict[str, str | float]] = []
        for name in self.names():
            edge, _, place = name.partition("@")
            d, s = self.graph.edge(edge)
            p = self.places.index(place)
            score, absolute = float(self.values[p, d, s]), float(self.absolute[p, d, s])
            found.append({"edge": edge, "place": place, "score": score, "absolute": absolute})
        return found

    def _summary(self) -> str:
        where = counted(len(self.places), "place")
        return f"{self.method} on {self.task} in {self.model}: {self.n_units} units at {where}"

    def facts(self) -> dict[str, str]:
        """What was scored, and the largest."""
        return {
            "scores": f"{self.method}, {self.task} in {self.model}",
            "units": f"{self.n_units}: {self.graph.n_edges} edges at {counted(len(self.places), 'place')} by {self.by}",
            "largest": ", ".join(self.names()[:5]),
        }


def unit_names(graph: Graph, places: Sequence[str], kept: BoolArray, sizes: FloatArray | None = None) -> list[str]:
    """Names of units `[place, n_destinations, n_sources]`, by size if given, else in order."""
    index = np.argwhere(kept)
    if sizes is not None:
        index = index[np.argsort(-sizes[kept], kind="stable")]
    return [f"{graph.edge_name(d, s)}@{places[p]}" for p, d, s in index]


@memory.explained
@torch.inference_mode(False)
def score_positions(
    model: Model,
    task: Task | Dataset | Prompts,
    method: Method = "eap-ig",
    *,
    by: By = "span",
    spans: Collection[str] | None = None,
    steps: int = STEPS,
    metric: Metric | None = None,
    ablation: str | None = None,
    graph: Graph | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    progress: Progress = no_progress,
) -> PositionalScores:
    """Score every edge at every place of the task's discovery prompts.

    Args:
        method: "eap" or "eap-ig", the sum of whose scores over all places is the edge's; or "exact", the metric without
            each edge at each place alone (a partial run a unit).
        by, spans: the places, as for `acdc.trace`.
        steps: gradients of eap-ig.
        others: as for `acdc.score`.

    Raises:
        AcdcError: an unknown method or place, prompts without what is asked for, or a metric without the gradient that
            the method takes.
    """
    if method not in get_args(Method):
        raise unknown("method for edges at positions", str(method), get_args(Method))
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    refuse_metric(get_method(method), dataset.metric, [get_method(name) for name in get_args(Method)])
    alphas = {"eap": [1.0], "eap-ig": path(steps, dataset.ablation), "exact": []}[method]
    limit = None if memory is None else bytes_of(memory)
    problem = Problem(
        model, graph or model.graph(), dataset.discovery, dataset.metric, dataset.ablation, batch_size,
        progress=progress, memory_limit=limit,
    )  # fmt: skip
    if dataset.ablation == "resample" and torch.equal(problem.prompts.clean, problem.prompts.corrupted):
        raise TaskError(f"{dataset.name}: the corrupted prompts are the clean ones again")
    where = placing(model, problem.prompts, by, spans)
    values, absolute = _scores(problem, where, alphas)
    return PositionalScores(problem.graph, by, where.labels, values, absolute, method, dataset.name, model.name)


def _scores(problem: Problem, where: Placing, alphas: Sequence[float]) -> tuple[FloatArray, FloatArray]:
    """Means over the prompts of scores and of their absolute values, `[place, n_destinations, n_sources]`.

    Args:
        alphas: where gradients are taken; none: each unit is replaced alone.
    """
    graph, n = problem.graph, len(where.labels)
    total = np.zeros((2, n, *graph.valid.shape))
    destination = torch.as_tensor(graph.port_destination)
    batches = problem.batches("gradients" if alphas else "exact")
    for first, patching in batches.after(0):
        problem.progress(first, len(problem.prompts), "attribution" if alphas else "each edge at each place")
        B = len(patching.prompts)
        numbers = where.numbers[first : first + B, patching.start :].to(patching.model.device)
        if not alphas:
            every = torch.stack([numbers == place for place in range(n)])
            measure = bind(problem.outcome, patching)
            total += exact_scores(patching, measure, places=every, first=first, tokens=batches.tokens)[:2]
            continue
        run = Gradients(patching, problem.outcome, Flow(patching.model, Rule()), first=first)
        scores = run.clean.new_zeros(B, n, graph.n_ports, graph.n_sources)
        for alpha in sorted(alphas, reverse=True):
            x = run.reference + alpha * (run.clean - run.reference) + patching.constant
            trace, gradients = run.at(x, is_clean=alpha == 1.0)
            _accumulate(scores, patching, trace, gradients, run.difference, numbers)
            del trace, gradients
        refuse_bad_gradient(scores, problem.outcome)
        merged = scores.new_zeros(B, n, *graph.valid.shape)
        merged.index_add_(2, destination.to(scores.device), scores / len(alphas))
        total += np.stack([merged.sum(0).double().cpu().numpy(), merged.abs().sum(0).double().cpu().numpy()])
    problem.progress(len(problem.prompts), len(problem.prompts), "attribution")
    change, absolute = np.where(graph.valid, total / len(problem.prompts), 0.0)
    return helpfulness(problem, change), absolute


@torch.no_grad()
def _accumulate(
    scores: Tensor,
    patching: Patching,
    trace: Trace,
    gradients: Sequence[Tensor],
    difference: Tensor,
    numbers: Tensor,
) -> None:
    """Add one gradient's scores to `scores` `[prompt, place, n_ports, n_sources]`.

    Positions are put together by place and prompt, so that the product costs what that over all positions does.

    Args:
        difference: `[n_sources, B, W, D]`; numbers: `[B, W]`, place of each position.
    """
    start, given = patching.start, iter(gradients)
    B, n = scores.shape[:2]
    groups = [
        (b, place, (numbers[b] == place).nonzero().flatten())
        for b in range(B)
        for place in range(n)
        if bool((numbers[b] == place).any())
    ]
    own = [difference[:, b, here].flatten(1) for b, _, here in groups]  # [S, positions · D] each

    def add(out: Tensor, ports: slice, earlier: int) -> None:
        for (b, place, here), sources in zip(groups, own, strict=True):
            scores[b, place, ports, :earlier] += out[:, b, here].flatten(1) @ sources[:earlier].T

    for stage in patching.stages:
        ports = stage.sublayer.every_port
        out = difference.new_empty(len(ports), *difference.shape[1:])
        stage.gradients(trace, [next(given) for _ in stage.ends(trace)], start, out)
        add(out, slice(ports.start, ports.stop), stage.earlier)
    add(gradients[-1][:, :, start:], slice(scores.shape[2] - 1, scores.shape[2]), scores.shape[3])
