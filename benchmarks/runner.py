"""The runner: every missing row of a suite is computed and added to the table, in any number of processes.

A row is in the table or it isn't; there is nothing else to resume from. Each process goes through the missing rows in
an order of its own and claims each one before it computes it, so that any number of processes share the work. At the
end it waits for the rows that others have claimed, and takes over those of a process that ends without them. One
process may have others compute for it (`trials`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import random
import statistics
import time
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import acdc
from acdc.benchmarks.cost import Cost, device_name, measure
from acdc.benchmarks.suites import OWN, Case, Suite, check_digest, true_circuit
from acdc.benchmarks.table import Row, Table, packed
from acdc.benchmarks.trials import PAUSE, Key, Slot, Trial, hand_out
from acdc.circuit import Circuit, Provenance, Scores, selection
from acdc.circuit.provenance import library_versions
from acdc.discovery import discover, score
from acdc.engine.belonging import changes
from acdc.engine.circuits import measure_circuits
from acdc.engine.measure import bind
from acdc.engine.plain_run import embedded
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import AcdcError, WriteError
from acdc.evaluation.curve import Curve, curve
from acdc.evaluation.evaluate import Evaluation, evaluate
from acdc.evaluation.judging import judging_problem
from acdc.graph import BoolArray, Graph
from acdc.methods import METHODS, get_method
from acdc.metrics import faithfulness, ground_truth
from acdc.model.check import check_prompts
from acdc.model.model import Model
from acdc.tasks.programs.program_task import ProgramTask
from acdc.tasks.task import Dataset

SIZES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
"""Sizes of the circuits of a faithfulness curve, in sizes of the true circuit."""
KL_AT = {"kl_at_half": 0.005, "kl_at_2": 0.02, "kl_at_10": 0.1}
"""Shares of all edges, of those on which curves are measured, whose KL has a column, by its name."""
MOST_REASONS = 12


def run(
    suite: Suite,
    folder: str | Path,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    retry: bool = False,
    memory: str | None = None,
    slots: Sequence[Slot] = (),
    progress: Progress = no_progress,
) -> list[Row]:
    """Compute the rows of a suite that a folder's table lacks, and return all rows of the suite that were asked for.

    Args:
        folder: of the table (`rows`) and the circuits; made if need be. Rows that are there are not computed again.
        methods: names; None: all but those that train masks. The baseline of random scores is always added.
        seeds: of the prompts and of all that is random, one row each.
        retry: compute rows again that are errors now; those that become one meanwhile stay.
        memory: how much a row may use beside the weights, like "4GB"; None: what is free.
        slots: compute the rows (`processes`, `ray_slots`), each one at a time; none: this process does.

    Raises:
        AcdcError: an unknown method, or a table of another version. What goes wrong in a row becomes a row.
        WriteError: the folder cannot be written to, any more.
    """
    trials = trials_of(suite, methods=methods, seeds=seeds, memory=memory)
    names = list(dict.fromkeys(trial.method for trial in trials.values()))
    subjects = [(case, seed) for case in suite.cases for seed in seeds]
    order = random.Random(os.getpid())
    folder = Path(folder)
    table, runner = Table(folder), Runner(folder)
    if retry:
        table.forget_errors(trials)

    def lacks(key: Key) -> bool:
        return not table.has(key)

    def missing() -> list[Trial]:
        return [trial for key, trial in trials.items() if lacks(key)]

    if suite.name == OWN and missing():  # what is wrong with it is wrong in every row
        (Runner(folder) if slots else runner).ready(*subjects[0])
    if slots and (left := missing()):
        there = len(trials) - len(left)
        hand_out(
            left,
            slots,
            table.claimed,
            table.add,
            lacks,
            lambda done, text: progress(there + done, len(trials), text),
        )
    while missing():
        claimed = False
        for case, seed in order.sample(subjects, len(subjects)):
            for name in order.sample(names, len(names)):
                trial = trials[suite.name, case.name, name, seed]
                if not lacks(trial.key):
                    continue
                with table.claimed(trial.key) as mine:
                    if not mine or not lacks(trial.key):  # it may be there since
                        continue
                    claimed = True
                    progress(len(trials) - len(missing()), len(trials), f"{case.name}: {name}")
                    table.add(runner.compute(trial))
        if left := missing():
            progress(len(trials) - len(left), len(trials), "waiting for rows in work by other processes")
            time.sleep(0 if claimed else PAUSE)
    progress(len(trials), len(trials), "")
    return [row for row in table.rows(suite.name) if row.key in trials]


def trials_of(
    suite: Suite, *, methods: Sequence[str] | None = None, seeds: Sequence[int] = (0,), memory: str | None = None
) -> dict[Key, Trial]:
    """What `run` computes, given the same, by the keys of the rows.

    Raises:
        AcdcError: an unknown method, or no seed.
    """
    for name in methods or ():
        get_method(name)
    if not seeds:
        raise AcdcError("expected at least one seed")
    baselines = [method.name for method in METHODS.values() if method.baseline]
    untrained = [method.name for method in METHODS.values() if not method.trains]
    names = list(dict.fromkeys([*(untrained if methods is None else methods), *baselines]))
    subjects = [(case, seed) for case in suite.cases for seed in seeds]
    trials = (Trial(suite.name, case, name, seed, memory) for case, seed in subjects for name in names)
    return {trial.key: trial for trial in trials}


@dataclasses.dataclass
class Runner:
    """Computes rows one after another; the case that is ready stays for the next one.

    Attributes:
        folder: below which circuits are saved.
    """

    folder: Path
    _subject: Subject | None = None

    def ready(self, case: Case, seed: int) -> Subject:
        """The case with this seed, made ready unless it is."""
        ready = self._subject
        if ready is None or (ready.case, ready.seed) != (case, seed):
            ready = self._subject = None  # there may be no room for two
            ready = self._subject = Subject.prepare(case, seed)
        return ready

    def compute(self, trial: Trial) -> Row:
        """A row; what goes wrong is in it.

        Raises:
            WriteError: the folder cannot be written to: nor would there be room for the other rows.
        """
        try:
            ready = self.ready(trial.case, trial.seed)
            row = run_row(trial.suite, ready, trial.method, folder=self.folder, memory=trial.memory)
        except WriteError:
            raise
        except Exception as error:  # whatever it is, the other rows can do without this one
            row = Row(*trial.key, error=_one_line(error), model=trial.case.model, task=trial.case.task)
        return dataclasses.replace(row, versions=_versions(), machine=_machine())


@dataclasses.dataclass(frozen=True)
class Subject:
    """A case made ready with one seed.

    Attributes:
        blind: the task without the prompts that were chosen with the truth; None if it has none.
    """

    case: Case
    seed: int
    model: Model
    data: Dataset
    blind: Dataset | None
    graph: Graph
    truth: BoolArray | None
    forward_flops: int

    @classmethod
    def prepare(cls, case: Case, seed: int) -> Subject:
        check_digest(case)
        model = acdc.load(case.model, **case.loading)
        recipe = acdc.tasks.load(case.task, ablation=case.ablation, seed=seed, **case.task_options)
        data = recipe.prepare(model)
        graph = model.graph(qkv=case.qkv, inputs=case.inputs)
        with torch.no_grad():
            embedded(model, graph, data.discovery[:1])  # refuses a graph whose inputs the model does not have
        truth = _truth(case, graph, data)
        if case.truth is not None and (line := _other_weights(case.truth, model, data)):
            warnings.warn(line, stacklevel=2)
            data = dataclasses.replace(data, warnings=(*data.warnings, line))
        blind = None
        if truth is not None and isinstance(recipe, ProgramTask):
            blind = dataclasses.replace(recipe, witnesses=False).prepare(model)
        prompts = data.discovery
        with torch.no_grad():
            _, plain = measure(
                lambda: model.module(prompts.clean, attention_mask=prompts.mask, position_ids=prompts.position_ids),
                model.device,
            )
        for some in (data.discovery, data.held_out):
            if some is not None:
                check_prompts(model, some)  # here, so that it is in no method's cost
        return cls(case, seed, model, data, blind, graph, truth, plain.flops)


def _truth(case: Case, graph: Graph, data: Dataset) -> BoolArray | None:
    """The true circuit's edges: those of the case's file, or of the task.

    Raises:
        AcdcError: the file's circuit is of another graph.
    """
    if case.truth is None:
        return None if data.truth is None else data.truth.mask(graph)
    circuit = true_circuit(case.truth)
    if circuit.graph != graph:
        raise AcdcError(
            f"the true circuit in {case.truth} is not of the graph of {case.model}: {circuit.graph.unlike(graph)}"
        )
    return circuit.edges


def _other_weights(truth: str, model: Model, data: Dataset) -> str | None:
    """A warning, if the true circuit was found with other weights than the model's."""
    line = changes(true_circuit(truth).provenance, model, data).get("weights")
    return line and f"the true circuit in {truth} may be of another model: {line}"


def run_row(suite: str, subject: Subject, method: str, *, folder: Path, memory: str | None = None) -> Row:
    """One row; its circuit and the true one are saved below `folder` (`circuit_folder`)."""
    case, model, data, graph = subject.case, subject.model, subject.data, subject.graph
    record = METHODS[method]
    metric = case.gradient_metric if record.gradient == "clean" else None  # all it sees of the metric
    options: dict[str, Any] = {"metric": metric, "graph": graph, "seed": subject.seed, "memory": memory}
    if record.baseline:  # cases with graphs of one shape must not get one random ranking
        options["seed"] = zlib.crc32(f"{case.name} {subject.seed}".encode())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        circuit, cost = measure(lambda: discover(model, data, method, **options), model.device)
        if "front" in record.options:
            searched, ranking_cost = measure(
                lambda: discover(model, data, method, front=True, **options), model.device
            )
            assert searched.scores is not None
            ranking, scores = "front", searched.scores
        elif record.score is None:
            ranking, scores, ranking_cost = "circuit", _two_levels(circuit), None
        elif record.trains:
            assert circuit.scores is not None
            ranking, scores, ranking_cost = "scores", circuit.scores, cost
        else:
            ranking = "scores" if record.search is None else "sweep"
            scores, ranking_cost = measure(lambda: score(model, data, method, **options), model.device)
        judged = evaluate(model, data, circuit, seed=subject.seed, confidence=None, memory=memory)
        figures = _against_truth(scores, circuit, subject.truth)
        if ranking_cost is not None:
            figures |= _curves(subject, scores, memory)
        if subject.blind is not None and not record.trains:
            found = discover(model, subject.blind, method, **options)
            figures["found_without_witnesses"] = bool((found.edges == subject.truth).all())
    circuit.save(folder / circuit_folder(suite, case.name, method, subject.seed), force=True)
    if subject.truth is not None:
        made = Provenance(model=model.name, task=data.name, ablation=data.ablation, d_model=model.d_model)
        true = Circuit(graph, subject.truth, provenance=made)
        true.save(folder / circuit_folder(suite, case.name, "truth", subject.seed), force=True)
    if record.search is not None and figures.get("hamming"):
        figures["reasons"] = json.dumps(_reasons(subject, circuit))
    texts = dict.fromkeys([*data.warnings, *(str(warning.message) for warning in caught)])
    return Row(
        suite, case.name, method, subject.seed,
        warnings="\n".join(texts) or None,
        model=case.model, task=case.task, ablation=data.ablation,
        metric=data.metric.name, method_metric=metric or data.metric.name,
        truth=case.truth or (None if data.truth is None else data.truth.name),
        ranking=ranking, n_edges_total=graph.n_edges, n_edges=circuit.n_edges, kept=packed(circuit.edges[graph.valid]),
        faithfulness=judged.faithfulness, discovery_faithfulness=judged.discovery_faithfulness,
        random_faithfulness=statistics.fmean(judged.random_faithfulness),
        kl=judged.kl, exact_match=judged.exact_match, **_reproduction(judged),
        **_flat(cost, subject, ""), **_flat(ranking_cost, subject, "ranking_"), **figures,
    )  # fmt: skip


def circuit_folder(suite: str, case: str, method: str, seed: int) -> Path:
    """Where the circuit of a row is, and with "truth" for the method the true one: relative to the table's folder."""
    return Path("circuits") / suite / case / f"{method}-{seed}"


# ---- figures ----------------------------------------------------------------------------------------------------


def _two_levels(circuit: Circuit) -> Scores:
    """The ranking that a bare circuit is: what it keeps above the rest."""
    return Scores(circuit.graph, circuit.edges.astype(np.float64), circuit.provenance.method)


def _against_truth(scores: Scores, circuit: Circuit, truth: BoolArray | None) -> dict[str, Any]:
    if truth is None:
        return {}
    valid = scores.graph.valid
    sizes, true = scores.sizes(), truth[valid]
    ranked = sizes[valid]
    counts = dataclasses.asdict(ground_truth.confusion(circuit.edges[valid], true))
    del counts["true_negatives"]
    roc = ground_truth.roc_curve(ranked, true)
    nodes = ground_truth.node_scores(sizes), ground_truth.node_scores(truth)
    return counts | {
        "n_true": int(true.sum()),
        "edge_auc": ground_truth.roc_auc(ranked, true),
        "node_auc": ground_truth.roc_auc(*nodes),
        "average_precision": ground_truth.average_precision(ranked, true),
        "best_f1": ground_truth.best_f1(ranked, true),
        "recovered_at_some_threshold": ground_truth.recovered_at_some_threshold(ranked, true),
        "roc": json.dumps(_corners(roc.false_positive_rate, roc.true_positive_rate)),
    }


def _reproduction(judged: Evaluation) -> dict[str, Any]:
    found = judged.reproduction
    if found is None:
        return {}
    return {"reproduces": found.reproduced == found.n_prompts, "minimal": found.removable is None}


def _corners(x: np.ndarray, y: np.ndarray) -> list[list[float]]:
    """The points of a line at which it turns."""
    dx, dy = np.diff(x), np.diff(y)
    turns = np.flatnonzero(np.abs(dx[:-1] * dy[1:] - dx[1:] * dy[:-1]) > 1e-12) + 1
    kept = np.concatenate(([0], turns, [len(x) - 1]))
    return [x[kept].round(6).tolist(), y[kept].round(6).tolist()]


def _curves(subject: Subject, scores: Scores, memory: str | None) -> dict[str, Any]:
    """Integrals over circuit sizes, and a curve of faithfulness in sizes of the true circuit if it is known."""
    model, data, graph = subject.model, subject.data, subject.graph

    def over_sizes(by: selection.By, aggregate: selection.Aggregate | None) -> Curve:
        return curve(model, data, scores, by=by, aggregate=aggregate, confidence=None, memory=memory)

    own = over_sizes("absolute", None)
    by_size = over_sizes("absolute", "signed") if scores.aggregate == "mean-absolute" else own
    by_value = over_sizes("signed", None) if scores.order is None else None
    sizes, values = by_size.shares, by_size.faithfulness
    if subject.truth is not None:
        sizes = SIZES
        counts = [min(math.ceil(size * int(subject.truth.sum())), graph.n_edges) for size in sizes]
        circuits = [selection.top_pruned(graph, scores.sizes(), count) for count in counts]
        problem = judging_problem(model, data, graph, found=scores, memory=memory)
        full, (empty, *means) = measure_circuits(problem, [np.zeros_like(graph.valid), *circuits])
        values = tuple(faithfulness(mean, full=full, empty=empty) for mean in means)
    points = [list(sizes), [None if math.isnan(value) else round(value, 6) for value in values]]
    return {
        "cpr": None if by_value is None else by_value.cpr,
        "cmd": by_size.cmd,
        "log_cmd": own.log_cmd,
        "log_kl": own.log_kl_area,
        **{name: _kl_at(own, share, graph.n_edges) for name, share in KL_AT.items()},
        "curve": json.dumps(points),
    }


def _kl_at(found: Curve, share: float, n_edges: int) -> float | None:
    if found.kl is None or int(share * n_edges) < 1:
        return None
    return found.kl[found.shares.index(share)]


def _reasons(subject: Subject, circuit: Circuit) -> dict[str, Any]:
    """Why a search kept or removed the wrong edges: what each does to the distance from the full model.

    Each wrong edge has its effect `alone` (removed from the full model) and `in_circuit` (what the circuit's distance
    loses when a missed edge is put back, or gains when a false one is removed).
    """
    assert subject.truth is not None
    data, graph = subject.data, subject.graph
    problem = Problem(subject.model, graph, data.discovery, data.metric, data.ablation, constants=circuit.constants)
    patching = problem.patching()
    measured = bind(data.metric, patching)

    @torch.no_grad()
    def distance(edges: BoolArray) -> float:
        return float(measured.distance(patching.logits(edges, rows=measured.rows)).mean())

    own, how = distance(circuit.edges), circuit.provenance.selection
    wrong = []
    for destination, source in np.argwhere(circuit.edges ^ subject.truth)[:MOST_REASONS]:
        without, changed = graph.valid.copy(), circuit.edges.copy()
        without[destination, source] = False
        changed[destination, source] ^= True
        false = bool(circuit.edges[destination, source])
        effect = distance(changed) - own if false else own - distance(changed)
        wrong.append(
            {
                "edge": graph.edge_name(destination, source),
                "kind": "false" if false else "missed",
                "alone": distance(without),
                "in_circuit": effect,
            }
        )
    return {
        "metric": data.metric.name,
        "distance": own,
        "allowed": how.get("budget", how.get("threshold")),
        "edges": wrong,
        "more": int((circuit.edges ^ subject.truth).sum()) - len(wrong),
    }


# ---- what it was run with ---------------------------------------------------------------------------------------


def _flat(cost: Cost | None, subject: Subject, prefix: str) -> dict[str, Any]:
    if cost is None:
        return {}
    prompts = len(subject.data.discovery)
    return {
        f"{prefix}seconds": cost.seconds,
        f"{prefix}processor_seconds": cost.processor_seconds,
        f"{prefix}peak_bytes": cost.peak_bytes,
        f"{prefix}forward": cost.forward / prompts,
        f"{prefix}backward": cost.backward / prompts,
        f"{prefix}work": cost.flops / subject.forward_flops,
    }


def _versions() -> str:
    return json.dumps({"python": platform.python_version(), **library_versions()})


def _machine() -> str:
    return json.dumps({"system": platform.system(), "cpu": device_name(), "threads": torch.get_num_threads()})


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, AcdcError) else f"{type(error).__name__}: {text}"
