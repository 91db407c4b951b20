"""GGUF files load as the model they hold, and what cannot be loaded is refused in words before it is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny_gguf
from acdc.errors import AcdcError, UnsupportedModelError
from acdc.model import gguf
from acdc.model.load import load

TOKENS = torch.tensor([[1, 5, 9, 4, 7, 9, 5]])
MASK = torch.ones_like(TOKENS, dtype=torch.bool)


def test_a_file_is_the_module_that_was_written(tmp_path: Path) -> None:
    module = tiny_gguf.llama()
    model = load(tiny_gguf.write(tmp_path / "tiny.gguf", module))
    with torch.no_grad():
        expected = module(input_ids=TOKENS).logits
        torch.testing.assert_close(model.decomposed_logits(TOKENS, MASK), expected)
    assert model.note == ""
    assert model.tokenizer("th a")["input_ids"][-2:] == [tiny_gguf.WORDS.index("th"), tiny_gguf.WORDS.index("Ġa")]


def test_quantised_weights_are_dequantised_and_are_said_to_be(tmp_path: Path) -> None:
    module = tiny_gguf.llama()
    model = load(tiny_gguf.write(tmp_path / "tiny.gguf", module, quantised=True))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 2:
                parameter.copy_(tiny_gguf.rounded(parameter))
        expected = module(input_ids=TOKENS).logits
        torch.testing.assert_close(model.decomposed_logits(TOKENS, MASK), expected)
    assert model.note == "8-bit weights (Q8_0), dequantised"


def test_a_file_is_known_by_its_beginning(tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.llama())
    with pytest.raises(AcdcError, match=r"or the GGUF file itself: .*tiny\.gguf"):
        load(tmp_path)
    path = path.rename(tmp_path / "model.bin")
    assert load(path).n_layers == 2


@pytest.mark.parametrize("kind", ["t5", "zebra"])
def test_another_architecture_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.llama(), architecture=kind)
    with pytest.raises(AcdcError, match=kind):
        load(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused(share: float, tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.llama())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(AcdcError, match=r"tiny\.gguf"):
        load(path)


def test_another_file_of_that_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_text("not a model")
    with pytest.raises(AcdcError, match="is not a GGUF file"):
        load(path)


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.llama())
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(AcdcError, match=r"pip install 'acdc-circuits\[gguf\]'"):
        load(path)


def test_the_config_is_judged_before_the_weights_are_read(tmp_path: Path) -> None:
    def refuse(config: object) -> None:
        raise UnsupportedModelError("not wanted")

    path = tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.llama())
    with pytest.raises(UnsupportedModelError, match="not wanted"):
        gguf.load_gguf(path, torch.float32, refuse)


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("Q4_K_M", "4-bit weights (Q4_K_M), dequantised"),
        ("IQ2_XS", "2-bit weights (IQ2_XS), dequantised"),
        ("TQ1_0", "TQ1_0 weights, dequantised"),
        (None, ""),
    ],
)
def test_note(kind: str | None, note: str) -> None:
    class Config:
        dequantised_from = kind

    assert gguf.weights_note(Config()) == note


@pytest.mark.parametrize(
    ("key", "claimed"),
    [
        ("add_block_count", 2**32 - 1),
        ("add_block_count", 1),
        ("add_vocab_size", 2**26),
        ("add_embedding_length", 2**17),
        ("add_feed_forward_length", 2**31),
    ],
)
def test_a_file_that_asks_for_another_model_than_its_tensors_are_is_refused_before_it_is_built(
    key: str, claimed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = getattr(tiny_gguf.gguf.GGUFWriter, key)
    monkeypatch.setattr(tiny_gguf.gguf.GGUFWriter, key, lambda writer, _: add(writer, claimed))
    path = tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.llama())
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(AcdcError, match="the GGUF file asks for"):
        load(path)
