"""The works that are timed: each gives rows, a row being one measurement beside its reference.

Every search is checked in the same run: the distance it ends with must be that of its circuit in a fresh patched
forward pass over the whole model.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

import acdc
from acdc.benchmarks.cost import count_operations
from acdc.benchmarks.measuring.speed.cases import Case, Shape
from acdc.benchmarks.measuring.speed.clock import Part, Sample, Timing, side_by_side, timed
from acdc.circuit import Scores, selection
from acdc.engine.circuits import measure_circuits
from acdc.engine.measure import Measures, bind
from acdc.graph import BoolArray, Graph
from acdc.methods.acdc import DEFAULT_SHARE
from acdc.methods.exact import exact_scores
from acdc.methods.guided import guided
from acdc.methods.search import Search


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        work, shape, what: name of the work, of the shape, and the variant.
        pairs, tokens, threads: the batch, and torch's threads.
        reference: what the reference is made of, in F and FB.
        per: how many things the work did (edges), of each of which the ratio is; 1 for the whole.
        limit: largest ratio to reach, if one is set; limit_seconds: the same in seconds.
        edges, kept: of the graph, and of the circuit.
        error: largest difference from the slow way, relative to the largest value compared.
        bytes_allowed: limit of the memory taken, if one is set.
        operations: floating-point operations of matrix products, as a multiple of the reference's.
    """

    work: str
    shape: str
    what: str
    pairs: int
    tokens: int
    threads: int
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    reference: str = ""
    reference_seconds: tuple[float, ...] = ()
    reference_cpu_seconds: tuple[float, ...] = ()
    per: int = 1
    limit: float | None = None
    limit_seconds: float | None = None
    edges: int | None = None
    kept: int | None = None
    layers: int | None = None
    error: float | None = None
    peak_bytes: int | None = None
    reference_peak_bytes: int | None = None
    bytes_allowed: int | None = None
    operations: float | None = None

    @property
    def ratio(self) -> float | None:
        """Median over the rounds of the work's seconds, each a multiple of its own reference."""
        if not self.reference_seconds:
            return None
        return float(np.median(np.array(self.seconds) / np.array(self.reference_seconds))) / self.per

    @property
    def cpu_ratio(self) -> float | None:
        """The same of processor time, which other programs disturb less."""
        if not self.reference_cpu_seconds:
            return None
        return float(np.median(np.array(self.cpu_seconds) / np.array(self.reference_cpu_seconds))) / self.per

    @property
    def second(self) -> float:
        """Median seconds of the whole work."""
        return float(np.median(self.seconds))

    @property
    def within(self) -> bool | None:
        """Whether the limits are kept; None where there are none.

        With one thread, processor time is what the clock would show on a machine that does nothing else.
        """
        kept = [
            value <= limit
            for value, limit in (
                (self.cpu_ratio if self.threads == 1 else self.ratio, self.limit),
                (float(np.median(self.cpu_seconds)) if self.threads == 1 else self.second, self.limit_seconds),
                (self.peak_bytes, self.bytes_allowed),
            )
            if value is not None and limit is not None
        ]
        return all(kept) if kept else None


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        repeats: rounds of works of seconds; works of minutes have one.
        taus: ACDC's thresholds; none: from the EAP scores, or the method's default for guided pruning.
        depths: numbers of layers for the growth.
    """

    repeats: int = 5
    taus: tuple[float, ...] = ()
    depths: tuple[int, ...] = (2, 4, 8, 12)


@dataclasses.dataclass(frozen=True)
class Work:
    """Something to time.

    Attributes:
        run: `(case, settings) -> rows`, or `(settings) -> rows` if it needs no model.
        minutes: whether it is long on shapes that are not small.
    """

    name: str
    description: str
    run: Callable[[Case, Settings], Iterator[Row]]
    minutes: bool = False
    needs_model: bool = True


def _row(case: Case, work: str, what: str, timing: Timing, **fields: Any) -> Row:
    fields |= dataclasses.asdict(timing)
    fields |= {"pairs": case.pairs, "tokens": case.tokens, "threads": torch.get_num_threads()}
    return Row(work, case.shape.name, what, **fields)


def _forward(case: Case, times: int = 1) -> list[Part]:
    return [Part(times, case.forward)]


# ---- attribution ------------------------------------------------------------------------------------------------


def eap(case: Case, settings: Settings) -> Iterator[Row]:
    graph = case.problem.graph
    values = case.eap  # before the clock starts
    reference = [Part(1, case.forward), Part(1, case.forward_backward)]
    timing = side_by_side(
        lambda: acdc.score(case.model, case.prompts, "eap", metric=case.problem.outcome), reference,
        rounds=settings.repeats,
    )  # fmt: skip
    pairs = min(case.pairs, case.problem.batch_of("gradients"))
    sources = graph.n_sources * pairs * case.tokens * case.shape.d_model * 4
    allowed = None if timing.reference_peak_bytes is None else int(1.3 * sources) + timing.reference_peak_bytes
    error = _against_autograd(case, values) if case.shape.small else None
    yield _row(
        case, "eap", "all edges", timing, reference="2F + B", limit=_on_m(case, 1.15, real=True), edges=graph.n_edges,
        error=error, bytes_allowed=allowed if case.shape.name == "M" else None,
    )  # fmt: skip


def _against_autograd(case: Case, values: np.ndarray) -> float:
    """EAP is minus the gradient of the metric with respect to each edge's share of the clean activation."""
    total = np.zeros_like(values)
    for patching in case.problem.batches():
        measure = bind(case.problem.outcome, patching)
        with torch.enable_grad(), case.model.frozen():
            weights = torch.as_tensor(case.problem.graph.valid).to(case.model.dtype).requires_grad_()
            value = measure.value(patching.logits(weights, rows=measure.rows)).sum()
        total += torch.autograd.grad(value, weights)[0].double().numpy() / case.pairs
    return float(np.abs(total - values).max() / np.abs(values).max())


def eap_ig(case: Case, settings: Settings, steps: int = 5) -> Iterator[Row]:
    timing = side_by_side(
        lambda: acdc.score(case.model, case.prompts, "eap-ig", metric=case.problem.outcome, steps=steps),
        [Part(1, case.forward), Part(steps, case.forward_backward)],
        rounds=settings.repeats,
    )
    yield _row(
        case, "eap-ig", f"{steps} steps", timing, reference=f"{1 + steps}F + {steps}B",
        limit=_on_m(case, 1.15, real=True), edges=case.problem.graph.n_edges,
    )  # fmt: skip


def ways_back(case: Case, settings: Settings) -> Iterator[Row]:
    """The published rules leave terms of the gradient out, so that they should cost no more than the gradient."""
    for method in ("relp", "gim"):
        timing = side_by_side(
            lambda method=method: acdc.score(case.model, case.prompts, method, metric=case.problem.outcome),  # type: ignore[misc]
            [Part(1, lambda: acdc.score(case.model, case.prompts, "eap", metric=case.problem.outcome))],
            rounds=settings.repeats,
        )
        yield _row(
            case, "ways-back", method, timing, reference="EAP", limit=_on_m(case, 1.0),
            edges=case.problem.graph.n_edges,
        )  # fmt: skip


# ---- circuits ---------------------------------------------------------------------------------------------------


def circuit(case: Case, settings: Settings) -> Iterator[Row]:
    """One circuit, with its reference run made before ("prepared") and with everything from the prompts on."""
    scores = Scores(case.problem.graph, case.eap)
    patching = case.problem.patching()
    measure = bind(case.problem.outcome, patching)
    for share in (0.05, 0.5):
        kept = selection.top_pruned(scores.graph, scores.values, round(share * scores.graph.n_edges))

        def prepared(kept: BoolArray = kept) -> None:
            with torch.no_grad():
                measure.value(patching.logits(kept, rows=measure.rows))

        timing = side_by_side(prepared, _forward(case), rounds=settings.repeats)
        yield _row(
            case, "circuit", f"{share:.0%} kept", timing, reference="F", limit=_on_m(case, 2.5),
            edges=scores.graph.n_edges, kept=int(kept.sum()),
        )  # fmt: skip

        def whole(kept: BoolArray = kept) -> None:
            measure_circuits(case.problem, [np.zeros_like(kept), kept])

        timing = side_by_side(whole, _forward(case), rounds=settings.repeats)
        yield _row(
            case, "circuit", f"{share:.0%} kept, with the full model and the empty circuit", timing, reference="F",
            edges=scores.graph.n_edges, kept=int(kept.sum()),
        )  # fmt: skip


def curve(case: Case, settings: Settings, sizes: int = 20) -> Iterator[Row]:
    scores = Scores(case.problem.graph, case.eap)
    shares = np.geomspace(1 / min(1000, scores.graph.n_edges), 1, sizes)
    timing = side_by_side(
        lambda: acdc.curve(case.model, case.prompts, scores, metric=case.problem.outcome, shares=shares.tolist()),
        _forward(case, sizes),
        rounds=settings.repeats,
    )
    yield _row(
        case, "curve", f"{sizes} sizes", timing, reference=f"{sizes}F", limit=_on_m(case, 1.5),
        edges=scores.graph.n_edges,
    )  # fmt: skip


# ---- searches ---------------------------------------------------------------------------------------------------


def run_acdc(case: Case, tau: float) -> Search:
    """ACDC from the prompts to the kept edges."""
    patching = case.problem.patching()
    search = Search(patching, bind(case.problem.outcome, patching))
    search.sweep(lambda new, old: new - old < tau)
    return search


@torch.no_grad()
def fresh_distance(case: Case, kept: BoolArray) -> tuple[float, float]:
    """Distance of a circuit from the full model, by a patched forward over the whole model; and its scale.

    The scale is the size of what is compared: the mean absolute metric of the circuit or of the empty one, or the
    distance, whichever is the largest.
    """
    patching = case.problem.patching()
    measure = bind(case.problem.outcome, patching)
    logits, empty = (patching.logits(edges, rows=measure.rows) for edges in (kept, np.zeros_like(kept)))
    distance = float(measure.distance(logits).mean())
    sizes = (float(measure.value(each).abs().mean()) for each in (logits, empty))
    return distance, max(distance, *sizes)


def threshold_for(case: Case, share: float) -> float:
    """A τ at which ACDC keeps about a share of the edges.

    By bisection where a search takes a moment, else the |EAP| score of that rank, which keeps about as many.
    """
    sizes = np.sort(np.abs(case.eap[case.problem.graph.valid]))[::-1]
    guess = float(sizes[int(share * len(sizes))])
    if case.problem.graph.n_edges > 2000:
        return guess
    low, high = np.log(guess) - 8, np.log(guess) + 8
    for _ in range(12):  # no closer: at a τ found to the last digit, some edge would be a toss-up
        middle = (low + high) / 2
        kept = int(run_acdc(case, float(np.exp(middle))).kept.sum())
        if abs(kept - share * len(sizes)) <= 0.05 * share * len(sizes):
            break
        low, high = (middle, high) if kept > share * len(sizes) else (low, middle)
    return float(np.exp(middle))


def _acdc(case: Case, settings: Settings, work: str, tau: float) -> tuple[Row, float]:
    """A timed ACDC search and the distance it ends with."""
    search: list[Search] = []
    small = case.shape.small
    timing = side_by_side(
        lambda: search.append(run_acdc(case, tau)), _forward(case), rounds=settings.repeats if small else 1,
        warm=small,
    )  # fmt: skip
    kept, edges = search[-1].kept, case.problem.graph.n_edges
    limit = None if case.shape.name != "M" else 0.006 if kept.sum() < 0.01 * edges else 0.06
    distance, size = fresh_distance(case, kept)
    row = _row(
        case, work, f"τ = {tau:.2g}", timing, reference="F", per=edges, limit=limit, edges=edges,
        kept=int(kept.sum()), layers=case.shape.n_layers,
        limit_seconds=30.0 if limit == 0.006 else None,
        error=abs(distance - search[-1].distance) / size,
    )  # fmt: skip
    return row, search[-1].distance


def acdc_search(case: Case, settings: Settings) -> Iterator[Row]:
    for tau in settings.taus or (threshold_for(case, share) for share in case.shape.acdc_shares or (0.03,)):
        yield _acdc(case, settings, "acdc", tau)[0]


def guided_search(case: Case, settings: Settings) -> Iterator[Row]:
    """ACDC by the KL divergence, then guided pruning with the distance it ended with as its budget.

    The KL divergence, because with random weights ACDC's circuits by a logit difference may be farther from the full
    model than the empty circuit is.
    """
    case = dataclasses.replace(case, metric="kl", given=case.module)
    patching = case.problem.patching()
    default = DEFAULT_SHARE * Measures.of(patching, bind(case.problem.outcome, patching)).separation()
    for tau in settings.taus or (default,):
        yield from _guided_beside_acdc(case, settings, tau)


def _guided_beside_acdc(case: Case, settings: Settings, tau: float) -> Iterator[Row]:
    beside, budget = _acdc(case, settings, "guided", tau)
    yield dataclasses.replace(beside, what=f"ACDC by KL, {beside.what}")
    assert beside.operations is not None
    found: list[tuple[BoolArray, int]] = []

    def prune() -> BoolArray:
        return guided(case.problem, budget=budget).kept

    if case.shape.small:
        found.append(count_operations(prune))
    sample = timed(prune if found else lambda: found.append(count_operations(prune)))
    kept, operations = found[0]
    distance, size = fresh_distance(case, kept)
    timing = Timing(
        (sample.seconds,), (sample.cpu_seconds,), (beside.second,), (float(np.median(beside.cpu_seconds)),),
        sample.bytes, beside.peak_bytes, operations / count_operations(case.forward)[1] / beside.operations,
    )  # fmt: skip
    yield _row(
        case, "guided", f"by KL, at the budget of ACDC with {beside.kept} edges", timing, reference="ACDC",
        limit=_on_m(case, 0.1), edges=beside.edges, kept=int(kept.sum()),
        error=max(0.0, distance - budget) / size,
    )  # fmt: skip


def exact(case: Case, settings: Settings) -> Iterator[Row]:
    """All edges of a small graph; of a large one those into one destination a layer, drawn at random."""
    graph = case.problem.graph
    rng = np.random.default_rng(0)
    some = None
    if not case.shape.small:
        some = [
            int(rng.choice(np.flatnonzero(graph.destination_layer == layer))) for layer in range(graph.n_layers)
        ]
    edges = int(graph.valid.sum() if some is None else graph.valid[some].sum())
    scores: list[np.ndarray] = []

    def run() -> None:
        total = np.zeros(graph.valid.shape)
        for patching in case.problem.batches():
            total += exact_scores(patching, bind(case.problem.outcome, patching), destinations=some)[0]
        scores.append(total / case.pairs)

    small = case.shape.small
    timing = side_by_side(run, _forward(case), rounds=settings.repeats if small else 1, warm=small)
    what = "all edges" if some is None else f"{edges:,} edges into {len(some)} destinations"
    yield _row(
        case, "exact", what, timing, reference="F", per=edges, limit=_on_m(case, 0.4), edges=graph.n_edges,
        error=_against_full_runs(case, scores[-1], rng),
    )  # fmt: skip


def _against_full_runs(case: Case, scores: np.ndarray, rng: np.random.Generator, n: int = 4) -> float:
    """Largest difference of some scores from full patched runs without that edge, relative to the largest."""
    graph = case.problem.graph
    largest = np.argsort(-np.abs(scores.ravel()))[:n]
    others = rng.choice(np.flatnonzero(scores.ravel()), n)
    circuits = []
    for edge in (*largest, *others):
        circuits.append(graph.valid.copy())
        circuits[-1].flat[edge] = False
    full, without = measure_circuits(case.problem, circuits)
    found = scores.ravel()[[*largest, *others]]
    return float(np.abs(np.array(without) - full - found).max() / np.abs(found).max())


# ---- growth -----------------------------------------------------------------------------------------------------


def growth(case: Case, settings: Settings) -> Iterator[Row]:
    """ACDC on models of the shape's width and several depths, and at other thresholds on the deepest."""
    depths = sorted(settings.depths)
    shares = (0.3, 0.1, 0.03, 0.01, 0.003) if case.shape.small else (0.02, 0.007, 0.002)
    for n_layers in depths:
        shape: Shape = dataclasses.replace(case.shape, n_layers=n_layers)
        deeper = Case(shape, case.pairs, case.tokens)
        once = dataclasses.replace(settings, repeats=1)
        for share in (0.03,) if n_layers < depths[-1] else dict.fromkeys((0.03, *shares)):
            row, _ = _acdc(deeper, once, "growth", threshold_for(deeper, share))
            yield dataclasses.replace(
                row, limit=None, limit_seconds=None, what=f"{n_layers} layers, about {share:.1%} kept"
            )


def streaming(case: Case, settings: Settings) -> Iterator[Row]:
    """EAP's memory as the prompts grow and the batch does not."""
    for times in (1, 2, 4, 8):
        many = Case(case.shape, times * case.pairs, case.tokens, given=case.module)
        timing = side_by_side(
            lambda many=many: acdc.score(  # type: ignore[misc]
                many.model, many.prompts, "eap", metric=many.problem.outcome, batch_size=case.pairs
            ),
            [Part(times, case.forward), Part(times, case.forward_backward)],
            rounds=1,
        )
        what = f"batches of {case.pairs}"
        yield _row(
            many, "streaming", what, timing, reference=f"{times} · (2F + B)", edges=case.problem.graph.n_edges
        )


# ---- without a model --------------------------------------------------------------------------------------------


def select(case: Case, settings: Settings) -> Iterator[Row]:
    """Random scores of a graph of about a million edges to a pruned circuit of a hundredth of them."""
    graph = Graph(26, 32)
    scores = Scores(graph, np.random.default_rng(0).normal(size=graph.valid.shape))
    n = graph.n_edges // 100
    rules: dict[str, Callable[[], object]] = {
        "top": lambda: scores.top(n),
        "greedy": lambda: scores.top(n, select="greedy"),
        "threshold": lambda: scores.threshold(2.5),
    }
    for name, run in rules.items():
        run()
        yield _plain_row("select", name, [timed(run) for _ in range(settings.repeats)], edges=graph.n_edges)


def help_text(case: Case, settings: Settings) -> Iterator[Row]:
    """`acdc --help` in a process of its own."""

    def run() -> None:
        subprocess.run([sys.executable, "-m", "acdc", "--help"], check=True, stdout=subprocess.DEVNULL)

    run()
    yield _plain_row("help", "acdc --help", [timed(run) for _ in range(settings.repeats)])


def _plain_row(work: str, what: str, samples: Sequence[Sample], *, edges: int | None = None) -> Row:
    return Row(
        work, "", what, 0, 0, torch.get_num_threads(), tuple(s.seconds for s in samples),
        tuple(s.cpu_seconds for s in samples), limit_seconds=0.5, edges=edges,
    )  # fmt: skip


def _on_m(case: Case, limit: float, *, real: bool = False) -> float | None:
    """A limit that is set on M, and on the trained models where `real`."""
    return limit if case.shape.name == "M" or (real and case.shape.weights) else None


WORKS = {
    work.name: work
    for work in (
        Work("eap", "edge attribution patching", eap),
        Work("eap-ig", "EAP with integrated gradients", eap_ig),
        Work("ways-back", "other ways for gradients to flow back", ways_back),
        Work("circuit", "one circuit's faithfulness", circuit),
        Work("curve", "a faithfulness curve", curve),
        Work("acdc", "ACDC to the end", acdc_search, minutes=True),
        Work("guided", "guided pruning to a certified circuit", guided_search, minutes=True),
        Work("exact", "exact edge activation patching", exact, minutes=True),
        Work("growth", "ACDC's cost against layers and kept edges", growth, minutes=True),
        Work("streaming", "EAP's memory against the number of prompts", streaming),
        Work("select", "scores to a circuit, a million edges", select, needs_model=False),
        Work("help", "the command line's help", help_text, needs_model=False),
    )
}
"""Every work by name."""
