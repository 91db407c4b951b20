"""The decomposed forward is the plain model's own: logits, gradients and every part, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import families
from acdc.model import forward
from acdc.model.model import Model
from acdc.model.trace import whole_run

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference, as a share of the largest logit."""


def batch(padding: str) -> tuple[Tensor, Tensor]:
    """Token ids and mask `[3, 9]` of unequal lengths; longer than any window."""
    token_ids = torch.randint(families.VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 9, dtype=torch.bool)
    if padding in ("right", "both"):
        mask[0, 6:] = False
    if padding in ("left", "both"):
        mask[1, :4] = False
    return token_ids, mask


def relative_error(ours: Tensor, theirs: Tensor, mask: Tensor) -> float:
    return float((ours - theirs).abs()[mask].max() / theirs.abs()[mask].max())


def embedded(model: Model, token_ids: Tensor, mask: Tensor) -> tuple[forward.Context, Tensor]:
    """A context that reads everywhere, and the embedding `[1, B, T, D]`."""
    everywhere = torch.arange(token_ids.shape[1]).expand_as(token_ids)
    context = forward.make_context(model.decomposition, token_ids, mask, None, read=everywhere)
    return context, torch.stack(forward.embed(model.decomposition, context)).sum(0)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("padding", ["none", "left", "right", "both"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_logits_are_the_plain_models(family: str, padding: str, dtype: torch.dtype) -> None:
    model = families.tiny(family, dtype)
    token_ids, mask = batch(padding)
    with torch.no_grad():
        ours, theirs = model.decomposed_logits(token_ids, mask), model.plain_logits(token_ids, mask)
    assert (ours.dtype, theirs.dtype) == (torch.promote_types(dtype, torch.float32), dtype)  # read out in float32
    assert relative_error(ours, theirs, mask) < BOUNDS[dtype]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_either_attention_implementation_agrees(family: str, implementation: str) -> None:
    if (family, implementation) == ("gemma2", "sdpa"):
        pytest.skip("transformers has no soft cap in sdpa")
    model = families.tiny(family)
    model.module.set_attn_implementation(implementation)
    token_ids, mask = batch("both")
    with torch.no_grad():
        ours, theirs = model.decomposed_logits(token_ids, mask), model.plain_logits(token_ids, mask)
    assert relative_error(ours, theirs, mask) < BOUNDS[torch.float32]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_explicit_position_ids_are_used(family: str) -> None:
    model = families.tiny(family, torch.float64)
    token_ids, mask = batch("none")
    position_ids = torch.tensor([0, 2, 3, 5, 6, 7, 11, 12, 20]).expand_as(token_ids)
    with torch.no_grad():
        ours = model.decomposed_logits(token_ids, mask, position_ids)
        theirs = model.plain_logits(token_ids, mask, position_ids)
        counted = model.plain_logits(token_ids, mask)
    assert relative_error(ours, theirs, mask) < BOUNDS[torch.float64]
    assert relative_error(counted, theirs, mask) > 1e-3


@pytest.mark.parametrize("family", families.FAMILIES)
def test_padding_and_batching_change_no_real_position(family: str) -> None:
    model = families.tiny(family, torch.float64)
    token_ids, mask = batch("both")
    with torch.no_grad():
        together = model.decomposed_logits(token_ids, mask)
        for i in range(3):
            real = token_ids[i, mask[i]][None]
            alone = model.decomposed_logits(real, torch.ones_like(real, dtype=torch.bool))
            assert (
                relative_error(together[i, mask[i]][None], alone, torch.ones_like(real, dtype=torch.bool)) < 1e-12
            )


@pytest.mark.parametrize("family", families.FAMILIES)
def test_gradients_are_the_plain_models(family: str) -> None:
    model = families.tiny(family, torch.float64)
    token_ids, mask = batch("both")
    target = torch.randn(3, 9, families.VOCABULARY, generator=torch.Generator().manual_seed(1)).double()
    target = target * mask[..., None]
    embedding = model.decomposition.token_embedding(token_ids).detach()

    theirs = embedding.clone().requires_grad_()
    module: Any = model.module
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    logits = module(
        inputs_embeds=theirs, attention_mask=mask.long(), position_ids=positions, use_cache=False
    ).logits
    (logits * target).sum().backward()

    ours = embedding.clone().requires_grad_()
    context, full = embedded(model, token_ids, mask)
    rest = (full - embedding).detach()  # position embeddings, where the family has them
    final = whole_run(model.decomposition, context, ours[None] + rest).final_input
    assert final is not None
    (forward.readout(model.decomposition, final[0]) * target).sum().backward()

    assert ours.grad is not None
    assert theirs.grad is not None
    assert relative_error(ours.grad, theirs.grad, mask) < 1e-11


@pytest.mark.parametrize("family", families.FAMILIES)
def test_heads_and_bias_sum_to_the_attention_output(family: str) -> None:
    model = families.tiny(family, torch.float64)
    token_ids, mask = batch("both")
    seen: list[Tensor] = []  # the plain module's attention outputs, post-norm included
    module: Any = model.module
    base = module.base_model
    for block in base.h if hasattr(base, "h") else base.layers:
        attention = next(
            getattr(block, name) for name in ("attn", "attention", "self_attn") if hasattr(block, name)
        )
        last = block.post_attention_layernorm if family in ("gemma2", "gemma3", "olmo2") else attention
        last.register_forward_hook(
            lambda _, args, out: seen.append(out[0] if isinstance(out, tuple) else out)  # type: ignore[func-returns-value]
        )
    with torch.no_grad():
        model.plain_logits(token_ids, mask)
        context, x = embedded(model, token_ids, mask)
        trace = whole_run(model.decomposition, context, x)
        for layer, z, theirs in zip(model.decomposition.layers, trace.z, seen, strict=True):
            heads = forward.write(layer.attention, z)  # [H, 1, B, T, D]
            bias = 0 if layer.attention.b_o is None else layer.attention.b_o
            assert relative_error(heads.sum(0)[0] + bias, theirs, mask) < 1e-12
            some = forward.write(layer.attention, z[1:2], heads=[1])
            assert torch.allclose(some, heads[1:2], rtol=0, atol=1e-12)
            assert relative_error(forward.attention_output(layer.attention, z)[0], theirs, mask) < 1e-12


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2"])
def test_the_scale_of_a_post_norm_copies_no_weights(family: str) -> None:
    """What gradients keep of every layer would have the heads' output weights in it, as much as the model itself."""
    model = families.tiny(family, torch.float32)
    attention = model.decomposition.layers[0].attention
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    z = torch.randn(attention.n_heads, 1, 3, 9, attention.w_o.shape[1], dtype=model.dtype).requires_grad_()
    with model.frozen(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        forward.scaled_by_post_norm(attention, z)
    weights = [x for x in kept if x.numel() == attention.w_o.numel()]
    assert weights
    assert {x.untyped_storage().data_ptr() for x in weights} == {attention.w_o.untyped_storage().data_ptr()}


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_facts_about_each_norm_reproduce_it(family: str) -> None:
    """gain and 1/σ, which closed-form gradients rely on, give the module's own output (up to its bias)."""
    model = families.tiny(family, torch.float64)
    layers = model.decomposition.layers
    norms = [model.decomposition.final_norm]
    norms += [
        norm for layer in layers for norm in (layer.attention.norm, layer.attention.post_norm, layer.mlp_norm)
    ]
    x = torch.randn(5, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for norm in norms:
        if norm is None:
            continue
        centred = x - x.mean(-1, keepdim=True) if norm.centred else x
        bias = getattr(norm.module, "bias", None)
        expected = centred * norm.inverse_scale(x) * norm.gain + (0 if bias is None else bias)
        torch.testing.assert_close(norm.module(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_separate_inputs_for_each_head_are_the_shared_one(family: str) -> None:
    """A projection of `[H, ...]` equal inputs, all heads or some, is that of the one input they share."""
    model = families.tiny(family, torch.float64)
    token_ids, mask = batch("both")
    with torch.no_grad():
        context, x = embedded(model, token_ids, mask)
        attention = model.decomposition.layers[0].attention
        for port in "qkv":
            shared = forward.per_head(attention, forward.project(attention, port, x[None], context))
            copies = x[None].expand(model.n_heads, *x.shape)
            own = forward.project(attention, port, copies, context)
            torch.testing.assert_close(own, shared, rtol=0, atol=1e-12)
            if not getattr(attention, port).norm_across_heads:
                some = forward.project(attention, port, copies[:2], context, heads=[0, model.n_heads - 1])
                torch.testing.assert_close(some, shared[[0, -1]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_rows_are_a_part_of_the_logits(family: str) -> None:
    model = families.tiny(family, torch.float64)
    x = torch.randn(2, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rows = torch.tensor([30, 2, 7])
    with torch.no_grad():
        full = forward.readout(model.decomposition, x)
        torch.testing.assert_close(forward.readout(model.decomposition, x, rows), full[:, rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["mistral", "qwen2-sliding", "gemma2", "gemma3", "phi3"])
def test_a_window_hides_what_lies_before_it(family: str) -> None:
    """The window matters: without it the first layer's attention results differ."""
    model = families.tiny(family, torch.float64)
    windows = [layer.attention.window for layer in model.decomposition.layers]
    assert any(windows)
    assert all(windows) == (family in ("mistral", "phi3"))
