"""The public InterpBench models, from a local folder: `ll_model.pth`, its configuration and its true edges.

A case of the benchmark is a folder with the weights (a state dict of TransformerLens), `ll_model_cfg.pkl`,
`edges.pkl` and `meta.json`. Weights are loaded as tensors only. The two pickles are read as data and never
unpickled (`acdc.store.pickle_data`); `ll_model_cfg.json` and `edges.json` with the same content come before them.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from acdc.errors import AcdcError
from acdc.graph import head_name, mlp_name
from acdc.model.programs.hooked import HookedConfig, HookedModel
from acdc.store.pickle_data import Made, Named, read_pickle
from acdc.store.reading import complaints, parse_json, read
from acdc.store.tensors import TensorFile, build, open_tensors

WEIGHTS = ("ll_model.safetensors", "ll_model.pth", "ll_model_*.pth")
CONFIG = ("ll_model_cfg.json", "ll_model_cfg.pkl", "ll_model_cfg_*.pkl")
EDGES = ("edges.json", "edges.pkl")


def is_interpbench(folder: str | Path) -> bool:
    """Whether a folder holds the weights of an InterpBench model."""
    return Path(folder).is_dir() and any(any(Path(folder).glob(pattern)) for pattern in WEIGHTS)


def load_module(folder: str | Path) -> HookedModel:
    """The model in a folder.

    Raises:
        AcdcError: a file is missing or broken, or the model is of a kind that is not supported.
    """
    config, weights = read_config(folder), open_tensors(_find(folder, WEIGHTS))
    masks = (".attn.mask", ".attn.IGNORE")  # TransformerLens keeps them in the state dict
    headers = {name: header for name, header in weights.headers.items() if not name.endswith(masks)}
    return build(lambda: HookedModel(config), config.n_layers, TensorFile(headers, weights.read), str(folder))


def read_config(folder: str | Path) -> HookedConfig:
    """The model's configuration.

    Raises:
        AcdcError: it is missing or broken, or has what is not supported.
    """
    path = _find(folder, CONFIG)
    found = _read_data(path)
    if isinstance(found, Made) and isinstance(found.state, dict):  # a HookedTransformerConfig, by its attributes
        found = found.state
    if not isinstance(found, dict):
        raise AcdcError(f"{path}: expected the settings of a HookedTransformerConfig, got a {type(found).__name__}")
    try:
        settings = {str(name): _plain(value) for name, value in found.items()}
    except (ValueError, TypeError, IndexError) as error:
        raise AcdcError(f"{path}: a setting is not a number: {error}") from None
    settings["name"] = Path(folder).resolve().name
    settings.pop("model_type", None)
    try:
        return HookedConfig.model_validate(settings)
    except pydantic.ValidationError as error:
        raise AcdcError(f"{path}: a model that is not supported: {complaints(error)}") from None


def read_edges(folder: str | Path) -> tuple[str, ...]:
    """Names of the model's true edges in our finest graph, in the order of the file.

    Raises:
        AcdcError: they are missing or broken, or one of them is of no part that we know.
    """
    path = _find(folder, EDGES)
    found = _read_data(path)
    if isinstance(found, set | frozenset):
        found = sorted(found, key=repr)
    if not isinstance(found, list | tuple) or not all(_is_pair(edge) for edge in found):
        what = _classes(found)
        raise AcdcError(
            f"{path}: expected a list of pairs of names, like ('hook_embed', 'blocks.0.hook_mlp_in'), got "
            + (f"objects of {what}: take the file of a later release" if what else f"a {type(found).__name__}")
        )
    n_layers = read_config(folder).n_layers
    names = [_edge(source, destination, n_layers, path) for source, destination in found]
    return tuple(dict.fromkeys(name for name in names if name is not None))


# ---- names ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Hook:
    """A hook point, as the file names it: `blocks.1.hook_q_input[2]`."""

    layer: int
    point: str
    head: int | None

    @classmethod
    def parse(cls, name: str) -> _Hook | None:
        match = re.fullmatch(r"blocks\.(\d+)\.(?:attn\.|mlp\.)?(hook_\w+)(?:\[(\d+)\])?", name)
        return None if match is None else cls(int(match[1]), match[2], None if match[3] is None else int(match[3]))

    @property
    def component(self) -> str | None:
        """The head or MLP that the hook point belongs to."""
        if self.point in ("hook_mlp_in", "hook_mlp_out"):
            return mlp_name(self.layer)
        if self.head is not None and re.fullmatch(r"hook_([qkv](_input)?|result|z)", self.point):
            return head_name(self.layer, self.head)
        return None


_INPUTS = {"hook_embed": "input.token", "hook_pos_embed": "input.position"}


def _edge(source: str, destination: str, n_layers: int, path: Path) -> str | None:
    """Our name for an edge; None for one inside a component, like that from a head's query to its result."""
    writer, reader = _Hook.parse(source), _Hook.parse(destination)
    start = _INPUTS.get(source, None if writer is None else writer.component)
    end = None if reader is None else reader.component
    if reader and (reader.layer, reader.point) == (n_layers - 1, "hook_resid_post"):
        end = "logits"
    if start is None or end is None or reader is None:
        unknown = source if start is None else destination
        raise AcdcError(f"{path}: {unknown!r} of edge ({source!r}, {destination!r}) is no part of the graph")
    if start == end:
        return None
    port = re.fullmatch(r"hook_([qkv])_input", reader.point)
    if reader.head is not None and port is None:
        raise AcdcError(f"{path}: edge ({source!r}, {destination!r}) ends in a head, but at none of q, k and v")
    return f"{start}->{end}" + (f"<{port[1]}>" if port else "")


# ---- files ------------------------------------------------------------------------------------------------------


def _find(folder: str | Path, patterns: tuple[str, ...]) -> Path:
    """The file of a folder that matches the first pattern that any does.

    Raises:
        AcdcError: there is none, or more than one.
    """
    for pattern in patterns:
        found = sorted(Path(folder).glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise AcdcError(f"{folder} holds several models ({names}): put each into a folder of its own")
        if found:
            return found[0]
    raise AcdcError(f"{folder}: expected a file {' or '.join(patterns)} of an InterpBench case, found none")


def _read_data(path: Path) -> Any:
    content = read(path)
    return parse_json(content, str(path)) if path.suffix == ".json" else read_pickle(content, str(path))


def _plain(value: Any) -> Any:
    """A setting as JSON would have it: a number of NumPy as a number; of other things only the name."""
    match value:
        case Made(Named(_, "scalar"), (Made(Named("numpy", "dtype"), (str(kind), *_)), content)):
            if isinstance(content, Made):  # _codecs.encode of a text
                content = str(content.arguments[0]).encode("latin1")
            return np.frombuffer(content, dtype=np.dtype(kind).newbyteorder("<"))[0].item()
        case Made(what):
            return str(what)
        case Named():
            return str(value)
    return value


def _is_pair(edge: Any) -> bool:
    return isinstance(edge, list | tuple) and len(edge) == 2 and all(isinstance(end, str) for end in edge)


def _classes(found: Any) -> str:
    """The classes of the objects that a pickle would have made, in words; "" if there are none."""
    if isinstance(found, Made):
        return _classes(found.what) or _classes(found.arguments)
    if isinstance(found, Named):
        return str(found)
    if isinstance(found, list | tuple | set | frozenset):
        return next((name for name in map(_classes, found) if name), "")
    return ""
