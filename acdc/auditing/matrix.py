"""Ablation, metric and direction: one matrix of verdicts.

A circuit is found under one ablation, by one metric, in one direction. In each cell of the matrix it is measured by
another: other metrics and the other direction ought to agree, since they ask the same of the same circuit; another
ablation asks another question, and its cells are told, and not judged.
"""

from __future__ import annotations

import contextlib

import numpy as np
import torch

from acdc.auditing.record import Check, NotApplicable, Result
from acdc.auditing.subject import Scale, Subject
from acdc.engine.measure import bind
from acdc.engine.patching import Patching
from acdc.engine.references import ABLATIONS, NOT_LEARNED
from acdc.errors import AcdcError, TaskError
from acdc.graph import FloatArray
from acdc.metrics import OUTCOMES, Outcome
from acdc.metrics.hypotheses import any_of, mean_exceeds
from acdc.tasks.task import takes_texts

METRICS = ("logit-difference", "probability", "kl", "l2", "projection")
JUDGED = ("probability", "kl")
"""Metrics that ask what the circuit does, beside its own; the others ask how logits come about, and are told."""
MOST_PROMPTS = 128


def _matrix(subject: Subject) -> Result:
    allowed = max(subject.broken, 0.25)
    cells: dict[str, dict[str, float]] = {}
    judged: dict[str, FloatArray] = {}
    own = subject.dataset.ablation
    prompts = subject.fresh[:MOST_PROMPTS]
    metrics = list(dict.fromkeys([subject.dataset.metric.name, *METRICS]))
    kinds = _ablations(subject)
    for ablation in kinds:
        row: dict[str, float] = {}
        for name in metrics:
            outcome = subject.dataset.metric if name == subject.dataset.metric.name else OUTCOMES[name]
            if prompts.branched and not takes_texts(outcome):
                continue
            with contextlib.suppress(TaskError, AcdcError):
                scale = Scale(subject.problem(prompts, outcome=outcome, ablation=ablation), exact=False)
                share = scale.shares([subject.edges])[0]
                row[name] = float(share.mean())
                if ablation == own and name in (subject.dataset.metric.name, *JUDGED):
                    judged[name] = share
        if row:
            cells[ablation] = row
    if own == "resample":
        with contextlib.suppress(TaskError, AcdcError):
            share = _denoised(subject, subject.dataset.metric)
            cells["resample, denoising"] = {subject.dataset.metric.name: float(share.mean())}
            judged["denoising"] = share
    if not judged:
        raise NotApplicable("no metric can be measured on these prompts")
    tests = {name: mean_exceeds(share, allowed) for name, share in judged.items()}
    worst = max(judged, key=lambda name: float(judged[name].mean()))
    flips = [kind for kind, row in cells.items() if kind in kinds and kind != own and max(row.values()) > allowed]
    flip_text = f"; it does not hold under {', '.join(flips)}" if flips else ""
    return Result(
        statistic="largest mean share of the way to the empty circuit, of all metrics and both directions",
        value=float(judged[worst].mean()),
        threshold=allowed,
        p=any_of(list(tests.values())),
        found=f"under its own ablation it is furthest from the model by {worst}{flip_text}",
        advice=(
            "the circuit is further from the model by other numbers than by its own: find it "
            + ("on more prompts, or keep more edges" if subject.dataset.metric.name == "kl" else "by kl")
        ),
        details={"mean share of the way to the empty circuit": cells, "p-values": tests},
    )


@torch.no_grad()
def _denoised(subject: Subject, outcome: Outcome) -> FloatArray:
    """`[prompt]` share from the clean model when clean activations are restored on the circuit of a corrupted run."""
    prompts = subject.fresh[:MOST_PROMPTS]
    # Measured as by noising: bound to the clean run, which restoring everything gives back.
    noised = Patching(subject.model, subject.graph, prompts, ablation="resample")
    measure = bind(outcome, noised)
    denoised = Patching(subject.model, subject.graph, prompts, ablation="resample", direction="denoise")
    value = measure.value(denoised.logits(subject.edges[None], rows=measure.rows))[0].double().cpu().numpy()
    nothing = np.zeros_like(subject.edges)[None]
    empty = measure.value(denoised.logits(nothing, rows=measure.rows))[0].double().cpu().numpy()
    full = measure.full.double().cpu().numpy()
    apart = np.abs(full - empty)
    unit = np.maximum(apart, float(apart.mean()) or 1.0)
    share: FloatArray = np.minimum(np.abs(value - full) / unit, 1.0)
    return share


def _seconds(subject: Subject) -> float:
    part = min(1.0, subject.share_of_fresh(MOST_PROMPTS))
    return (
        len(METRICS) * len(_ablations(subject)) * part * (2 * subject.seconds_of_circuit + subject.seconds_of_model)
    )


def _ablations(subject: Subject) -> list[str]:
    """The circuit's own, and at other levels than "quick" all those for which nothing has to be learned."""
    own = subject.dataset.ablation
    return [own] if subject.level == "quick" else [kind for kind in ABLATIONS if kind in (own, *NOT_LEARNED)]


MATRIX = Check(
    name="matrix",
    question="Do other metrics and directions agree, and what do other ablations say?",
    run=_matrix,
    level="quick",
    seconds=_seconds,
)
