"""Stability certificates: edges that provably stay when some of the prompts are changed.

A ranking votes on many random subsamples of the prompts, each prompt being in with probability q. If any r prompts are
changed, left out or added, a subsample has none of them with probability (1 − q)^r, and is then the same as before; so
the probability with which an edge is kept moves by at most 1 − (1 − q)^r. An edge whose probability exceeds one half by
more, by a lower confidence bound, is kept by the majority of all subsamples of the changed prompts too; one below by
more stays out; the others are abstained from. (Randomised smoothing by deletion, as Certified Circuits do, Anani et al.
2026, arXiv 2602.22968; the bound is the plain one, by total variation.) Scores add over prompts, so that all votes cost
one run. The claim is of the circuit by vote, not of the ranking by all prompts at once: there one prompt with a huge
score can take any edge's place. Each prompt's scores have to be its own: under ablation by a mean over the prompts, one
that changes moves all.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from acdc.certificates.record import Stability
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.graph import BoolArray, FloatArray, IntArray
from acdc.methods.attribution import STEPS, path
from acdc.methods.by_prompt import best, resampled_sizes, scores_by_prompt
from acdc.methods.method import refuse_metric
from acdc.methods.registry import get_method

SAMPLES, SHARE, CONFIDENCE = 1000, 0.2, 0.95
RANKINGS = ("eap", "eap-ig")
OF_EACH_PROMPT = ("resample", "zero")
"""Ablations under which a prompt's scores hang on no other prompt."""
_AT_ONCE = 50


def check_stability(problem: Problem, *, method: str, radius: int, share: float = SHARE) -> None:
    """Refuse what stability cannot be certified of.

    Raises:
        AcdcError: another ranking than EAP or EAP-IG, an ablation by what all prompts have in common, or a radius at
            which no edge could ever be certified.
    """
    if method not in RANKINGS:
        raise AcdcError(f"stability is certified for {' and '.join(RANKINGS)}, whose scores add up, not {method!r}")
    refuse_metric(get_method(method), problem.outcome, [get_method(name) for name in RANKINGS])
    if problem.ablation not in OF_EACH_PROMPT:
        raise AcdcError(
            f"stability is certified under {' and '.join(OF_EACH_PROMPT)} ablation, not {problem.ablation}: what "
            "replaces an edge is taken over all prompts there, so that one that changes moves the scores of all"
        )
    most = largest_radius(1.0, share)
    if not 0 <= radius <= most:
        raise AcdcError(
            f"expected a number of prompts that change (--stable) between 0 and {most}, got {radius}: with more, most "
            f"subsamples of {share:.0%} have one that changed"
        )


def stability(
    problem: Problem,
    n_edges: int,
    *,
    method: str = "eap-ig",
    radius: int = 1,
    samples: int = SAMPLES,
    share: float = SHARE,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Stability:
    """Which of the best `n_edges` edges stay when up to `radius` prompts change.

    Raises:
        AcdcError: as `check_stability`.
    """
    check_stability(problem, method=method, radius=radius, share=share)
    votes = votes_of(problem, n_edges, method=method, samples=samples, share=share, seed=seed)
    found = radii(votes, samples, share, confidence)
    stays, out = found >= radius, out_by_vote(votes, samples, share, confidence, radius)
    names = problem.graph.edge_names(problem.graph.valid)
    return Stability(
        method=method, edges=n_edges, samples=samples, share=share, confidence=confidence, radius=radius,
        kept={names[i]: int(found[i]) for i in np.flatnonzero(stays)},
        out=int(out.sum()), abstained=int((~stays & ~out).sum()),
    )  # fmt: skip


def votes_of(problem: Problem, n_edges: int, *, method: str, samples: int, share: float, seed: int) -> FloatArray:
    """`[edge]`: on how many subsamples of a problem's prompts each edge is among the best, from one pass."""
    alphas = [1.0] if method == "eap" else path(STEPS, problem.ablation)
    return vote(scores_by_prompt(problem, alphas=alphas), n_edges, samples=samples, share=share, seed=seed)


def radii(votes: FloatArray, samples: int, share: float, confidence: float) -> IntArray:
    """`[edge]`: most prompts that may change while an edge stays; -1 where it may not stay even if none does."""
    low, _ = bounds(votes, samples, confidence)
    return np.array([largest_radius(p, share) for p in low])


def out_by_vote(votes: FloatArray, samples: int, share: float, confidence: float, radius: int) -> BoolArray:
    """`[edge]`: whether an edge stays out if so many prompts change."""
    _, high = bounds(votes, samples, confidence)
    return np.asarray(high + 1 - (1 - share) ** radius < 0.5)


def vote(scores: FloatArray, n_edges: int, *, samples: int, share: float, seed: int) -> FloatArray:
    """`[edge]`: on how many subsamples of the prompts each edge is among the best; scores `[prompt, edge]`."""
    total = np.zeros(scores.shape[1])
    for start in range(0, samples, _AT_ONCE):
        n = min(_AT_ONCE, samples - start)
        total += best(resampled_sizes(scores, n, seed=seed + 7919 * start, share=share), n_edges).sum(axis=0)
    return total


def bounds(votes: FloatArray, samples: int, confidence: float) -> tuple[FloatArray, FloatArray]:
    """Confidence bounds of each edge's probability (Clopper and Pearson), all of which hold together."""
    tail = (1 - confidence) / (2 * len(votes))
    k = votes
    low = np.where(k > 0, stats.beta.ppf(tail, k, samples - k + 1), 0.0)
    high = np.where(k < samples, stats.beta.ppf(1 - tail, k + 1, samples - k), 1.0)
    return low, high


def largest_radius(probability: float, share: float) -> int:
    """Most prompts that may change while a probability of at least this stays above one half; -1 if not even none."""
    if probability <= 0.5:
        return -1
    # probability − (1 − (1 − q)^r) > ½  ⟺  (1 − q)^r > 3/2 − probability
    r = math.log(1.5 - probability) / math.log(1 - share)
    return max(0, math.ceil(r - 1e-12) - 1)
