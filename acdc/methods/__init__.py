"""Circuit discovery methods: one file each, and a registry of their records.

Names are imported when first used: what a picture asks of a method (`signs`) does not take torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acdc.methods.aggregates import Estimates
    from acdc.methods.method import Found, Method, Target
    from acdc.methods.registry import DEFAULT_RANKING, DEFAULT_SEARCH, METHODS, check_options, get_method

_WHERE = {
    "DEFAULT_RANKING": "registry",
    "DEFAULT_SEARCH": "registry",
    "Estimates": "aggregates",
    "Found": "method",
    "METHODS": "registry",
    "Method": "method",
    "Target": "method",
    "check_options": "registry",
    "get_method": "registry",
}

__all__ = [
    "DEFAULT_RANKING",
    "DEFAULT_SEARCH",
    "METHODS",
    "Estimates",
    "Found",
    "Method",
    "Target",
    "check_options",
    "get_method",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'acdc.methods' has no attribute {name!r}")
    return getattr(importlib.import_module(f"acdc.methods.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
