"""Hypothesis tests: is the circuit worth as much as the model, does the rest hold nothing, and is chance no match?

The tests of Shi et al. 2024 (arXiv 2410.13032), four of their five (minimality is a check of its own), with differences
that matter: wins count, with ties split, not the mean difference; independence is asked of what the rest adds to the
corrupted run, since corrupted prompts resemble the clean ones by design; random circuits are connected and drawn
uniformly at the circuit's size; and what is too small for the circuit's claim to speak of is a tie.
"""

from __future__ import annotations

import numpy as np

from acdc.auditing.record import Check, Result
from acdc.auditing.subject import Scale, Subject
from acdc.evaluation.connected import connected_like
from acdc.graph import FloatArray
from acdc.metrics.hypotheses import any_of, hsic, share_exceeds, share_falls_short

EPSILON = 0.1
"""How far the share of wins may be from one half."""
BETTER_THAN = 0.99
"""Share of random circuits that the circuit has to beat, as one random circuit in a hundred does."""
NECESSARY = 0.9
"""Share of random circuits without which the model may lose no more than without this one."""
SAME = 1e-6
"""Of mean shares, what rounding may be."""
MOST_PROMPTS_HSIC = 128
MOST_PROMPTS = 64
"""That random circuits are run on."""
TIE = 0.01
"""Share of the separation below which two outputs are the same, whatever the claim."""
MARGIN = 0.1
"""Share by which knocking out a random circuit may break the model more than knocking out this one, and no less."""


def _baselines(subject: Subject) -> Result:
    scale, graph = subject.on_fresh, subject.graph
    n = _number(subject)
    random = connected_like(subject.circuit, n, seed=subject.seed)
    rest = graph.valid & ~subject.edges
    circuit, complement = scale.values([subject.edges, rest])
    tie = max(TIE, subject.tolerance)
    p_wins, wins = _equivalence(scale, circuit, tie)
    strength, p_dependent = _independence(scale, complement, tie)
    few = _few(subject, scale)
    own = few.shares([subject.edges])[0].mean()
    others = few.shares(random).mean(axis=1)
    better = int((own < others - SAME).sum())
    as_claimed = own <= subject.tolerance + SAME
    empty = float(few.apart(few.empty, few.full).mean())
    broken = float(few.shares([rest])[0].mean())
    rests = few.shares(graph.valid & ~random).mean(axis=1)
    necessary = int((broken >= np.minimum(rests, empty) - MARGIN).sum())
    tests = {
        "equivalence": p_wins,
        "independence": p_dependent,
        "sufficiency": 1.0 if as_claimed else share_falls_short(better, n, BETTER_THAN),
        "partial necessity": share_falls_short(necessary, n, NECESSARY),
    }
    fails = [name for name, p in tests.items() if p < 0.0125]
    worst = f"; the worst: {', '.join(fails)}" if fails else ""
    return Result(
        statistic="share of random connected circuits of its size that are further from the model",
        value=better / n,
        threshold=BETTER_THAN,
        p=any_of(list(tests.values())),
        found=(
            f"it beats {better} of {n} random circuits of its size{_allowed(as_claimed, better, n)}; without it the "
            f"model loses {broken:.0%}, as much as without {necessary} of {n} of them{_won(scale, wins)}{worst}"
        ),
        advice="a circuit that chance matches explains nothing: keep more edges, or search again on more prompts",
        details={
            "p-values": tests,
            "wins against the model": wins,
            "wins without ties": _wins(circuit - scale.full, scale, 0.0),
            "dependence of what the rest adds (HSIC)": strength,
            "random circuits": n,
            "share of the way to the empty circuit": float(own),
            "the same of random circuits": _summary(others),
            "knocked out": broken,
            "random ones knocked out": _summary(rests),
        },
    )


def _allowed(as_claimed: bool, better: int, n: int) -> str:
    """A circuit that is as near to the model as it claims need not be nearer than others that are."""
    return ", and is as near to the model as it claims" if as_claimed and better < BETTER_THAN * n else ""


def _few(subject: Subject, scale: Scale) -> Scale:
    """The prompts that random circuits are run on."""
    if len(scale) <= MOST_PROMPTS:
        return scale
    return Scale(subject.problem(subject.fresh[:MOST_PROMPTS]), exact=subject.exact)


def _won(scale: Scale, wins: float) -> str:
    if scale.exact or scale.outcome.is_distance:
        return ""
    return f"; it wins against the model on {wins:.0%} of prompts, ties counting half"


def _number(subject: Subject) -> int:
    """Random circuits: thousands where they cost seconds."""
    if not subject.tiny:
        return 100 if subject.level == "full" else 40
    return {"quick": 200, "usual": 400, "full": 2000}[subject.level]


def _wins(difference: FloatArray, scale: Scale, tie: float) -> float:
    better = difference if scale.outcome.higher_is_better else -difference
    beyond = np.where(np.abs(better) > tie * scale.unit, better, 0.0)
    return float((beyond > 0).mean() + (beyond == 0).mean() / 2)


def _equivalence(scale: Scale, circuit: FloatArray, tie: float) -> tuple[float, float]:
    """p-value of wins within ½ ± ε, and the share of wins. A distance from the model cannot be won against."""
    wins = _wins(circuit - scale.full, scale, 0.0 if scale.exact else tie)
    if scale.exact or scale.outcome.is_distance:
        return 1.0, wins
    n = len(circuit)
    high, low = int(np.ceil(wins * n)), int(np.floor(wins * n))
    p = 2 * min(share_exceeds(low, n, 0.5 + EPSILON), share_falls_short(high, n, 0.5 - EPSILON))
    return min(1.0, p), wins


def _independence(scale: Scale, complement: FloatArray, tie: float) -> tuple[float, float]:
    """HSIC of the model's metric and of what the rest of it adds to the empty circuit; small additions are none."""
    if scale.outcome.is_distance and not scale.exact:  # a distance from the model depends on the model by itself
        return 0.0, 1.0
    added = complement - scale.empty
    least = tie * scale.unit
    added = np.sign(added) * np.maximum(np.abs(added) - least, 0.0)
    if scale.exact:
        added = np.where(np.abs(complement - scale.empty) > 1e-4, complement - scale.empty, 0.0)
    model = scale.full if np.ptp(scale.full) else scale.empty
    some = slice(0, MOST_PROMPTS_HSIC)
    return hsic(model[some], added[some])


def _summary(values: FloatArray) -> dict[str, float]:
    return {"least": float(values.min()), "mean": float(values.mean()), "largest": float(values.max())}


BASELINES = Check(
    name="hypotheses",
    question="Is it worth as much as the model, more than chance, and does the rest of the model hold nothing of it?",
    run=_baselines,
    level="quick",
    seconds=lambda subject: (
        _number(subject)
        * min(1.0, subject.share_of_fresh(MOST_PROMPTS))
        * (subject.seconds_of_circuit + subject.seconds_of_model)
    ),
)
