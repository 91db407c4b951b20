"""Looking inside a model on a task's prompts: where heads attend, what each node writes towards the answer, what the
residual stream would say layer by layer, what each edge of a circuit is worth, and what becomes of the task without
some parts or along one path, and what heads do, as labels, and what makes them attend where they do."""

from acdc.inspection.ablate import PartEffect, ablate, patch_path
from acdc.inspection.attention import AttentionPatterns, attention_patterns
from acdc.inspection.direct import DirectEffects, direct_effects
from acdc.inspection.lens import LogitLens, logit_lens
from acdc.inspection.qk import ScoreAttribution, score_attribution
from acdc.inspection.removal import RemovalEffects, removal_effects
from acdc.inspection.roles import HeadRoles, Role, head_roles

__all__ = [
    "AttentionPatterns",
    "DirectEffects",
    "HeadRoles",
    "LogitLens",
    "PartEffect",
    "RemovalEffects",
    "Role",
    "ScoreAttribution",
    "ablate",
    "attention_patterns",
    "direct_effects",
    "head_roles",
    "logit_lens",
    "patch_path",
    "removal_effects",
    "score_attribution",
]
