"""Circuits whose edges are kept at some places only: found by their scores and by runs of whole circuits, judged, kept.

The fewest best units that are faithful enough are sought by bisection; then units that can go are sought among them,
the least first, in groups that halve where they cannot go together. Every decision is a run of the whole circuit.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool

from acdc.circuit import Circuit
from acdc.circuit.provenance import library_versions
from acdc.engine import memory
from acdc.engine.belonging import changes
from acdc.engine.circuits import Measured, measure_prompts
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import AcdcError, EmptyCircuitError, check_type
from acdc.evaluation.judging import intervals, judging_problem, over_the_vocabulary
from acdc.formats.circuit_tracer import write_places
from acdc.graph import BoolArray, Graph
from acdc.inspection.runs import input_texts
from acdc.methods.halving import check_runs, fewest, pruned
from acdc.metrics import CONFIDENCE, NO_INTERVAL, faithfulness, faithfulness_interval, mean_interval
from acdc.metrics.statistics import Interval
from acdc.model.model import Model
from acdc.neurons.evaluation import distances
from acdc.shown import Shown, are, counted, in_brackets, rounded
from acdc.store.reading import read_text, strict_json
from acdc.store.writing import write_atomically
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts
from acdc.tracing.places import By
from acdc.tracing.positional import Method, placing, score_positions, unit_names

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task

FORMAT, VERSION = "acdc positional circuit", "1.0"
MOST_RUNS = 400
"""Runs of whole circuits that pruning makes, unless told otherwise."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PositionalCircuit(Shown):
    """Edges kept at places.

    Attributes:
        by: "position" or "span"; places: labels, as `PositionalScores`.
        kept: `[place, n_destinations, n_sources]`.
        model, task, metric, ablation, method, seed: it was found with.
    """

    graph: Graph
    by: str
    places: tuple[str, ...]
    kept: Bool[BoolArray, "place destination source"]
    model: str = ""
    task: str = ""
    metric: str = ""
    ablation: str = "resample"
    method: str = ""
    seed: int = 0

    @property
    def n_units(self) -> int:
        """Edges at places."""
        return int(self.kept.sum())

    @property
    def edges(self) -> BoolArray:
        """`[n_destinations, n_sources]`: edges that are kept somewhere."""
        return np.asarray(self.kept.any(axis=0))

    def names(self) -> list[str]:
        """Names like `a0.h1->a1.h1<k>@answer`."""
        return unit_names(self.graph, self.places, self.kept)

    def save(self, path: str | Path, *, replace: bool = False) -> Path:
        """Write a JSON file, whole or not at all.

        Raises:
            AcdcError: it cannot be written, or is there and may not be replaced.
        """
        graph = {name: getattr(self.graph, name) for name in (f.name for f in dataclasses.fields(Graph))}
        made = {
            name: getattr(self, name) for name in ("model", "task", "metric", "ablation", "method", "seed", "by")
        }
        names = [self.graph.edge_names(kept) for kept in self.kept]
        record = {
            "format": FORMAT,
            "version": VERSION,
            **made,
            "graph": graph,
            "places": list(self.places),
            "edges": [{"place": place, "edges": edges} for place, edges in zip(self.places, names, strict=True)],
        }
        return write_atomically(path, json.dumps(record, indent=1), replace=replace)

    def attribution_graph(self, roles: Mapping[str, Collection[str]] | None = None) -> str:
        """JSON in the schema of circuit-tracer and Neuronpedia, a node a component and place, with the prompt's tokens.

        By position the tokens are those of the places' labels; by span a span stands for a token.

        Args:
            roles: components by what they do; those of one are a supernode at each place.

        Warns:
            UserWarning: what of the circuit the schema does not hold.
        """
        tokens = [label.partition(" ")[2] if self.by == "position" else label for label in self.places]
        lost = (
            "the places of an edge on the way back (acdc import keeps it at all)", "metric, ablation, method and seed",
            "the options of the graph",
            "scores: the circuit has none, and each link weighs as many as its edges",
        )  # fmt: skip
        warnings.warn(f"the format circuit-tracer does not hold {', '.join(lost)}", stacklevel=2)
        return write_places(
            self.graph, self.kept, tokens, model=self.model, task=self.task, ordered=self.by == "position",
            version=library_versions().get("acdc-circuits", ""), roles=roles,
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> PositionalCircuit:
        """Read a file that `save` wrote.

        Raises:
            AcdcError: it is none, or holds edges or places that are none; says which.
        """
        try:
            record = strict_json(read_text(Path(path)))
            if record["format"] != FORMAT:
                raise ValueError(f"its format is {record['format']!r:.40}")
            if str(record["version"]).split(".")[0] != VERSION.split(".")[0]:
                raise ValueError(f"its version is {record['version']!r:.20}, this one reads {VERSION}")
            options = dict(record["graph"])
            graph = Graph(**options | {"mixers": tuple(options.get("mixers", ()))})
            places = tuple(str(place) for place in record["places"])
            if len(set(places)) != len(places) or [row["place"] for row in record["edges"]] != list(places):
                raise ValueError("its edges are not listed place by place")
            kept = np.stack([graph.edges_from_names(row["edges"]) for row in record["edges"]])
            made = {name: str(record[name]) for name in ("by", "model", "task", "metric", "ablation", "method")}
            return cls(graph=graph, places=places, kept=kept, seed=int(record["seed"]), **made)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise AcdcError(f"{path} is no positional circuit that acdc wrote: {reason}") from None

    def _summary(self) -> str:
        return (
            f"{counted(self.n_units, 'edge')} at {counted(len(self.places), 'place')}, {self.task} in {self.model}"
        )

    def facts(self) -> dict[str, str]:
        """Sizes, and what it is of."""
        whole = self.graph.n_edges * len(self.places)
        return {
            "circuit": f"{self.task} in {self.model}, {self.metric}, {self.ablation} ablation",
            "units kept": f"{self.n_units} of {whole} ({counted(int(self.edges.sum()), 'edge')}, "
            f"{counted(len(self.places), 'place')})",
        }

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """A row a place and destination."""
        rows: list[tuple[str, ...]] = []
        for place, kept in zip(self.places, self.kept, strict=True):
            for d in reversed(np.flatnonzero(kept.any(1))):
                sources = ", ".join(self.graph.sources[s] for s in np.flatnonzero(kept[d]))
                rows.append((place, self.graph.destinations[d], sources))
        return ("place", "destination", "reads from"), rows


@dataclasses.dataclass(frozen=True)
class PositionalEvaluation:
    """How a positional circuit does on prompts; fields as of `acdc.Evaluation`.

    Attributes:
        edges_faithfulness: of the circuit with its edges kept everywhere.
    """

    prompts: str
    n_prompts: int
    full: float
    empty: float
    circuit: float
    faithfulness: float
    faithfulness_interval: Interval
    edges_faithfulness: float
    kl: float | None
    kl_interval: Interval | None

    def facts(self) -> dict[str, str]:
        """What is said of it, by name."""
        found = {
            "faithfulness": f"{rounded(self.faithfulness)}{in_brackets(self.faithfulness_interval)} on "
            f"{counted(self.n_prompts, f'{self.prompts} prompt')} "
            f"({rounded(self.edges_faithfulness)} with its edges everywhere)",
            "metric": f"full model {self.full:.4g}, circuit {self.circuit:.4g}, without any edge {self.empty:.4g}",
        }
        if self.kl is not None and self.kl_interval is not None:
            found["divergence"] = f"{self.kl:.3g}{in_brackets(self.kl_interval)} nats from the full model"
        return found


@memory.explained
@torch.inference_mode(False)
def discover_positions(
    model: Model,
    task: Task | Dataset | Prompts,
    *,
    by: By = "span",
    spans: Collection[str] | None = None,
    units: int | None = None,
    faithfulness: float | None = None,
    method: Method = "eap-ig",
    runs: int = MOST_RUNS,
    one_by_one: bool = False,
    inside: Circuit | None = None,
    metric: Metric | None = None,
    ablation: str | None = None,
    graph: Graph | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    progress: Progress = no_progress,
) -> PositionalCircuit:
    """Find edges at places that do the task.

    Args:
        by, spans: the places, as for `acdc.trace`.
        units: keep so many of the best; None: as few as are faithful enough.
        faithfulness: to be reached on the discovery prompts; None: the task's.
        method: that scores them, "eap", "eap-ig" or "exact".
        runs: most runs of whole circuits to find units that can go; 0: the ranking is cut and no more.
        one_by_one: from all units, each is tested alone and goes if it can, the weakest first, as ACDC does with edges;
            otherwise the ranking is cut first, and groups go together.
        inside: a circuit whose edges alone are looked at, from coarse to fine. Without `units` and `faithfulness`, its
            distance from the full model (mean over the discovery prompts) is then not exceeded, so that prompts do not
            make up for each other.
        others: as for `acdc.discover`.

    Raises:
        EmptyCircuitError: no unit has a score, or the task has nothing to be faithful to.
        AcdcError: both `units` and `faithfulness` are given, or one that cannot be; no runs to test units one by one.
    """
    if units is not None and faithfulness is not None:
        raise AcdcError("expected units or faithfulness, got both")
    check_runs(runs, one_by_one=one_by_one)
    if units is not None and one_by_one:
        raise AcdcError("so many units are the best of the ranking, of which none is tested: leave one_by_one out")
    if faithfulness is not None and not 0 < faithfulness <= 1:
        raise AcdcError(f"expected a faithfulness above 0 and at most 1, got {faithfulness}")
    if inside is not None:
        check_type("a Circuit", inside, Circuit)
        graph = inside.graph
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    if inside is not None and (changed := changes(inside.provenance, model, dataset).get("weights")):
        warnings.warn(changed, stacklevel=2)
    if by == "position" and dataset.held_out is not None:  # before the work
        parts = (dataset.discovery, dataset.held_out)
        own, theirs = (_labels(placing(model, part, by).labels, by) for part in parts)
        _check_places(own, theirs, by)
    scores = score_positions(
        model, dataset, method, by=by, spans=spans, graph=graph, batch_size=batch_size, memory=memory,
        progress=progress,
    )  # fmt: skip
    edges = scores.graph.valid if inside is None else inside.edges
    every = np.repeat(edges[None], len(scores.places), axis=0)
    scores = dataclasses.replace(scores, absolute=np.where(every, scores.absolute, 0.0))
    if not (scores.absolute > 0).any():
        raise EmptyCircuitError(f"{method} scores every edge 0 at every place: nothing matters on these prompts")
    problem = dataclasses.replace(
        judging_problem(model, dataset, scores.graph, batch_size=batch_size, memory=memory, progress=progress),
        prompts=dataset.discovery,
    )
    if units is not None:
        kept = scores.top(units)
        if (fewer := int(kept.sum())) < units:
            text = f"{counted(fewer, 'unit')} {are(fewer)} kept instead of {units}: no more have a score"
            warnings.warn(text, stacklevel=2)
    else:
        judge = _Judge(problem, placing(model, dataset.discovery, by, spans).numbers)
        enough = (
            judge.within(every)
            if inside is not None and faithfulness is None
            else judge.reaching(dataset.faithfulness if faithfulness is None else faithfulness)
        )
        kept = every if one_by_one else fewest(enough, scores.absolute)
        kept, _ = pruned(enough, kept, scores.absolute, runs, one_by_one=one_by_one)
    if not kept.any():
        warnings.warn("no edge is kept: the empty circuit is as near to the model as was asked for", stacklevel=2)
    return PositionalCircuit(
        graph=scores.graph, by=by, places=scores.places, kept=kept, model=model.name, task=dataset.name,
        metric=dataset.metric.name, ablation=dataset.ablation, method=method, seed=dataset.seed,
    )  # fmt: skip


def example_tokens(model: Model, task: Task | Dataset | Prompts, circuit: PositionalCircuit) -> list[str]:
    """The tokens at each place of a circuit, on the first prompt that has some there.

    Raises:
        AcdcError: the prompts have other places than the circuit.
    """
    dataset = as_dataset(task, model)
    prompts = dataset.discovery
    where = placing(model, prompts, circuit.by, list(circuit.places) if circuit.by == "span" else None)  # type: ignore[arg-type]
    texts = input_texts(prompts, model)
    found = []
    for label in circuit.places:
        if label not in where.labels:
            raise AcdcError(
                f"the circuit has a place {label!r}, which these prompts lack: {', '.join(where.labels)}"
            )
        at = where.numbers == where.labels.index(label)
        prompt = int(at.any(dim=1).int().argmax())
        inside = (text.strip() for text, here in zip(texts[prompt], at[prompt].tolist(), strict=True) if here)
        found.append(" ".join(inside))
    return found


class _Judge:
    """Circuits with places run on all prompts: whether they are good enough, and how many were run."""

    def __init__(self, problem: Problem, numbers: torch.Tensor) -> None:
        self._problem = dataclasses.replace(problem, progress=no_progress)
        self._batches, self._numbers, self.runs = self._problem.batches(), numbers, 0
        self.progress = problem.progress

    def reaching(self, target: float) -> Callable[[BoolArray], bool]:
        """Whether a circuit is so faithful."""
        return lambda kept: self.faithfulness(kept) >= target

    def within(self, kept: BoolArray) -> Callable[[BoolArray], bool]:
        """Whether a circuit is no farther from the full model, on average over the prompts, than this one."""

        def distance(kept: BoolArray) -> float:
            return float(distances(self._problem, self._measured(kept))[1])

        budget = distance(kept) * (1 + 1e-6)
        return lambda kept: distance(kept) <= budget

    def faithfulness(self, kept: BoolArray) -> float:
        found = self._measured(kept)
        full, (empty, value) = found.full.mean(), found.circuits.mean(axis=1)
        if full == empty:
            raise EmptyCircuitError(
                f"the metric is {full:.4g} for the full model and without any edge, so no circuit is more faithful"
            )
        return float(faithfulness(value, full=full, empty=empty))

    def _measured(self, kept: BoolArray) -> Measured:
        """Without any edge, and of the circuit."""
        self.runs += 1
        self.progress(self.runs, None, "running circuits")
        graph = self._problem.graph
        whole = np.concatenate((kept & graph.valid, kept[:1] & False))  # at no place, nothing is kept
        nothing = np.zeros_like(whole)
        (found,) = measure_prompts(self._problem, [nothing, whole], batches=self._batches, places=self._numbers)
        return found


def _labels(places: Sequence[str], by: str) -> list[str]:
    """What places are called without an example's tokens."""
    return [label.split(" ")[0] if by == "position" else label for label in places]


def _check_places(own: Sequence[str], theirs: Sequence[str], by: str) -> None:
    """Refuse prompts that lack a place of a circuit's, or have one more position, at which it has no edge.

    Raises:
        AcdcError: names the place.
    """
    have = f"they have {', '.join(theirs)}"
    if missing := [label for label in own if label not in theirs]:
        raise AcdcError(f"the circuit has a place {missing[0]!r}, which these prompts lack: {have}")
    if by == "position" and (more := [label for label in theirs if label not in own]):
        raise AcdcError(
            f"these prompts have a position {more[0]!r}, at which a circuit of positions {own[0]} to {own[-1]} has no "
            "edge: take prompts of as many tokens, or places by span"
        )


@memory.explained
@torch.inference_mode(False)
def evaluate_positions(
    model: Model,
    task: Task | Dataset | Prompts,
    circuit: PositionalCircuit,
    *,
    metric: Metric | None = None,
    ablation: str | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    confidence: float | None = CONFIDENCE,
    progress: Progress = no_progress,
) -> PositionalEvaluation:
    """Measure a positional circuit on a task's held-out prompts; arguments as for `acdc.evaluate`.

    Raises:
        AcdcError: the prompts have other places than the circuit.
    """
    check_type("a PositionalCircuit", circuit, PositionalCircuit)
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    problem = judging_problem(
        model, dataset, circuit.graph, batch_size=batch_size, memory=memory, progress=progress
    )
    named = None if circuit.by != "span" else list(circuit.places)
    where = placing(model, problem.prompts, circuit.by, named)  # type: ignore[arg-type]
    own, theirs = (_labels(labels, circuit.by) for labels in (circuit.places, where.labels))
    _check_places(own, theirs, circuit.by)
    kept = np.zeros((len(theirs) + 1, *circuit.graph.valid.shape), dtype=bool)
    for label, edges in zip(own, circuit.kept, strict=True):
        kept[theirs.index(label)] = edges
    everywhere = np.broadcast_to(circuit.edges, kept.shape)
    outcomes = [dataset.metric, *over_the_vocabulary(model)]
    runs: list[Any] = [np.zeros_like(kept), kept, everywhere.copy()]
    measured, *over_vocabulary = measure_prompts(problem, runs, outcomes, places=where.numbers)
    full, (empty, value, whole) = measured.full, measured.circuits
    kl = over_vocabulary[0].circuits[1] if over_vocabulary else None
    interval = intervals(confidence)
    ends = {"full": full.mean(), "empty": empty.mean()}
    same = ends["full"] == ends["empty"]
    return PositionalEvaluation(
        prompts="held-out" if dataset.held_out is not None else "discovery",
        n_prompts=len(problem.prompts),
        full=float(full.mean()),
        empty=float(empty.mean()),
        circuit=float(value.mean()),
        faithfulness=float("nan") if same else float(faithfulness(value.mean(), **ends)),
        faithfulness_interval=NO_INTERVAL if same else interval(faithfulness_interval, value, full, empty),
        edges_faithfulness=float("nan") if same else float(faithfulness(whole.mean(), **ends)),
        kl=None if kl is None else float(kl.mean()),
        kl_interval=None if kl is None else interval(mean_interval, kl, within=(0, np.inf)),
    )
