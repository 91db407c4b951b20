"""The methods by name, in the order in which they are listed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from acdc.errors import AcdcError, unknown
from acdc.methods.acdc import ACDC
from acdc.methods.eap import CLEAN_CORRUPTED, EAP, EAP_IG
from acdc.methods.exact import EXACT
from acdc.methods.guided import GUIDED
from acdc.methods.method import Method
from acdc.methods.random import RANDOM

METHODS: dict[str, Method] = {
    method.name: method for method in (GUIDED, ACDC, EAP, EAP_IG, CLEAN_CORRUPTED, EXACT, RANDOM)
}
"""Every method by name."""


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a method does not have, or values of another kind than its defaults.

    Raises:
        AcdcError: says which, and what is expected.
    """
    known = METHODS[name].options
    for option, value in options.items():
        if option not in known:
            if not known:
                raise AcdcError(f"method {name!r} has no options, got {option!r}")
            raise unknown(f"option of {name}", option, known)
        default = known[option]
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        truth = isinstance(value, bool) and not isinstance(default, bool)
        if default is not None and (truth or not isinstance(value, kinds)):
            what = {int: "a whole number", float: "a number", bool: "true or false"}.get(type(default), "a value")
            raise AcdcError(f"method {name!r}: expected {option} to be {what} like {default!r}, got {value!r:.60}")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise AcdcError(f"method {name!r}: {option}={str(value)[:20]}… is too large")
