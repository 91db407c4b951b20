"""The methods by name, in the order in which they are listed; other packages bring more (`acdc.registry`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from acdc.errors import unknown
from acdc.methods.acdc import ACDC
from acdc.methods.atp_star import ATP_STAR
from acdc.methods.cd_t import CD_T
from acdc.methods.eap import CLEAN_CORRUPTED, CONDUCTANCE, EAP, EAP_GP, EAP_IG, EAP_IG_ACTIVATIONS, GIM, RELP
from acdc.methods.ensemble import ensemble
from acdc.methods.exact import EXACT
from acdc.methods.guided import GUIDED
from acdc.methods.information_flow import INFORMATION_FLOW
from acdc.methods.learned import EDGE_PRUNING, HAP, IBCIRCUIT, SUBNETWORK_PROBING, UGS
from acdc.methods.method import Method
from acdc.methods.nodes import HISP, NAP, NAP_IG
from acdc.methods.random import RANDOM
from acdc.registry import Registry

_OWN = (
    *(GUIDED, ACDC),
    *(EAP, EAP_IG, EAP_IG_ACTIVATIONS, CLEAN_CORRUPTED, EAP_GP, CONDUCTANCE, RELP, GIM),
    *(ATP_STAR, NAP, NAP_IG, HISP),
    *(SUBNETWORK_PROBING, EDGE_PRUNING, HAP, UGS, IBCIRCUIT),
    *(INFORMATION_FLOW, CD_T, ensemble(lambda: METHODS)),
    *(EXACT, RANDOM),
)
METHODS: Registry[Method] = Registry(
    "acdc.methods",
    "a Method",
    {method.name: method for method in _OWN},
    fits=lambda given: isinstance(given, Method),
    name=lambda method: method.name,
)
"""Every method by name."""

DEFAULT_SEARCH = GUIDED.name
"""Of `discover`."""
DEFAULT_RANKING = EAP_IG.name
"""Of `score`."""


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        AcdcError: there is none; names the nearest.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def check_options(name: str, options: Mapping[str, Any], use: Literal["score", "search"] | None = None) -> None:
    """Refuse options that a method does not have, or values of another type than it takes.

    Raises:
        AcdcError: says which, and what is expected.
    """
    get_method(name).options_from(options, use)
