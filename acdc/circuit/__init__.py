"""Scores and circuits: what methods give, how one is chosen from the other, and `circuit.json`."""

from acdc.circuit.circuit import Circuit, Scores
from acdc.circuit.provenance import Provenance

__all__ = ["Circuit", "Provenance", "Scores"]
