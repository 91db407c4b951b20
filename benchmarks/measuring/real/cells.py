"""A cell: what one method's circuits of each size are worth on one task of one model; measured, and kept in a file."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

import acdc
from acdc.benchmarks.cost import Cost, device_name, measure, measure_once
from acdc.benchmarks.measuring.real.rivals import RIVALS, Clock
from acdc.circuit import selection
from acdc.engine.belonging import prompts_digest
from acdc.engine.circuits import measure_prompts
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
from acdc.store.resume import Spent, spent_before
from acdc.store.rows import Rows
from acdc.store.writing import write_atomically
from acdc.tasks.task import Dataset

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Of all edges."""
SEARCH = "guided"
RANKINGS = ("eap", "eap-ig", "clean-corrupted", "random")
METHODS = (SEARCH, *RANKINGS, *RIVALS)
EVERYWHERE = (SEARCH, *RANKINGS, "components")
"""What is measured on every task; the other rivals are on `RIVALS_ON`."""
RIVALS_ON = "ioi"
TASKS = {
    "smollm2-135m-q4": ("ioi", "gendered-pronoun", "fact-recall", "greater-than", "induction", "docstring"),
    "gemma-3-270m-q4": ("ioi", "greater-than", "induction", "gendered-pronoun", "fact-recall", "docstring"),
}
"""The tasks that each model does on most held-out prompts, by `acdc tasks check`."""
FRONT = "front"
"""What circuits on the way of a search are chosen by, in place of an aggregate."""


@dataclasses.dataclass(frozen=True)
class Size:
    """The circuit of one share of the edges, on held-out prompts; an interval is (low, high), NaN if there is none.

    Attributes:
        aggregate: how the prompts' scores were put together, with ", kl" where they are of KL; "front" of a search.
        n_edges: left after pruning.
        kl: nats from the full model; unfaithfulness: |1 − faithfulness|; same_answer: share of read positions.
        kls, values: KL and the task's metric on each prompt, so that circuits can be compared prompt by prompt.
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
    kls: tuple[float, ...]
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one task of one model.

    Attributes:
        seconds: of the ranking or search by the wall clock; processor_seconds: of all threads; peak_bytes: of tensors,
            0 of a search.
        forward, backward: passes of the model on one prompt. Of a search that was stopped and went on all are unknown,
            NaN and 0.
        full, empty: the task's metric on each held-out prompt, of the full model and of the empty circuit.
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
    full: tuple[float, ...]
    empty: tuple[float, ...]
    machine: str

    @property
    def aggregates(self) -> tuple[str, ...]:
        """In the order in which they are shown."""
        return tuple(dict.fromkeys(size.aggregate for size in self.sizes))


def compute(
    model: Model, task: str, method: str, *, size: int, held_out: int, notes: Path, given: float | None = None
) -> Cell:
    """Rank or search by the method on `size` prompts, and measure its circuits on `held_out` others.

    Args:
        notes: where a search notes how far it is (`.resume`), and what edges are ranked by is kept (`.safetensors`),
            so that other prompts can be asked without searching again.
        given: seconds of processor time that a rival has.
    """
    data = acdc.tasks.load(task, size=max(size, held_out)).prepare(model)
    assert data.held_out is not None
    judged = data.held_out[:held_out]
    data = dataclasses.replace(data, discovery=data.discovery[:size], held_out=judged)
    graph = model.graph()
    kept = notes.with_suffix(".safetensors")
    found = _kept(kept, data)
    if found is None:
        found = _cuts(
            model, data, method, max(1, int(SHARES[0] * graph.n_edges)), notes.with_suffix(".resume"), given
        )
        _keep(kept, data, *found)
    cuts, cost = found
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
            kls=_rounded(nats),
            values=_rounded(value),
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
        n_held_out=len(judged), n_edges_total=graph.n_edges, seconds=cost.seconds,
        processor_seconds=cost.processor_seconds, peak_bytes=cost.peak_bytes, forward=cost.forward,
        backward=cost.backward, sizes=sizes, full=_rounded(full), empty=_rounded(empty),
        machine=device_name(model.device),
    )  # fmt: skip


def _rounded(values: FloatArray) -> tuple[float, ...]:
    """To the digits that single precision tells."""
    return tuple(float(f"{value:.6g}") for value in values)


def _cuts(
    model: Model, data: Dataset, method: str, fewest: int, resume: Path, given: float | None
) -> tuple[dict[str, FloatArray], Cost]:
    """What edges are ranked by, `[n_destinations, n_sources]`, by aggregate; and what it took.

    Args:
        fewest: edges that a search goes down to.
    """
    if method in RIVALS:
        assert given is not None
        return measure_once(lambda: {FRONT: RIVALS[method](model, data, Clock(given))}, model.device)
    if get_method(method).score is None:
        before = spent_before(resume)
        found, cost = measure_once(
            lambda: acdc.discover(model, data, method, metric="kl", edges=fewest, resume=resume), model.device
        )
        if before != Spent():  # passes are not noted
            whole = before + Spent(cost.seconds, cost.processor_seconds)
            cost = dataclasses.replace(cost, **dataclasses.asdict(whole), forward=0, backward=0)
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


def _keep(path: Path, data: Dataset, cuts: dict[str, FloatArray], cost: Cost) -> None:
    about = {
        "prompts": prompts_digest(data.discovery),
        "cost": json.dumps(dataclasses.asdict(cost)),
        "names": json.dumps(list(cuts)),  # in the order of the tables
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save({name: np.ascontiguousarray(cut) for name, cut in cuts.items()}, about))


def _kept(path: Path, data: Dataset) -> tuple[dict[str, FloatArray], Cost] | None:
    """What was found on the same prompts before."""
    if not path.is_file():
        return None
    with safe_open(path, framework="numpy") as file:
        about = file.metadata()
        if about["prompts"] != prompts_digest(data.discovery):
            return None
        cuts = {name: file.get_tensor(name) for name in json.loads(about["names"])}
    return cuts, Cost(**json.loads(about["cost"]))


def _from_one(interval: tuple[float, float]) -> tuple[float, float]:
    low, high = interval
    return magnitude_interval((1 - high, 1 - low))


def cells_of(folder: Path) -> Rows:
    """The cells in a folder, a file each."""
    return Rows(folder / "cells", "acdc (cells of format 2)", ("model", "task", "method"))


def read(values: dict[str, Any]) -> Cell:
    """A cell as it was before it went through its file."""
    sizes = []
    for size in values["sizes"]:
        bounds = {f"{name}_interval" for name in ("kl", "unfaithfulness", "same_answer")}
        lists = bounds | {"kls", "values"}
        sizes.append(Size(**size | {name: tuple(_number(value) for value in size[name]) for name in lists}))
    unknown = {name: _number(values[name]) for name in ("seconds", "processor_seconds")}
    ends = {name: tuple(_number(value) for value in values[name]) for name in ("full", "empty")}
    return Cell(**values | unknown | ends | {"sizes": tuple(sizes)})


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
