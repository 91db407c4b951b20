"""Rules of how gradients flow back, against autograd through the plain `transformers` module with parts detached."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

import families
import oracle
import problems
from acdc.engine.measure import bind
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.errors import AcdcError, UnsupportedModelError
from acdc.graph import FloatArray
from acdc.methods import METHODS
from acdc.methods.ways_back import rule_of
from acdc.metrics import OUTCOMES
from acdc.model.backward import Flow, Rule

FAMILIES = ["gpt2", "llama", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "gpt-neox-parallel"]
SHARES: dict[str, float] = {}
"""What the attention function below is told: temperature, query and key share, value share."""


def kept_share(x: Tensor, share: float) -> Tensor:
    return share * x + ((1 - share) * x).detach()


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float,
    softcap: float | None = None, **unused: object,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention that changes gradients by adding and subtracting what is detached."""
    H, T = query.shape[1:3]
    if attention_mask is None:
        attention_mask = torch.ones(T, T, dtype=torch.bool)[None, None].tril()
    key, value = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (key, value))
    query, key = (kept_share(x, SHARES["qk"]) for x in (query, key))
    value = kept_share(value, SHARES["v"])
    scores = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~(attention_mask | torch.eye(T, dtype=torch.bool)), torch.finfo(scores.dtype).min)
    t = SHARES["t"]
    soft = t * (scores / t).softmax(-1)  # its derivative is the Jacobian at temperature t, not divided by t
    weights = scores.softmax(-1).detach() + soft - soft.detach()
    return (weights @ value).transpose(1, 2).contiguous(), None


transformers.AttentionInterface.register("ruled", attention)
transformers.AttentionMaskInterface.register("ruled", transformers.masking_utils.sdpa_mask)


def detached_norm(norm: Any) -> Callable[[Tensor], Tensor]:
    name = type(norm).__name__
    eps = next(getattr(norm, key) for key in ("variance_epsilon", "eps") if hasattr(norm, key))

    def forward(x: Tensor) -> Tensor:
        if name == "LayerNorm":
            centre = x - x.mean(-1, keepdim=True)
            return (
                centre * (centre.square().mean(-1, keepdim=True) + eps).rsqrt().detach() * norm.weight + norm.bias
            )
        gain = 1 + norm.weight if "Gemma" in name else norm.weight
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt().detach() * gain

    return forward


class Line(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.act(x) / x).detach()


def ruled(family: str, *, identity: bool, gates: float, t: float, qk: float, v: float) -> Any:
    module: Any = families.module(family, dtype=torch.float64)
    module.set_attn_implementation("ruled")
    SHARES.update(t=t, qk=qk, v=v)
    for part in list(module.modules()):
        if type(part).__name__.endswith("Norm"):
            part.forward = detached_norm(part)
        for name in ("act", "act_fn", "activation_fn"):
            if identity and hasattr(part, name) and isinstance(getattr(part, name), nn.Module):
                setattr(part, name, Line(getattr(part, name)))
        if hasattr(part, "down_proj"):
            part.down_proj.register_forward_pre_hook(lambda _, args: (kept_share(args[0], gates),))
    return module


def middle_of(kind: str, block: Any) -> nn.Module:
    """What reads the stream after attention first."""
    if kind == "gpt2":
        found = block.ln_2
    elif kind == "olmo2":
        found = block.mlp
    elif kind.startswith("gemma"):
        found = block.pre_feedforward_layernorm
    else:
        found = block.post_attention_layernorm
    return found  # type: ignore[no-any-return]


def node_scores(family: str, patching: Patching, **rule: Any) -> FloatArray:
    """Σ (R[s] − A[s]) · gradient at what s writes, by hooks on the plain module: `[n_sources]`."""
    graph, prompts = patching.graph, patching.prompts
    plain = families.module(family, dtype=torch.float64)
    clean = oracle.source_outputs(plain, graph, prompts.clean, prompts.mask)
    corrupted = oracle.source_outputs(plain, graph, prompts.corrupted, prompts.mask)
    module = ruled(family, **rule)
    kind, streams = module.config.model_type, dict[str, Tensor]()
    blocks = oracle._blocks(kind, module)

    def keep(name: str, part: nn.Module) -> None:
        def hook(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            streams[name] = args[0] if args else kwargs["hidden_states"]
            streams[name].retain_grad()

        part.register_forward_pre_hook(hook, with_kwargs=True)

    for index, block in enumerate(blocks):
        keep(f"in{index}", block)
        keep(f"mid{index}", middle_of(kind, block))
    keep(f"in{len(blocks)}", oracle._final_norm(kind, module))
    embed = module.get_input_embeddings()
    embed.register_forward_hook(lambda _, args, out: out.requires_grad_())
    positions = (prompts.mask.long().cumsum(-1) - 1).clamp(min=0)
    logits = module(
        input_ids=prompts.clean, attention_mask=prompts.mask.long(), position_ids=positions, use_cache=False
    ).logits
    read = logits[torch.arange(len(logits))[:, None], prompts.positions]
    measure = bind(OUTCOMES["logit-difference"], patching)
    measure.value(read[None][..., measure.rows]).sum().backward()
    found = []
    for source in graph.sources:
        if source == "input":
            after = "in0"
        else:
            layer = int(source[1:].split(".")[0])
            heads_before_mlp = source[0] == "a" and not graph.parallel
            after = f"mid{layer}" if heads_before_mlp else f"in{layer + 1}"
        gradient = streams[after].grad
        assert gradient is not None
        found.append(float(((corrupted[source] - clean[source]) * gradient).sum()))
    return np.array(found)


def by_node(name: str, family: str, **options: Any) -> FloatArray:
    model = problems.tiny(family)
    prompts = problems.make_prompts(padding="both")
    score = METHODS[name].score
    assert score is not None
    problem = Problem(model, model.graph(), prompts, OUTCOMES["logit-difference"], unit="node")
    return -score(problem, **options).values * len(prompts)  # as a change of the metric, summed


@pytest.mark.parametrize("family", FAMILIES)
def test_relp_is_autograd_with_detached_norms_lines_for_activations_and_halved_gates(family: str) -> None:
    patching, _ = problems.make(family, padding="both")
    expected = node_scores(family, patching, identity=True, gates=0.5, t=1.0, qk=1.0, v=1.0)
    np.testing.assert_allclose(by_node("relp", family), expected, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_gim_is_autograd_with_detached_norms_a_warm_softmax_and_shared_products(family: str) -> None:
    patching, _ = problems.make(family, padding="both")
    expected = node_scores(family, patching, identity=False, gates=0.5, t=2.0, qk=0.25, v=0.5)
    np.testing.assert_allclose(by_node("gim", family), expected, atol=1e-9 * np.abs(expected).max())


def test_gim_without_gates_and_at_another_temperature() -> None:
    patching, _ = problems.make("llama", padding="both")
    expected = node_scores("llama", patching, identity=False, gates=1.0, t=3.0, qk=0.25, v=0.5)
    found = by_node("gim", "llama", gates=False, temperature=3.0)
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


def test_a_frozen_pattern_lets_nothing_flow_to_queries_and_keys() -> None:
    model, prompts = problems.tiny("llama"), problems.make_prompts()
    score = METHODS["relp"].score
    assert score is not None
    problem = Problem(model, model.graph(), prompts, OUTCOMES["logit-difference"])
    found = score(problem, frozen_attention=True).values
    for name, row in zip(model.graph().destinations, found, strict=True):
        assert bool(np.any(row)) is not name.endswith(("<q>", "<k>"))


@pytest.mark.parametrize("name", ["relp", "gim"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_edges_score_is_that_of_its_own_port(name: str, family: str) -> None:
    """The scores of one destination add up to the derivative in a change of what it alone reads, by the rules."""
    patching, measure = problems.make(family, padding="both")
    model, graph = patching.model, patching.graph
    problem = Problem(model, graph, patching.prompts, OUTCOMES["logit-difference"])
    score = METHODS[name].score
    assert score is not None
    found = -score(problem).values * len(patching.prompts)
    flow = Flow(model, rule_of(name))
    weights = torch.from_numpy(graph.valid).double().requires_grad_()
    with model.frozen(), flow.running() as changed:
        other = dataclasses.replace(model, decomposition=changed)
        ruled_patching = Patching(other, graph, patching.prompts)
        value = measure.value(ruled_patching.logits(weights, rows=measure.rows)).sum()
        (gradient,) = torch.autograd.grad(value, weights)
    expected = np.where(graph.valid, -gradient.numpy(), 0.0)
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("method", ["eap-ig", "eap-ig-activations", "clean-corrupted", "eap-gp", "conductance"])
def test_each_place_takes_each_way_back(method: str) -> None:
    ways = [by_node(method, "llama", backward=backward) for backward in ("plain", "relp", "gim")]
    assert all(np.abs(a - b).max() > 1e-3 * np.abs(a).max() for a, b in itertools.pairwise(ways))


def test_nothing_stays_behind_on_the_model() -> None:
    model = problems.tiny("gemma2")
    by_node("relp", "gemma2")
    assert not any(part._forward_hooks for part in model.module.modules())


def test_gates_of_a_model_that_has_none_are_refused() -> None:
    with pytest.raises(AcdcError, match="has none"):
        by_node("gim", "gpt2", gates=True)


def test_what_a_rule_does_not_say_is_refused_by_name() -> None:
    model = problems.tiny("llama")
    layer = model.decomposition.layers[0]
    odd = dataclasses.replace(layer, mlp=lambda x: torch.relu(x))
    changed = dataclasses.replace(model.decomposition, layers=(odd, *model.decomposition.layers[1:]))
    with pytest.raises(UnsupportedModelError, match="layer 0 has an MLP whose activation"):
        Flow(dataclasses.replace(model, decomposition=changed), rule_of("relp"))
    with pytest.raises(AcdcError, match="backward"):
        rule_of("lrp")
    assert Rule().plain
