"""Randomised weights: is it a circuit of what was trained, or of any network of this shape on these prompts?

The same ranking is made on the model and on copies whose weights were shuffled, each matrix by itself, so that every
distribution of numbers stays and nothing that was learnt does. A circuit of the trained weights is nearer to their
ranking than to nine in ten of the shuffled ones. Layer by layer shows whose weights it hangs on.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings

import numpy as np
import torch

from acdc.auditing.record import Check, NotApplicable, Result
from acdc.auditing.subject import Subject
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.evaluation.connected import connected_like
from acdc.graph import BoolArray
from acdc.methods.attribution import STEPS, path
from acdc.methods.by_prompt import best, scores_by_prompt
from acdc.metrics import OUTCOMES, jaccard
from acdc.metrics.hypotheses import share_falls_short
from acdc.model.load import load
from acdc.model.model import Model

NEARER = 0.9
"""Share of the shuffled copies that the trained weights have to be nearer than."""
COPIES = 20
COPIES_OF_LARGE = 5
MOST_PROMPTS = 32
MOST_LAYERS = 12
RANDOM, SHARED, BY_CHANCE = 200, 0.5, 0.2
"""Random circuits that are compared with the circuit, what overlap (Jaccard) is much, and how many may have it."""


def _random_weights(subject: Subject) -> Result:
    own = subject.edges[subject.graph.valid]
    if own.all():
        raise NotApplicable("the circuit is the whole graph, which every network has")
    _refuse_what_chance_shares(subject)
    trained = _overlap(subject, subject.model, own)
    rng = torch.Generator().manual_seed(subject.seed)
    n = COPIES if subject.small else COPIES_OF_LARGE
    overlaps = []
    for i in range(n):
        subject.progress(i, n, "randomised weights")
        shuffled = randomised(subject.model, rng)
        if shuffled is None:
            raise NotApplicable("a copy with shuffled weights cannot be run: it gives no finite numbers")
        overlaps.append(_overlap(subject, shuffled, own))
    wins = sum((trained > other) + (trained == other) / 2 for other in overlaps)
    layers: dict[str, float] = {}
    if subject.small or subject.level == "full":
        for layer in range(min(MOST_LAYERS, subject.model.n_layers)):
            one = randomised(subject.model, rng, layer=layer)
            if one is not None:
                layers[str(layer)] = _overlap(subject, one, own)
    mean = float(np.mean(overlaps))
    return Result(
        statistic="share of shuffled copies whose EAP-IG ranking has less of it (Jaccard) than the trained weights'",
        value=wins / n,
        threshold=NEARER,
        p=share_falls_short(math.ceil(wins), n, NEARER),
        found=(
            f"EAP-IG overlaps with it by {trained:.0%} on the trained weights, and by {mean:.0%} on shuffled ones; "
            f"more in {wins:g} of {n} comparisons, where a tie is half"
        ),
        advice="networks that learnt nothing have this circuit as much: what it shows is the architecture",
        details={"trained": trained, "shuffled": overlaps, "one layer shuffled": layers},
    )


def _refuse_what_chance_shares(subject: Subject) -> None:
    """In a small graph, or of a circuit that is most of one, any network's ranking has much: it tells nothing."""
    graph, edges = subject.graph, subject.edges
    random = connected_like(subject.circuit, RANDOM, seed=subject.seed)
    share = float(np.mean([jaccard(each, edges) >= SHARED for each in random]))
    if share > BY_CHANCE:
        raise NotApplicable(
            f"{share:.0%} of random connected circuits of {subject.circuit.n_edges} of {graph.n_edges} edges share "
            "half with it, so that shuffled weights would too"
        )


def _overlap(subject: Subject, model: Model, own: BoolArray) -> float:
    """Jaccard of the circuit and a model's best edges at its size."""
    problem = subject.problem(subject.dataset.discovery[:MOST_PROMPTS], model=model)
    return jaccard(best_by_distance(problem, int(own.sum())), own)


def best_by_distance(problem: Problem, n: int) -> BoolArray:
    """`[edge]`: the best by mean absolute EAP-IG of a distance, which needs no task to be done."""
    outcome = problem.outcome if problem.outcome.is_distance else OUTCOMES["l2"]
    scores = scores_by_prompt(dataclasses.replace(problem, outcome=outcome), alphas=path(STEPS, problem.ablation))
    return best(np.abs(scores).mean(axis=0), n)


def randomised(model: Model, generator: torch.Generator, *, layer: int | None = None) -> Model | None:
    """A copy with every weight matrix shuffled in itself (of one layer; None: all); None if it cannot be run."""
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() < 2 or (layer is not None and f".{layer}." not in f".{name}."):
                continue
            flat = parameter.detach().reshape(-1)
            order = torch.randperm(len(flat), generator=generator).to(flat.device)
            parameter.copy_(flat[order].view_as(parameter))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dataclasses.replace(load(module, tokenizer=model.tokenizer), name=model.name)
    except AcdcError:
        return None


def _seconds(subject: Subject) -> float:
    copies = (COPIES if subject.small else COPIES_OF_LARGE) + 1
    if subject.small or subject.level == "full":
        copies += min(MOST_LAYERS, subject.model.n_layers)
    prompts = min(MOST_PROMPTS, len(subject.dataset.discovery))
    return copies * 3 * STEPS * subject.seconds_of_model * subject.share_of_fresh(prompts)


RANDOM_WEIGHTS = Check(
    name="random-weights",
    question="Is it a circuit of what the model has learnt?",
    run=_random_weights,
    level="usual",
    seconds=_seconds,
)
