"""Amounts of memory as people write them: 4GB."""

from __future__ import annotations

import re

from acdc.errors import AcdcError

UNITS = {
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "tb": 1e12,
    "kib": 2.0**10,
    "mib": 2.0**20,
    "gib": 2.0**30,
    "tib": 2.0**40,
}
"""Bytes, by unit in small letters."""


def size(number: float) -> str:
    """Bytes as text: 1.2 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


def bytes_of(text: object) -> float:
    """Text as bytes: 4GB, 512 MB, 1.5GiB.

    Raises:
        AcdcError: it is no such text, or nothing.
    """
    written = text if isinstance(text, str) else ""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?b)\s*", written, re.IGNORECASE)
    amount = 0.0 if found is None else float(found[1]) * UNITS[found[2].lower()]
    if not 0 < amount < float("inf"):
        raise AcdcError(f"expected an amount of memory like 4GB or 512MB, got {text!r:.60}")
    return amount
