"""Circuit discovery methods: one file each, and a registry of their records."""

from acdc.methods.aggregates import Estimates
from acdc.methods.method import Found, Method, Target
from acdc.methods.registry import DEFAULT_RANKING, DEFAULT_SEARCH, METHODS, check_options, get_method

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
