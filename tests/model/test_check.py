"""What is measured is what was checked: a wrong decomposition is refused with the part that is wrong, and what changes
after loading gives the numbers of a model loaded anew, or is refused."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import acdc
import families
import hooked_folder
import problems
from acdc.engine.problem import Problem
from acdc.errors import AcdcError, UnsupportedModelError
from acdc.metrics import OUTCOMES
from acdc.model import check
from acdc.model.architecture import Attention, Layer
from acdc.model.check import check_loaded, check_prompts, count_seconds
from acdc.model.model import Model
from acdc.model.passes import count_passes
from acdc.tasks.prompts import Prompts


def corrupted(model: Model, index: int, change: Callable[[Layer], Layer]) -> Model:
    """The model with one layer of its decomposition changed."""
    layers = list(model.decomposition.layers)
    layers[index] = change(layers[index])
    return dataclasses.replace(model, decomposition=dataclasses.replace(model.decomposition, layers=tuple(layers)))


def _attention(**changes: Callable[[Attention], Any]) -> Callable[[Layer], Layer]:
    def change(layer: Layer) -> Layer:
        values = {name: make(layer.attention) for name, make in changes.items()}
        return dataclasses.replace(layer, mixes=dataclasses.replace(layer.attention, **values))

    return change


WRONG = {
    "scale": _attention(scale=lambda attention: attention.scale * 1.5),
    "head order": _attention(w_o=lambda attention: attention.w_o.flip(0)),
    "q and k exchanged": _attention(q=lambda attention: attention.k, k=lambda attention: attention.q),
    "value bias dropped": _attention(v=lambda attention: dataclasses.replace(attention.v, bias=None)),
    "output bias dropped": _attention(b_o=lambda attention: None),
    "window": _attention(window=lambda attention: 2),
    "mlp norm": lambda layer: dataclasses.replace(layer, mlp_norm=layer.attention.norm),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("part", WRONG)
def test_a_wrong_decomposition_is_refused(part: str, dtype: torch.dtype) -> None:
    model = families.tiny("gpt2", dtype)
    check_loaded(model)
    with pytest.raises(UnsupportedModelError, match=r"differs from the plain one by .* first in layer 1"):
        check_loaded(corrupted(model, 1, WRONG[part]))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_first_wrong_layer_is_named(family: str) -> None:
    model = families.tiny(family)
    for layer in range(model.n_layers):
        with pytest.raises(UnsupportedModelError, match=rf"first in layer {layer} \(attention\)"):
            check_loaded(corrupted(model, layer, WRONG["scale"]))


def test_a_wrong_embedding_is_named() -> None:
    model = families.tiny("gpt2")
    wrong = dataclasses.replace(model.decomposition, position_embedding=None)
    with pytest.raises(UnsupportedModelError, match="first in the embedding"):
        check_loaded(dataclasses.replace(model, decomposition=wrong))


def test_weights_that_are_not_finite_are_refused() -> None:
    module: Any = families.module("gpt2")
    module.transformer.h[1].mlp.c_fc.weight.data[0, 0] = torch.nan
    with pytest.raises(UnsupportedModelError, match="non-finite weights"):
        families.load(module)


# ---- what changes after loading ---------------------------------------------------------------------------------

PROMPTS = problems.make_prompts(padding="both", shared=2, reads=2)


def numbers(model: Model) -> np.ndarray[Any, Any]:
    """The score of every edge."""
    values: np.ndarray[Any, Any] = acdc.score(model, PROMPTS, "eap", metric="logit-difference").values
    return values


def loaded(family: str) -> Model:
    return acdc.load(families.module(family))


def noisy(tensor: Tensor) -> Tensor:
    return tensor.detach() + 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)).to(tensor)


def replace(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put one module in the other's place."""
    (name,) = [name for name, part in module.named_modules() if part is old]
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, new)


def exchanged(module: nn.Module, old: Any) -> None:
    """Put a module of the same kind with other weights in one's place."""
    new = copy.deepcopy(old)
    for parameter in new.parameters():
        parameter.data = noisy(parameter)
    replace(module, old, new)


def train(model: Model) -> None:
    optimiser = torch.optim.SGD(model.module.parameters(), lr=0.05)
    model.plain_logits(PROMPTS.clean, PROMPTS.mask).square().sum().backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def load_weights(model: Model) -> None:
    model.module.load_state_dict({name: noisy(value) for name, value in model.module.state_dict().items()})


def load_weights_without_copying(model: Model) -> None:
    state = {name: noisy(value) for name, value in model.module.state_dict().items()}
    model.module.load_state_dict(state, assign=True)


def change_gains(model: Model) -> None:
    for name, parameter in model.module.named_parameters():
        if "norm" in name or "ln_" in name:
            parameter.data.copy_(noisy(parameter))


def second(model: Model) -> Any:
    return model.decomposition.layers[1]


def _of_attention(model: Model) -> Any:
    """The output projection, or what else of the attention has a weight and comes last."""
    return [
        part for part in second(model).parts.attention.modules() if part._parameters and part.weight.dim() == 2
    ][-1]


def _shift(module: nn.Module, args: Any, out: Any) -> Any:
    """A hook that steers."""
    first = out[0] if isinstance(out, tuple) else out
    steered = first + torch.arange(first.shape[-1])
    return (steered, *out[1:]) if isinstance(out, tuple) else steered


def _of_another_forward(model: Model) -> None:
    projection = _of_attention(model)
    projection.forward = functools.partial(lambda forward, x: 1.5 * torch.tanh(forward(x)), projection.forward)


def _lora(model: Model) -> None:
    peft = pytest.importorskip("peft")
    names = sorted(
        {name.split(".")[-1] for name, part in model.module.named_modules() if part is _of_attention(model)}
    )
    module: Any = model.module
    fused = type(_of_attention(model)).__name__ == "Conv1D"
    module.add_adapter(peft.LoraConfig(r=2, target_modules=names, fan_in_fan_out=fused))
    numbers(model)  # it does nothing yet
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))  # makes no new version


def _norms(model: Model) -> list[Any]:
    return [part for part in model.module.modules() if "Norm" in type(part).__name__]


def give_norms_other_data(model: Model) -> None:
    for norm in _norms(model):
        norm.weight.data = noisy(norm.weight)


def change_epsilons(model: Model) -> None:
    for norm in _norms(model):
        setattr(norm, "variance_epsilon" if hasattr(norm, "variance_epsilon") else "eps", 0.7)


RIGHT = (train, load_weights, change_gains, give_norms_other_data, change_epsilons)
"""What is done to weights and norms in place."""

WRONG_AFTERWARDS: dict[str, tuple[Callable[[Model], Any], str]] = {
    "other weights": (load_weights_without_copying, "first in "),
    "other data": (lambda m: setattr(_of_attention(m).weight, "data", noisy(_of_attention(m).weight)), "attention"),
    "projection": (lambda m: exchanged(m.module, _of_attention(m)), r"first in layer 1 \(attention\)"),
    "attention": (lambda m: exchanged(m.module, second(m).parts.attention), r"first in layer 1 \(attention\)"),
    "MLP": (lambda m: exchanged(m.module, second(m).parts.mlp), r"first in layer 1 \(MLP\)"),
    "embedding": (lambda m: exchanged(m.module, m.decomposition.token_embedding), "first in the embedding"),
    "final norm": (lambda m: exchanged(m.module, m.decomposition.final_norm.module), "first in the final norm"),  # type: ignore[union-attr]
    "head": (lambda m: exchanged(m.module, m.module.get_output_embeddings()), "first in the unembedding"),  # type: ignore[operator]
    "hook on a block": (
        lambda m: second(m).parts.block.register_forward_hook(_shift),
        r"layer 1 \(what it hands on\)",
    ),
    "hook on a projection": (lambda m: _of_attention(m).register_forward_hook(_shift), r"layer 1 \(attention\)"),
    "hook before a block": (
        lambda m: second(m).parts.block.register_forward_pre_hook(lambda _, x: (x[0] * 2, *x[1:])),
        r"first in layer 0 \(what it hands on\)|layer 1",
    ),
    "hook on a norm": (
        lambda m: m.decomposition.final_norm.module.register_forward_hook(lambda _, x, out: 2 * out),  # type: ignore[union-attr]
        "the final norm differs from the closed form of its family",
    ),
    "vocabulary": (lambda m: m.module.resize_token_embeddings(60, mean_resizing=False), "gives 60 logits"),  # type: ignore[operator]
    "another forward": (_of_another_forward, r"first in layer 1 \(attention\)"),
    "scale": (lambda m: setattr(second(m).parts.attention, "scaling", 3.0), r"first in layer 1 \(attention\)"),
    "dtype": (lambda m: m.module.to(torch.bfloat16), r"is in torch\.bfloat16 .* loaded in torch\.float32"),
    "dtype of a part": (lambda m: second(m).parts.mlp.to(torch.bfloat16), "load it again with acdc.load"),
    "LoRA": (_lora, r"layer 1 \(attention\)|layer 0 \(attention\)"),
}
QUICK = ("gpt2", "gpt-neox-parallel", "gemma3", "phi3")
CHANGED_FAMILIES = [
    pytest.param(family, marks=() if family in QUICK else pytest.mark.slow) for family in families.FAMILIES
]


@pytest.mark.parametrize("change", RIGHT)
@pytest.mark.parametrize("family", CHANGED_FAMILIES)
def test_weights_changed_in_place_are_used(family: str, change: Callable[[Model], None]) -> None:
    model = loaded(family)
    before = numbers(model)
    change(model)
    after = numbers(model)
    np.testing.assert_array_equal(after, numbers(acdc.load(copy.deepcopy(model.module))))
    assert not np.allclose(after, before)


@pytest.mark.parametrize("change", WRONG_AFTERWARDS)
@pytest.mark.parametrize("family", CHANGED_FAMILIES)
def test_what_the_decomposition_does_not_see_is_refused(family: str, change: str) -> None:
    model = loaded(family)
    numbers(model)
    make, words = WRONG_AFTERWARDS[change]
    make(model)
    with pytest.raises(UnsupportedModelError, match=words):
        numbers(model)


@pytest.mark.parametrize("change", ["in place", "MLP", "hook"])
@pytest.mark.parametrize("model", ["tracr-hist", "hooked"])
def test_programs_and_hooked_transformers_too(model: str, change: str, tmp_path: Path) -> None:
    hooked_folder.write_case(tmp_path, normalization_type="LN")
    subject = acdc.load(tmp_path if model == "hooked" else model)
    ids = torch.tensor([[1, 2, 3, 4], [4, 2, 1, 0]])
    prompts = Prompts.from_tokens(ids, ids.flip(0), answers=[0, 1], wrong=[1, 0])

    def values(model: Model) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = acdc.score(model, prompts, "eap", metric="logit-difference").values
        return found

    before, part = values(subject), subject.decomposition.layers[-1].parts
    if change == "in place":
        for parameter in part.block.parameters():
            parameter.data.copy_(noisy(parameter))
        np.testing.assert_array_equal(values(subject), values(acdc.load(copy.deepcopy(subject.module))))
        assert not np.allclose(values(subject), before)
        return
    if change == "MLP":
        exchanged(subject.module, part.mlp)
    else:
        part.block.register_forward_hook(_shift)
    where = rf"layer {subject.n_layers - 1} \(MLP\)" if change == "MLP" else "what it hands on|unembedding|norm"
    with pytest.raises(UnsupportedModelError, match=f"first in .*({where})"):
        values(subject)


def _dropout_of_a_part(module: Any) -> None:
    module.transformer.h[1].mlp.dropout.train()


def _dropout_of_attention(module: Any) -> None:
    module.model.layers[1].self_attn.attention_dropout = 0.5
    module.model.layers[1].self_attn.train()


@pytest.mark.parametrize(
    ("family", "change"),
    [("gpt2", lambda module: module.train()), ("gpt2", _dropout_of_a_part), ("llama", _dropout_of_attention)],
)
def test_dropout_switched_on_afterwards_is_refused(family: str, change: Callable[[Any], Any]) -> None:
    model = loaded(family)
    numbers(model)
    change(model.module)
    with pytest.raises(UnsupportedModelError, match=r"dropout is on, so every run would differ; call model\.eval"):
        numbers(model)


def test_training_mode_without_dropout_and_hooks_that_only_look_are_fine() -> None:
    model = loaded("llama")
    before = numbers(model)
    model.module.train()
    second(model).parts.attention.register_forward_hook(lambda *_: None)
    np.testing.assert_array_equal(numbers(model), before)


@pytest.mark.parametrize("change", ["LoRA", "hook", "assigned"])
def test_half_precision_takes_no_other_parts_at_all(change: str) -> None:
    model = acdc.load(families.module("llama", dtype=torch.bfloat16))
    numbers(model)
    if change == "LoRA":
        peft = pytest.importorskip("peft")
        model.module.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))  # type: ignore[operator]
    elif change == "hook":
        _of_attention(model).register_forward_hook(lambda module, args, out: out * 1.01)
    else:
        model.module.load_state_dict(
            {name: value.clone() for name, value in model.module.state_dict().items()}, assign=True
        )
    with pytest.raises(UnsupportedModelError, match=r"in torch\.bfloat16 rounding would hide the difference"):
        numbers(model)


# ---- on which prompts, and how often ----------------------------------------------------------------------------


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """The token ids of every comparison."""
    found: list[list[list[int]]] = []
    real = check._compare

    def noting(model: Model, batch: Any, *args: Any, **options: Any) -> None:
        found.append(batch.token_ids.tolist())
        real(model, batch, *args, **options)

    monkeypatch.setattr(check, "_compare", noting)
    return found


def test_the_same_prompts_are_compared_once_while_nothing_changes(compared: list[Any]) -> None:
    model = loaded("gpt2")
    compared.clear()
    for _ in range(2):
        numbers(model)
        assert len(compared) == 1
    acdc.score(model, PROMPTS[1:], "eap", metric="logit-difference")
    numbers(model)
    assert len(compared) == 2
    for change in RIGHT:
        change(model)
        numbers(model)
    assert len(compared) == 2 + len(RIGHT)
    handle = model.module.register_forward_hook(lambda *_: None)
    numbers(model)
    numbers(model)
    assert len(compared) == 4 + len(RIGHT)  # a hook may do another thing each time
    handle.remove()
    numbers(model)
    numbers(model)
    assert len(compared) == 5 + len(RIGHT)


def test_four_prompts_are_compared_the_shortest_longest_and_most_padded_among_them(compared: list[Any]) -> None:
    model = loaded("gpt2")
    compared.clear()
    rows = [[row] * length for row, length in enumerate((5, 5, 6, 5, 9, 5, 3, 5))]
    prompts = Prompts.from_tokens(rows, rows, padding="right", pad_id=49)
    check_prompts(model, dataclasses.replace(prompts, mask=prompts.mask))
    (tokens,) = compared
    assert [row[0] for row in tokens] == [6, 4, 0, 1]
    assert len(tokens[0]) == 9


def test_corrupted_prompts_are_compared_if_they_are_masked_otherwise(compared: list[Any]) -> None:
    model = loaded("gpt2")
    compared.clear()
    mask = PROMPTS.mask.clone()
    mask[:, 0] = False
    check_prompts(model, dataclasses.replace(PROMPTS, corrupted_mask=mask))
    assert sorted(map(tuple, compared[1])) == sorted(map(tuple, PROMPTS.corrupted.tolist()))


def test_what_shows_on_the_users_prompts_alone_is_refused() -> None:
    model = loaded("gpt2")
    wrong = corrupted(model, 1, WRONG["window"])
    short = Prompts.from_tokens([[3, 4]], [[5, 4]])
    check_prompts(wrong, short)  # within the window
    with pytest.raises(UnsupportedModelError, match=r"first in layer 1 \(attention\)"):
        Problem(wrong, wrong.graph(), PROMPTS, OUTCOMES["kl"])


def test_at_load_a_prompt_is_longer_than_the_windows() -> None:
    module = families._llama_layout("Mistral", sliding_window=20).eval()
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    model = acdc.load(module)
    assert model.decomposition.layers[0].attention.window == 20
    off_by_one = _attention(window=lambda attention: attention.window + 1)  # type: ignore[operator]
    with pytest.raises(UnsupportedModelError, match=r"first in layer 0 \(attention\)"):
        check_loaded(corrupted(model, 0, off_by_one))


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_only_as_many_logits_as_asked_for_are_held_at_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_LOGITS_AT_ONCE", families.VOCABULARY)
    monkeypatch.setattr(check, "_VOCABULARY_SLICE", 7)
    largest = 0
    plain = Model.plain_logits

    def noting(self: Model, *args: Any, **options: Any) -> Tensor:
        nonlocal largest
        logits = plain(self, *args, **options)
        largest = max(largest, logits.numel())
        return logits

    monkeypatch.setattr(Model, "plain_logits", noting)
    model = loaded(family)
    check_prompts(model, PROMPTS)
    assert largest == families.VOCABULARY
    with pytest.raises(UnsupportedModelError, match="first in layer 1"):
        check_prompts(corrupted(model, 1, WRONG["scale"]), PROMPTS)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_float64_with_padding_on_the_left_is_compared_alone(family: str) -> None:
    """The modules' own attention is not finite there."""
    built = families.FAMILIES[family]().eval().double()
    model = acdc.load(built)
    check_prompts(model, PROMPTS)
    with pytest.raises(UnsupportedModelError, match=r"first in layer 0 \(attention\)"):
        check_prompts(corrupted(model, 0, WRONG["scale"]), PROMPTS)


def test_seconds_are_counted_apart_and_passes_not_at_all() -> None:
    model = loaded("gpt2")
    with count_seconds() as outer, count_passes() as passes, count_seconds() as inner:
        check_prompts(model, PROMPTS)
    assert outer.total == inner.total > 0
    assert (passes.forward, passes.backward) == (0, 0)
    with count_seconds() as nothing:
        pass
    assert nothing.total == 0


def test_logits_that_are_not_finite_are_left_to_the_metric() -> None:
    model = loaded("gpt2")
    model.module.transformer.h[1].mlp.c_fc.weight.data[0, 0] = torch.inf  # type: ignore[union-attr, index]
    with pytest.raises(AcdcError, match="not finite"):
        numbers(model)


def test_corrupted_prompts_that_are_shorter_are_compared_where_they_have_tokens() -> None:
    model = acdc.load("interp-shift")
    prompts = acdc.tasks.load("interp-shift").prepare(model).discovery
    mask = prompts.corrupted_mask
    assert mask is not None
    read = prompts.positions >= 0
    assert not bool(mask.gather(1, prompts.positions.clamp(min=0))[read].all())
    check_prompts(model, prompts)
