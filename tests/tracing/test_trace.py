"""Causal tracing equals a loop of hooks on the plain module, cell by cell, and its first order is the derivative."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest
import torch

import acdc
from acdc.errors import AcdcError
from acdc.tracing import SITES, trace
from hook_loop import logit_difference, point, run
from problems import make_prompts, tiny

tracing = importlib.import_module("acdc.tracing.trace")  # the module that the function is in
FAMILIES = ("gpt2", "gpt-neox-parallel", "llama", "gemma2", "qwen3", "olmo2")


def pair(family: str) -> tuple[Any, acdc.Model]:
    """The plain module in float64, and the model around it."""
    model = tiny(family)
    return model.module, model


def masks(prompts: acdc.Prompts) -> list[torch.Tensor]:
    """Single positions, counted from the end where lengths differ."""
    numbers = prompts.mask.long().cumsum(1) - 1
    lengths = prompts.mask.sum(1, keepdim=True)
    longest = int(lengths.max())
    if not bool((lengths == longest).all()):
        numbers = numbers - lengths + longest
    return [prompts.mask & (numbers == i) for i in range(longest)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_every_cell_is_that_of_a_hook_loop(family: str, direction: str) -> None:
    module, model = pair(family)
    padding = {"gpt2": "both", "llama": "left"}.get(family, "none")
    prompts = make_prompts(padding=padding, shared=2, reads=2, size=3)
    names = [site for site in SITES if site != "pattern"]
    found = trace(model, prompts, sites=names, direction=direction, batch_size=2)
    own, other = (prompts, prompts.swapped()) if direction == "noise" else (prompts.swapped(), prompts)
    base = logit_difference(run(module, own)[0], prompts)
    for site in names:
        effects = found[site].effects
        effects = effects if effects.ndim == 4 else effects[:, None]
        for layer, component, place in np.ndindex(effects.shape[:-1]):
            at, mask = point(module, site, layer, component), masks(prompts)[place]
            new = run(module, other, at)[1]
            expected = logit_difference(run(module, own, at, new, mask)[0], prompts) - base
            expected[~mask.any(1)] = torch.nan
            np.testing.assert_allclose(effects[layer, component, place], expected, atol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_patterns_are_those_of_the_other_prompt(family: str) -> None:
    module, model = pair(family)
    prompts = make_prompts()
    found = trace(model, prompts, sites=["pattern"], by="all")["pattern"].effects  # [layer, head, prompt]
    module.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            theirs = module(input_ids=prompts.corrupted, use_cache=False, output_attentions=True).attentions
    finally:
        module.set_attn_implementation("sdpa")
    H, n_kv = model.n_heads, model.n_kv_heads
    base = logit_difference(run(module, prompts)[0], prompts)
    for layer, head in np.ndindex(found.shape[:-1]):
        v = run(module, prompts, point(module, "v", layer, head // (H // n_kv)))[1]
        z = theirs[layer][:, head] @ v
        changed = run(module, prompts, point(module, "head", layer, head), z, prompts.mask)[0]
        expected = logit_difference(changed, prompts) - base
        np.testing.assert_allclose(found[layer, head], expected, atol=2e-6)  # theirs are rounded to float32


@pytest.mark.parametrize("ablation", ["zero", "mean", "mean-position"])
def test_zeros_and_means_are_those_of_a_hook_loop(ablation: str) -> None:
    module, model = pair("llama")
    prompts = make_prompts(padding="left")
    names = [site for site in SITES if site != "pattern"]
    found = trace(model, prompts, sites=names, ablation=ablation, by="all", batch_size=2)
    base = logit_difference(run(module, prompts)[0], prompts)
    for site in names:
        effects = found[site].effects
        effects = effects if effects.ndim == 3 else effects[:, None]
        for layer, component in np.ndindex(effects.shape[:-1]):
            at = point(module, site, layer, component)
            value = run(module, prompts, at)[1]
            new = torch.zeros_like(value)
            if ablation == "mean":
                new = value[prompts.mask].mean(0).expand_as(value)
            if ablation == "mean-position":
                for b, mask in enumerate(prompts.mask):
                    for i, t in enumerate(mask.nonzero().flatten().tolist()):
                        same = [
                            x[own.nonzero().flatten()[i]]
                            for x, own in zip(value, prompts.mask, strict=True)
                            if i < own.sum()
                        ]
                        new[b, t] = torch.stack(same).mean(0)
            expected = logit_difference(run(module, prompts, at, new, prompts.mask)[0], prompts) - base
            np.testing.assert_allclose(effects[layer, component], expected, atol=1e-9)
        assert found[site].share is None


def several_tokens(padding: str = "right") -> acdc.Prompts:
    """Prompts of unequal length, with right and wrong answers of up to three tokens."""
    return acdc.Prompts.from_continuations(
        [[5, 3, 9, 2], [7, 8, 2, 3, 1, 6], [4, 1, 6]],
        [[5, 4, 9, 2], [7, 8, 1, 3, 1, 6], [4, 2, 6]],
        [[[1, 2, 3]], [[1, 2]], [[3, 9, 8]]],
        [[[5]], [[6, 4, 2]], [[2, 7]]],
        padding=padding,
    )


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("ablation", ["mean", "mean-position"])
def test_tokens_of_answers_are_in_no_mean(ablation: str, padding: str) -> None:
    """Removing what an MLP writes everywhere is replacing it at all positions: by one and the same mean."""
    model, prompts = tiny("gpt2"), several_tokens(padding)
    metric = "log-probability-difference"
    found = trace(model, prompts, sites=["mlp"], by="all", ablation=ablation, metric=metric, batch_size=2)["mlp"]
    for layer, effects in enumerate(found.effects):
        removed = acdc.ablate(model, prompts, [f"m{layer}"], ablation=ablation, metric=metric)
        assert effects.mean() == pytest.approx(removed.effect, abs=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "gpt-neox-parallel", "llama", "gemma2"])
def test_first_order_is_the_derivative_of_a_small_replacement(family: str) -> None:
    module, model = pair(family)
    prompts = make_prompts(padding="right", reads=2)
    names = [site for site in SITES if site != "pattern"]
    found = trace(model, prompts, sites=names, method="first-order", batch_size=2)
    step = 1e-5
    for site in names:
        effects = found[site].effects
        effects = effects if effects.ndim == 4 else effects[:, None]
        for layer, place in ((0, 3), (1, 2), (1, len(masks(prompts)) - 1)):
            at, mask = point(module, site, layer, 0), masks(prompts)[place]
            value, other = (run(module, x, at)[1] for x in (prompts, prompts.swapped()))
            more, less = (
                logit_difference(run(module, prompts, at, value + sign * step * (other - value), mask)[0], prompts)
                for sign in (1, -1)
            )
            expected = (more - less) / (2 * step)
            expected[~mask.any(1)] = torch.nan
            np.testing.assert_allclose(effects[layer, 0, place], expected, rtol=1e-5, atol=1e-8)


def test_first_order_of_patterns_sums_to_that_of_the_values_they_weigh() -> None:
    """z = pattern · v is linear in the pattern, so its first-order effect is that of z if the pattern alone changes."""
    model = tiny("gpt2")
    prompts = make_prompts()
    found = trace(model, prompts, sites=["pattern", "q", "k"], method="first-order")
    exact = trace(model, prompts, sites=["pattern"])
    agreement = found["pattern"].effect.ravel(), exact["pattern"].effect.ravel()
    assert np.corrcoef(agreement)[0, 1] > 0.9
    assert not np.allclose(found["pattern"].effects, 0)


def test_less_memory_means_more_batches_and_the_same_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    prompts = make_prompts(size=6)
    names = ["residual", "head", "k", "pattern"]
    whole = trace(model, prompts, sites=names)
    batches: list[int] = []
    made = tracing.Patching

    def noted(model: Any, graph: Any, some: acdc.Prompts, **options: Any) -> Any:
        batches.append(len(some))
        return made(model, graph, some, **options)

    monkeypatch.setattr(tracing, "Patching", noted)
    monkeypatch.setattr(tracing, "available", lambda _: 1e5)
    some = trace(model, prompts, sites=names)
    assert len(batches) > 1
    for a, b in zip(whole.maps, some.maps, strict=True):
        np.testing.assert_allclose(a.effects, b.effects, atol=1e-9)


def test_all_positions_together_and_shares() -> None:
    model = tiny("gpt2")
    prompts = make_prompts()
    whole = trace(model, prompts, sites=["residual"], by="all")["residual"]
    assert whole.axes == ("layer",)
    np.testing.assert_allclose(whole.effects[0], whole.separation, atol=1e-12)  # the embedding is all there is
    assert whole.share is not None
    assert whole.share[0] == pytest.approx(1)
    restored = trace(model, prompts, sites=["residual"], by="all", direction="denoise")["residual"]
    assert restored.share is not None
    assert restored.share[0] == pytest.approx(1)


def test_spans_are_places(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny("gpt2")
    prompts = make_prompts(shared=0)
    where = torch.zeros_like(prompts.mask)
    first, second = where.clone(), where.clone()
    first[:, 1:3] = True
    second[torch.arange(3), torch.tensor([4, 5, 4])] = True
    named = dataclasses.replace(prompts, spans={"late": second, "early": first})
    found = trace(model, named, sites=["mlp"], by="span")["mlp"]
    assert found.axes == ("layer", "span")
    assert found.labels[1] == ("early", "late", "rest")
    single = trace(model, prompts, sites=["mlp"])["mlp"].effects  # [layer, position, prompt]
    np.testing.assert_allclose(found.effects[:, 1, 0], single[:, 4, 0], atol=1e-12)
    np.testing.assert_allclose(found.effects[:, 1, 1], single[:, 5, 1], atol=1e-12)
    some = trace(model, named, sites=["mlp"], by="span", spans=["late"])["mlp"]
    assert some.labels[1] == ("late",)
    np.testing.assert_array_equal(some.effects[:, 0], found.effects[:, 1])


def test_compiled_programs_that_see_what_follows_are_traced_whole() -> None:
    model = acdc.load("tracr-reverse")
    words = torch.tensor([[1, 2, 3], [2, 2, 1], [3, 1, 2]])
    start = torch.zeros(3, 1, dtype=torch.int64)
    clean, corrupted = (torch.cat((start, rows), 1) for rows in (words, words.roll(1, 0)))
    whole = torch.arange(4).expand(3, -1)
    prompts = acdc.Prompts(clean, corrupted, torch.ones(3, 4, dtype=torch.bool), whole)
    found = trace(model, prompts, sites=["residual"], metric="l2")["residual"]
    reads = (
        found.effects[0] != 0
    )  # [position, prompt]: the embedding, as it is read by later and by earlier positions
    assert (reads == (clean != corrupted).numpy().T).all()
    uneven = acdc.tasks.load("tracr-reverse", size=8)
    with pytest.raises(AcdcError, match="padded at different positions"):
        trace(model, uneven)


def test_records_have_a_row_for_each_cell() -> None:
    model = tiny("llama")
    found = trace(model, make_prompts(padding="left"), sites=["mlp", "k"])
    rows = found.rows()
    assert rows[0].keys() == {"site", "layer", "position", "effect", "low", "high", "share"}
    assert len(rows) == 2 * 6 + 2 * 2 * 6
    assert rows[-1]["group"] == "g1"
    assert rows[0]["position"].startswith("-6")
    assert found["mlp"].at(layer=1, position=-1) == pytest.approx(np.nanmean(found["mlp"].effects[1, -1]))
    pandas = pytest.importorskip("pandas")
    frame = found.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["effect"].tolist() == [row["effect"] for row in rows]
    assert found.agreement(found)["k"] == pytest.approx((1, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": ["heds"]}, "unknown site 'heds': did you mean head"),
        ({"sites": []}, "at least one site"),
        ({"by": "token"}, "unknown kind of place 'token'"),
        ({"by": "span"}, "name no spans"),
        ({"spans": ["IO"]}, "places are by position"),
        ({"direction": "up"}, "unknown direction 'up'"),
        ({"method": "fast"}, "unknown method of tracing 'fast'"),
        ({"direction": "denoise", "ablation": "zero"}, "takes no zero values"),
        ({"sites": ["pattern"], "ablation": "mean"}, r"mean attention pattern .* use mean-position, or zero"),
        ({"method": "first-order", "metric": "kl"}, "gradient of 'kl' is zero in the clean run"),
    ],
)
def test_what_cannot_be_traced_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AcdcError, match=message):
        trace(tiny("gpt2"), make_prompts(), **options)


def test_a_mean_pattern_is_of_prompts_and_answers_of_one_length() -> None:
    for prompts, message in (
        (make_prompts(padding="right"), "one length, and these have several: use zero, or resample"),
        (several_tokens(), "answers of one token, and some here have several: use zero, or resample"),
    ):
        with pytest.raises(AcdcError, match=message):
            trace(tiny("gpt2"), prompts, sites=["pattern"], ablation="mean-position", metric="log-probability")


def test_a_distance_has_a_gradient_in_the_corrupted_run() -> None:
    model, prompts, step = tiny("gpt2"), make_prompts(), 1e-5
    found = trace(model, prompts, sites=["mlp"], by="all", metric="kl", direction="denoise", method="first-order")
    at, full = point(model.module, "mlp", 1, 0), run(model.module, prompts)[0][:, 0].log_softmax(-1)
    clean, corrupted = (run(model.module, x, at)[1] for x in (prompts, prompts.swapped()))

    def kl(share: float) -> Any:
        new = corrupted + share * (clean - corrupted)
        ours = run(model.module, prompts.swapped(), at, new, prompts.mask)[0][:, 0].log_softmax(-1)
        return (full.exp() * (full - ours)).sum(-1).numpy()

    np.testing.assert_allclose(found["mlp"].effects[1], (kl(step) - kl(-step)) / (2 * step), rtol=1e-5, atol=1e-8)


def test_bad_prompts_are_refused_by_name() -> None:
    model, prompts = tiny("gpt2"), make_prompts()
    same = dataclasses.replace(prompts, corrupted=prompts.clean)
    with pytest.raises(AcdcError, match="corrupted prompts are the clean ones"):
        trace(model, same)
    where = torch.zeros_like(prompts.mask)
    where[:2, 2] = True
    with pytest.raises(AcdcError, match="prompt 3 has no 'IO'"):
        trace(model, dataclasses.replace(prompts, spans={"IO": where}), by="span")
    with pytest.raises(AcdcError, match="unknown span 'S2'"):
        trace(model, dataclasses.replace(prompts, spans={"IO": where}), by="span", spans=["S2"])
    with pytest.raises(AcdcError, match="prompt 1: 'b' overlaps"):
        dataclasses.replace(prompts, spans={"a": where, "b": where})
    apart = dataclasses.replace(prompts, corrupted_mask=prompts.mask.roll(1, 0) & (prompts.clean > 3))
    with pytest.raises(AcdcError, match="padded at different positions"):
        trace(model, apart)
