"""Stability: would other prompts, fewer of them, or another cut have given the same edges?

A ranking's scores add over prompts (`acdc.methods.by_prompt`), so that the ranking on a thousand samples costs no run.
It is judged by halves of the prompts, which have none in common: how much of what one keeps at the circuit's size does
the other keep, beyond chance? Told besides are the overlap of resamples with the whole, the correlation of ranks, how
often each edge of the circuit is kept, and the core that always is. A ranking is cut as the circuit was; one that a
search found is judged by the best edges of EAP-IG at its size. How often that search itself keeps each edge on other
samples of prompts is told where it is asked for, and in a full audit (`searches`); where no ranking speaks of the
circuit (one of nodes, or of other edges), these searches judge it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats

from acdc.auditing.prompts import fresh_prompts
from acdc.auditing.record import Check, NotApplicable, Result
from acdc.auditing.subject import Subject
from acdc.circuit import Circuit, selection
from acdc.discovery import discover
from acdc.errors import AcdcError, EmptyCircuitError
from acdc.graph import BoolArray, FloatArray, Graph, units_of
from acdc.methods.attribution import STEPS, path
from acdc.methods.by_prompt import best, resampled_sizes, scores_by_prompt, sizes_of_all, sizes_of_halves
from acdc.metrics import OUTCOMES, jaccard, spearman

RESAMPLES, FEWER_RESAMPLES = 1000, 100
MANY_EDGES = 10_000
"""Of a graph, above which rankings are cut on fewer samples."""
LEAST_OVERLAP = 0.25
"""Of two halves of the prompts, from 0 (what chance gives) to 1 (the same edges)."""
CORE = 0.95
SEARCHES = "searches on other prompts"
"""Name of what they found, in the details."""
AGAIN = 3
"""Searches on other prompts in a full audit, unless told otherwise."""
MOST_KEPT = 60


def _stability(subject: Subject) -> Result:
    circuit, graph, n_edges = subject.circuit, subject.graph, subject.circuit.n_edges
    if (n_prompts := len(subject.dataset.discovery)) < 4:
        raise NotApplicable(f"resampling needs 4 prompts to find a circuit on, and there are {n_prompts}")
    if not 0 < n_edges < graph.n_edges:
        raise NotApplicable(f"a circuit of {n_edges} of {graph.n_edges} edges is the same by any ranking")
    again = AGAIN if subject.searches is None and subject.level == "full" else subject.searches or 0
    if circuit.unit != "edge":
        why = f"what is resampled is a ranking of edges, and the circuit is of {subject.units.plural}"
        return _by_searches(subject, again, why)
    outcome = subject.dataset.metric if subject.dataset.metric.differentiable else OUTCOMES["kl"]
    problem = subject.problem(subject.dataset.discovery, outcome=outcome)
    scores = scores_by_prompt(problem, alphas=path(STEPS, problem.ablation))  # [prompt, edge]
    cut, aggregate = Cut.of(circuit), _aggregate(circuit)
    sizes = sizes_of_all(scores, aggregate=aggregate)
    chosen, own = cut(sizes, n_edges), subject.edges[graph.valid]
    chance = _chance(n_edges, graph.n_edges)
    if _overlap(chosen, own) < chance + LEAST_OVERLAP * (1 - chance):
        why = f"EAP-IG's best {n_edges} edges are others ({_overlap(chosen, own):.0%} in common)"
        return _by_searches(subject, again, f"{why}, so they say nothing of these")
    n = RESAMPLES if graph.n_edges <= MANY_EDGES else FEWER_RESAMPLES
    some = n // 5
    resampled = resampled_sizes(scores, n, seed=subject.seed, aggregate=aggregate)
    kept = cut.each(resampled, n_edges)
    overlaps = np.array([_overlap(row, chosen) for row in kept])
    ranks = np.array([spearman(row, sizes) for row in resampled[:some]])
    both = sizes_of_halves(scores, n, seed=subject.seed + 1, aggregate=aggregate)
    one, other = (cut.each(half, n_edges) for half in both)
    halves = np.array([_overlap(a, b) for a, b in zip(one, other, strict=True)])
    beyond = (halves - chance) / (1 - chance)
    frequency = kept.mean(axis=0)[own]
    names = graph.edge_names(subject.edges)
    core = int((frequency >= CORE).sum())
    sizes_of_cuts = {}
    for factor in (0.5, 0.8, 1.25, 2.0):
        size = min(graph.n_edges, max(1, round(factor * n_edges)))
        whole = cut(sizes, size)
        overlap = np.mean([_overlap(row, whole) for row in cut.each(resampled[:some], size)])
        sizes_of_cuts[str(size)] = float(overlap)
    details: dict[str, Any] = {
        "resamples": n,
        "prompts": n_prompts,
        "overlap of halves": float(halves.mean()),
        "overlap by chance": chance,
        "overlap of resamples with the whole": float(overlaps.mean()),
        "overlap of two resamples": float(
            np.mean([_overlap(a, b) for a, b in zip(kept[:some], kept[some : 2 * some], strict=True)])
        ),
        "rank correlation": float(ranks.mean()),
        "rank correlation interval": np.quantile(ranks, [0.025, 0.975]).tolist(),
        "overlap by size": sizes_of_cuts,
        "ranking and circuit overlap": _overlap(chosen, own),
        "core": core,
        "how often each edge is kept": dict(
            zip(names[:MOST_KEPT], frequency[:MOST_KEPT].round(3).tolist(), strict=True)
        ),
    }  # fmt: skip
    told = ""
    if again:
        try:
            found = searches(subject, again)
        except (AcdcError, NotApplicable) as reason:
            found, told = {"not run": str(reason)}, f"; no search on other samples: {reason}"
        else:
            told = f"; {_told(subject, found)}"
        details[SEARCHES] = found
    low, high = np.quantile(beyond, [0.025, 0.975]).tolist()
    value = float(beyond.mean())
    return Result(
        statistic="mean overlap (Jaccard) of the ranking's best edges on halves of the prompts, beyond chance",
        value=value,
        interval=(low, high),
        threshold=LEAST_OVERLAP,
        p=float((1 + (beyond >= LEAST_OVERLAP).sum()) / (1 + n)),
        found=(
            f"two halves of the prompts give EAP-IG {halves.mean():.0%} of the same {n_edges} edges, chance "
            f"{chance:.0%}; {core} of the circuit's edges are always kept{told}"
        ),
        advice="take more prompts, or report only the edges that are always kept",
        details=details,
    )


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a ranking of edges becomes a circuit: as the one under audit was cut, if it was.

    Attributes:
        rule: of the best edges; prune: whether those on no path are left out.
    """

    graph: Graph
    rule: Callable[..., BoolArray] = selection.top
    prune: bool = True

    @classmethod
    def of(cls, circuit: Circuit) -> Cut:
        """Greedily if the circuit notes that it was, else by its best edges; those on no path too if it has any."""
        rule = selection.greedy if circuit.provenance.selection.get("select") == "greedy" else selection.top
        return cls(circuit.graph, rule, prune=bool((circuit.graph.prune(circuit.edges) == circuit.edges).all()))

    def __call__(self, sizes: FloatArray, n: int) -> BoolArray:
        """`[edge]` bool: the circuit of `n` edges; where the best connect only in more, the best wherever they are.

        Args:
            sizes: `[edge]`, of the graph's edges in array order.
        """
        spread = np.zeros(self.graph.valid.shape)
        spread[self.graph.valid] = sizes
        try:
            return self.rule(self.graph, spread, n, prune=self.prune)[self.graph.valid]
        except EmptyCircuitError:
            return best(sizes, n)

    def each(self, sizes: FloatArray, n: int) -> BoolArray:
        """The same of each row of `[sample, edge]`."""
        return np.stack([self(row, n) for row in sizes])


def _aggregate(circuit: Circuit) -> selection.Aggregate:
    """What the ranking's sizes are over prompts: a search's order is of no sample, and its edges go by magnitude."""
    made = circuit.provenance.selection.get("aggregate")
    return "signed" if made == "signed" else "rms" if made == "rms" else "mean-absolute"


def _chance(n: int, of: int) -> float:
    """Overlap (Jaccard) of `n` of so many with as many others that chance gives, about."""
    return n / (2 * of - n)


def _by_searches(subject: Subject, again: int, why: str) -> Result:
    """Judged by searches on other samples alone, where no ranking speaks of the circuit.

    Args:
        why: no ranking does.
    """
    if not again:
        raise NotApplicable(f"{why}; ask for --searches, which search again")
    try:
        found = searches(subject, again)
    except AcdcError as reason:
        raise NotApplicable(f"{why}; no search on other samples: {reason}") from None
    if again == 1:
        raise NotApplicable(f"{why}; {_told(subject, found)}, and one alone tells nothing: ask for more --searches")
    units = subject.units
    chance = _chance(subject.circuit.n_units, units.n)
    overlaps = np.array(found["overlap with the circuit"])
    beyond = (overlaps - chance) / max(1 - chance, 1e-9)
    return Result(
        statistic=f"mean overlap (Jaccard) of its {units.plural} and those of searches on other prompts, beyond chance",
        value=float(beyond.mean()),
        threshold=LEAST_OVERLAP,
        p=_below(beyond, LEAST_OVERLAP),
        found=f"{why}; {_told(subject, found)}, {overlaps.mean():.0%} in common with it, chance {chance:.0%}",
        advice=f"take more prompts, or report only the {units.plural} that every search keeps",
        details={"overlap by chance": chance, SEARCHES: found},
    )


def _below(values: FloatArray, least: float) -> float:
    """p-value of the hypothesis that the mean is `least` or more (Student's t)."""
    if np.ptp(values) == 0:
        return float(values[0] >= least)
    return float(stats.ttest_1samp(values, least, alternative="less").pvalue)


def _told(subject: Subject, found: dict[str, Any]) -> str:
    """What searches found, in words."""
    plural, n = subject.units.plural, found["searches"]
    some = "a search on another sample keeps" if n == 1 else f"searches on {n} other samples keep"
    return f"{some} {found['always']} {plural} always and {found['ever']} ever"


def _overlap(a: BoolArray | FloatArray, b: BoolArray | FloatArray) -> float:
    return jaccard(np.asarray(a, dtype=bool), np.asarray(b, dtype=bool))


def searches(subject: Subject, n: int) -> dict[str, Any]:
    """How often the circuit's own method keeps each edge (or node) on other samples of as many prompts.

    The samples have no prompt in common, with each other or with the circuit's own, where there are enough; else each
    is drawn from all there are.

    Args:
        n: samples.

    Returns:
        By name: the samples and what they are; the overlap (Jaccard) of each circuit with the one under audit, and the
        mean of two of them; how many edges (nodes, if it is of nodes) are kept always, and ever, and their ratio; the
        share of searches that keep each, from the most.
    """
    made, size = subject.circuit.provenance, len(subject.dataset.discovery)
    units = subject.units
    own = units.of_edges(subject.edges)
    if not made.method:
        raise AcdcError("the circuit does not say by which method it was found")
    how = _asked(subject.circuit)
    fresh = fresh_prompts(subject.task, subject.model, subject.dataset, n * size, seed=subject.seed + 1)
    if not fresh.unseen:
        raise AcdcError(f"there are only {fresh.where}")
    pool = fresh.prompts
    if len(pool) < size:
        raise AcdcError(f"there are {len(pool)} other prompts, and the circuit was found on {size}")
    disjoint = len(pool) >= n * size
    rng = np.random.default_rng(subject.seed)
    found: list[BoolArray] = []
    for again in range(n):
        subject.check_time(lambda subject: 400 * subject.seconds_of_circuit, "stability")
        subject.progress(again, n, "searching on other prompts")
        rows = np.arange(again * size, (again + 1) * size) if disjoint else rng.permutation(len(pool))[:size]
        prompts = pool[torch.as_tensor(np.sort(rows), device=pool.clean.device)]
        data = dataclasses.replace(subject.dataset, discovery=prompts, held_out=None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            circuit = discover(
                subject.model, data, made.method, graph=subject.graph, seed=subject.seed,
                units=subject.circuit.unit, **how, **made.options,  # type: ignore[arg-type]
            )  # fmt: skip
        found.append(units.of_edges(circuit.edges))
    share = np.mean(found, axis=0)
    always, ever = int((share == 1).sum()), int((share > 0).sum())
    pairs = [_overlap(a, b) for i, a in enumerate(found) for b in found[:i]]
    names, shares = units.names_of(share > 0), share[share > 0]
    order = np.argsort(-shares, kind="stable")
    return {
        "searches": n,
        "samples": f"{'disjoint' if disjoint else f'drawn from {len(pool)}'} {fresh.where}, {size} each",
        units.plural: [int(kept.sum()) for kept in found],
        "overlap with the circuit": [_overlap(kept, own) for kept in found],
        "overlap of two": float(np.mean(pairs)) if pairs else 1.0,
        "always": always,
        "ever": ever,
        "always / ever": always / ever if ever else 1.0,
        "of the circuit, always": int((share == 1)[own].sum()),
        f"how often each {units.unit} is kept": {names[i]: round(float(shares[i]), 3) for i in order},
    }


def _asked(circuit: Circuit) -> dict[str, Any]:
    """How much a circuit was asked to keep, and how its ranking was cut, as arguments of `discover`."""
    made: dict[str, Any] = dict(circuit.provenance.selection)
    size = made.get("edges", made.get(units_of(circuit.graph, circuit.unit).plural))
    limit = made.get("threshold", made.get("budget"))
    ways = {"faithfulness": made.get("faithfulness"), "edges": size, "threshold": limit}
    asked = dict([(name, value) for name, value in ways.items() if value is not None][:1])
    if "select" in made and made.get("aggregate") != "order":  # a ranking's, and no search's by its front
        asked |= {"aggregate": made.get("aggregate")}
        asked |= {"select": made["select"]} if made["select"] != "threshold" else {}
    return asked


STABILITY = Check(
    name="stability",
    question="Would other prompts have given the same edges?",
    run=_stability,
    level="usual",
    seconds=lambda subject: 15 * subject.seconds_of_model * subject.share_of_fresh(len(subject.dataset.discovery)),
)
