"""Ensembles: several rankings made comparable and put together (winners of the 2025 shared task, arXiv 2510.06811).

Methods measure in units of their own. Each one's absolute scores are divided by their largest ("largest") or replaced
by the share of edges that score less ("rank"), and an edge has the mean, the least or the largest of what they say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import scipy.stats

from acdc.engine import ranks
from acdc.engine.problem import Problem
from acdc.errors import AcdcError, unknown
from acdc.graph import BoolArray, FloatArray
from acdc.methods.aggregates import Estimates
from acdc.methods.method import Method, refuse_metric

NAME = "ensemble"
MEMBERS = ("eap-ig", "eap-ig-activations", "clean-corrupted")
"""Unless told otherwise: rankings that take every metric with a gradient."""


def normalised(values: FloatArray, chosen: BoolArray, how: str) -> FloatArray:
    """Sizes from 0 to 1 of the values that are chosen; 0 elsewhere."""
    sizes = np.abs(values[chosen])
    found = np.zeros_like(values)
    if how == "rank":
        found[chosen] = (scipy.stats.rankdata(sizes) - 1) / max(1, len(sizes) - 1)
    else:
        found[chosen] = sizes / sizes.max() if sizes.max() > 0 else 0.0
    return found


def _ensemble(
    methods: Mapping[str, Method],
    problem: Problem,
    *,
    members: str,
    combine: str,
    normalise: str,
) -> Estimates:
    names = [name.strip() for name in members.split(",") if name.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise AcdcError(
            f"expected the names of two members or more, each once, separated by commas, got {members!r}"
        )
    found, signed = [], []
    for i, name in enumerate(names):
        if name not in methods:
            raise unknown("method", name, methods)
        method = methods[name]
        if method.score is None or name == NAME:
            raise AcdcError(f"{name!r} gives no ranking of its own; members are methods that do")
        refuse_metric(method, problem.outcome, methods.values())
        own = dataclasses.replace(problem, progress=_named(problem, name, i, len(names)))
        with ranks.sharing_if(method.shares_prompts):
            result = method.score(own)
        if not method.shares_prompts:
            result = ranks.current().told(result)
        sizes = result.values if result.absolute is None else result.absolute
        found.append(normalised(sizes, problem.units.valid, normalise))
        if method.signs != "none":
            signed.append(np.sign(result.values))
    every = np.stack(found)
    together = every.mean(0) if combine == "mean" else every.min(0) if combine == "min" else every.max(0)
    votes = np.sum(signed, axis=0) if signed else np.ones_like(together)
    return Estimates(np.where(votes < 0, -together, together), together)


def _named(problem: Problem, name: str, i: int, n: int) -> Any:
    def progress(done: int, total: int | None, text: str) -> None:
        problem.progress(done, total, f"{name} ({i + 1} of {n}): {text}")

    return progress


def ensemble(methods: Callable[[], Mapping[str, Method]]) -> Method:
    """The record, of an ensemble of any of these methods."""

    def score(
        problem: Problem,
        *,
        members: Annotated[str, "methods that rank, comma-separated"] = ",".join(MEMBERS),
        combine: Annotated[Literal["mean", "min", "max"], "what is made of what they say of an edge"] = "mean",
        normalise: Annotated[Literal["largest", "rank"], "by the largest score, or by rank alone"] = "largest",
    ) -> Estimates:
        return _ensemble(methods(), problem, members=members, combine=combine, normalise=normalise)

    return Method(
        name=NAME,
        description="several rankings, normalised: the mean, least or largest of what they say",
        cost="that of its members",
        paper="arXiv 2510.06811",
        score=score,
        gradient="path",
        signs="estimated",
        shares_prompts=True,
    )
