"""Adversary: can what the circuit leaves out break it by coming back, in part, or from another corrupted prompt?

A circuit says that the other edges do not matter. So nothing that they carry between their clean output and what
replaces it may matter either. A mask of shares between 0 and 1 on all removed edges is driven uphill, by projected
gradient from several starts, until the output is furthest from the model: one mask for all prompts, found on the
discovery prompts and judged on fresh ones; and one for each prompt, which is told. (Adversarial circuit evaluation:
arXiv 2407.15166, for prompts; patching robustness: arXiv 2602.16823, for small vision networks.)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acdc.auditing.record import Check, NotApplicable, Result
from acdc.auditing.subject import Scale, Subject
from acdc.engine.measure import Measure, bind
from acdc.engine.patching import Patching
from acdc.errors import AcdcError
from acdc.graph import FloatArray
from acdc.metrics import OUTCOMES, Outcome
from acdc.metrics.hypotheses import any_of, mean_exceeds

STEPS = {"quick": 8, "usual": 20, "full": 60}
STARTS = {"quick": 4, "usual": 8, "full": 16}
MOST_PROMPTS = 64
"""Prompts that masks are driven on."""
DONORS = 8
"""Corrupted prompts that are tried for each prompt."""
SHOWN = 10
LEAST_ALLOWED = 0.5
"""Share of the way to no circuit up to which a circuit is not broken: shares between 0 and 1 are no state that the
model has ever seen, and move even true circuits of compiled programs a little."""


def _adversary(subject: Subject) -> Result:
    removed = subject.graph.valid & ~subject.edges
    if not removed.any():
        raise NotApplicable("the circuit is the whole graph: there is nothing for an adversary to bring back")
    subject.need_others()
    allowed = max(subject.broken, LEAST_ALLOWED)
    outcome = _smooth(subject)
    attacked = Scale(subject.problem(subject.dataset.discovery[:MOST_PROMPTS], outcome=outcome), exact=False)
    judge = Scale(subject.problem(outcome=outcome), exact=False)
    starts, steps = _starts(subject), STEPS[subject.level]
    masks, by_prompt = _attack(subject, attacked, removed, starts=starts, steps=steps)
    masks.append(subject.edges.astype(np.float64))  # it need bring nothing back
    shares = np.stack([_shares(judge, subject, mask) for mask in masks])  # [mask, prompt]
    worst = int(shares.mean(axis=1).argmax())
    plain = shares[-1]
    donors = _donors(subject, outcome)
    tests = [mean_exceeds(row, allowed) for row in shares[:-1]]
    mean, before = float(shares[worst].mean()), float(plain.mean())
    mask = masks[worst]
    names = subject.graph.edge_names(removed)
    values = mask[removed]
    order = np.argsort(-values * _importance(subject, attacked, mask, removed), kind="stable")[:SHOWN]
    details: dict[str, Any] = {
        "without an adversary": before,
        "each prompt with a mask of its own": float(by_prompt.mean()),
        "prompts that a mask of their own breaks": float((by_prompt > 0.5).mean()),
        "largest on one prompt": float(shares[worst].max()),
        "edges brought back": {names[i]: round(float(values[i]), 3) for i in order},
        "starts": starts,
        "steps": steps,
    }
    if donors is not None:
        details["worst of other corrupted prompts"] = donors
    return Result(
        statistic="mean share of the way to the empty circuit under the worst mask of removed edges",
        value=mean,
        threshold=allowed,
        p=any_of(tests),
        found=(
            f"bringing removed edges partly back takes the output {mean:.0%} of the way to no circuit "
            f"({before:.1%} without); with a mask for each prompt {by_prompt.mean():.0%}"
        ),
        advice="it leaves out parts that cancel or that act against it: keep those that the adversary brings back",
        details=details,
    )


def _smooth(subject: Subject) -> Outcome:
    """A metric with a gradient: the task's own, or the squared distance of outputs."""
    own = subject.dataset.metric
    if subject.exact or not own.differentiable:
        return OUTCOMES["l2"]
    return own


def _attack(
    subject: Subject, scale: Scale, removed: np.ndarray, *, starts: int, steps: int
) -> tuple[list[FloatArray], FloatArray]:
    """The worst masks shared by all prompts, one a start, and the share under a mask of its own, `[prompt]`."""
    patching, measure = _bound(subject, scale)
    kept = torch.as_tensor(subject.edges, dtype=torch.float32)
    free = torch.as_tensor(removed)
    generator = torch.Generator().manual_seed(subject.seed)
    unit = torch.as_tensor(scale.unit, dtype=torch.float32)
    masks = []
    for start in range(starts):
        mask = _start(kept, free, start, generator)
        masks.append(_climb(patching, measure, mask, free, unit, steps, by_prompt=False)[0].double().numpy())
    best = scale.shares([subject.edges])[0]
    B = len(scale)
    for start in range(max(1, starts // 4)):
        mask = torch.stack([_start(kept, free, start + 1, generator) for _ in range(B)])
        _, share = _climb(patching, measure, mask, free, unit, max(4, steps // 2), by_prompt=True)
        best = np.maximum(best, share.double().numpy())
    return masks, best


def _bound(subject: Subject, scale: Scale) -> tuple[Patching, Measure]:
    """All of the attacked prompts at once."""
    patching = next(iter(scale.problem.batches("gradients"))) if len(scale.batches) == 1 else None
    if patching is None or len(patching.prompts) < len(scale):
        patching = scale.problem.patching()
    return patching, bind(scale.outcome, patching)


def _start(kept: Tensor, free: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """The first from near the circuit; then shares at random, and every removed edge whole or not at all by turns."""
    noise = torch.rand(kept.shape, generator=generator)
    if number == 0:
        noise = 0.1 * noise
    elif number % 2 == 0:
        noise = (noise < 0.5).float()
    return torch.where(free, noise, kept)


def _climb(
    patching: Patching, measure: Measure, mask: Tensor, free: Tensor, unit: Tensor, steps: int, *, by_prompt: bool
) -> tuple[Tensor, Tensor]:
    """The furthest mask on the way, and its share `[prompt]`; each step moves every share by its gradient's sign."""
    model = patching.model
    device = model.device
    best_mask, best = mask, torch.full((len(unit),), -1.0)
    for step in range(steps + 1):
        with torch.enable_grad(), model.frozen():
            given = mask.clone().to(device, model.dtype).requires_grad_()
            logits = patching.logits(given, rows=measure.rows, by_prompt=by_prompt)
            share = measure.distance(logits)[0].float().cpu() / unit
            gradient = torch.zeros_like(mask)
            if step < steps and share.requires_grad:
                found = torch.autograd.grad(share.sum(), given, allow_unused=True)[0]
                gradient = gradient if found is None else found.float().cpu().nan_to_num()
        now = share.detach().clamp(0, 1)
        if by_prompt:
            better = now > best
            best_mask = torch.where(better[:, None, None], mask, best_mask)
            best = torch.maximum(now, best)
        elif now.mean() > best.mean():
            best_mask, best = mask, now
        size = 0.5 * 0.93**step
        mask = torch.where(free, (mask + size * gradient.sign()).clamp(0, 1), mask)
    return best_mask, best


@torch.no_grad()
def _shares(scale: Scale, subject: Subject, mask: FloatArray) -> FloatArray:
    """`[prompt]` share under a mask, on all prompts of a scale."""
    found = []
    weights = torch.as_tensor(mask)
    for patching in scale.batches:
        measure = bind(scale.outcome, patching)
        found.append(measure.distance(patching.logits(weights, rows=measure.rows))[0].double().cpu().numpy())
    share: FloatArray = np.clip(np.concatenate(found) / scale.unit, 0.0, 1.0)
    return share


def _importance(subject: Subject, scale: Scale, mask: FloatArray, removed: np.ndarray) -> FloatArray:
    """`[removed edge]` how much of the damage goes when each edge's share does, to first order; at least 0."""
    patching, measure = _bound(subject, scale)
    with torch.enable_grad(), subject.model.frozen():
        given = torch.tensor(mask, device=subject.model.device, dtype=subject.model.dtype).requires_grad_()
        share = measure.distance(patching.logits(given, rows=measure.rows))[0].sum()
        found = torch.autograd.grad(share, given, allow_unused=True)[0] if share.requires_grad else None
    if found is None:
        return np.ones(int(removed.sum()))
    return 1e-12 + np.maximum(found.double().cpu().numpy()[removed], 0.0)


def _donors(subject: Subject, outcome: Outcome) -> dict[str, float] | None:
    """Mean and worst share when each prompt is corrupted by other prompts' corrupted ones; None for other ablations."""
    if subject.dataset.ablation != "resample":
        return None
    prompts = subject.fresh[:MOST_PROMPTS]
    found = []
    for shift in range(1, DONORS + 1):
        order = torch.arange(len(prompts)).roll(shift)
        other = {name: getattr(prompts, name) for name in ("corrupted", "corrupted_mask", "corrupted_position_ids")}
        moved = {name: None if value is None else value[order] for name, value in other.items()}
        if moved["corrupted_mask"] is None and not bool((prompts.mask == prompts.mask[order]).all()):
            moved["corrupted_mask"] = prompts.mask[order]
        try:
            donated = _replaced(prompts, moved)
            scale = Scale(subject.problem(donated, outcome=outcome), exact=False)
        except AcdcError:
            continue
        found.append(scale.shares([subject.edges])[0])
    if not found:
        return None
    return {"mean": float(np.mean(found)), "worst for each prompt": float(np.max(found, axis=0).mean())}


def _replaced(prompts: Any, changes: dict[str, Any]) -> Any:
    return dataclasses.replace(prompts, **changes)


def _starts(subject: Subject) -> int:
    starts = STARTS[subject.level]
    return starts if subject.small else max(2, starts // 4)


def _seconds(subject: Subject) -> float:
    """Gradients of all edges at every step of every start, half of them for each prompt's own; donors."""
    prompts = min(MOST_PROMPTS, len(subject.dataset.discovery))
    gradients = 1.5 * _starts(subject) * STEPS[subject.level] * subject.share_of_fresh(prompts)
    return (3 * gradients + _starts(subject) + DONORS) * subject.seconds_of_model


ADVERSARY = Check(
    name="adversary",
    question="Can what it leaves out break it by coming back in part?",
    run=_adversary,
    level="quick",
    seconds=_seconds,
)
