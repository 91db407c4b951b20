"""Stability: would other prompts, fewer of them, or another cut have given the same edges?

A ranking's scores add over prompts (`acdc.methods.by_prompt`), so that the ranking on a thousand samples costs no run.
It is judged by halves of the prompts, which have none in common: how much of what one keeps at the circuit's size does
the other keep, beyond chance? Told besides are the overlap of resamples with the whole, the correlation of ranks, how
often each edge of the circuit is kept, and the core that always is. A circuit that a search found is judged by the
ranking of EAP-IG at its size. How often that search itself keeps each edge on other samples of prompts is told where it
is asked for, and in a full audit (`searches`).
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import torch

from acdc.auditing.prompts import fresh_prompts
from acdc.auditing.record import Check, NotApplicable, Result
from acdc.auditing.subject import Subject
from acdc.circuit import Circuit
from acdc.discovery import discover
from acdc.errors import AcdcError
from acdc.graph import BoolArray, FloatArray, units_of
from acdc.methods.attribution import STEPS, path
from acdc.methods.by_prompt import best, resampled_sizes, scores_by_prompt, sizes_of_halves
from acdc.metrics import OUTCOMES, jaccard, spearman

RESAMPLES = 1000
LEAST_OVERLAP = 0.25
"""Of two halves of the prompts, from 0 (what chance gives) to 1 (the same edges)."""
CORE = 0.95
SEARCHES = "searches on other prompts"
"""Name of what they found, in the details."""
AGAIN = 3
"""Searches on other prompts in a full audit, unless told otherwise."""
MOST_KEPT = 60


def _stability(subject: Subject) -> Result:
    prompts, graph = subject.dataset.discovery, subject.graph
    if len(prompts) < 4:
        raise NotApplicable(f"resampling needs 4 prompts to find a circuit on, and there are {len(prompts)}")
    outcome = subject.dataset.metric
    if not outcome.differentiable:
        outcome = OUTCOMES["kl"]
    n_edges = subject.circuit.n_edges
    if not 0 < n_edges < graph.n_edges:
        raise NotApplicable(f"a circuit of {n_edges} of {graph.n_edges} edges is the same by any ranking")
    problem = subject.problem(prompts, outcome=outcome)
    scores = scores_by_prompt(problem, alphas=path(STEPS, problem.ablation))  # [prompt, edge]
    sizes = np.abs(scores).mean(axis=0)
    chosen, own = best(sizes, n_edges), subject.edges[graph.valid]
    chance = n_edges / (2 * graph.n_edges - n_edges)
    again = AGAIN if subject.searches is None and subject.level == "full" else subject.searches or 0
    is_ranked = _overlap(chosen, own) >= chance + LEAST_OVERLAP * (1 - chance)
    if not again and not is_ranked:
        raise NotApplicable(
            f"EAP-IG's best {n_edges} edges are others ({_overlap(chosen, own):.0%} in common), so they say nothing "
            "of these; ask for --searches, which search again"
        )
    resampled = resampled_sizes(scores, RESAMPLES, seed=subject.seed)
    kept = best(resampled, n_edges)
    overlaps = np.array([_overlap(row, chosen) for row in kept])
    ranks = np.array([spearman(row, sizes) for row in resampled[:200]])
    one, other = (best(half, n_edges) for half in sizes_of_halves(scores, RESAMPLES, seed=subject.seed + 1))
    halves = np.array([_overlap(a, b) for a, b in zip(one, other, strict=True)])
    beyond = (halves - chance) / (1 - chance)
    frequency = kept.mean(axis=0)[own]
    names = graph.edge_names(subject.edges)
    core = int((frequency >= CORE).sum())
    cuts = {}
    for factor in (0.5, 0.8, 1.25, 2.0):
        cut = min(graph.n_edges, max(1, round(factor * n_edges)))
        overlap = np.mean([_overlap(row, best(sizes, cut)) for row in best(resampled[:200], cut)])
        cuts[str(cut)] = float(overlap)
    details: dict[str, Any] = {
        "resamples": RESAMPLES,
        "prompts": len(prompts),
        "overlap of halves": float(halves.mean()),
        "overlap by chance": chance,
        "overlap of resamples with the whole": float(overlaps.mean()),
        "overlap of two resamples": float(
            np.mean([_overlap(a, b) for a, b in zip(kept[:200], kept[200:400], strict=True)])
        ),
        "rank correlation": float(ranks.mean()),
        "rank correlation interval": np.quantile(ranks, [0.025, 0.975]).tolist(),
        "overlap by size": cuts,
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
            told = (
                f"; searches on {again} other samples keep {found['always']} edges always and {found['ever']} ever"
            )
        details[SEARCHES] = found
    low, high = np.quantile(beyond, [0.025, 0.975]).tolist()
    value = float(beyond.mean())
    return Result(
        statistic="mean overlap (Jaccard) of the ranking's best edges on halves of the prompts, beyond chance",
        value=value,
        interval=(low, high),
        threshold=LEAST_OVERLAP,
        p=float((1 + (beyond >= LEAST_OVERLAP).sum()) / (1 + RESAMPLES)) if is_ranked else 1.0,
        found=(
            f"two halves of the prompts give EAP-IG {halves.mean():.0%} of the same {n_edges} edges, chance "
            f"{chance:.0%}; {core} of the circuit's edges are always kept{told}"
        ),
        advice="take more prompts, or report only the edges that are always kept",
        details=details,
    )


def _overlap(a: BoolArray | FloatArray, b: BoolArray | FloatArray) -> float:
    return jaccard(np.asarray(a, dtype=bool), np.asarray(b, dtype=bool))


def searches(subject: Subject, n: int) -> dict[str, Any]:
    """How often the circuit's own method keeps each edge on other samples of as many prompts.

    The samples have no prompt in common, with each other or with the circuit's own, where there are enough; else each
    is drawn from all there are.

    Args:
        n: samples.

    Returns:
        By name: the samples and what they are; the overlap (Jaccard) of each circuit with the one under audit, and the
        mean of two of them; how many edges are kept always, and ever, and their ratio; the share of searches that keep
        each edge, from the most.
    """
    made, own, size = subject.circuit.provenance, subject.edges, len(subject.dataset.discovery)
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
        found.append(circuit.edges)
    share = np.mean(found, axis=0)
    always, ever = int((share == 1).sum()), int((share > 0).sum())
    pairs = [_overlap(a, b) for i, a in enumerate(found) for b in found[:i]]
    names, shares = subject.graph.edge_names(share > 0), share[share > 0]
    order = np.argsort(-shares, kind="stable")
    return {
        "searches": n,
        "samples": f"{'disjoint' if disjoint else f'drawn from {len(pool)}'} {fresh.where}, {size} each",
        "edges": [int(edges.sum()) for edges in found],
        "overlap with the circuit": [_overlap(edges, own) for edges in found],
        "overlap of two": float(np.mean(pairs)) if pairs else 1.0,
        "always": always,
        "ever": ever,
        "always / ever": always / ever if ever else 1.0,
        "of the circuit, always": int((share == 1)[own].sum()),
        "how often each edge is kept": {names[i]: round(float(shares[i]), 3) for i in order},
    }


def _asked(circuit: Circuit) -> dict[str, Any]:
    """How much a circuit was asked to keep, and how its ranking was cut, as arguments of `discover`."""
    made: dict[str, Any] = dict(circuit.provenance.selection)
    size = made.get("edges", made.get(units_of(circuit.graph, circuit.unit).plural))
    limit = made.get("threshold", made.get("budget"))
    ways = {"edges": size, "faithfulness": made.get("faithfulness"), "threshold": limit}
    asked = dict([(name, value) for name, value in ways.items() if value is not None][:1])
    if "select" in made:  # a ranking's
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
