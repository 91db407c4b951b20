"""The checks of an audit, in the order in which they are run and shown: the cheap ones first."""

from __future__ import annotations

from acdc.auditing.adversary import ADVERSARY
from acdc.auditing.backups import BACKUPS
from acdc.auditing.baselines import BASELINES
from acdc.auditing.held_out import HELD_OUT
from acdc.auditing.matrix import MATRIX
from acdc.auditing.minimal import MINIMAL
from acdc.auditing.names import NAMES
from acdc.auditing.random_weights import RANDOM_WEIGHTS
from acdc.auditing.record import Check
from acdc.auditing.rivals import RIVALS
from acdc.auditing.rounding import ROUNDING
from acdc.auditing.shift import SHIFT
from acdc.auditing.specificity import SPECIFICITY
from acdc.auditing.stability import STABILITY

CHECKS: dict[str, Check] = {
    check.name: check
    for check in sorted(
        (
            HELD_OUT, BASELINES, MINIMAL, ADVERSARY, MATRIX, ROUNDING, SHIFT, STABILITY, BACKUPS, SPECIFICITY,
            RANDOM_WEIGHTS, RIVALS,
        ),
        key=lambda check: NAMES.index(check.name),
    )
}  # fmt: skip
"""Every check by its name."""
