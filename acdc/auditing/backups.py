"""Completeness: with the same parts knocked out, do circuit and model still do the same?

Parts of the circuit are knocked out at random, by class, and by greedy search for what parts them most, on the
discovery prompts; the worst of each kind is then judged on fresh ones. Where a part that the circuit leaves out takes
over, it is named: the outside part whose edges, added to the circuit, bring it back to the model without the others.
(Wang et al. 2023 for completeness; self-repair is what the model loses less without several parts than with each
alone, and the reverse.)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from acdc.auditing.record import Check, NotApplicable, Result
from acdc.auditing.subject import Scale, Subject
from acdc.evaluation.completeness import Knockout, completeness
from acdc.graph import FloatArray, IntArray
from acdc.metrics.hypotheses import any_of, mean_exceeds

SETS = {"quick": 8, "usual": 20, "full": 50}
CANDIDATES = 24
MOST_PROMPTS = 128
APART = 0.1
"""Share by which circuit and model may part where outputs are exact: parts are gone that the claim has not lost."""
WORST = 3
"""Sets of each kind, and single parts, that are judged on fresh prompts, at most."""


def _backups(subject: Subject) -> Result:
    graph = subject.graph
    parts = np.flatnonzero(subject.edges.any(axis=0) & (graph.source_stage > 0))
    if not len(parts):
        raise NotApplicable("no head and no MLP is in the circuit, so there is nothing to knock out")
    on = dataclasses.replace(subject.dataset, discovery=subject.dataset.discovery[:MOST_PROMPTS], held_out=None)
    found = completeness(
        subject.model, on, subject.circuit, random_sets=SETS[subject.level], greedy_steps=min(10, len(parts)),
        greedy_candidates=10, seed=subject.seed, confidence=None, batch_size=subject.batch_size,
    )  # fmt: skip
    singles = [Knockout("class", graph.sources[s], (graph.sources[s],), 0, 0, 0, (0, 0)) for s in parts[:64]]
    apart = _apart(subject, subject.on_discovery, [_sources(graph, k) for k in singles]).mean(axis=1)
    worst_alone = [singles[i] for i in np.argsort(-apart, kind="stable")[:WORST]]
    chosen = [*_worst(found.knockouts), *worst_alone]
    sets = {k.components: _sources(graph, k) for k in chosen}  # the same set may be the worst of several kinds
    apart_in = dict(zip(sets, _apart(subject, subject.on_many, list(sets.values())), strict=True))
    allowed = APART if subject.exact else subject.broken
    tests = [mean_exceeds(row, allowed) for row in apart_in.values()]
    means = {components: float(row.mean()) for components, row in apart_in.items()}
    worst, share = max(means.items(), key=lambda item: item[1])
    backups = _candidates(subject, sets[worst], share)
    text = f"without {', '.join(worst):.80} circuit and model part by {share:.0%}"
    if backups:
        text += f"; {next(iter(backups))} takes over in the model"
    return Result(
        statistic="largest mean share between circuit and model with the same parts knocked out",
        value=share,
        threshold=allowed,
        p=any_of(tests),
        found=text,
        advice="parts that the circuit leaves out take over: add those named, or say that they are left out",
        details={
            "knocked out": [
                {"kind": k.kind, "components": list(k.components), "share": means[k.components]} for k in chosen
            ],
            "take over": backups,
            "self-repair": _repair(subject, parts),
        },
    )


def _sources(graph: Any, knockout: Knockout) -> IntArray:
    return np.array([graph.source_index[name] for name in knockout.components], dtype=np.int64)


def _worst(knockouts: tuple[Knockout, ...]) -> list[Knockout]:
    """Of each kind the sets that part circuit and model most."""
    found: list[Knockout] = []
    for kind in ("random", "class", "greedy"):
        own = sorted((k for k in knockouts if k.kind == kind and k.components), key=lambda k: -k.incompleteness)
        found += own[:WORST]
    return found


def _apart(subject: Subject, scale: Scale, sets: list[IntArray]) -> FloatArray:
    """`[set, prompt]` share between circuit and model without each set."""
    graph, edges = subject.graph, subject.edges
    removed = np.zeros((len(sets), graph.n_sources), dtype=bool)
    for row, some in zip(removed, sets, strict=True):
        row[some] = True
    return scale.between(graph.valid & ~removed[:, None], edges & ~removed[:, None])


def _candidates(subject: Subject, knocked: IntArray, before: float) -> dict[str, float]:
    """Outside parts whose edges, added, bring the knocked-out circuit nearer to the knocked-out model: by how much."""
    if before <= APART:
        return {}
    graph, scale = subject.graph, subject.on_fresh
    outside = np.flatnonzero(~subject.edges.any(axis=0) & (graph.source_stage > 0))
    rng = np.random.default_rng(subject.seed)
    outside = np.sort(rng.permutation(outside)[:CANDIDATES]) if len(outside) > CANDIDATES else outside
    if not len(outside):
        return {}
    gone = np.zeros(graph.n_sources, dtype=bool)
    gone[knocked] = True
    stack = np.repeat(subject.edges[None], len(outside), axis=0)
    for circuit, source in zip(stack, outside, strict=True):
        circuit[:, source] = graph.valid[:, source]
        own = np.unique(graph.port_destination[graph.port_source == source])
        circuit[own] = graph.valid[own]
    model = (graph.valid & ~gone)[None]
    apart = scale.between(stack & ~gone, model).mean(axis=1)
    order = np.argsort(apart, kind="stable")[:3]
    return {graph.sources[outside[i]]: before - float(apart[i]) for i in order if apart[i] < before / 2}


def _repair(subject: Subject, parts: IntArray) -> dict[str, float]:
    """What the model loses without each part alone, summed, and without all of them."""
    graph, scale = subject.graph, subject.on_fresh
    stack = np.repeat(graph.valid[None], len(parts) + 1, axis=0)
    for circuit, source in zip(stack[:-1], parts, strict=True):
        circuit[:, source] = False
    stack[-1][:, parts] = False
    shares = scale.shares(stack).mean(axis=1)
    return {"each alone, summed": float(shares[:-1].sum()), "together": float(shares[-1])}


BACKUPS = Check(
    name="completeness",
    question="With parts knocked out, do circuit and model still do the same?",
    run=_backups,
    level="usual",
    passes=lambda subject: 2.0 * (SETS[subject.level] + 120 + len(subject.graph.sources)),
)
