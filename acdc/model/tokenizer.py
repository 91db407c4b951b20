"""The tokenizer that belongs to a model: from its folder, or from another one that the user names."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from acdc.errors import AcdcError
from acdc.store.reading import check_file, read_json
from acdc.store.tensors import reason

_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
_LARGEST = 256 * 2**20  # bytes


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a folder.

    Raises:
        AcdcError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    found = [folder / file for file in _FILES if (folder / file).exists()]
    if not found:
        raise AcdcError(f"{folder} holds no tokenizer; expected {' or '.join(_FILES)}")
    for path in found:
        if path.suffix == ".json":
            read_json(path, largest=_LARGEST)
        else:
            check_file(path, largest=_LARGEST)
    try:
        if _is_whole(folder):
            return PreTrainedTokenizerFast.from_pretrained(str(folder))
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers raise whatever a broken file makes them stumble over
        raise AcdcError(f"the tokenizer in {folder} cannot be read: {reason(error)}") from error


def own_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer beside a model's weights; None if there is none, and, with a warning, if it cannot be read."""
    if not any((folder / file).exists() for file in _FILES):
        return None
    try:
        return load_tokenizer(folder, trust_remote_code=trust_remote_code)
    except AcdcError as error:
        warnings.warn(f"{error}; prompts have to be token ids", stacklevel=2)
        return None


def _is_whole(folder: Path) -> bool:
    """Whether tokenizer.json says it all; AutoTokenizer would cut text as, say, Qwen2's own tokenizer does."""
    if not (folder / "tokenizer.json").exists() or not (folder / "tokenizer_config.json").exists():
        return False
    path = folder / "tokenizer_config.json"
    settings = read_json(path, largest=_LARGEST)
    plain = ("TokenizersBackend", "PreTrainedTokenizerFast")
    return isinstance(settings, dict) and settings.get("tokenizer_class") in plain
