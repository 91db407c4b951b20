"""What made a result: method, model, prompts, options and versions, and how to make it again."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic


def library_versions() -> dict[str, str]:
    """Versions of the libraries that results depend on."""
    return dict(_versions())


@functools.cache
def _versions() -> Mapping[str, str]:
    versions = {}
    for name in ("acdc-circuits", "numpy", "torch", "transformers"):
        try:
            versions[name] = metadata.version(name)  # reads and parses a file
        except metadata.PackageNotFoundError:
            continue
    return versions


def plain(value: Any) -> Any:
    """Numpy numbers and arrays, tuples and sets as what JSON has, and names of files that are no text as text."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return plain(str(value)) if isinstance(value, Path) else value


Record = Annotated[dict[str, pydantic.JsonValue], pydantic.BeforeValidator(plain)]


Name = Annotated[str, pydantic.BeforeValidator(plain)]


class Provenance(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What made a result, and how to make it again.

    Attributes:
        model: name or folder of the model, as given to `acdc.load`.
        revision: of the hub model; None: its main one, or of no hub model.
        tokenizer: hub name or folder of its tokenizer; None: its own, or one that was given in memory.
        config_hash: short hash of its configuration.
        dtype, weights_sha256: of its weights (see `acdc.engine.belonging`); empty if unknown, as in older files.
        d_model: its width, which peers' file formats ask for.
        task: name of the task.
        task_options: how it was loaded, if not by its defaults (size, split, its own options).
        n_prompts: how many it was found on; None if unknown, as in older files.
        prompts_sha256, held_out_sha256: of the prompts' tokens, answers and positions; empty if unknown, or if there
            are none.
        method: name of the method.
        options: the method's options.
        selection: how edges were chosen from scores.
        ablation, metric, seed: as the method was run with.
        versions: of the libraries it was run with.
        command: the command line, as a list of arguments.
        measured: numbers measured on the result, by name (a faithfulness, for instance).
    """

    model: Name = ""
    revision: str | None = None
    tokenizer: Name | None = None
    config_hash: str = ""
    dtype: str = ""
    weights_sha256: str = ""
    d_model: int | None = None
    task: Name = ""
    task_options: Record = {}
    n_prompts: int | None = None
    prompts_sha256: str = ""
    held_out_sha256: str = ""
    method: str = ""
    options: Record = {}
    selection: Record = {}
    ablation: str = ""
    metric: str = ""
    seed: int | None = None
    versions: dict[str, str] = pydantic.Field(default_factory=library_versions)
    command: tuple[Name, ...] = ()
    measured: Record = {}

    def facts(self) -> dict[str, str]:
        """Model, task, method, metric and ablation, those that are known."""
        names = ("model", "task", "method", "metric", "ablation")
        return {name: str(value) for name in names if (value := getattr(self, name))}

    def question(self) -> dict[str, Any]:
        """What a faithfulness is of, on however many prompts: model, task, metric and ablation."""
        options = {name: value for name, value in self.task_options.items() if name != "size"}
        return {
            "model": self.model, "task": self.task, "options": options, "metric": self.metric,
            "ablation": self.ablation,
        }  # fmt: skip

    def having(self, **changes: Any) -> Provenance:
        """A copy with some fields changed, validated."""
        return Provenance(**{**dict(self), **changes})
