"""The folder through which environments exchange a job and its results. Imports only torch and safetensors.

Scores are exchanged in one convention: how much an edge helps. That is minus the change of the mean logit difference
when the edge is patched with its corrupted activation; names are `a0.h1->a2.h3<q>`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Job:
    """What a tool is asked to do.

    Attributes:
        works: among "eap", "eap-ig", "exact" and "acdc".
        tau: ACDC's threshold on the KL divergence; steps: of eap-ig.
        edges: names of all edges in our order of search, the one tested first at the front.
        clean, corrupted: `[pair, position]` tokens; answers, wrong: `[pair]`, read at the last position.
    """

    folder: Path
    works: tuple[str, ...]
    tau: float
    steps: int
    repeats: int
    threads: int
    edges: tuple[str, ...]
    clean: Tensor
    corrupted: Tensor
    answers: Tensor
    wrong: Tensor

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def write(self) -> None:
        settings = {name: getattr(self, name) for name in ("works", "tau", "steps", "repeats", "threads", "edges")}
        (self.folder / "job.json").write_text(json.dumps(settings))
        tensors = {name: getattr(self, name) for name in ("clean", "corrupted", "answers", "wrong")}
        save_file(tensors, self.folder / "pairs.safetensors")

    @classmethod
    def read(cls, folder: str | Path) -> Job:
        folder = Path(folder)
        settings = json.loads((folder / "job.json").read_text())
        settings["works"], settings["edges"] = tuple(settings["works"]), tuple(settings["edges"])
        settings |= load_file(folder / "pairs.safetensors")
        return cls(folder=folder, **settings)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a tool gave for one work.

    Attributes:
        edges: a number for every edge by name (for "acdc": 1 kept, 0 removed).
        seconds: wall time of each repetition.
        forward_seconds: of the bare Hugging Face model's forward, measured before and after in the same process.
    """

    edges: dict[str, float]
    seconds: list[float]
    forward_seconds: list[float]


def write_results(folder: Path, tool: str, package: str, results: dict[str, Result]) -> None:
    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    try:
        versions[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
        versions[package] = "a checkout"
    record = {"versions": versions, "works": {name: dataclasses.asdict(result) for name, result in results.items()}}
    temporary = folder / f".{tool}.tmp"
    temporary.write_text(json.dumps(record))
    os.replace(temporary, folder / f"{tool}.json")


def read_results(folder: Path, tool: str) -> tuple[dict[str, str], dict[str, Result]]:
    """Versions, and the result of each work."""
    record = json.loads((folder / f"{tool}.json").read_text())
    return record["versions"], {name: Result(**result) for name, result in record["works"].items()}


class Clock:
    """Times works beside the bare model's forward.

    Args:
        job: says how often.
        module: the bare Hugging Face model.
    """

    def __init__(self, job: Job, module: Any) -> None:
        self._job, self._module = job, module

    @torch.no_grad()
    def _forward(self) -> list[float]:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            self._module(input_ids=self._job.clean, use_cache=False)
            times.append(time.perf_counter() - start)
        return times

    def time(self, work: Callable[[], T]) -> tuple[T, list[float], list[float]]:
        """What the work gives, its seconds, and those of the forward passes around it."""
        value = work()  # warm
        forward, seconds = self._forward(), []
        for _ in range(self._job.repeats):
            start = time.perf_counter()
            value = work()
            seconds.append(time.perf_counter() - start)
            forward += self._forward()
        return value, seconds, forward

    def result(self, work: Callable[[], dict[str, float]]) -> Result:
        return Result(*self.time(work))


def load_bare(job: Job) -> Any:
    """The model as `transformers` has it."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job.threads)
    return AutoModelForCausalLM.from_pretrained(str(job.model), dtype=torch.float32).eval()
