"""How a ranking is cut to a number of edges: the rules by name, some with a number of their own ("pnr=0.7").

All keep the edges they choose less those that dangle; `selection` has the arithmetic of paths.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

from acdc.circuit import selection
from acdc.errors import AcdcError, EmptyCircuitError, check_whole, unknown
from acdc.graph import BoolArray, FloatArray, Graph, IntArray
from acdc.shown import are, counted

if TYPE_CHECKING:
    from acdc.circuit.circuit import Scores

DEFAULTS: dict[str, float | None] = {"top": None, "greedy": None, "ilp": 60.0, "pnr": 0.5, "bootstrap": 0.95}
"""Every rule, and its number unless told otherwise: seconds that may be taken; the share of edges with a positive
score; the share of resamples of the prompts in which an edge's sign is that of its score."""
FEWEST = 8
"""Prompts below which nothing is said of how a mean varies."""
MOST_EDGES = 50_000
"""Edges above which no integer program is begun."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule with its number.

    Raises:
        AcdcError: there is no such rule, or a number that it cannot take.
    """

    name: str
    number: float | None

    @classmethod
    def of(cls, select: str) -> Rule:
        """From "NAME" or "NAME=NUMBER"."""
        name, equals, text = str(select).partition("=")
        if name not in DEFAULTS:
            raise unknown("selection", name, DEFAULTS)
        default = DEFAULTS[name]
        if not equals:
            return cls(name, default)
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if default is None or not (0 < number < math.inf if name == "ilp" else 0 < number < 1):
            what = (
                "no number"
                if default is None
                else "seconds above 0"
                if name == "ilp"
                else "a share between 0 and 1"
            )
            raise AcdcError(f"selection {name!r} takes {what}, got {select!r}")
        return cls(name, number)


def cut(
    scores: Scores, values: FloatArray, n: int, rule: Rule, *, prune: bool = True, prompts: int | None = None
) -> BoolArray:
    """The circuit of `n` edges that a rule makes of a ranking.

    Args:
        values: `[n_destinations, n_sources]`, larger is better: as `Scores.ranked` gives them.
        prompts: that the scores are means over; for "bootstrap".

    Raises:
        EmptyCircuitError: no such circuit is left.
        AcdcError: the rule cannot be applied, or found no circuit in its time.
    """
    graph = scores.graph
    if rule.name == "top":
        return selection.top(graph, values, n, by="signed", prune=prune)
    if rule.name == "greedy":
        return selection.greedy(graph, values, n, by="signed", prune=prune)
    if not prune:
        raise AcdcError(f"select={rule.name!r} leaves no edge that dangles: leave out prune=False")
    if rule.name in ("pnr", "bootstrap") and (scores.values.min() >= 0 or scores.values.max() <= 0):
        raise AcdcError(
            f"select={rule.name!r} goes by the signs of scores, and all by {scores.method!r} have one sign; take "
            "select='top', 'greedy' or 'ilp'"
        )
    assert rule.number is not None
    if rule.name == "ilp":
        edges = integer_program(graph, values, n, seconds=rule.number)
    elif rule.name == "pnr":
        edges = _from(graph, by_ratio(graph, scores.values, values, rule.number), n, "with this ratio of signs")
        positive = float((scores.values[edges] > 0).mean())
        if abs(positive - rule.number) * edges.sum() > 1:
            warnings.warn(
                f"{positive:.0%} of the kept edges have a positive score instead of {rule.number:.0%}: edges that the "
                "ratio takes in and that connect nothing go",
                stacklevel=4,
            )
    else:
        kept = consistency(scores, prompts) >= rule.number
        order = selection.best_first(graph, values, "signed")
        order = order[kept.ravel()[order]]
        edges = _from(graph, order, n, f"whose sign is the same in {rule.number:.0%} of resamples")
    if (found := int(edges.sum())) < n:
        warnings.warn(
            f"{counted(found, 'edge')} {are(found)} kept instead of {n}: {rule.name} lets no more be connected",
            stacklevel=4,
        )
    return edges


def _from(graph: Graph, order: IntArray, n: int, which: str) -> BoolArray:
    """The best edges of an order of some, `n` of them connected if there are so many."""
    found = graph.prune(selection.first(graph, order, len(order)))
    if not found.any():
        raise EmptyCircuitError(
            f"the {counted(len(order), 'best edge')} {which} connect the input with the logits nowhere"
        )
    if int(found.sum()) <= n:
        return found
    return selection.connected(graph, order, n)


def by_ratio(graph: Graph, signed: FloatArray, values: FloatArray, positive: float) -> IntArray:
    """Flat indices of edges, best first, so that any number of them has one share with a positive score.

    Where one of the signs runs out, the order ends: the ratio cannot be kept.
    """
    order = selection.best_first(graph, values, "signed")
    sign = np.sign(signed.ravel()[order])
    plus, minus = order[sign > 0], order[sign < 0]
    found: list[int] = []
    i = j = 0
    while True:
        take_plus = i < positive * (len(found) + 1)
        if (take_plus and i == len(plus)) or (not take_plus and j == len(minus)):
            return np.array(found, dtype=np.int64)
        found.append(int(plus[i] if take_plus else minus[j]))
        i, j = (i + 1, j) if take_plus else (i, j + 1)


def consistency(scores: Scores, prompts: int | None) -> FloatArray:
    """`[n_destinations, n_sources]`: the share of bootstrap resamples of the prompts in which a mean keeps its sign.

    By the normal approximation of the bootstrap, Φ(|mean| √n / deviation), from the mean and the root mean square over
    n prompts: nothing is run again.

    Raises:
        AcdcError: single prompts were not scored, or there are too few.
    """
    from scipy.special import ndtr

    if scores.rms is None:
        raise AcdcError(f"select='bootstrap' needs scores of single prompts, which {scores.method} does not give")
    few = f"select='bootstrap' needs at least {FEWEST} prompts that were scored"
    if prompts is None:
        raise AcdcError(f"{few}, unknown how many there are")
    check_whole("a number of prompts", prompts, least=0)
    if prompts < FEWEST:
        raise AcdcError(f"{few}, got {prompts}")
    variance = np.maximum(np.square(scores.rms) - np.square(scores.values), 0.0) * prompts / (prompts - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(scores.values) * np.sqrt(prompts / variance)
    shares: FloatArray = np.where(scores.values == 0, 0.5, ndtr(np.nan_to_num(ratio, nan=0.0, posinf=40.0)))
    return shares


def integer_program(graph: Graph, values: FloatArray, n: int, *, seconds: float) -> BoolArray:
    """The circuit of at most `n` edges with the largest sum of values (arXiv 2510.25786; the constraints are ours).

    Variables x of edges and y of components, 0 or 1: x ≤ y of both ends; a component that is in is fed and is read
    (y ≤ the sum of its incoming, and of its outgoing, edges); Σ x ≤ n. Since the graph has no circle, every edge then
    lies on a path from the input to the logits. Solved by HiGHS (`scipy.optimize.milp`).

    Raises:
        AcdcError: the graph is too large, or no circuit is found in the time; a best one that is not proven to be so
            comes with a warning.
    """
    import scipy.optimize
    import scipy.sparse

    if graph.n_edges > MOST_EDGES:
        raise AcdcError(
            f"an integer program of {graph.n_edges:,} edges is too large to be solved: take select='greedy', or 'top'"
        )
    if (values[graph.valid] < 0).any():
        raise AcdcError("an integer program takes sizes of scores, and some are negative: leave out by='signed'")
    destinations, sources = np.nonzero(graph.valid)
    E, S = len(sources), graph.n_sources
    one, of = scipy.sparse.eye_array, scipy.sparse.csr_array
    ports = np.flatnonzero(graph.port_source < S)  # those of the logits are no component's
    owners = of(
        (np.ones(len(ports)), (graph.port_destination[ports], graph.port_source[ports])),
        shape=(graph.n_destinations, S),
    )
    out_of = of((np.ones(E), (np.arange(E), sources)), shape=(E, S))
    into = owners[destinations]
    inside = np.flatnonzero(np.diff(into.indptr))  # edges that do not lead into the logits
    inner = np.arange(graph.n_inputs, S)
    edge, node = one(E).tocsr(), one(S).tocsr()
    matrix = scipy.sparse.vstack([
        scipy.sparse.hstack([edge, -out_of]),
        scipy.sparse.hstack([edge[inside], -into[inside]]),
        scipy.sparse.hstack([-into.T.tocsr()[inner], node[inner]]),
        scipy.sparse.hstack([-out_of.T.tocsr()[inner], node[inner]]),
        scipy.sparse.hstack([of(np.ones((1, E))), of((1, S))]),
    ]).tocsr()  # fmt: skip
    upper = np.concatenate([np.zeros(matrix.shape[0] - 1), [n]])
    sizes = values[destinations, sources]
    cost = np.concatenate([-sizes / (sizes.max() or 1.0), np.zeros(S)])
    found = scipy.optimize.milp(
        cost,
        constraints=scipy.optimize.LinearConstraint(matrix, -np.inf, upper),
        integrality=np.ones(E + S, dtype=np.int64),
        bounds=scipy.optimize.Bounds(0, 1),
        options={"time_limit": seconds},
    )
    if found.x is None or not (found.x[:E] > 0.5).any():
        if found.status == 0:
            raise AcdcError(f"no circuit of at most {n} edges has a score above 0: ask for more edges")
        raise AcdcError(
            f"the integer program of {E:,} edges found no circuit of {n} in {seconds:g} seconds: give it more "
            "(select='ilp=600'), or take select='greedy'"
        )
    if found.status != 0:
        warnings.warn(
            f"the integer program was not solved to the end in {seconds:g} seconds: the best circuit so far, whose "
            f"sum may be {found.mip_gap:.1%} from the largest",
            stacklevel=3,
        )
    kept = np.zeros_like(graph.valid)
    chosen = found.x[:E] > 0.5
    kept[destinations[chosen], sources[chosen]] = True
    return graph.prune(kept)
