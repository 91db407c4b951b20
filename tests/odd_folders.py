"""Model folders with something wrong in them, of every kind that we could think of: a name and how to make each."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import families

Spoil = Callable[[Path], None]

WITNESS = Path(tempfile.gettempdir()) / f"acdc-was-here-{os.getpid()}"
"""The file that the attacks among the folders would make."""

FAMILIES = ("gpt2", "gpt-neox-parallel", "llama", "gemma3", "phi3", "qwen2-sliding")
VALUES: dict[str, Any] = {
    "null": None, "list": [], "list-of-text": ["x"], "object": {}, "text": "x", "number-as-text": "2", "true": True,
    "zero": 0, "negative": -3, "float": 0.5, "huge": 10**9, "beyond-64-bit": 10**30, "huge-float": 1e300,
}  # fmt: skip
MISSING = object()


@functools.cache
def _saved(family: str, root: Path) -> Path:
    folder = root / family
    module: Any = families.module(family)
    module.save_pretrained(folder)
    return folder


def make(family: str, spoil: Spoil, folder: Path, root: Path) -> Path:
    """A whole folder of a family, then spoilt; `root` keeps the whole ones."""
    shutil.copytree(_saved(family, root), folder)
    spoil(folder)
    return folder


def cases() -> Iterator[tuple[str, str, Spoil]]:
    """Name, family, and what is done to a whole folder."""
    for family in FAMILIES:
        for key in _keys(family):
            yield f"{family}-{key}-missing", family, functools.partial(_set, key=key, value=MISSING)
            for what, value in VALUES.items():
                yield f"{family}-{key}-{what}", family, functools.partial(_set, key=key, value=value)
    for name, spoil in {**_CONFIGS, **_WEIGHTS, **TORCH_FILES, **_INDEXES, **_TOKENIZERS, **_ADAPTERS}.items():
        for family in ("gpt2", "llama"):
            yield f"{family}-{name}", family, spoil


@functools.cache
def _keys(family: str) -> tuple[str, ...]:
    """What transformers writes for the family, and settings that other files have."""
    keys = set(families.FAMILIES[family]().config.to_dict()) - {"transformers_version"}
    return tuple(sorted(keys | _OTHER_KEYS))


_OTHER_KEYS = {
    "add_cross_attention", "attn_implementation", "auto_map", "id2label", "is_causal", "is_decoder",
    "is_encoder_decoder", "layer_types", "n_inner", "n_layer", "num_hidden_layers", "num_key_value_heads", "num_labels",
    "num_local_experts", "problem_type", "pruned_heads", "quantization_config", "rope_parameters", "rope_scaling",
    "sliding_window", "text_config", "torch_dtype", "transformers_weights", "use_bidirectional_attention",
    "architectures", "_attn_implementation", "attribute_map", "base_config_key", "__class__", "from_dict", "to_dict",
}  # fmt: skip


def _set(folder: Path, *, key: str, value: Any) -> None:
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    if value is MISSING:
        settings.pop(key, None)
    else:
        settings[key] = value
    path.write_text(json.dumps(settings))


def _writing(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).unlink(missing_ok=True) or _write(folder / name, content)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _cut(share: float) -> Spoil:
    def spoil(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: int(share * len(content))])

    return spoil


def _header(header: bytes, *, length: int | None = None) -> Spoil:
    size = len(header) if length is None else length
    return _writing("model.safetensors", struct.pack("<Q", size) + header + b"\0" * 64)


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        change(weights)
        safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def _replaced(name: str, by: Callable[[Path], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        by(folder / name)

    return spoil


def _first(weights: dict[str, torch.Tensor]) -> str:
    return next(key for key in weights if weights[key].dim() == 2)


def _renamed(weights: dict[str, torch.Tensor]) -> None:
    weights["x\x1b[2J"] = weights.pop(_first(weights))


_CONFIGS: dict[str, Spoil] = {
    f"config-{name}": _writing("config.json", content)
    for name, content in {
        "empty": b"",
        "cut": b'{"model_type": "gp',
        "list": b"[]",
        "number": b"5",
        "text": b'"gpt2"',
        "null": b"null",
        "nested": b"[" * 100_000,
        "nested-objects": b'{"a":' * 50_000,
        "utf16": '{"model_type": "gpt2"}'.encode("utf-16"),
        "latin1": b'{"model_type": "gpt2", "x": "\xe9"}',
        "zeros": b"\0" * 1000,
        "twice": b'{"model_type":"gpt2","model_type":"llama"}',
        "nan": b'{"model_type": "gpt2", "layer_norm_epsilon": NaN}',
        "type-only": b'{"model_type": "gpt2"}',
        "no-type": b'{"n_layer": 2}',
        "unknown-type": b'{"model_type": "zebra"}',
        "control": b'{"model_type": "\\u001b[2J"}',
        "path": b'{"model_type": "../../gpt2"}',
        "gemma3": b'{"model_type": "gemma3"}',
        "tracr": b'{"model_type": "tracr"}',
        "gemma3-list": b'{"model_type": "gemma3", "text_config": []}',
        "gemma3-empty": b'{"model_type": "gemma3", "text_config": {}}',
        "digits": b'{"model_type": "gpt2", "n_layer": ' + b"9" * 5000 + b"}",
        "surrogate": b'{"model_type": "\\ud83d"}',
    }.items()
}
_CONFIGS |= {
    "config-is-a-folder": _replaced("config.json", Path.mkdir),
    "config-is-a-pipe": _replaced("config.json", os.mkfifo),
    "config-is-a-loop": _replaced("config.json", lambda path: path.symlink_to(path)),
    "config-dangles": _replaced("config.json", lambda path: path.symlink_to("nowhere")),
    "config-is-endless": _replaced("config.json", lambda path: path.symlink_to("/dev/zero")),
    "config-missing": _replaced("config.json", lambda path: None),
}
_WEIGHTS: dict[str, Spoil] = {
    **{f"weights-cut-at-{share}": _cut(share) for share in (0.0, 0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999)},
    "weights-zeros": _writing("model.safetensors", b"\0" * 4096),
    "weights-ones": _writing("model.safetensors", b"\xff" * 4096),
    "weights-text": _writing("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
    "weights-no-tensors": _header(b"{}"),
    "weights-header-list": _header(b"[]"),
    "weights-header-broken": _header(b'{"a":'),
    "weights-header-too-long": _header(b"{}", length=2**63),
    "weights-header-nested": _header(b"[" * 50_000),
    "weights-shape-negative": _header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,64]}}'),
    "weights-shape-huge": _header(b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,64]}}'),
    "weights-shape-overflows": _header(
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,64]}}'
    ),
    "weights-dtype-unknown": _header(b'{"a":{"dtype":"X9","shape":[16],"data_offsets":[0,64]}}'),
    "weights-offsets-beyond": _header(b'{"a":{"dtype":"F32","shape":[16],"data_offsets":[64,128]}}'),
    "weights-missing": _replaced("model.safetensors", lambda path: None),
    "weights-are-a-folder": _replaced("model.safetensors", Path.mkdir),
    "weights-are-a-pipe": _replaced("model.safetensors", os.mkfifo),
    "weights-are-a-loop": _replaced("model.safetensors", lambda path: path.symlink_to(path)),
    "weights-are-endless": _replaced("model.safetensors", lambda path: path.symlink_to("/dev/zero")),
    "weights-one-missing": _tensors(lambda weights: weights.pop(_first(weights))),
    "weights-one-renamed": _tensors(_renamed),
    "weights-one-flat": _tensors(lambda weights: weights.update({_first(weights): torch.zeros(6)})),
    "weights-one-empty": _tensors(lambda weights: weights.update({_first(weights): torch.zeros(0)})),
    "weights-one-scalar": _tensors(lambda weights: weights.update({_first(weights): torch.zeros(())})),
    "weights-all-nan": _tensors(lambda weights: [tensor.fill_(torch.nan) for tensor in weights.values()]),
    "weights-all-huge": _tensors(lambda weights: [tensor.fill_(1e38) for tensor in weights.values()]),
    "weights-all-zero": _tensors(lambda weights: [tensor.zero_() for tensor in weights.values()]),
    "weights-whole-numbers": _tensors(
        lambda weights: weights.update({k: v.to(torch.int8) for k, v in weights.items()})
    ),
    "weights-a-layer-more": _tensors(
        lambda weights: weights.update(
            {k.replace(".1.", ".7."): v.clone() for k, v in weights.items() if ".1." in k}
        )
    ),
    "weights-twice": _tensors(
        lambda weights: weights.update({f"module.{k}": v.clone() for k, v in weights.items()})
    ),
}


def _torch_file(write: Callable[[Path, dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        write(folder / "pytorch_model.bin", weights)

    return spoil


class Attack:
    """Its pickle would run a command."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {WITNESS}",)


def nested_tuples(depth: int = 60) -> bytes:
    """A small pickle, a tuple of 2^depth things by sharing."""
    out = io.BytesIO()
    out.write(b"\x80\x02)q\x00")
    for _ in range(depth):
        out.write(b"h\x00h\x00\x86q\x00")
    return out.getvalue()


def _archive(pickled: bytes, *, compressed: bool = False) -> Callable[[Path, Any], None]:
    def write(path: Path, _: Any) -> None:
        kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", kind) as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")
            archive.writestr("archive/data/0", b"\0" * 64)

    return write


TORCH_FILES: dict[str, Spoil] = {
    "torch-whole": _torch_file(lambda path, weights: torch.save(weights, path)),
    "torch-legacy": _torch_file(lambda path, w: torch.save(w, path, _use_new_zipfile_serialization=False)),
    "torch-wrapped": _torch_file(lambda path, weights: torch.save({"state_dict": weights}, path)),
    "torch-list": _torch_file(lambda path, weights: torch.save(list(weights.values()), path)),
    "torch-attack": _torch_file(lambda path, weights: torch.save({**weights, "x": Attack()}, path)),
    "torch-attack-bare": _torch_file(lambda path, weights: path.write_bytes(pickle.dumps(Attack()))),
    "torch-expanded": _torch_file(
        lambda path, weights: torch.save({**weights, _first(weights): torch.zeros(1).expand(10**9, 16)}, path)
    ),
    "torch-nested-key": _torch_file(_archive(b"\x80\x02}" + nested_tuples()[2:] + b"K\x01s.")),
    "torch-nested-value": _torch_file(_archive(nested_tuples() + b".")),
    "torch-compressed": _torch_file(_archive(b"\x80\x02}.", compressed=True)),
    "torch-empty": _torch_file(_archive(b"\x80\x02}.")),
    "torch-cut-pickle": _torch_file(_archive(b"\x80\x02}q")),
    "torch-zeros": _torch_file(lambda path, weights: path.write_bytes(b"\0" * 4096)),
    "torch-half": _torch_file(
        lambda path, w: (torch.save(w, path), path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]))
    ),
    "torch-sparse": _torch_file(
        lambda path, w: torch.save({**w, _first(w): w[_first(w)].to_sparse()}, path)
    ),
}  # fmt: skip


def _index(places: Any, *, keep: bool = False) -> Spoil:
    def spoil(folder: Path) -> None:
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        shard = "model-00001-of-00001.safetensors"
        (folder / "model.safetensors").rename(folder / shard)
        found = places(weights, shard) if callable(places) else places
        (folder / "model.safetensors.index.json").write_text(json.dumps(found))

    return spoil


_INDEXES: dict[str, Spoil] = {
    "index-whole": _index(lambda weights, shard: {"weight_map": dict.fromkeys(weights, shard)}),
    "index-part": _index(lambda weights, shard: {"weight_map": {next(iter(weights)): shard}}),
    "index-outside": _index(lambda weights, shard: {"weight_map": dict.fromkeys(weights, f"../{shard}")}),
    "index-absolute": _index(lambda weights, shard: {"weight_map": dict.fromkeys(weights, "/etc/passwd")}),
    "index-missing-shard": _index(lambda weights, shard: {"weight_map": dict.fromkeys(weights, "x.safetensors")}),
    "index-missing-tensor": _index(
        lambda weights, shard: {"weight_map": {**dict.fromkeys(weights, shard), "x": shard}}
    ),
    "index-of-pickles": _index(lambda weights, shard: {"weight_map": dict.fromkeys(weights, "x.bin")}),
    "index-of-numbers": _index(lambda weights, shard: {"weight_map": dict.fromkeys(weights, 5)}),
    "index-of-folders": _index(lambda weights, shard: {"weight_map": dict.fromkeys(weights, "..")}),
    "index-control": _index(lambda weights, shard: {"weight_map": dict.fromkeys(weights, "\x1b[2J.safetensors")}),
    "index-empty": _index({}),
    "index-list": _index([]),
    "index-map-list": _index({"weight_map": []}),
    "index-map-empty": _index({"weight_map": {}}),
}

_TOKENIZER_TEXTS = {
    "empty": b"", "object": b"{}", "list": b"[]", "garbage": b"\x00\xff" * 100, "nested": b"[" * 100_000,
    "version": b'{"version": "9.0", "model": {"type": "BPE"}}', "model-null": b'{"version": "1.0", "model": null}',
    "vocab-list": b'{"version":"1.0","model":{"type":"BPE","vocab":[],"merges":[]}}',
    "vocab-negative": b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":-1},"merges":[]}}',
    "vocab-huge": b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":99999999999},"merges":[]}}',
    "tiny": b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":[]}}',
    "merges": b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":["x y z"]}}',
    "class": b'{"tokenizer_class": 5}', "class-unknown": b'{"tokenizer_class": "ZebraTokenizer"}',
    "code": b'{"auto_map": {"AutoTokenizer": ["x--y.Z", null]}, "tokenizer_class": "Z"}',
    "length": b'{"model_max_length": "x", "tokenizer_class": "GPT2Tokenizer"}',
    "special": b'{"bos_token": {"content": 5}, "tokenizer_class": "PreTrainedTokenizerFast"}',
}  # fmt: skip
_TOKENIZERS: dict[str, Spoil] = {
    f"{file}-{name}": _writing(file, content)
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
    for name, content in _TOKENIZER_TEXTS.items()
}
_TOKENIZERS |= {
    f"{file}-{name}": _replaced(file, by)
    for file in ("tokenizer.json", "tokenizer_config.json")
    for name, by in {
        "is-a-folder": Path.mkdir, "is-a-pipe": os.mkfifo, "is-endless": lambda path: path.symlink_to("/dev/zero"),
    }.items()
}  # fmt: skip

_LORA_KEYS = (
    "r", "lora_alpha", "peft_type", "target_modules", "rank_pattern", "alpha_pattern", "use_dora", "bias",
    "init_lora_weights", "fan_in_fan_out", "base_model_name_or_path",
)  # fmt: skip
_LORA = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "c_attn"],
    "task_type": "CAUSAL_LM",
}


def _adapter(settings: Any, weights: bytes | dict[str, torch.Tensor] | None = None) -> Spoil:
    def spoil(folder: Path) -> None:
        content = settings if isinstance(settings, bytes) else json.dumps(settings).encode()
        (folder / "adapter_config.json").write_bytes(content)
        if weights is not None:
            given = weights if isinstance(weights, bytes) else safetensors.torch.save(weights)
            (folder / "adapter_model.safetensors").write_bytes(given)

    return spoil


def _matrices(path: str, rank: int = 4) -> dict[str, torch.Tensor]:
    name = f"base_model.model.{path}.lora_"
    return {f"{name}A.weight": torch.ones(rank, 24), f"{name}B.weight": torch.ones(72, rank)}


_ADAPTERS: dict[str, Spoil] = {
    "adapter-alone": lambda folder: (_adapter(_LORA)(folder), (folder / "config.json").unlink())[0],
    "adapter-without-weights": _adapter(_LORA),
    "adapter-garbage": _adapter(b"{", {}),
    "adapter-list": _adapter([], {}),
    "adapter-empty": _adapter({}, {}),
    "adapter-no-tensors": _adapter(_LORA, {}),
    "adapter-weights-garbage": _adapter(_LORA, b"\xff" * 100),
    "adapter-of-another-model": _adapter(_LORA, _matrices("nowhere.q_proj")),
    "adapter-of-a-norm": _adapter(_LORA, _matrices("transformer.ln_f")),
    "adapter-of-other-sizes": _adapter(_LORA, _matrices("transformer.h.0.attn.c_proj")),
    "adapter-odd-names": _adapter(_LORA, {"x\x1b[2J": torch.ones(2)}),
    "adapter-names-code": _adapter(
        {**_LORA, "megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        _matrices("transformer.h.0.attn.c_attn"),
    ),
    "adapter-slow-pattern": _adapter(
        {**_LORA, "alpha_pattern": {"(a+)+$": 4}}, _matrices("transformer.h.0.attn.c_attn")
    ),
    **{
        f"adapter-{key}-{what}": _adapter({**_LORA, key: value}, _matrices("transformer.h.0.attn.c_attn"))
        for key in _LORA_KEYS
        for what, value in VALUES.items()
    },
}
