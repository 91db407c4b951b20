"""Pure metrics on tensors and arrays: they know no model and no graph."""

from acdc.metrics.circuit import MIB_SHARES, cmd, cpr, faithfulness
from acdc.metrics.outcome import OUTCOMES, Outcome, Targets

__all__ = ["MIB_SHARES", "OUTCOMES", "Outcome", "Targets", "cmd", "cpr", "faithfulness"]
