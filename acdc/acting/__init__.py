"""Acting on a circuit: it as a model of its own, what it says on any text, and the checkpoint that it alone is."""

from acdc.acting.checkpoint import save_checkpoint
from acdc.acting.circuit_model import CircuitModel
from acdc.acting.saying import Sayings, say

__all__ = ["CircuitModel", "Sayings", "save_checkpoint", "say"]
