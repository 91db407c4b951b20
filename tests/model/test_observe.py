"""What a module does is read from what it does: keys of the config that its class ignores change nothing, and those
it obeys are obeyed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import acdc
import families
from acdc.errors import UnsupportedModelError
from acdc.model.observe import masks

TYPES = {2: ["sliding_attention", "full_attention"], 3: ["full_attention", "sliding_attention", "full_attention"]}

KEYS: dict[str, dict[str, Any]] = {
    "window": {"sliding_window": 5},
    "window of some layers": {"sliding_window": 5, "layer_types": TYPES, "use_sliding_window": True},
    "caps": {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 1.5},
    "scale": {"query_pre_attn_scalar": 3, "attention_multiplier": 2.0, "logit_scale": 0.1, "scale_attn_weights": False},
    "rotary": {"partial_rotary_factor": 0.5, "rotary_pct": 0.5, "no_rope_layers": [0, 1, 0]},
    "the rest": {
        "use_qk_norm": True, "residual_multiplier": 3.0, "embedding_multiplier": 2.0, "parallel_attn": True,
        "use_parallel_residual": False, "attention_chunk_size": 4, "num_key_value_groups": 1,
    },
}  # fmt: skip


def built(family: str, keys: dict[str, Any], *, afterwards: bool) -> Any:
    """A module whose config has these keys as well, from the beginning or put there when it was made."""
    plain: Any = families.module(family)
    keys = {key: value[plain.config.num_hidden_layers] if value is TYPES else value for key, value in keys.items()}
    config = plain.config
    for key, value in keys.items():
        setattr(config, key, value)
    if afterwards:
        return plain
    module = type(plain)(config).eval()
    module.load_state_dict(plain.state_dict())
    return module


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    token_ids = torch.randint(families.VOCABULARY, (3, 14), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(token_ids, dtype=torch.bool)
    mask[1, :3] = False
    mask[2, 11:] = False
    return token_ids, mask


@pytest.mark.parametrize("afterwards", [False, True], ids=["before it is made", "afterwards"])
@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_module_is_believed_and_not_the_config(family: str, keys: str, afterwards: bool) -> None:
    module = built(family, KEYS[keys], afterwards=afterwards)
    token_ids, mask = prompts()
    try:
        module(input_ids=token_ids)
    except (KeyError, RuntimeError):  # the class does not run with it
        with pytest.raises(UnsupportedModelError):
            acdc.load(module)
        return
    model = acdc.load(module)
    with torch.no_grad():
        ours, theirs = model.decomposed_logits(token_ids, mask), model.plain_logits(token_ids, mask)
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "keys", "windows"),
    [
        ("llama", KEYS["window of some layers"], [None, None]),
        ("olmo2", KEYS["window of some layers"], [None, None]),
        ("gpt2", KEYS["window of some layers"], [None, None, None]),
        ("gpt-neox-parallel", KEYS["window"], [None, None]),
        ("mistral", {"sliding_window": 5, "layer_types": TYPES}, [5, 5]),
        ("mistral", {"sliding_window": None}, [None, None]),
        ("phi3", {"sliding_window": 7, "layer_types": TYPES}, [7, 7]),
        ("qwen2", KEYS["window"], [None, None]),
        ("qwen2-sliding", {"sliding_window": 4}, [None, 4]),
        ("gemma2", KEYS["window of some layers"], [None, 5, None]),
        ("gemma3", {"sliding_window": 9}, [9, None, 9]),
    ],
)
def test_windows_are_those_of_the_module(family: str, keys: dict[str, Any], windows: list[int | None]) -> None:
    layers = acdc.load(built(family, keys, afterwards=True)).decomposition.layers
    assert [layer.attention.window for layer in layers] == windows


def test_soft_caps_are_those_of_the_module() -> None:
    capped, ignoring = (acdc.load(built(family, KEYS["caps"], afterwards=False)) for family in ("gemma2", "llama"))
    assert (capped.decomposition.final_softcap, capped.decomposition.layers[0].attention.softcap) == (1.5, 1.0)
    assert (ignoring.decomposition.final_softcap, ignoring.decomposition.layers[0].attention.softcap) == (
        None,
        None,
    )
    gemma3 = acdc.load(built("gemma3", KEYS["caps"], afterwards=False)).decomposition
    assert (gemma3.final_softcap, gemma3.layers[0].attention.softcap) == (1.5, None)  # the class caps no scores


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt-neox-parallel"])
def test_a_model_that_sees_everything(family: str) -> None:
    module: Any = families.module(family)
    module.config.is_causal = False
    for part in module.modules():
        if hasattr(part, "is_causal"):
            part.is_causal = False
    assert not any(layer.attention.causal for layer in acdc.load(module).decomposition.layers)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_observing_leaves_no_trace(implementation: str) -> None:
    module: Any = families.module("llama")
    module.set_attn_implementation(implementation)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        before = module(input_ids=ids).logits
        (first, _) = masks(module, [layer.self_attn for layer in module.model.layers], dict)
        assert torch.equal(module(input_ids=ids).logits, before)
    assert module.config._attn_implementation == implementation
    attention = acdc.load(module).decomposition.layers[0].attention
    assert (attention.n_heads, len(attention.k.weight), *first[:2]) == (4, 2, True, None)
    assert (attention.causal, attention.window) == first[:2]


def test_a_mask_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    causal = modeling_llama.create_causal_mask

    def chunked(*args: Any, **options: Any) -> Any:
        return causal(*args, **options, and_mask_function=lambda b, h, q, k: q % 3 == k % 3)

    monkeypatch.setattr(modeling_llama, "create_causal_mask", chunked)
    with pytest.raises(UnsupportedModelError, match="in layer 0 a position sees others in a way"):
        acdc.load(families.module("llama"))


def test_attention_that_goes_another_way_is_refused() -> None:
    class Own(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor, **unused: Any) -> tuple[torch.Tensor, None]:
            return hidden_states, None

    module = transformers.LlamaForCausalLM(families.module("llama").config).eval()  # type: ignore[arg-type]
    module.model.layers[1].self_attn = Own()
    with pytest.raises(
        UnsupportedModelError,
        match=r"layer 1, LlamaDecoderLayer: it has neither attention of heads .* it holds Own",
    ):
        acdc.load(module)
