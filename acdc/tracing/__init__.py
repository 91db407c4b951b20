"""Causal tracing: what replacing one value at one place does to the metric; and edges at places, scored and found."""

from acdc.tracing.positional import PositionalScores, score_positions
from acdc.tracing.positional_circuit import (
    PositionalCircuit,
    PositionalEvaluation,
    discover_positions,
    evaluate_positions,
    example_tokens,
)
from acdc.tracing.result import SiteMap, Tracing
from acdc.tracing.sites import SITES, Site
from acdc.tracing.trace import trace

__all__ = [
    "SITES",
    "PositionalCircuit",
    "PositionalEvaluation",
    "PositionalScores",
    "Site",
    "SiteMap",
    "Tracing",
    "discover_positions",
    "evaluate_positions",
    "example_tokens",
    "score_positions",
    "trace",
]
