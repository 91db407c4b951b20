"""Sites: the values inside a layer that can be replaced, how they are read off a run, and what follows from replacing.

Every site but the residual stream and the MLP is a step on the way of the heads: raw projections, attention pattern,
results, and the sum of what they write. So replacing any of them is one function, `written`, which goes on from that
step to what the layer writes; what lies behind the layer is nobody's business here.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from acdc.errors import unknown
from acdc.model import forward
from acdc.model.architecture import Attention, Layer
from acdc.model.forward import Context
from acdc.model.model import Model
from acdc.model.trace import Trace, after_earlier


@dataclasses.dataclass(frozen=True)
class Site:
    """A kind of value in every layer.

    Attributes:
        axis: what its components are: "head", "group" (of heads that share keys and values), or "" for one a layer.
    """

    name: str
    description: str
    axis: str = ""


SITES: dict[str, Site] = {
    site.name: site
    for site in (
        Site("residual", "the residual stream before a layer; that before layer 0 is the embedding"),
        Site("attention", "what the heads of a layer (or its mixer) write together, with their bias"),
        Site("mlp", "what the MLP of a layer writes"),
        Site("head", "a head's attention result, from which what it writes follows", "head"),
        Site("q", "a head's query before rotation and normalisation", "head"),
        Site("k", "a key before rotation and normalisation, of all heads that share it", "group"),
        Site("v", "a value, of all heads that share it", "group"),
        Site("pattern", "whom a head attends to; a position is that of the query", "head"),
    )
}
"""Every site by name."""

DEFAULT_SITES = ("residual", "attention", "mlp")
_PLURALS = {"heads": "head", "mlps": "mlp", "patterns": "pattern", "attentions": "attention"}


def site_of(name: object) -> Site:
    """The site of that name, in the singular or plural.

    Raises:
        AcdcError: there is none.
    """
    known = _PLURALS.get(name, name) if isinstance(name, str) else name
    if not isinstance(known, str) or known not in SITES:
        raise unknown("site", name, SITES)
    return SITES[known]


def components(layer: Layer, site: Site) -> int:
    """How many values of a site a layer has: none of a head's where it has a mixer."""
    if not site.axis:
        return 1
    if layer.mixer is not None:
        return 0
    attention = layer.attention
    return attention.n_heads if site.name in ("head", "pattern") else len(getattr(attention, site.name).weight)


def values(model: Model, context: Context, trace: Trace, index: int, site: Site) -> Tensor:
    """The values of a site in a plain run, `[component, C, B, T, X]`.

    Args:
        context: of the whole prompts.
        index: the layer's, which has the site.
    """
    layer = model.decomposition.layers[index]
    if site.name == "residual":
        return trace.attention_input[index][None]
    if site.name == "mlp":
        return trace.mlp_output[index][None]
    if layer.mixer is not None:
        return trace.z[index]
    attention = layer.attention
    if site.name == "attention":
        return forward.attention_output(attention, trace.z[index])[None]
    q, k, v = trace.q[index], forward.per_head(attention, trace.k[index]), trace.v[index]
    if site.name == "head":
        return forward.attend(attention, q, k, forward.per_head(attention, v), context)
    if site.name == "pattern":
        return forward.attention_weights(attention, without_gate(attention, q), k, context)
    return raw(attention, site.name, trace.attention_input[index])


def raw(attention: Attention, port: str, x: Tensor) -> Tensor:
    """Raw projections of the residual stream `[C, B, P, D]`, per head or group: `[own head, C, B, P, X]`."""
    normed = x if attention.norm is None else attention.norm.module(x)
    return forward.raw_projection(attention, port, normed[None])


def without_gate(attention: Attention, q: Tensor) -> Tensor:
    """Queries without the rows of the gate behind them."""
    return q if attention.gate is None else q[..., : -attention.gate.width]


def written(attention: Attention, context: Context, trace: Trace, index: int, site: Site, given: Tensor) -> Tensor:
    """What the heads of a layer write if a site has other values in the window: `[C, B, W, D]`.

    Args:
        trace: a plain run, in which all else is as it was.
        given: the site's values, of all components, `[component, C, B, W, X]`.
    """
    start = context.start
    if site.name == "head":
        return forward.attention_output(attention, forward.scaled_by_post_norm(attention, given))
    parts = {"q": trace.q[index][..., start:, :], "k": trace.k[index], "v": trace.v[index]}
    if site.name in parts:
        new = forward.finish_projection(attention, site.name, given, context)
        parts[site.name] = new if site.name == "q" else after_earlier(parts[site.name], new, start)
    k, v = forward.per_head(attention, parts["k"]), forward.per_head(attention, parts["v"])
    weights = given if site.name == "pattern" else None
    z = forward.attend(attention, parts["q"], k, v, context, weights=weights)
    return forward.attention_output(attention, forward.scaled_by_post_norm(attention, z))


def replaced(base: Tensor, reference: Tensor, which: Tensor, masks: Tensor) -> Tensor:
    """Values in each of which one component has the reference's at some positions: `[component, C, B, W, X]`.

    Args:
        base, reference: `[component, 1, B, W, X]`.
        which: `[C]` components; masks: `[C, B, W]` positions.
    """
    own = torch.zeros(len(base), *masks.shape, dtype=torch.bool, device=masks.device)
    own[which, torch.arange(len(which), device=masks.device)] = masks
    return torch.where(own[..., None], reference, base)
