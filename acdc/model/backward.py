"""How gradients flow back: through what a model computes, or by rules that replace parts of its derivative.

The derivative at one point says little about what a large change does: a norm takes back most of what it is given, a
softmax that has made up its mind passes nothing on, and a gate counts what its two factors do together twice. RelP and
GIM keep the forward pass and replace the derivative of such parts. A `Rule` says by what; `Flow` prepares a model for
it once, and `Flow.running` gives the decomposition whose runs have these gradients.

One idea keeps this general: nearly all rules are linear maps back, so none needs to know how a module is written. A
norm with a frozen scale gives back g · gain / σ (centred where it centres). Two factors that are both linear in the
MLP's input and each get half of a product's gradient are the MLP's input getting half of its gradient.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from acdc.errors import UnsupportedModelError
from acdc.model.architecture import Attention, Decomposition, HeadNorm, Layer, Norm, PatternRule
from acdc.model.gradients import FrozenScale, Line, Scaled
from acdc.model.model import Model
from acdc.model.reading.matching import read_norm


@dataclasses.dataclass(frozen=True)
class Rule:
    """How gradients flow back; the default is the derivative.

    Attributes:
        name: for messages.
        frozen_norms: the scale of a norm is a constant.
        identity: an activation is taken for the line from 0 through its value, f(x) / x · x with a constant slope.
        gates: what each factor of a gated MLP's product gets of the product's gradient; 1 is the derivative.
        pattern: the attention pattern.
    """

    name: str = "plain"
    frozen_norms: bool = False
    identity: bool = False
    gates: float = 1.0
    pattern: PatternRule | None = None

    @property
    def plain(self) -> bool:
        """Whether it is the derivative."""
        return self == Rule(self.name)


class FrozenNorm(Norm):
    """A norm whose scale is a constant to gradients, where only the scale is asked for."""

    def inverse_scale(self, x: Tensor) -> Tensor:
        return super().inverse_scale(x).detach()


def _frozen(norm: Norm | None) -> Norm | None:
    return None if norm is None else FrozenNorm(norm.module, norm.centred, norm.plus_one, norm.epsilon)


class Flow:
    """A model prepared for a rule.

    Attributes:
        gated: whether some MLP has a gate, looked for where the rule is not the derivative.

    Raises:
        UnsupportedModelError: the rule is not defined for a part of the model; says which.
    """

    def __init__(self, model: Model, rule: Rule) -> None:
        self.rule, self._plain = rule, model.decomposition
        self._norms: dict[nn.Module, Norm | None] = {}
        self._activations: list[nn.Module] = []
        self.gated = False
        if rule.plain:
            return
        for index, layer in enumerate(self._plain.layers):
            _refuse(layer, index, rule)
        modules = list(dict.fromkeys([*model.module.modules(), *_of_mlps(self._plain)]))
        if rule.frozen_norms:
            known = {norm.module: norm for norm in _records(self._plain) if isinstance(norm.module, nn.Module)}
            self._norms = {
                part: known[part] if part in known else _read(part) for part in modules if _is_norm(part)
            }
            self._norms |= known
        activations = [part for part in modules if _is_activation(part)]
        gated = [_gated(layer, index, activations, rule) for index, layer in enumerate(self._plain.layers)]
        if rule.identity:
            self._activations = activations
        self.gated = any(gated)
        layers = [
            self._layer(layer, halved=has_gate) for layer, has_gate in zip(self._plain.layers, gated, strict=True)
        ]
        self._changed = dataclasses.replace(self._plain, layers=tuple(layers))

    @contextlib.contextmanager
    def running(self) -> Iterator[Decomposition]:
        """The decomposition to run meanwhile."""
        if self.rule.plain:
            yield self._plain
            return
        handles = [part.register_forward_hook(self._through_norm) for part in self._norms]
        handles += [part.register_forward_hook(_through_activation) for part in self._activations]
        try:
            yield self._changed
        finally:
            for handle in handles:
                handle.remove()

    def _through_norm(self, part: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        norm = self._norms[part]
        if norm is None:
            raise UnsupportedModelError(
                f"backward={self.rule.name!r} freezes the scale of norms, and {type(part).__name__} is neither a "
                "LayerNorm nor an RMSNorm; use backward='plain'"
            )
        if not torch.is_grad_enabled():  # nothing flows back
            return out
        found: Tensor = FrozenScale.apply(args[0], out, norm)
        return found

    def _layer(self, layer: Layer, *, halved: bool) -> Layer:
        rule, mlp = self.rule, layer.mlp
        attention = layer.attention
        changed: dict[str, Any] = {"pattern": rule.pattern}
        if rule.frozen_norms:
            changed |= {"z_norm": _frozen(attention.z_norm), "post_norm": _frozen(attention.post_norm)}
            for port in "qk":
                projection = getattr(attention, port)
                if isinstance(projection.norm, HeadNorm):
                    norm = _frozen(projection.norm.norm)
                    assert norm is not None
                    changed[port] = dataclasses.replace(projection, norm=HeadNorm(norm))
        replaced: Attention = dataclasses.replace(attention, **changed)
        if not halved or rule.gates == 1.0:
            return dataclasses.replace(layer, mixes=replaced)

        def run(x: Tensor) -> Tensor:
            return mlp(Scaled.apply(x, rule.gates))

        return dataclasses.replace(layer, mixes=replaced, mlp=run)


def _through_activation(part: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return out
    found: Tensor = Line.apply(args[0], out)
    return found


def _refuse(layer: Layer, index: int, rule: Rule) -> None:
    """Refuse parts that the rule says nothing of."""
    if layer.mixer is not None:
        raise _undefined(rule, index, "mixes positions without attention")
    if layer.attention.gate is not None:
        raise _undefined(rule, index, "has a gate on what its heads attended to")
    mlp = layer.parts.mlp
    words = {type(part).__name__.lower() for part in mlp.modules()} | {name for name, _ in mlp.named_modules()}
    if any(word in name for name in words for word in ("expert", "router", "moe")):
        raise _undefined(rule, index, "routes tokens to experts")


def _undefined(rule: Rule, index: int, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"backward={rule.name!r} is not defined for this model: layer {index} {what}; use backward='plain'"
    )


def _of_mlps(model: Decomposition) -> Iterator[nn.Module]:
    for layer in model.layers:
        if isinstance(layer.mlp, nn.Module):
            yield from layer.mlp.modules()


def _records(model: Decomposition) -> Iterator[Norm]:
    """The norms that are known."""
    norms = [model.final_norm]
    for layer in model.layers:
        norms += [layer.mlp_norm, layer.attention.norm]
    yield from (norm for norm in norms if norm is not None)


def _is_norm(part: nn.Module) -> bool:
    weight = getattr(part, "weight", None)
    named = "norm" in type(part).__name__.lower() and not list(part.children())
    return named and isinstance(weight, Tensor) and weight.dim() == 1


def _read(part: nn.Module) -> Norm | None:
    weight = part.weight
    assert isinstance(weight, Tensor)
    try:
        return read_norm(part, weight.shape[0], weight)
    except Exception:  # it is none, or reads images; if the prompts run it after all, the hook refuses
        return None


@torch.no_grad()
def _is_activation(part: nn.Module) -> bool:
    """Whether a module is a function of each number alone that is 0 at 0."""
    if type(part).__module__ not in ("torch.nn.modules.activation", "transformers.activations"):
        return False
    if list(part.parameters()) or isinstance(part, nn.MultiheadAttention):
        return False
    try:
        return not bool(part(torch.zeros(2, 2)).any())
    except Exception:
        return False


class _Products(torch.overrides.TorchFunctionMode):
    """Notes what matrices are given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: set[int] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in ("linear", "addmm", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "einsum"):
            self.given |= {x.data_ptr() for x in args if isinstance(x, Tensor)}
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def _gated(layer: Layer, index: int, activations: list[nn.Module], rule: Rule) -> bool:
    """Whether what an MLP's activation gives is multiplied before the next matrix, told by a run of one token.

    Raises:
        UnsupportedModelError: its activation could not be seen, or some of it is gated and some is not.
    """
    given: list[Tensor] = []
    handles = [part.register_forward_hook(lambda _, args, out: given.append(out)) for part in activations]
    weight = layer.attention.w_o
    x = torch.linspace(-1, 1, weight.shape[-1], device=weight.device).to(weight.dtype)
    try:
        with _Products() as products:
            layer.mlp(x.expand(1, 1, 1, -1))
    finally:
        for handle in handles:
            handle.remove()
    kinds = {out.data_ptr() not in products.given for out in given}
    if not kinds:
        raise _undefined(rule, index, "has an MLP whose activation is not a module of its own")
    if len(kinds) > 1:
        raise _undefined(rule, index, "has an MLP of which a part is gated and a part is not")
    return kinds.pop()
