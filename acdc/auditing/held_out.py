"""Held out: is the circuit as near to the model on prompts it was not found on, on each, and with the same answers?"""

from __future__ import annotations

from typing import Any

import numpy as np

from acdc.auditing.record import Check, NotApplicable, Result
from acdc.auditing.subject import Subject
from acdc.evaluation.judging import is_numerical
from acdc.evaluation.reproduction import SAME_OUTPUT
from acdc.metrics import OUTCOMES, faithfulness, faithfulness_interval, mean_interval, share_interval
from acdc.metrics.hypotheses import any_of, mean_exceeds, quantile_bounded_by_largest

WORST = 5
"""Prompts that are listed."""
CHANGED = 0.1
"""Share of prompts whose most likely token the circuit may change, at least, whatever the claim."""


def _held_out(subject: Subject) -> Result:
    if not subject.unseen:
        raise NotApplicable(f"there are only {subject.where}")
    tolerance = subject.refutable(subject.tolerance)
    scale = subject.on_fresh
    circuit = scale.values([subject.edges])[0]
    share = scale.apart(circuit, scale.full)
    tests = [mean_exceeds(share, tolerance)]
    details: dict[str, Any] = {"prompts": subject.where, "n": len(share)}
    if subject.exact:
        same = circuit <= SAME_OUTPUT
        details["same output"] = int(same.sum())
    else:
        means = float(circuit.mean()), float(scale.full.mean()), float(scale.empty.mean())
        details["faithfulness"] = faithfulness(means[0], full=means[1], empty=means[2])
        details["faithfulness interval"] = list(faithfulness_interval(circuit, scale.full, scale.empty))
    if not is_numerical(subject.model) and not subject.exact:
        details["KL in nats"] = float(scale.values([subject.edges], OUTCOMES["kl"]).mean())
        match = scale.values([subject.edges], OUTCOMES["exact-match"])[0]
        details["same answer"] = float(match.mean())
        details["same answer interval"] = list(share_interval(match))
        tests.append(mean_exceeds(1 - match, min(1.0, max(CHANGED, 2 * tolerance))))
    order = np.argsort(-share, kind="stable")
    details |= {
        "median": float(np.median(share)),
        "90th percentile": float(np.quantile(share, 0.9)),
        "largest": float(share.max()),
        "share of all prompts below the largest, with 95% confidence": quantile_bounded_by_largest(len(share)),
        "worst prompts": [
            {"prompt": int(i) + 1, "tokens": _text(subject, int(i)), "share": float(share[i])}
            for i in order[:WORST]
        ],
        "shares": [round(float(x), 4) for x in share],
    }
    interval = mean_interval(share, within=(0, 1))
    mean = float(share.mean())
    if subject.exact:
        found = f"{details['same output']} of {len(share)} outputs are the model's on {subject.where}"
    else:
        found = (
            f"on {subject.where} it is {mean:.1%} of the way from the model to no circuit, where its claim allows "
            f"{tolerance:.1%}; faithfulness {details['faithfulness']:.3f}"
        )
        if "same answer" in details:
            found += f", the same answer at {details['same answer']:.1%} of positions"
    return Result(
        statistic="mean share of the way from the full model to the empty circuit",
        value=mean,
        interval=interval,
        threshold=tolerance,
        p=any_of(tests),
        found=found,
        advice="find the circuit on more prompts, or keep more edges; the worst prompts say what it cannot do",
        details=details,
    )


def _text(subject: Subject, prompt: int) -> str:
    """The prompt's clean tokens, as text where there is a tokenizer."""
    prompts = subject.fresh
    ids = prompts.clean[prompt][prompts.own[prompt]].tolist()
    tokenizer = subject.model.tokenizer
    program = subject.model.program
    if program is not None:
        return " ".join(str(program.program.vocabulary[i]) for i in ids)
    return str(tokenizer.decode(ids)) if hasattr(tokenizer, "decode") else " ".join(map(str, ids))


HELD_OUT = Check(
    name="held-out",
    question="Is it as near to the model on prompts that it was not found on?",
    run=_held_out,
    level="quick",
    seconds=lambda subject: 4 * subject.seconds_of_circuit,
)
