"""How gradients flow back, by name: rules as published (`acdc.model.backward` says what a rule is)."""

from __future__ import annotations

from typing import Literal, get_args

from acdc.errors import unknown
from acdc.model.architecture import PatternRule
from acdc.model.backward import Rule

Backward = Literal["plain", "relp", "gim"]
"""The rules by name."""


def rule_of(name: str, *, gates: bool = True, temperature: float = 2.0, frozen_attention: bool = False) -> Rule:
    """A rule by name.

    "relp": Jafari et al. 2025 (arXiv 2508.21258): frozen norms, the identity rule for activations, the half rule for
    gates; the authors' code leaves the attention pattern alone unless told otherwise. "gim": Edin et al. 2025 (arXiv
    2505.17630): frozen norms, the softmax's Jacobian at temperature 2, queries and keys get a quarter, values a half,
    both factors of a gate a half.

    Args:
        gates: whether a gated MLP's factors get half each.
        temperature: of the softmax's Jacobian in "gim".
        frozen_attention: in "relp", the pattern is a constant (the AH rule), so that nothing flows to queries and keys.

    Raises:
        AcdcError: there is no rule of that name.
    """
    if name not in get_args(Backward):
        raise unknown("way back for gradients (backward)", name, get_args(Backward))
    half = 0.5 if gates else 1.0
    if name == "relp":
        pattern = PatternRule(frozen=True) if frozen_attention else None
        return Rule("relp", frozen_norms=True, identity=True, gates=half, pattern=pattern)
    if name == "gim":
        pattern = PatternRule(temperature=temperature, query_key=0.25, value=0.5)
        return Rule("gim", frozen_norms=True, gates=half, pattern=pattern)
    return Rule()
