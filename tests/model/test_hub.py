"""The hub: what it answers is told apart from no answer, and without one what was downloaded before is used."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors

import acdc
import families
from acdc.cli.again import load_again
from acdc.errors import AcdcError
from acdc.model import hub
from acdc.model.load import load

COMMITS = {"main": "a" * 40, "step3": "b" * 40}


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A cache that holds two revisions of "org/tiny", and the modules."""
    place = tmp_path / "models--org--tiny"
    (place / "refs").mkdir(parents=True)
    modules = {}
    for seed, (revision, commit) in enumerate(COMMITS.items()):
        modules[revision] = families.module("llama", seed=seed)
        modules[revision].save_pretrained(place / "snapshots" / commit)
        (place / "refs" / revision).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return modules


def answers(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def model_info(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "model_info", model_info)


@pytest.mark.parametrize("revision", [None, "step3", "b" * 40])
def test_a_revision_without_the_hub(
    downloaded: dict[str, Any], revision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, ConnectionError("no route"))
    model = load("org/tiny", revision=revision)
    wanted = downloaded["main" if revision is None else "step3"]
    assert torch.equal(model.module.lm_head.weight, wanted.lm_head.weight)
    assert (model.name, model.revision) == ("org/tiny", revision)


def test_results_know_their_revision(downloaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, ConnectionError("no route"))
    prompts = acdc.Prompts.from_tokens([[5, 9, 3, 7]], [[5, 9, 4, 7]], [1], [2])
    made = acdc.score(load("org/tiny", revision="step3"), prompts, "eap").provenance
    assert (made.model, made.revision) == ("org/tiny", "step3")
    again: Any = load_again(made).module
    assert torch.equal(again.lm_head.weight, downloaded["step3"].lm_head.weight)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ConnectionError("no route"),
            "the Hugging Face hub could not be reached within 4 s, and the model was not",
        ),
        (errors.RepositoryNotFoundError, "there is no such folder, and the Hugging Face hub has no such model"),
        (errors.GatedRepoError, "only to those who have asked for it"),
        (errors.RevisionNotFoundError, "the hub's model has no revision 'step9'"),
    ],
)
def test_answers_are_told_apart(error: Any, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if isinstance(error, type):
        error = error("no", response=SimpleNamespace(headers={}, request=None, status_code=404))
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    answers(monkeypatch, error)
    with pytest.raises(AcdcError, match=words):
        load("nobody/nothing", revision="step9")


def test_a_hub_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forever = threading.Event()
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.01")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "model_info", lambda *_, **__: forever.wait())
    with pytest.raises(AcdcError, match=r"could not be reached within 0\.01 s"):
        load("nobody/nothing")
    forever.set()


@pytest.mark.parametrize("name", ["a/b/c", "a b", "ä", "x" * 200, "-/..\x1b"])
def test_a_name_that_the_hub_cannot_have_is_not_asked(name: str) -> None:
    with pytest.raises(AcdcError, match="nor a name that the Hugging Face hub can have"):
        hub.folder_of(name)


def test_only_what_is_read_is_downloaded() -> None:
    files = [
        "config.json", "tokenizer.json", "merges.txt", "model.safetensors", "pytorch_model.bin", "tf_model.h5",
        "onnx/model.onnx", "modeling_own.py", "adapter_model.safetensors",
    ]  # fmt: skip
    small = ["config.json", "tokenizer.json", "merges.txt"]
    assert hub._wanted(files, True, False) == [*small, "model.safetensors", "adapter_model.safetensors"]
    assert hub._wanted(files, False, False) == small
    assert "modeling_own.py" in hub._wanted(files, True, True)
    shards = ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "consolidated.00.pth"]
    assert hub._wanted(shards, True, False) == shards[:2]


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(AcdcError, match="what is on the disk has no revision 'step3'"):
        load(tmp_path, revision="step3")
    with pytest.raises(AcdcError, match="a module in memory has no revision"):
        load(families.module("gpt2"), revision="step3")
