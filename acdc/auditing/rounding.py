"""Numbers: does the verdict hold in another precision, and whatever the size of a batch?

Weights are copied into float64, and into bfloat16. A circuit whose outputs differ between float32 and float64 stands on
rounding; what bfloat16 does to it is said, and is no fault of the circuit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from acdc.auditing.record import Check, Result
from acdc.auditing.subject import Scale, Subject
from acdc.engine.precision import converted
from acdc.errors import AcdcError

SAME = 0.01
"""Share of the separation that rounding may move a prompt's output by."""
MOST_PROMPTS = 128


def _rounding(subject: Subject) -> Result:
    prompts = subject.fresh[:MOST_PROMPTS]
    circuits = [subject.edges]
    own = Scale(subject.problem(prompts), exact=False)
    base = own.shares(circuits)[0]
    batch = max(1, len(prompts) // 3)
    batched = Scale(subject.problem(prompts, batch_size=batch), exact=False)
    moved: dict[str, Any] = {f"batches of {batch}": float(np.abs(batched.shares(circuits)[0] - base).max())}
    values = {}
    for name, dtype in (("float64", torch.float64), ("bfloat16", torch.bfloat16)):
        if dtype == subject.model.dtype or (name == "bfloat16" and not subject.small):
            continue
        try:
            other = Scale(subject.problem(prompts, model=converted(subject.model, dtype)), exact=False)
            found = other.shares(circuits)[0]
        except (AcdcError, RuntimeError) as error:  # not every model runs in every precision
            moved[name] = f"could not be run: {str(error).splitlines()[0]:.120}"
            continue
        values[name] = float(found.mean())
        moved[name] = float(np.abs(found - base).max())
    judged = {name: value for name, value in moved.items() if name != "bfloat16" and isinstance(value, float)}
    worst = max(judged.values())
    half = moved.get("bfloat16")
    what = "float64 and other batches" if "float64" in judged else "other batches"
    found_text = f"{what} move no prompt by more than {worst:.2g} of the separation"
    if isinstance(half, float):
        found_text += f", bfloat16 by {half:.2g}"
    return Result(
        statistic="largest share by which precision and batches move a prompt",
        value=worst,
        threshold=SAME,
        p=0.0 if worst > SAME else 1.0,
        found=found_text,
        advice="search and judge in float64 (--dtype float64): in this precision edges are kept by rounding",
        details={
            "moved": moved,
            "mean share": {str(subject.model.dtype).removeprefix("torch."): float(base.mean())} | values,
        },
    )


ROUNDING = Check(
    name="numbers",
    question="Does it stand in another precision, and in other batches?",
    run=_rounding,
    level="quick",
    seconds=lambda subject: 4 * (subject.seconds_of_circuit + subject.seconds_of_model),
)
