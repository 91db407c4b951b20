"""What a module is wrapped in does not change its numbers; what cannot be read in place is refused with a way out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import acdc
import families
from acdc.errors import AcdcError, UnsupportedModelError
from acdc.model.load import load

PROMPTS = acdc.Prompts.from_tokens([[5, 9, 3, 7]], [[5, 9, 4, 7]], [1], [2])


def llama() -> Any:
    return families.module("llama")


def scores(module: Any) -> Any:
    return acdc.score(load(module), PROMPTS, "eap-ig").values


def _compiled_part() -> Any:
    module = llama()
    module.model.layers[1].mlp = torch.compile(module.model.layers[1].mlp, backend="eager")
    return module


def test_a_wrapper_changes_nothing() -> None:
    assert (scores(nn.DataParallel(llama())) == scores(llama())).all()


@pytest.mark.slow  # to import the compiler
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("wrapped", [lambda: torch.compile(llama()), _compiled_part], ids=["whole", "in part"])
def test_compiling_changes_nothing(wrapped: Callable[[], Any]) -> None:
    assert (scores(wrapped()) == scores(llama())).all()


def test_a_wrapper_with_hooks_is_refused() -> None:
    module = nn.DataParallel(llama())
    module.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedModelError, match="DataParallel has forward hooks"):
        load(module)


def gemma3_with_images() -> Any:
    text = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=49, boi_token_index=48,
        eoi_token_index=47,
    )  # fmt: skip
    module: Any = transformers.Gemma3ForConditionalGeneration(config).eval()
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


@pytest.mark.parametrize("from_folder", [False, True])
def test_the_text_part_of_a_gemma_3_that_sees_images(from_folder: bool, tmp_path: Any) -> None:
    module = gemma3_with_images()
    if from_folder:
        module.save_pretrained(tmp_path)
    model = load(tmp_path if from_folder else module)
    token_ids = torch.randint(1, 40, (2, 12))
    mask = torch.ones_like(token_ids, dtype=torch.bool)
    with torch.no_grad():
        whole = module(input_ids=token_ids, attention_mask=mask.long()).logits
        assert torch.equal(model.plain_logits(token_ids, mask), whole)
        torch.testing.assert_close(model.decomposed_logits(token_ids, mask), whole)
    if not from_folder:
        assert model.module.model is module.model.language_model


def test_inference_mode_around_a_call_changes_nothing(tmp_path: Any) -> None:
    llama().save_pretrained(tmp_path)
    with torch.inference_mode():
        model = load(tmp_path)
        inside = acdc.score(model, PROMPTS, "eap-ig").values
        circuit = acdc.discover(model, PROMPTS, "eap-ig", edges=20)
        judged = acdc.evaluate(model, PROMPTS, circuit, random_circuits=0)
    assert (inside == scores(llama())).all()
    assert acdc.evaluate(model, PROMPTS, circuit, random_circuits=0) == judged


# ---- what is refused, and what to do ----------------------------------------------------------------------------


def _made_in_inference_mode() -> Any:
    with torch.inference_mode():
        return llama()


def _meta() -> Any:
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(llama().config).eval()


def _one_on_meta() -> Any:
    module = llama()
    module.model.layers[1].mlp.up_proj.to("meta")
    return module


def _dynamically_quantised() -> Any:
    return torch.ao.quantization.quantize_dynamic(llama(), {nn.Linear}, dtype=torch.qint8)


def _quantised_parameter() -> Any:
    class Params4bit(nn.Parameter):
        pass

    module = llama()
    module.model.layers[0].mlp.up_proj.weight = Params4bit(torch.zeros(10, dtype=torch.uint8), requires_grad=False)
    return module


def _subclass() -> Any:
    class Packed(torch.Tensor):
        pass

    module = llama()
    weight = module.model.layers[0].mlp.up_proj.weight.detach().as_subclass(Packed)
    module.model.layers[0].mlp.up_proj.weight = nn.Parameter(weight)
    return module


def _parametrised() -> Any:
    module = llama()
    nn.utils.parametrizations.weight_norm(module.model.layers[0].mlp.up_proj)
    return module


def _pruned() -> Any:
    import torch.nn.utils.prune as prune

    module = llama()
    prune.l1_unstructured(module.model.layers[0].self_attn.q_proj, "weight", 0.5)
    return module


def _wrapped_by_a_class_of_the_users() -> Any:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = llama()

    return Classifier()


def _without_head() -> Any:
    module = llama()
    module.lm_head = None
    return module


def _another_head() -> Any:
    module = llama()
    module.lm_head = nn.Identity()
    return module


REFUSED: dict[Callable[[], Any], str] = {
    _made_in_inference_mode: r"made inside torch\.inference_mode.*; load the model outside of it",
    _meta: r"has no numbers .*load the model onto one device, or let accelerate spread it",
    _one_on_meta: r"layers\.1\.mlp\.up_proj\.weight has no numbers",
    _dynamically_quantised: "quantised weights are not supported; load it in bfloat16 or float32",
    _quantised_parameter: r"weights that are not floating point are not supported: .*up_proj\.weight",
    _subclass: r"up_proj\.weight is a Packed, not a plain tensor",
    _parametrised: r"up_proj computes its weight in each call; .*remove_parametrizations",
    _pruned: r"q_proj computes its weight in each call .*torch\.nn\.utils\.prune\.remove",
    _wrapped_by_a_class_of_the_users: r"got Classifier; its \.inner is one, a LlamaForCausalLM: load that",
    _without_head: "has no language-model head",
    _another_head: "llama: the logits are not a matrix of the stream",
}


@pytest.mark.filterwarnings("ignore")  # of torch, that its quantisation is old
@pytest.mark.parametrize("build", REFUSED, ids=lambda build: build.__name__.strip("_"))
def test_weights_that_cannot_be_read_in_place(build: Callable[[], Any]) -> None:
    with pytest.raises(UnsupportedModelError, match=REFUSED[build]):
        load(build())


@pytest.mark.parametrize("given", [None, 5, b"gpt2", "", "a\0b", {"a": 1}, [], torch.nn.Module])
def test_what_is_no_model(given: Any) -> None:
    with pytest.raises(AcdcError, match="expected a model's name, a folder or a transformers module, got"):
        load(given)


def test_what_load_gave_is_used_as_it_is() -> None:
    with pytest.raises(AcdcError, match=r"a Model, which acdc\.load has given"):
        load(families.tiny("llama"))  # type: ignore[arg-type]


# ---- PEFT -------------------------------------------------------------------------------------------------------


@pytest.fixture
def peft() -> Any:
    return pytest.importorskip("peft")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore")  # of PEFT, about GPT-2's layout
def test_an_adapter_is_merged_first(peft: Any, family: str) -> None:
    layers = ["c_attn"] if family == "gpt2" else ["q_proj"]
    config = peft.LoraConfig(r=2, target_modules=layers, task_type="CAUSAL_LM", init_lora_weights=False)
    tuned = peft.get_peft_model(families.module(family), config).eval()
    with pytest.raises(
        UnsupportedModelError, match=r"merge the adapter first: model = model\.merge_and_unload\(\)"
    ):
        load(tuned)
    with pytest.raises(UnsupportedModelError, match=r"an adapter of PEFT that is not merged"):
        load(tuned.base_model.model)
    token_ids, mask = torch.tensor([[5, 9, 3]]), torch.ones(1, 3, dtype=torch.bool)
    with torch.no_grad():
        expected = tuned(input_ids=token_ids).logits
        merged = load(copy.deepcopy(tuned).merge_and_unload())
        torch.testing.assert_close(merged.decomposed_logits(token_ids, mask), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # of PEFT
def test_an_adapter_that_was_injected_is_saved_and_merged(peft: Any, tmp_path: Any) -> None:
    module = llama()
    module.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with pytest.raises(UnsupportedModelError, match=r"save_pretrained\(FOLDER\).*\(base_model, FOLDER\)"):
        load(module.eval())
    module.save_pretrained(tmp_path)
    merged = load(peft.PeftModel.from_pretrained(llama(), tmp_path).merge_and_unload().eval())
    token_ids, mask = torch.tensor([[5, 9, 3]]), torch.ones(1, 3, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(
            merged.plain_logits(token_ids, mask), module(input_ids=token_ids).logits, rtol=1e-4, atol=1e-4
        )
