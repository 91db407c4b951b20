"""Names of the checks, where what only names them can have them without importing the checks, and with them torch."""

from __future__ import annotations

from typing import Literal, get_args

Name = Literal[
    "held-out", "hypotheses", "minimality", "adversary", "matrix", "numbers", "shift", "stability", "completeness",
    "specificity", "random-weights", "rivals",
]  # fmt: skip
NAMES: tuple[Name, ...] = get_args(Name)
"""In the order in which checks are run and shown."""
