"""Pure metrics on tensors and arrays: they know no model and no graph."""

from acdc.metrics.outcome import OUTCOMES, Outcome, Targets

__all__ = ["OUTCOMES", "Outcome", "Targets"]
