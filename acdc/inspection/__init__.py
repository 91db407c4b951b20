"""Looking inside a model on a task's prompts: where heads attend, what each node writes towards the answer, what the
residual stream would say layer by layer, what each edge of a circuit is worth, and what becomes of the task without
some parts or along one path."""

from acdc.inspection.ablate import PartEffect, ablate, patch_path
from acdc.inspection.attention import AttentionPatterns, attention_patterns
from acdc.inspection.direct import DirectEffects, direct_effects
from acdc.inspection.lens import LogitLens, logit_lens
from acdc.inspection.removal import RemovalEffects, removal_effects

__all__ = [
    "AttentionPatterns",
    "DirectEffects",
    "LogitLens",
    "PartEffect",
    "RemovalEffects",
    "ablate",
    "attention_patterns",
    "direct_effects",
    "logit_lens",
    "patch_path",
    "removal_effects",
]
