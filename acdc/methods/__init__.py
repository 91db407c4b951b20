"""Circuit discovery methods: one file each, and a registry of their records."""

from acdc.methods.aggregates import Estimates
from acdc.methods.method import Found, Method
from acdc.methods.registry import METHODS, check_options

__all__ = ["METHODS", "Estimates", "Found", "Method", "check_options"]
