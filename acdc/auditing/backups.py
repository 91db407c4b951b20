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
GREEDY_STEPS = GREEDY_CANDIDATES = 10
SINGLES = 64
"""Parts that are knocked out alone, at most."""
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
    subject.need_others()
    allowed = APART if subject.exact else subject.broken
    on = dataclasses.replace(subject.dataset, discovery=subject.dataset.discovery[:MOST_PROMPTS], held_out=None)
    found = completeness(
        subject.model, on, subject.circuit, random_sets=SETS[subject.level],
        greedy_steps=min(GREEDY_STEPS, len(parts)), greedy_candidates=GREEDY_CANDIDATES,
        seed=subject.seed, confidence=None, batch_size=subject.batch_size,
    )  # fmt: skip
    singles = [Knockout("class", graph.sources[s], (graph.sources[s],), 0, 0, 0, (0, 0)) for s in parts[:SINGLES]]
    scale = subject.on_discovery
    of_model, of_circuit = _knocked_out(subject, scale, [*parts[:SINGLES, None], parts[:SINGLES]])
    apart = scale.apart(of_model, of_circuit)[:-1].mean(axis=1)
    lost = scale.apart(of_model, scale.full).mean(axis=1)
    worst_alone = [singles[i] for i in np.argsort(-apart, kind="stable")[:WORST]]
    chosen = [*_worst(found.knockouts), *worst_alone]
    sets = {k.components: _sources(graph, k) for k in chosen}  # the same set may be the worst of several kinds
    many = subject.on_many
    apart_in = dict(zip(sets, many.apart(*_knocked_out(subject, many, list(sets.values()))), strict=True))
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
            "self-repair": {"each alone, summed": float(lost[:-1].sum()), "together": float(lost[-1])},
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


def _knocked_out(subject: Subject, scale: Scale, sets: list[IntArray]) -> tuple[FloatArray, FloatArray]:
    """`[set, prompt]` metric of the model and of the circuit without each set of sources."""
    sources = np.arange(subject.graph.n_sources)
    of_model, of_circuit = (
        scale.search(edges).values_without([np.flatnonzero(edges & np.isin(sources, some)) for some in sets])
        for edges in (subject.graph.valid, subject.edges)
    )
    return of_model, of_circuit


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


def _seconds(subject: Subject) -> float:
    """Sets at random, by class and of the greedy search; single parts; those that are judged; candidates."""
    prompts, both = len(subject.dataset.discovery), subject.seconds_of_circuit + subject.seconds_of_model
    sets = SETS[subject.level] + subject.graph.n_layers + 1 + GREEDY_STEPS * GREEDY_CANDIDATES
    on_discovery = (
        subject.share_of_fresh(min(MOST_PROMPTS, prompts)) * sets + subject.share_of_fresh(prompts) * SINGLES
    )
    return (on_discovery + 4 * WORST) * both + CANDIDATES * subject.seconds_of_circuit


BACKUPS = Check(
    name="completeness",
    question="With parts knocked out, do circuit and model still do the same?",
    run=_backups,
    level="usual",
    seconds=_seconds,
)
